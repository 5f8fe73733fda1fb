"""Pipeline parallelism: a network cut into stages of consecutive layers, for PyTorch's ``PipelineStage``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ..forms.layouts import Layout
from ..models import EncoderDecoder, Stack
from ..nn import ForwardContext
from ..nn.checks import refuse_spread
from ..nn.dropout import drawn_for
from ..nn.heads import TokenHead
from ..tensors.shapes import describe, whole_number, wrong

if TYPE_CHECKING:
    from torch.distributed.pipelining import PipelineStage


@dataclass(frozen=True)
class Shared:
    """A parameter that several stages hold, each a copy.

    Args:
        number: counts such parameters.
        stages: that hold it, ascending.
    """

    number: int
    stages: tuple[int, ...]


class Stage(Stack):
    """Consecutive layers of a network: the first stage with the embedding, the last one with norm and head.

    Made by `stages`; its parts are those of the network, under the same names, so that a state dict of the network
    fits. It reads token ids in the first stage, and the states ``(B, L, width)`` of the stage before in the others; it
    returns states, and in the last stage logits where the network has a head.

    Args:
        network: whose parts these are.
        layers: the numbers of its layers.
        last: whether norm and head come after them.
    """

    def __init__(self, network: Stack, layers: range, last: bool) -> None:
        nn.Module.__init__(self)
        self.config, self.within = network.config, network.within
        self.first, self.last = layers.start == 0, last
        head = network.head if last else None
        self.embedding = network.embedding if self.first else None  # type: ignore[assignment]
        if not self.first and isinstance(head, TokenHead) and head.tied:
            self.embedding = nn.Module()
            self.embedding.tokens = network.embedding.tokens
        self.scores = network.scores
        self.layers = nn.ModuleDict({str(number): network.layers[number] for number in layers})  # type: ignore[assignment]
        self.norm, self.head = network.norm if last else None, head
        self.shared: dict[str, Shared] = {}

    @property
    def attention_names(self) -> tuple[str, ...]:
        return tuple(f"{self.within}layers.{number}.attention" for number in self.layers)

    @property
    def learned_positions(self) -> bool:
        return self.first and super().learned_positions

    def forward(  # type: ignore[override]  # states instead of tokens, a tensor instead of an `Output`
        self,
        inputs: Tensor,
        *,
        layout: Layout | None = None,
        rows: Tensor | None = None,
        segments: Tensor | None = None,
    ) -> Tensor:
        """Run the stage on a microbatch. A schedule's ``step`` passes keyword arguments to the stage of its rank.

        Args:
            inputs: ``(B, L)`` token ids in the first stage, else ``(B, L, width)`` states.
            layout: which tokens exist, in which document: of the microbatch, or of the whole batch beside ``rows``.
            rows: ``(B,)``, the rows of the whole batch that the microbatch holds: a schedule divides
                ``torch.arange(batch)`` among the microbatches as it does the tokens.
            segments: ``(B, L)`` segment of each token, in the first stage.

        Returns:
            ``(B, L, width)`` states, or the logits of the head.

        Raises:
            ArgumentError: inputs of a wrong shape, a text longer than the model's positions.
        """
        if layout is not None and rows is not None:
            layout = layout.select(rows)
        if layout is not None and layout.spread:
            for part in self.modules():
                refuse_spread(part, layout)
        context = ForwardContext(layout, self._positions(inputs, layout, False), segments)
        with nullcontext() if layout is None or torch.compiler.is_compiling() else drawn_for(layout):
            states: Tensor = self.embedding(inputs, context) if self.first else inputs
            if self.scores is not None:
                context.scores = (self.scores(states),)
            for layer in self.layers.values():  # type: ignore[operator]
                states = layer(states, context)
        if self.norm is not None:
            states = self.norm(states)
        if self.head is None:
            return states
        return self.head_on(self.head.chosen(states, context))  # type: ignore[operator]

    def _sizes(self, tokens: Tensor) -> tuple[int, int]:
        if self.first:
            return super()._sizes(tokens)
        if not isinstance(tokens, Tensor) or tokens.dim() != 3 or tokens.shape[2] != self.config.width:
            rule = f"must be the states (B, L, {self.config.width}) of the stage before"
            raise wrong("inputs", rule, f"they are {describe(tokens)}", "Only the first stage reads token ids.")
        B, L, _ = tokens.shape
        return B, L


def stages(network: Stack, count: int, *, layers: Sequence[int] | None = None) -> list[Stage]:
    """Cut a network into stages of consecutive layers, each for a ``torch.distributed.pipelining.PipelineStage``.

    The first stage has the embedding, the last one the norm and the head (Huang et al. 2019, GPipe, arXiv:1811.06965;
    Narayanan et al. 2021, arXiv:2104.04473). The parts are those of the network and keep their names. So a network on
    the meta device may be cut first; the stage of a rank is then moved (``to_empty``) and filled.

    ::

        rank, count = dist.get_rank(), 4
        stage = PipelineStage(stages(network, count)[rank], rank, count, device)
        schedule = Schedule1F1B(stage, n_microbatches=8, loss_fn=loss)
        schedule.step(*([tokens] if rank == 0 else []), target=targets, layout=Packed((300, 724)))
        add_shared_gradients(stage)
        optimizer.step()

    A parameter that layers of several stages use (a tied embedding, the layers of ALBERT, a table of distances) is held
    by each of these stages, those after the first with a copy, also on the same rank. Its gradient is the sum of
    theirs, which `add_shared_gradients` takes. A stage is divided further as a network is: by ``parallelize_module``
    with `tensor_plan`, `divide_experts`, `shard`, in this order, and by a `ContextParallel` layout.

    Args:
        network: a model of this library with one stack of layers; it is not changed.
        count: the number of stages.
        layers: how many layers each stage has; ``None`` for as many in each, where they do not divide one more in the
            stages in the middle, since the first has the embedding and the last the head.

    Raises:
        ArgumentError: there are more stages than layers; the numbers do not add up to the layers; the network is an
            encoder-decoder, of which every stage of the decoder reads the last states of the encoder.
    """
    if not isinstance(network, Stack) or isinstance(network, (EncoderDecoder, Stage)):
        got = "its decoder reads the encoder's states in every layer" if isinstance(network, EncoderDecoder) else ""
        got = got or f"it is {describe(network)}"
        way_out = "Use shard, or tensor_plan, for an encoder-decoder."
        raise wrong("network", "must be one stack of layers to be cut into stages", got, way_out)
    numbers = _layers_of_stages(len(network.layers), whole_number("count", count, at_least=1), layers)
    cut = [Stage(network, numbers[n], n == count - 1) for n in range(count)]
    _share(cut)
    return cut


def _share(cut: Sequence[Stage]) -> None:
    """Note the parameters that several stages hold, and give those after the first a copy.

    A schedule divides the gradients of each stage by the number of microbatches: those of one parameter in two stages
    of a rank it would divide twice.
    """
    held: dict[nn.Parameter, dict[int, str]] = {}
    for n, stage in enumerate(cut):
        for name, parameter in stage.named_parameters():
            held.setdefault(parameter, {})[n] = name
    several = {parameter: names for parameter, names in held.items() if len(names) > 1}
    for number, names in enumerate(several.values()):
        for n, name in names.items():
            cut[n].shared[name] = Shared(number, tuple(names))
    for n, stage in enumerate(cut):
        copied = {parameter for parameter, names in several.items() if n in names and n > min(names)}
        for name, part in list(stage.named_children()):
            if not copied.isdisjoint(part.parameters()):
                kept = {id(parameter): parameter for parameter in part.parameters() if parameter not in copied}
                setattr(stage, name, deepcopy(part, kept))


def _layers_of_stages(total: int, count: int, layers: Sequence[int] | None) -> list[range]:
    """The numbers of the layers of each stage."""
    if layers is None:
        if count > total:
            got = f"it is {count}, and the network has {total}"
            raise wrong("count", "must be at most the number of layers", got, "Use fewer stages.")
        each = [total // count] * count
        middle = sorted(range(count), key=lambda n: abs(2 * n - count + 1))
        for n in middle[: total % count]:
            each[n] += 1
    else:
        each = [whole_number("layers", n, at_least=1) for n in layers]
        if len(each) != count or sum(each) != total:
            got = f"they are {each}, and there are {count} stages and {total} layers"
            raise wrong("layers", "must have a number for each stage, which add up to the layers", got, "Correct them.")
    ends = [sum(each[:n]) for n in range(count + 1)]
    return [range(first, last) for first, last in pairwise(ends)]


@torch.no_grad()
def add_shared_gradients(*own: PipelineStage) -> None:
    """Add up the gradients of parameters that stages of several ranks hold; after a schedule's step, on every rank.

    The ranks that hold such a parameter send each other its gradient, and each adds them in the order of the stages, in
    float32 (float64 for float64), rounded once: all have the same bits. A gradient that is sharded or divided by
    `tensor_plan` is added up part by part; stages are divided alike.

    Args:
        own: the ``PipelineStage`` of this rank, made of a `Stage`, or all of them where a rank has several.
    """
    held: dict[Shared, dict[int, nn.Parameter]] = {}
    for stage in own:
        part = cast("Stage", stage.submod)
        for name, shared in part.shared.items():
            held.setdefault(shared, {})[stage.stage_index] = part.get_parameter(name)
    for shared, parameters in sorted(held.items(), key=lambda item: item[0].number):
        if next(iter(parameters.values())).requires_grad:
            ranks = {n: own[0].stage_index_to_group_rank[n] for n in shared.stages}
            _add(parameters, ranks, own[0].group_rank, own[0].group)


def _add(parameters: Mapping[int, nn.Parameter], ranks: Mapping[int, int], rank: int, group: Any) -> None:
    """Replace the gradients of this rank's copies of a parameter by the sum over those of all stages.

    Args:
        parameters: the copies, by stage.
        ranks: of all stages that hold one.
        rank: this one.
        group: of the stages.
    """
    parts: dict[int, Tensor] = {}
    for n, parameter in parameters.items():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        if isinstance(parameter, DTensor) and isinstance(parameter.grad, DTensor):  # the first stage's is whole
            parameter.grad = parameter.grad.redistribute(placements=parameter.placements)
        parts[n] = _local(parameter.grad).contiguous()
    like, calls = next(iter(parts.values())), []
    for n, other in ranks.items():
        if other == rank:
            receivers = sorted(set(ranks.values()) - {rank})
            calls += [dist.P2POp(dist.isend, parts[n], group=group, group_peer=to) for to in receivers]
        else:
            parts[n] = torch.empty_like(like)
            calls.append(dist.P2POp(dist.irecv, parts[n], group=group, group_peer=other))
    for work in dist.batch_isend_irecv(calls) if calls else ():
        work.wait()
    total = torch.zeros_like(like, dtype=torch.promote_types(like.dtype, torch.float32))
    for n in ranks:
        total += parts[n]
    for parameter in parameters.values():
        assert parameter.grad is not None
        _local(parameter.grad).copy_(total)


def _local(gradient: Tensor) -> Tensor:
    return gradient.to_local() if isinstance(gradient, DTensor) else gradient
