"""The host side of the backward pass: who owns what, and the sums that are left to PyTorch."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...forms.scores import RelativeBias
from ..contract import Call
from . import machine, operands, tuning
from .form import Form
from .normalizers import Normalizers, normalizers


def reasons_against_backward(call: Call) -> list[str]:
    """Why `backward` cannot serve a call that `forward` serves: it serves all of them."""
    return []


class Given(NamedTuple):
    """What the owners of the gradients read."""

    query: Tensor
    key: Tensor
    value: Tensor
    grad: Tensor  # of the output
    normalizers: Normalizers
    delta: Tensor  # (B, Hq, Lq) float32

    @property
    def strides(self) -> tuple[tuple[int, ...], ...]:
        """Of the first four."""
        return tuple(x.stride()[:3] for x in (self.query, self.key, self.value, self.grad))


class Found(NamedTuple):
    """What they write, zeros before: gradients, for each query those of the slopes of a rule by its number, and, where
    it is wanted, that of the comparison's vector."""

    query: Tensor
    key: Tensor
    value: Tensor
    slopes: dict[int, Tensor]  # (B, Hq, Lq)
    vector: Tensor | None  # (B, Hq, Lq, D)


Owners = Callable[[Call, Given, Found, tuple[bool, bool]], None]  # the last: of queries, of keys and values


def backward(
    call: Call,
    output: Tensor,
    logsumexp: Tensor,
    grad_output: Tensor,
    grad_logsumexp: Tensor | None,
    wanted: tuple[bool, ...],
    owners: Owners | None = None,
) -> tuple[Tensor | None, ...]:
    """Gradients of the query, the key, the value, the sink, slopes and the comparison's vector, by their owners."""
    B, Hq, _, Lq, Lk, D, Dv = call.shapes
    device = call.query.device
    query, key, value, grad = (operands.readable(x) for x in (call.query, call.key, call.value, grad_output))
    delta = deltas(grad, output, grad_logsumexp)
    nothing = call.lowered.spans == b"" or 0 in (Lq, Lk, Dv)
    given = Given(query, key, value, grad, normalizers(call, logsumexp, nothing), delta)
    kinds = operands.kinds(call)
    slopes = [n for n, kind in enumerate(kinds) if kind.of_queries]
    first = 3 + (call.sink is not None)  # where the operands of the rules begin among those wanted
    places = list(itertools.accumulate([len(rule.tensors()) for rule in call.scores], initial=first))
    by_slopes = {n: torch.zeros((B, Hq, Lq), dtype=torch.float32, device=device) for n in slopes if wanted[places[n]]}
    by_vector = None
    if call.compare is not None and wanted[places[-1]]:
        by_vector = torch.zeros((B, Hq, Lq, D), dtype=torch.float32, device=device)
    mine = Found(torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value), by_slopes, by_vector)
    if not nothing:
        asked = wanted[0] or bool(by_slopes) or by_vector is not None, wanted[1] or wanted[2]
        (owners or by_owners)(call, given, mine, asked)
    found: list[Tensor | None] = [*mine[:3]]
    if call.sink is not None:
        found.append(_sink_gradient(call, given, logsumexp))
    for n, rule in enumerate(call.scores):
        if n in by_slopes:
            like = rule.tensors()[0]
            found.append(by_slopes[n].sum(-1).sum_to_size(like.shape).to(like.dtype))
        elif (kinds[n].of_pairs or kinds[n].of_distances) and wanted[places[n]]:
            of = _bias_gradient if kinds[n].of_pairs else _table_gradient
            found.append(torch.zeros_like(rule.tensors()[0]) if nothing else of(call, n, given))
        else:
            found += [None] * len(rule.tensors())
    if call.compare is not None:
        like = call.compare.vector
        found.append(None if by_vector is None else by_vector.sum((0, 2)).sum_to_size(like.shape).to(like.dtype))
    return tuple(gradient if want else None for gradient, want in zip(found, wanted, strict=True))


