"""Tensor parallelism: which matrices of a network are divided by their columns, and which by their rows."""

from __future__ import annotations

from torch import nn
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel

from ..models import EncoderDecoder, Stack
from ..nn import (
    SSRU,
    DistanceBias,
    FeedForward,
    GatedFeedForward,
    LinearBias,
    MixtureOfHeads,
    MultiHead,
)
from ..nn.heads import TokenHead
from ..tensors.shapes import wrong
from .styles import Divided, Heads, NormOfHeads, ScoresOfHeads, Vocabulary, uneven

KEY_VALUE_HEADS, QUERY_HEADS, FEATURES = "key-value heads", "query heads", "feed-forward features"


def tensor_plan(network: Stack, size: int | None = None) -> dict[str, ParallelStyle]:
    """Return how ranks divide a network, by the names of its modules, for PyTorch's ``parallelize_module``.

    Each rank computes neighbouring heads, feed-forward features and tokens of the vocabulary (Shoeybi et al. 2019,
    Megatron-LM, arXiv:1909.08053): the matrices of queries, keys, values, gates and ups are divided by output features,
    the matrices after them by input features, and the results of these are added by one all-reduce. Sinks, tables of
    distances and ALiBi's slopes are cut with their heads; the router of a mixture of experts is whole, and each of its
    experts is divided. The hidden states between layers, norms and positions are whole on every rank.

    ::

        mesh = init_device_mesh("cuda", (4,), mesh_dim_names=("tensor",))
        parallelize_module(network, mesh["tensor"], tensor_plan(network, 4))

    Dropout of attention weights and of feed-forward features draws the same numbers for the part of each rank, so a run
    with dropout differs from that of one process by its random numbers.

    Args:
        network: a model of this library, or a stage of one (`limelight.distributed.stages`); it is not changed.
        size: the number of ranks, to check at once that it divides every layer; ``None`` leaves this check to
            ``parallelize_module``, which would raise after some layers were divided.

    Returns:
        The style of each module that is divided.

    Raises:
        ArgumentError: the network has a part that cannot be divided, or ``size`` does not divide its heads or features.
    """
    plan: dict[str, ParallelStyle] = {}
    names = {id(part): name for name, part in network.named_modules()}  # shared parts once, under their first name
    for name, part in network.named_modules():
        for inner, style in _styles(name, part).items():
            plan.setdefault(names[id(network.get_submodule(inner))], style)
    stacks = {"": network} | ({"encoder.": network.encoder} if isinstance(network, EncoderDecoder) else {})
    for prefix, stack in stacks.items():
        table = getattr(stack.embedding, "tokens", None)
        if isinstance(table, nn.Embedding):
            plan.setdefault(names[id(table)], RowwiseParallel(input_layouts=Replicate()))
        if isinstance(stack.head, TokenHead):
            plan[f"{prefix}head"] = Vocabulary()
    for style in plan.values() if size is not None else ():
        if isinstance(style, Divided) and style.count % (size or 1):
            raise uneven(style.name, style.what, style.count, size or 1, "size")
    return plan


def _styles(name: str, part: nn.Module) -> dict[str, ParallelStyle]:
    """Return the styles of one module and of the matrices in it."""
    if isinstance(part, (MixtureOfHeads, SSRU)):
        raise _indivisible(name, f"it is {type(part).__name__}")
    if isinstance(part, MultiHead):
        return _of_attention(name, part)
    if isinstance(part, (FeedForward, GatedFeedForward)):
        columns = ("gate", "up") if isinstance(part, GatedFeedForward) else ("up",)
        styles: dict[str, ParallelStyle] = {name: Divided(name, FEATURES, part.inner)}
        styles |= {f"{name}.{one}": ColwiseParallel() for one in columns}
        return styles | {f"{name}.down": RowwiseParallel()}
    if isinstance(part, DistanceBias):
        return {name: ScoresOfHeads(name, QUERY_HEADS, part.weight.shape[1])}
    if isinstance(part, LinearBias):
        return {name: ScoresOfHeads(name, QUERY_HEADS, part.query_heads)}
    return {}


def _of_attention(name: str, part: MultiHead) -> dict[str, ParallelStyle]:
    if isinstance(part.compare, nn.Module) or (part.compare is not None and part.compare.tensors()):
        raise _indivisible(name, f"it compares by {type(part.compare).__name__}, which has tensors")
    for rule in part.score_modules:
        if not isinstance(rule, (DistanceBias, LinearBias)):
            raise _indivisible(name, f"its scores are made by {type(rule).__name__}")
    styles: dict[str, ParallelStyle] = {name: Heads(name, KEY_VALUE_HEADS, part.key.out_features // part.head_width)}
    styles |= {f"{name}.{one}": ColwiseParallel() for one in ("query", "key", "value")}
    norms = [one for one in ("query_norm", "key_norm") if getattr(part, one) is not None]
    styles |= {f"{name}.{one}": NormOfHeads() for one in norms}
    return styles | {f"{name}.output": RowwiseParallel()}


def _indivisible(name: str, got: str) -> Exception:
    rule = "must consist of MultiHead, FeedForward, GatedFeedForward and mixtures of experts to be divided over ranks"
    return wrong("network", rule, f"{name}: {got}", "Use limelight.distributed.shard (run.shard) instead.")
