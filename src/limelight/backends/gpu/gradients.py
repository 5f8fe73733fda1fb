"""Host side of the backward pass: launches of the backward kernels, and the sums that PyTorch computes.

Every sum has one *owner*, the program that accumulates it: of a tile of queries, of keys, or of a bias.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...forms.scores import RelativeBias
from ..contract import Call
from . import arguments, machine, plans, tuning
from .constants import KernelConstants
from .launching import launch
from .normalizers import Normalizers, normalizers
from .score_rules import distance_range, kernel_rules, rule_arguments
from .visibility import Visibility, nothing_visible, visibility


def reasons_against_backward(call: Call) -> list[str]:
    """Why `backward` cannot serve a call that `forward` serves: always empty, since it serves all of them."""
    return []


class BackwardInputs(NamedTuple):
    """The tensors that every backward kernel reads."""

    query: Tensor
    key: Tensor
    value: Tensor
    grad: Tensor  # of the output
    normalizers: Normalizers
    delta: Tensor  # (B, Hq, Lq) float32

    @property
    def strides(self) -> tuple[tuple[int, ...], ...]:
        """The strides of query, key, value and the gradient of the output, without the last, which is 1."""
        return tuple(x.stride()[:3] for x in (self.query, self.key, self.value, self.grad))


class Gradients(NamedTuple):
    """The tensors that the owners of queries and of keys write; zeros where they do not write every element."""

    query: Tensor
    key: Tensor
    value: Tensor
    slopes: dict[int, Tensor]  # by the number of the score rule: each query's share, (B, Hq, Lq)
    vector: Tensor | None  # each query's share of the gradient of the comparison's vector, (B, Hq, Lq, D)


# Launches the owners: of queries, of keys and values, each where the last argument says that it is needed.
LaunchOwners = Callable[[Call, BackwardInputs, Gradients, tuple[bool, bool]], None]


def backward(
    call: Call,
    output: Tensor,
    logsumexp: Tensor,
    grad_output: Tensor,
    grad_logsumexp: Tensor | None,
    wanted: tuple[bool, ...],
    owners: LaunchOwners | None = None,
) -> tuple[Tensor | None, ...]:
    """Gradients of a call, as `limelight.backends.contract.Differentiable.backward` describes.

    Args:
        call: the call of the forward pass, its tensors detached.
        output: its output, ``(B, Hq, Lq, Dv)``.
        logsumexp: its logsumexp, ``(B, Hq, Lq)``.
        grad_output: the gradient of the output.
        grad_logsumexp: the gradient of the logsumexp; ``None`` for zeros.
        wanted: which gradients are wanted: of query, key, value, then of each of the call's learned operands.
        owners: computes the gradients of query, key, value, slopes and vector; by default `launch_owners`.
    """
    tensors = [call.query, call.key, call.value, output, logsumexp, grad_output]
    if grad_logsumexp is not None:
        tensors.append(grad_logsumexp)

    def run() -> tuple[Tensor | None, ...]:
        return _backward(call, output, logsumexp, grad_output, grad_logsumexp, wanted, owners or launch_owners)

    return plans.planned(call, ("backward", owners, wanted, len(tensors)), tuple(tensors), run)


def _backward(
    call: Call, output: Tensor, logsumexp: Tensor, grad_output: Tensor, grad_logsumexp: Tensor | None,
    wanted: tuple[bool, ...], owners: LaunchOwners,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    B, Hq, _, Lq, _, D, Dv = call.shapes
    device = call.query.device
    query, key, value, grad = (arguments.with_unit_stride(x) for x in (call.query, call.key, call.value, grad_output))
    delta = deltas(grad, output, grad_logsumexp)
    nothing = nothing_visible(call.lowered) or 0 in (Lq, Dv)
    inputs = BackwardInputs(query, key, value, grad, normalizers(call, logsumexp, nothing), delta)
    kinds = kernel_rules(call)
    slopes = [n for n, kind in enumerate(kinds) if kind.of_queries]
    first = 3 + (call.sink is not None)  # the index in `wanted` at which the tensors of the rules begin
    places = list(itertools.accumulate([len(rule.tensors()) for rule in call.scores], initial=first))
    by_slopes = {n: torch.zeros((B, Hq, Lq), dtype=torch.float32, device=device) for n in slopes if wanted[places[n]]}
    by_vector = None
    if call.compare is not None and wanted[places[-1]]:
        by_vector = torch.zeros((B, Hq, Lq, D), dtype=torch.float32, device=device)
    of_queries = torch.empty_like if call.lowered.covers and not nothing else torch.zeros_like
    of_keys = torch.empty_like if call.lowered.covers_keys and not nothing else torch.zeros_like
    gradients = Gradients(of_queries(query), of_keys(key), of_keys(value), by_slopes, by_vector)
    if not nothing:
        needed = wanted[0] or bool(by_slopes) or by_vector is not None, wanted[1] or wanted[2]
        owners(call, inputs, gradients, needed)
    found: list[Tensor | None] = [*gradients[:3]]
    if call.sink is not None:
        found.append(_sink_gradient(call, inputs, logsumexp))
    for n, rule in enumerate(call.scores):
        if n in by_slopes:
            like = rule.tensors()[0]
            found.append(by_slopes[n].sum(-1).sum_to_size(like.shape).to(like.dtype))
        elif (kinds[n].of_pairs or kinds[n].of_distances) and wanted[places[n]]:
            of = _bias_gradient if kinds[n].of_pairs else _table_gradient
            found.append(torch.zeros_like(rule.tensors()[0]) if nothing else of(call, n, inputs))
        else:
            found += [None] * len(rule.tensors())
    if call.compare is not None:
        like = call.compare.vector
        found.append(None if by_vector is None else by_vector.sum((0, 2)).sum_to_size(like.shape).to(like.dtype))
    return tuple(gradient if want else None for gradient, want in zip(found, wanted, strict=True))


def deltas(grad: Tensor, output: Tensor, grad_logsumexp: Tensor | None) -> Tensor:
    """``sum_e grad_ie output_ie`` minus the gradient of the logsumexp, ``(B, Hq, Lq)`` float32."""
    from .kernels.backward import deltas as kernels

    B, Hq, Lq, Dv = output.shape
    delta = torch.empty((B, Hq, Lq), dtype=torch.float32, device=output.device)
    output = arguments.with_unit_stride(output)
    if delta.numel():
        # More of float32 would spill 8 bytes on Blackwell.
        rows = 32 if output.itemsize == 2 else min(32, 2048 // tuning.width(Dv))
        launch(
            kernels.deltas, (-(-Lq // rows), Hq, B),
            grad, output, grad_logsumexp, delta, grad.stride()[:3], output.stride()[:3],
            (0, 0, 0) if grad_logsumexp is None else grad_logsumexp.stride(), Hq, Lq,
            VALUE_D=Dv, VALUE_WIDTH=tuning.width(Dv), ROWS=rows, num_warps=4,
        )  # fmt: skip
    return delta


class _Launch(NamedTuple):
    """The arguments that the Triton backward kernels of a call share."""

    of_queries: tuning.Tile
    of_keys: tuning.Tile
    visible: Visibility  # for tiles of queries
    const: KernelConstants
    common: tuple[Any, ...]  # scoring and dropout


def _launch(call: Call) -> _Launch:
    width = max(tuning.width(call.shapes.D), tuning.width(call.shapes.Dv))
    device = call.query.device
    generation, itemsize = machine.generation(device), call.query.dtype.itemsize
    of_queries, of_keys = tuning.backward_tiles(generation, itemsize, width, arguments.needs(call))
    visible = visibility(call.lowered, of_queries.rows, device)
    rules = rule_arguments(call)
    const = arguments.constants(call, rules, visible, 1, 1, of_queries)
    return _Launch(of_queries, of_keys, visible, const, (*arguments.scoring(call, rules), *arguments.dropout(call)))


def launch_owners(call: Call, inputs: BackwardInputs, gradients: Gradients, needed: tuple[bool, bool]) -> None:
    """Fill ``gradients`` by two kernels, one that owns tiles of queries and one that owns tiles of keys.

    ``needed``: whether the first has anything to compute, and the second. Each is followed by its rescue.
    """
    of_queries, of_keys, visible, const, common = _launch(call)
    device, Hq, Hkv = call.query.device, call.shapes.Hq, call.shapes.Hkv
    if needed[0] and visible.tiles:
        flags = torch.empty((visible.tiles, Hq, visible.rows), dtype=torch.int32, device=device)
        for n in list(gradients.slopes) or [-1]:
            for rescue in (False, True):
                query_gradient(call, inputs, gradients, flags, visible, const, common, of_queries, rescue, n)
    if needed[1]:
        by_keys = visible.by_keys(call.lowered, of_keys.keys, device)
        flags = torch.empty((by_keys.tiles, Hkv, by_keys.rows), dtype=torch.int32, device=device)
        for rescue in (False, True) if by_keys.tiles else ():
            key_gradient(call, inputs, gradients, flags, by_keys, const, common, of_keys, rescue)


def query_gradient(
    call: Call, inputs: BackwardInputs, gradients: Gradients, flags: Tensor, visible: Visibility,
    const: KernelConstants, common: tuple[Any, ...], tile: tuning.Tile, rescue: bool, slopes: int,
) -> None:  # fmt: skip
    """Launch the owner of queries: their gradients, and each query's share of those of slopes and vector.

    ``slopes`` is the number of the ALiBi rule whose slopes have a gradient, or -1. A ``rescue`` computes only the tiles
    whose ``flags`` the first launch has set.
    """
    from .kernels.backward import query as kernels

    B, Hq, Hkv, Lq, *_ = call.shapes
    vector = None if slopes > min(gradients.slopes, default=slopes) else gradients.vector  # in the first launch alone
    launch(
        kernels.query_gradient, (visible.tiles, Hq, visible.rows),
        *inputs, gradients.query, gradients.slopes.get(slopes), vector, flags, *inputs.strides,
        gradients.query.stride()[:3],
        B, Hq, Hq // Hkv, Lq, *visible.of_tile, *common,
        const=dataclasses.replace(const, ROWS=tile.rows, BLOCK=tile.keys), RESCUE=rescue, SLOPES=slopes,
        VECTOR=vector is not None, num_warps=tile.warps, num_stages=1 if rescue else tile.stages,
    )  # fmt: skip


def key_gradient(
    call: Call, inputs: BackwardInputs, gradients: Gradients, flags: Tensor, visible: Visibility,
    const: KernelConstants, common: tuple[Any, ...], tile: tuning.Tile, rescue: bool,
) -> None:  # fmt: skip
    """Launch the owner of keys and values; a ``rescue`` computes only the tiles whose ``flags`` are set."""
    from .kernels.backward import key as kernels

    B, Hq, Hkv, Lq, *_ = call.shapes
    launch(
        kernels.key_gradient, (visible.tiles, Hkv, visible.rows),
        *inputs, gradients.key, gradients.value, flags, *inputs.strides, gradients.key.stride()[:3],
        gradients.value.stride()[:3],
        B, Hq, Hq // Hkv, Lq, *visible.of_tile, *common,
        const=dataclasses.replace(const, ROWS=tile.rows, BLOCK=tile.keys), EDGE=tile.edge or tile.rows, RESCUE=rescue,
        num_warps=tile.warps, num_stages=1 if rescue else tile.stages,
    )  # fmt: skip


def _score_tiles(call: Call) -> tuple[tuning.Tile, tuning.Tile]:
    width = max(tuning.width(call.shapes.D), tuning.width(call.shapes.Dv))
    return tuning.score_tiles(machine.generation(call.query.device), call.query.dtype.itemsize, width)


def _bias_gradient(call: Call, n: int, inputs: BackwardInputs) -> Tensor:
    """The gradient of the tensor of rule ``n``, a `Bias`: of each entry the sum over the scores that share it."""
    from .kernels.backward import bias as kernels

    _, _, visible, const, common = _launch(call)
    B, Hq, Hkv, Lq, Lk, _, _ = call.shapes
    tensor = call.scores[n].tensors()[0]
    b, h, i, j = (1,) * (4 - tensor.dim()) + tuple(tensor.shape)
    tile, _ = _score_tiles(call)
    const = dataclasses.replace(const, ROWS=tile.rows, BLOCK=tile.keys)
    result = torch.empty((b, h, i, j), dtype=torch.float32, device=tensor.device)
    tiles_i, tiles_j = -(-Lq // const.ROWS), -(-Lk // const.BLOCK)
    over = (B // b, Hq // h, tiles_i if i == 1 else 1, tiles_j if j == 1 else 1)
    launch(
        kernels.bias_gradient, ((1 if i == 1 else tiles_i) * (1 if j == 1 else tiles_j), h, b),
        *inputs, result, *inputs.strides, Hq, Hq // Hkv, Lq, Lk,
        *visible.of_all_segments, *common, over,
        const=const, RULE=n, SHARED_QUERIES=i == 1, SHARED_KEYS=j == 1, num_warps=tile.warps, num_stages=1,
    )  # fmt: skip
    return result.reshape(tensor.shape).to(tensor.dtype)


def _table_gradient(call: Call, n: int, inputs: BackwardInputs) -> Tensor:
    """The gradient of the table of rule ``n``, a `RelativeBias`: of every distance, then summed over each bucket."""
    from .kernels.backward import bias as kernels

    _, _, visible, const, common = _launch(call)
    B, Hq, Hkv, Lq, _, _, _ = call.shapes
    rule = call.scores[n]
    assert isinstance(rule, RelativeBias)
    low, high = distance_range(call.lowered)
    count = high - low + 1
    heads, buckets = rule.table.shape
    result = torch.empty((heads, count), dtype=torch.float32, device=rule.table.device)
    _, tile = _score_tiles(call)
    const = dataclasses.replace(const, ROWS=tile.rows, BLOCK=tile.keys)
    launch(
        kernels.distance_gradient, (-(-count // const.BLOCK), heads),
        *inputs, result, *inputs.strides, Hq, Hq // Hkv, Lq, *visible.of_all_segments, *common,
        B, Hq // heads, low, count, const=const, RULE=n, num_warps=tile.warps, num_stages=1,
    )  # fmt: skip
    of_distance = rule.bucket_of(torch.arange(low, high + 1, device=result.device))
    members = torch.nn.functional.one_hot(of_distance, buckets).to(torch.float32)
    # A product sums in a fixed order. Non-finite terms would spread to other buckets, so they are added after it.
    finite = result.isfinite()
    total = torch.where(finite, result, 0.0) @ members
    for kind in (torch.inf, -torch.inf, torch.nan):
        is_one = result.isnan() if kind != kind else result == kind
        total = torch.where(is_one.to(torch.float32) @ members > 0, total + kind, total)
    return total.to(rule.table.dtype)


def _sink_gradient(call: Call, inputs: BackwardInputs, logsumexp: Tensor) -> Tensor:
    """``-sum_i p_i delta_i`` for each head; ``p_i`` is the sink's weight in row ``i``, 1 where the row sees no key."""
    assert call.sink is not None
    empty = (logsumexp == -torch.inf) & (call.sink.float()[None, :, None] == -torch.inf)
    share = torch.where(empty, 0.0, inputs.normalizers.share_of_sink(call, logsumexp))
    return -torch.where(share == 0, 0.0, share * inputs.delta).sum((0, 2)).to(call.sink.dtype)
