"""The host side of the backward pass: who owns what, and the sums that are left to PyTorch."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import torch
from torch import Tensor

from ...scores import ALiBi, Bias, RelativeBias
from ..contract import Call
from . import machine, operands, tuning
from .form import Form

MOST_WIDTH = 256


def reasons_against_backward(call: Call) -> list[str]:
    """Why `backward` cannot serve a call that `forward` serves."""
    reasons = []
    if max(call.shapes.D, call.shapes.Dv) > MOST_WIDTH:
        reasons.append(f"the head width is above {MOST_WIDTH}")
    return reasons


def backward(
    call: Call,
    output: Tensor,
    logsumexp: Tensor,
    grad_output: Tensor,
    grad_logsumexp: Tensor | None,
    wanted: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """Gradients of the query, the key, the value, the sink, slopes and the comparison's vector, by their owners."""
    from .kernels import backward as kernels

    B, Hq, Hkv, Lq, Lk, D, Dv = call.shapes
    device, group = call.query.device, Hq // Hkv
    query, key, value, grad = (operands.readable(x) for x in (call.query, call.key, call.value, grad_output))
    delta = (grad.float() * output.float()).sum(-1)
    if grad_logsumexp is not None:
        delta -= grad_logsumexp
    lowered = call.lowered
    width = max(tuning.width(D), tuning.width(Dv))
    of_queries, of_keys = tuning.backward_tiles(machine.generation(device), call.query.dtype.itemsize, width)
    if lowered.tiles is not None or any(isinstance(rule, Bias) for rule in call.scores):
        of_queries, of_keys = (tile._replace(keys=min(tile.keys, 64), stages=1) for tile in (of_queries, of_keys))
    sight = operands.sight(lowered, of_queries.rows, device)
    rules = operands.rules(call)
    form = operands.form_of(call, rules, sight, 1, 1, of_queries)
    nothing = lowered.spans == b"" or 0 in (Lq, Lk, Dv)
    of_query, of_key, of_value = (torch.zeros_like(x) for x in (query, key, value))
    common = (*operands.scoring(call, rules), *operands.chance(call))
    strides = tuple(x.stride()[:3] for x in (query, key, value, grad))
    slopes = [n for n, rule in enumerate(call.scores) if isinstance(rule, ALiBi)]
    first = 3 + (call.sink is not None)  # where the operands of the rules begin among those wanted
    places = list(itertools.accumulate([len(rule.tensors()) for rule in call.scores], initial=first))
    slopes = [n for n in slopes if wanted[places[n]]]
    vector = call.compare is not None and wanted[places[-1]]
    by_slopes = {n: torch.zeros((B, Hq, Lq), dtype=torch.float32, device=device) for n in slopes}
    by_vector = torch.zeros((B, Hq, Lq, D), dtype=torch.float32, device=device) if vector else None
    if not nothing and sight.tiles and (wanted[0] or slopes or vector):
        grid = (sight.tiles, Hq, sight.rows)
        flags = torch.empty(grid, dtype=torch.int32, device=device)
        for turn, n in enumerate(slopes or [-1]):
            for rescue in (False, True):
                kernels.query_gradient[grid](
                    query, key, value, grad, logsumexp, delta, of_query, by_slopes.get(n), by_vector, flags,
                    *strides, of_query.stride()[:3], B, Hq, group, Lq, *sight.operands, *common,
                    form=form, RESCUE=rescue, SLOPES=n, VECTOR=vector and turn == 0,
                    num_warps=of_queries.warps, num_stages=1 if rescue else of_queries.stages,
                )  # fmt: skip
    if not nothing and (wanted[1] or wanted[2]):
        mine = operands.keys_of(sight, lowered, of_keys.keys, device)
        grid = (mine.tiles, Hkv, mine.rows)
        flags = torch.empty(grid, dtype=torch.int32, device=device)
        for rescue in (False, True) if mine.tiles else ():
            kernels.key_gradient[grid](
                query, key, value, grad, logsumexp, delta, of_key, of_value, flags,
                *strides, of_key.stride()[:3], of_value.stride()[:3], B, Hq, group, Lq, *mine.operands, *common,
                form=dataclasses.replace(form, ROWS=of_keys.rows, BLOCK=of_keys.keys), RESCUE=rescue,
                num_warps=of_keys.warps, num_stages=1 if rescue else of_keys.stages,
            )  # fmt: skip
    found: list[Tensor | None] = [of_query, of_key, of_value]
    if call.sink is not None:
        found.append(_sink_gradient(call.sink, logsumexp, delta))
    given = (query, key, value, grad, logsumexp, delta)
    for n, rule in enumerate(call.scores):
        if n in by_slopes:
            like = rule.tensors()[0]
            found.append(by_slopes[n].sum(-1).sum_to_size(like.shape).to(like.dtype))
        elif isinstance(rule, (Bias, RelativeBias)) and wanted[places[n]]:
            of = _bias_gradient if isinstance(rule, Bias) else _table_gradient
            found.append(torch.zeros_like(rule.tensors()[0]) if nothing else of(call, n, given, sight, common, form))
        else:
            found += [None] * len(rule.tensors())
    if call.compare is not None:
        like = call.compare.vector
        found.append(None if by_vector is None else by_vector.sum((0, 2)).sum_to_size(like.shape).to(like.dtype))
    return tuple(gradient if want else None for gradient, want in zip(found, wanted, strict=True))