def deltas(grad: Tensor, output: Tensor, grad_logsumexp: Tensor | None) -> Tensor:
    """``sum_e grad_ie output_ie`` less the gradient of the logsumexp, ``(B, Hq, Lq)`` float32."""
    from .kernels.backward import deltas as kernels

    B, Hq, Lq, Dv = output.shape
    delta = torch.empty((B, Hq, Lq), dtype=torch.float32, device=output.device)
    output = operands.readable(output)
    if delta.numel():
        rows = 32
        kernels.deltas[-(-Lq // rows), Hq, B](
            grad, output, grad_logsumexp, delta, grad.stride()[:3], output.stride()[:3],
            (0, 0, 0) if grad_logsumexp is None else grad_logsumexp.stride(), Hq, Lq,
            VALUE_D=Dv, VALUE_WIDTH=tuning.width(Dv), ROWS=rows, num_warps=4,
        )  # fmt: skip
    return delta


class _Prepared(NamedTuple):
    """How Triton's kernels see a call."""

    of_queries: tuning.Tile
    of_keys: tuning.Tile
    sight: operands.Sight
    form: Form
    common: tuple[Any, ...]


def _prepared(call: Call) -> _Prepared:
    width = max(tuning.width(call.shapes.D), tuning.width(call.shapes.Dv))
    device = call.query.device
    demanding = (
        call.lowered.tiles is not None or call.dropout > 0 or any(kind.of_pairs for kind in operands.kinds(call))
    )
    generation, itemsize = machine.generation(device), call.query.dtype.itemsize
    of_queries, of_keys = tuning.backward_tiles(generation, itemsize, width, demanding)
    sight = operands.sight(call.lowered, of_queries.rows, device)
    rules = operands.rules(call)
    form = operands.form_of(call, rules, sight, 1, 1, of_queries)
    return _Prepared(of_queries, of_keys, sight, form, (*operands.scoring(call, rules), *operands.chance(call)))


def by_owners(call: Call, given: Given, found: Found, asked: tuple[bool, bool]) -> None:
    """One kernel owns tiles of queries, one owns tiles of keys."""
    of_queries, of_keys, sight, form, common = _prepared(call)
    device, Hq, Hkv = call.query.device, call.shapes.Hq, call.shapes.Hkv
    if asked[0] and sight.tiles:
        flags = torch.empty((sight.tiles, Hq, sight.rows), dtype=torch.int32, device=device)
        for n in list(found.slopes) or [-1]:
            for rescue in (False, True):
                query_gradient(call, given, found, flags, sight, form, common, of_queries, rescue, n)
    if asked[1]:
        mine = operands.keys_of(sight, call.lowered, of_keys.keys, device)
        flags = torch.empty((mine.tiles, Hkv, mine.rows), dtype=torch.int32, device=device)
        for rescue in (False, True) if mine.tiles else ():
            key_gradient(call, given, found, flags, mine, form, common, of_keys, rescue)


def query_gradient(
    call: Call, given: Given, found: Found, flags: Tensor, sight: operands.Sight, form: Form,
    common: tuple[Any, ...], tile: tuning.Tile, rescue: bool, slopes: int,
) -> None:  # fmt: skip
    """Fill the gradients of queries, and those of the slopes of a rule; as a rescue only where ``flags`` are set."""
    from .kernels.backward import query as kernels

    B, Hq, Hkv, Lq, *_ = call.shapes
    vector = None if slopes > min(found.slopes, default=slopes) else found.vector  # only once
    kernels.query_gradient[sight.tiles, Hq, sight.rows](
        *given, found.query, found.slopes.get(slopes), vector, flags, *given.strides, found.query.stride()[:3],
        B, Hq, Hq // Hkv, Lq, *sight.operands, *common,
        form=dataclasses.replace(form, ROWS=tile.rows, BLOCK=tile.keys), RESCUE=rescue, SLOPES=slopes,
        VECTOR=vector is not None, num_warps=tile.warps, num_stages=1 if rescue else tile.stages,
    )  # fmt: skip


def key_gradient(
    call: Call, given: Given, found: Found, flags: Tensor, sight: operands.Sight, form: Form,
    common: tuple[Any, ...], tile: tuning.Tile, rescue: bool,
) -> None:  # fmt: skip
    """Fill the gradients of keys and values; as a rescue only where ``flags`` are set."""
    from .kernels.backward import key as kernels

    B, Hq, Hkv, Lq, *_ = call.shapes
    kernels.key_gradient[sight.tiles, Hkv, sight.rows](
        *given, found.key, found.value, flags, *given.strides, found.key.stride()[:3], found.value.stride()[:3],
        B, Hq, Hq // Hkv, Lq, *sight.operands, *common,
        form=dataclasses.replace(form, ROWS=tile.rows, BLOCK=tile.keys), RESCUE=rescue,
        num_warps=tile.warps, num_stages=1 if rescue else tile.stages,
    )  # fmt: skip


def _score_tiles(call: Call) -> tuple[tuning.Tile, tuning.Tile]:
    width = max(tuning.width(call.shapes.D), tuning.width(call.shapes.Dv))
    return tuning.score_tiles(machine.generation(call.query.device), call.query.dtype.itemsize, width)


def _bias_gradient(call: Call, n: int, given: Given) -> Tensor:
    """Of the tensor of a `Bias`: each entry sums what the scores that share it have, in a fixed order."""
    from .kernels.backward import bias as kernels

    _, _, sight, form, common = _prepared(call)
    B, Hq, Hkv, Lq, Lk, _, _ = call.shapes
    tensor = call.scores[n].tensors()[0]
    b, h, i, j = (1,) * (4 - tensor.dim()) + tuple(tensor.shape)
    tile, _ = _score_tiles(call)
    form = dataclasses.replace(form, ROWS=tile.rows, BLOCK=tile.keys)
    result = torch.empty((b, h, i, j), dtype=torch.float32, device=tensor.device)
    tiles_i, tiles_j = -(-Lq // form.ROWS), -(-Lk // form.BLOCK)
    over = (B // b, Hq // h, tiles_i if i == 1 else 1, tiles_j if j == 1 else 1)
    kernels.bias_gradient[(1 if i == 1 else tiles_i) * (1 if j == 1 else tiles_j), h, b](
        *given, result, *given.strides, Hq, Hq // Hkv, Lq, Lk,
        *operands.all_segments(sight), *common, over,
        form=form, RULE=n, SHARED_QUERIES=i == 1, SHARED_KEYS=j == 1, num_warps=tile.warps, num_stages=1,
    )  # fmt: skip
    return result.reshape(tensor.shape).to(tensor.dtype)


def _table_gradient(call: Call, n: int, given: Given) -> Tensor:
    """Of the table of a `RelativeBias`: first of the bias at every distance, then, as a product, of its buckets."""
    from .kernels.backward import bias as kernels

    _, _, sight, form, common = _prepared(call)
    B, Hq, Hkv, Lq, _, _, _ = call.shapes
    rule = call.scores[n]
    assert isinstance(rule, RelativeBias)
    low, high = operands.distances(call.lowered)
    count = high - low + 1
    heads, buckets = rule.table.shape
    result = torch.empty((heads, count), dtype=torch.float32, device=rule.table.device)
    _, tile = _score_tiles(call)
    square = dataclasses.replace(form, ROWS=tile.rows, BLOCK=tile.keys)
    kernels.distance_gradient[-(-count // square.BLOCK), heads](
        *given, result, *given.strides, Hq, Hq // Hkv, Lq, *operands.all_segments(sight), *common,
        B, Hq // heads, low, count, form=square, RULE=n, num_warps=tile.warps, num_stages=1,
    )  # fmt: skip
    of_distance = rule.bucket_of(torch.arange(low, high + 1, device=result.device))
    members = torch.nn.functional.one_hot(of_distance, buckets).to(torch.float32)
    # A product sums in a fixed order; what is not finite is added afterwards, to its own bucket alone.
    finite = result.isfinite()
    total = torch.where(finite, result, 0.0) @ members
    for kind in (torch.inf, -torch.inf, torch.nan):
        is_one = result.isnan() if kind != kind else result == kind
        total = torch.where(is_one.to(torch.float32) @ members > 0, total + kind, total)
    return total.to(rule.table.dtype)


def _sink_gradient(call: Call, given: Given, logsumexp: Tensor) -> Tensor:
    """``-sum_i p_sink (delta_i)``; ``p_sink`` is what the sink takes of row ``i``, all of it where nothing is seen."""
    assert call.sink is not None
    blind = (logsumexp == -torch.inf) & (call.sink.float()[None, :, None] == -torch.inf)
    share = torch.where(blind, 0.0, given.normalizers.share_of_sink(call, logsumexp))
    return -torch.where(share == 0, 0.0, share * given.delta).sum((0, 2)).to(call.sink.dtype)
