"""Which fast paths each kind of layer of a model takes on this machine, and why not where it does not.

A *path* is the implementation that computes a part: a backend of the operator, a fused step of the native library, the
captured layers of `limelight.nn.capture`, or PyTorch's own operations. Nothing is computed: every decision is made
by the same code as in a run, over tensors of the same sizes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from .. import fused
from ..backends import native
from ..forms.scores import ScoreRule
from ..nn import SSRU, FeedForward, GatedFeedForward, MultiHead, Projection, RMSNorm
from ..nn.capture import Graph
from ..nn.positions import SplitHalves
from ..operator.explanation import explain
from ..tensors.shapes import whole_number, wrong
from . import DecoderOnly, EncoderDecoder, Stack

NATIVE, PYTORCH = "native", "PyTorch"
FAILS = "none"  # as of a call that no backend serves
CAPTURED, CALLED = "captured", "called one by one"


@dataclass(frozen=True)
class Path:
    """How a part is computed.

    Args:
        taken: the implementation.
        reasons: for each faster or other implementation, why it is not taken.
    """

    taken: str
    reasons: dict[str, list[str]]


@dataclass(frozen=True)
class PartPaths:
    """The paths of one kind of part.

    Args:
        part: what it does: ``"attention"``, ``"rotation"``, ``"recurrence"``, ``"matrix products"``,
            ``"activation"``, ``"norm"`` or ``"whole layer"``; with ``"encoder "`` before it in the encoder of an
            encoder-decoder.
        kind: its class and settings.
        count: how many of them the model has.
        prompt: the path over a prompt.
        token: the path over the next token; ``None`` in encoders, which write nothing.
    """

    part: str
    kind: str
    count: int
    prompt: Path
    token: Path | None

    def as_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


def fast_paths(network: Stack, length: int, *, dtype: torch.dtype = torch.float32) -> list[PartPaths]:
    """Return the paths of every kind of part of a model on this machine's CPU, without a gradient.

    >>> from limelight.checkpoints.load import outline
    >>> paths = fast_paths(outline("smollm2"), 512)
    >>> [(found.part, found.kind, found.count) for found in paths][0]
    ('attention', 'MultiHead, Causal(), 9 / 3 heads of 64', 30)

    Args:
        network: a model of ours; on the meta device it takes no memory.
        length: tokens of the prompt; a token is then written after as many.
        dtype: of weights and states.

    Raises:
        ArgumentError: ``length`` is below 1 or exceeds the positions of the model.
    """
    whole_number("length", length, at_least=1)
    limit = network.config.limit
    if limit is not None and length > limit:
        raise wrong("length", f"must be at most the model's {limit} positions", f"it is {length}", f"Use {limit}.")
    found: list[PartPaths] = []
    if isinstance(network, EncoderDecoder):
        found += _grouped(_parts(network.encoder, length, dtype, "encoder ", writes=False))
    writes = isinstance(network, (DecoderOnly, EncoderDecoder))
    return found + _all_or_none(_grouped(_parts(network, length, dtype, "", writes=writes)))


def _all_or_none(found: list[PartPaths]) -> list[PartPaths]:
    """Correct the paths of whole layers: all are captured together, or none."""
    whole = [one.token for one in found if one.part == "whole layer" and one.token is not None]
    if all(path.taken == CAPTURED for path in whole):
        return found
    together = Path(CALLED, {CAPTURED: ["layers are captured together, and another kind of them is not capturable"]})
    return [
        replace(one, token=together) if one.token is not None and one.token.taken == CAPTURED else one for one in found
    ]


def _grouped(parts: Iterator[PartPaths]) -> list[PartPaths]:
    """Join equal parts, and count them."""
    kinds: dict[str, list[PartPaths]] = {}
    for one in parts:
        kinds.setdefault(repr(one), []).append(one)
    order = ("attention", "rotation", "recurrence", "matrix products", "activation", "norm", "whole layer")
    joined = [replace(some[0], count=len(some)) for some in kinds.values()]
    return sorted(joined, key=lambda one: order.index(one.part.removeprefix("encoder ")))


def _parts(stack: Stack, length: int, dtype: torch.dtype, where: str, *, writes: bool) -> Iterator[PartPaths]:
    """Yield the parts of a stack, one by one; equal layers are examined once."""
    shared = _shared_rules(stack, dtype)
    known: dict[Any, list[PartPaths]] = {}
    for block in stack.layers:
        kind = _kind(block)
        if kind not in known:
            found = [*_inside(block, length, dtype, shared), _whole(block, stack.config.width, dtype, shared, writes)]
            known[kind] = [replace(one, part=where + one.part, token=one.token if writes else None) for one in found]
        yield from known[kind]
    for module in (stack.norm, stack.head):
        for one in () if module is None else _inside(module, length, dtype, ()):
            yield replace(one, part=where + one.part, token=one.token if writes else None)


def _kind(block: nn.Module) -> tuple[Any, ...]:
    """Return a key that equal layers share: what they print apart from their names, and their activations."""
    activations = [getattr(part, "activation", None) for part in block.modules()]
    return re.sub(r"name='[^']*'", "", repr(block)), *activations


def _inside(module: nn.Module, length: int, dtype: torch.dtype, shared: tuple[ScoreRule, ...]) -> Iterator[PartPaths]:
    """Yield the paths of everything inside a layer that has a path of its own."""
    precision = str(dtype).removeprefix("torch.")
    for name, part in module.named_modules():
        if isinstance(part, MultiHead):
            rules = _rules(part, dtype) + (() if name.startswith("cross") else shared)
            prompt, token = (_attention(part, rules, queries, length, dtype) for queries in (length, 1))
            yield PartPaths("attention", _attention_kind(part, rules), 1, prompt, token)
            if part.rotary is not None:
                yield _alike("rotation", part.rotary.pairing, _rotation(part.rotary.pairing, dtype))
        elif isinstance(part, SSRU):
            yield _alike("recurrence", part, _fused(dtype, "a recurrence has no fused step"))
        elif isinstance(part, Projection) or getattr(part, "tied", False):
            yield PartPaths("matrix products", precision, 1, _products(length, dtype), _products(1, dtype))
        elif isinstance(part, (GatedFeedForward, FeedForward)):
            yield _alike("activation", part.activation, _activation(part, dtype))
        elif isinstance(part, (RMSNorm, nn.LayerNorm)):
            yield _alike("norm", part, _norm(part, dtype))


def _alike(part: str, kind: Any, path: Path) -> PartPaths:
    """Return a part whose path is the same over a prompt and over a token."""
    return PartPaths(part, getattr(kind, "__name__", type(kind).__name__), 1, path, path)


def _whole(block: nn.Module, width: int, dtype: torch.dtype, shared: tuple[ScoreRule, ...], writes: bool) -> PartPaths:
    """Return whether a layer is called part by part or runs as captured."""
    prompt = Path(CALLED, {CAPTURED: [f"at most {fused.MAX_ROWS} tokens are captured"]} if writes else {})
    token = _capture(block, width, dtype, shared) if writes else None
    return PartPaths("whole layer", type(block).__name__, 1, prompt, token)


# --- Attention --------------------------------------------------------------------------------------------------------


def _attention_kind(layer: MultiHead, rules: tuple[ScoreRule, ...]) -> str:
    D = layer.head_width
    heads = f"{layer.query.out_features // D} / {layer.key.out_features // D} heads of {D}"
    parts = ["MultiHead", "Full()" if layer.pattern is None else repr(layer.pattern), heads]
    parts += [type(rule).__name__ for rule in (layer.compare, *rules) if rule is not None]
    parts += ["sink"] if layer.sink is not None else []
    return ", ".join(parts)


def _attention(layer: MultiHead, rules: tuple[ScoreRule, ...], queries: int, keys: int, dtype: torch.dtype) -> Path:
    """Return the backend that computes the calls of a layer."""
    D, Dv = layer.head_width, layer.value_width
    Hq, Hkv = layer.query.out_features // D, layer.key.out_features // D
    one = torch.zeros((), dtype=dtype, device="cpu")  # seen at every place: nothing of this size is held
    query, key, value = one.expand(1, Hq, queries, D), one.expand(1, Hkv, keys, D), one.expand(1, Hkv, keys, Dv)
    sink = None if layer.sink is None else one.expand(Hq)
    compare = layer.compare
    if isinstance(compare, nn.Module):
        compare = _on_cpu(compare, dtype)(one)
    found = explain(
        query, key, value, pattern=layer.pattern, scores=rules, compare=compare, sink=sink, scale=layer.scale
    )
    return Path(found.backend or FAILS, {name: why for name, why in found.reasons.items() if why})


def _rules(layer: MultiHead, dtype: torch.dtype) -> tuple[ScoreRule, ...]:
    """Return the score rules of a layer, those of modules made on the CPU."""
    heads = torch.zeros((), dtype=dtype, device="cpu")
    return tuple(_on_cpu(rule, dtype)(heads) if isinstance(rule, nn.Module) else rule for rule in layer.scores)


def _shared_rules(stack: Stack, dtype: torch.dtype) -> tuple[ScoreRule, ...]:
    """Return the score rule that all layers of a stack share, such as the bias of T5."""
    if stack.scores is None:
        return ()
    return (_on_cpu(stack.scores, dtype)(torch.zeros((), dtype=dtype, device="cpu")),)


# --- Fused steps ------------------------------------------------------------------------------------------------------


def _fused_reasons(dtype: torch.dtype) -> list[str]:
    """Return why the native library would not compute a fused step of CPU tensors of a dtype."""
    return fused.reasons_against(torch.empty(1, 2, dtype=dtype, device="cpu"))


def _fused(dtype: torch.dtype, *more: str) -> Path:
    """Return the path of a fused step that is refused for ``more`` reasons."""
    reasons = [*more, *_fused_reasons(dtype)]
    if not reasons and native.why_failing():
        return Path(FAILS, {NATIVE: [native.why_failing()]})
    return Path(PYTORCH, {NATIVE: reasons}) if reasons else Path(NATIVE, {})


def _norm(norm: nn.Module, dtype: torch.dtype) -> Path:
    return _fused(dtype) if isinstance(norm, RMSNorm) else _fused(dtype, f"{type(norm).__name__} has no fused step")


def _activation(layer: FeedForward | GatedFeedForward, dtype: torch.dtype) -> Path:
    if isinstance(layer, FeedForward):
        return _fused(dtype, "only gates have a fused step, and this feed-forward has none")
    name = getattr(layer.activation, "__name__", type(layer.activation).__name__)
    known = layer.activation in fused.SIGMOID_FORMS
    return _fused(dtype, *([] if known else [f"the activation {name} has no fused step"]))


def _rotation(pairing: Any, dtype: torch.dtype) -> Path:
    known = type(pairing) is SplitHalves
    return _fused(dtype, *([] if known else [f"{type(pairing).__name__} has no fused step"]))


def _products(tokens: int, dtype: torch.dtype) -> Path:
    """Return what multiplies ``tokens`` vectors with a matrix."""
    if tokens <= fused.MAX_ROWS:
        return _fused(dtype)
    states = torch.empty(tokens, 2, dtype=dtype, device="cpu")
    if fused.matmul_is_faster(states, torch.empty(2, 2, dtype=dtype, device="cpu"), None):
        return Path(NATIVE, {})
    reasons = _fused_reasons(dtype)
    if dtype not in (torch.float32, torch.float64):
        reasons.append("products of many vectors are computed in float32 and float64 alone")
    elif not reasons:
        isa = native.instruction_set()
        reasons.append(
            f"it is faster than PyTorch's product on AMD processors with AVX-512 alone; this is {isa or 'none'}"
        )
    return Path(PYTORCH, {NATIVE: reasons})


# --- Captured layers --------------------------------------------------------------------------------------------------


def _capture(block: nn.Module, width: int, dtype: torch.dtype, shared: tuple[ScoreRule, ...]) -> Path:
    """Return whether the next token runs through a layer as one captured call of the native library."""
    with torch.inference_mode():
        states = torch.zeros(1, 1, width, dtype=dtype, device="cpu")
        reasons = [f"{type(rule).__name__} is made again in each pass" for rule in shared]
        failing = [native.why_failing()] if native.why_failing() else []
        reasons += _fused_reasons(dtype) or failing or _uncaptured(_on_cpu(block, dtype), states)
    return Path(CALLED, {CAPTURED: reasons}) if reasons else Path(CAPTURED, {})


def _uncaptured(layer: nn.Module, states: Tensor) -> list[str]:
    """Why a layer cannot be captured; empty where it can."""
    reason = Graph(nn.ModuleList([layer]), states).reason
    return [reason] if reason else []


def _on_cpu(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return a copy of a module with memory on the CPU that nothing has written: pages of it are never touched."""
    return deepcopy(module).to(dtype).to_empty(device="cpu")