def _bias_gradient(
    call: Call, n: int, given: tuple[Tensor, ...], sight: operands.Sight, common: tuple[Any, ...], form: Form
) -> Tensor:
    """Of the tensor of a `Bias`: each entry sums what the scores that share it have, in a fixed order."""
    from .kernels import backward as kernels

    B, Hq, Hkv, Lq, Lk, _, _ = call.shapes
    tensor = call.scores[n].tensors()[0]
    b, h, i, j = (1,) * (4 - tensor.dim()) + tuple(tensor.shape)
    result = torch.empty((b, h, i, j), dtype=torch.float32, device=tensor.device)
    tiles_i, tiles_j = -(-Lq // form.ROWS), -(-Lk // form.BLOCK)
    over = (B // b, Hq // h, tiles_i if i == 1 else 1, tiles_j if j == 1 else 1)
    kernels.bias_gradient[(1 if i == 1 else tiles_i) * (1 if j == 1 else tiles_j), h, b](
        *given, result, *(x.stride()[:3] for x in given[:4]), Hq, Hq // Hkv, Lq, Lk,
        *operands.all_segments(sight), *common, over,
        form=form, RULE=n, SHARED_QUERIES=i == 1, SHARED_KEYS=j == 1, num_warps=8, num_stages=1,
    )  # fmt: skip
    return result.reshape(tensor.shape).to(tensor.dtype)


def _table_gradient(
    call: Call, n: int, given: tuple[Tensor, ...], sight: operands.Sight, common: tuple[Any, ...], form: Form
) -> Tensor:
    """Of the table of a `RelativeBias`: first of the bias at every distance, then, as a product, of its buckets."""
    from .kernels import backward as kernels

    B, Hq, Hkv, Lq, _, _, _ = call.shapes
    rule = call.scores[n]
    assert isinstance(rule, RelativeBias)
    low, high = operands.distances(call.lowered)
    count = high - low + 1
    heads, buckets = rule.table.shape
    result = torch.empty((heads, count), dtype=torch.float32, device=rule.table.device)
    side = min(form.ROWS, form.BLOCK)
    square = dataclasses.replace(form, ROWS=side, BLOCK=side)
    kernels.distance_gradient[-(-count // square.BLOCK), heads](
        *given, result, *(x.stride()[:3] for x in given[:4]), Hq, Hq // Hkv, Lq, *operands.all_segments(sight), *common,
        B, Hq // heads, low, count, form=square, RULE=n, num_warps=4, num_stages=1,
    )  # fmt: skip
    of_distance = rule.buckets(torch.arange(low, high + 1, device=result.device))
    members = torch.nn.functional.one_hot(of_distance, buckets).to(torch.float32)
    return (result @ members).to(rule.table.dtype)


def _sink_gradient(sink: Tensor, logsumexp: Tensor, delta: Tensor) -> Tensor:
    """``-sum_i p_sink (delta_i)``; ``p_sink`` is what the sink takes of row ``i``, all of it where nothing is seen."""
    logit = sink.float()[None, :, None]
    blind = (logsumexp == logit) & (logit == -torch.inf)
    share = torch.where(blind, 0.0, torch.exp(logit - logsumexp))
    return -torch.where(share == 0, 0.0, share * delta).sum((0, 2)).to(sink.dtype)
