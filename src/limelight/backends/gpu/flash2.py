"""FlashAttention 2 (Dao 2023) in Triton: the default on GPUs, for everything that the operator means."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from ...forms.lowering import Lowered
from ..contract import Call, Result, unknown_positions
from . import machine, observing, operands, tuning
from .gradients import backward, reasons_against_backward

NAME = "flash2"
ABOUT = "the FlashAttention 2 algorithm in Triton, memory linear in the length"

__all__ = ["ABOUT", "NAME", "backward", "forward", "memory", "reasons_against", "reasons_against_backward", "status"]

MOST_WIDTH = 512


def status() -> str:
    """Whether the backend is there on this machine."""
    return f"{ABOUT}; {machine.status()}"


def reasons_against(call: Call) -> list[str]:
    """Why the backend cannot serve the call."""
    reasons = machine.reasons_against(call.query.device, call.query.dtype)
    reasons += operands.unreadable(call)
    if max(call.shapes.D, call.shapes.Dv) > MOST_WIDTH:
        reasons.append(f"the head width is {max(call.shapes.D, call.shapes.Dv)}; it takes {MOST_WIDTH}")
    if call.observe is not None and call.observe.top > observing.MOST_TOP:
        reasons.append(f"the {call.observe.top} largest weights are asked for; it keeps {observing.MOST_TOP}")
    reasons += operands.unknown_rules(call) + unknown_positions(call)
    if not reasons and operands.far(call.lowered):
        reasons.append(f"a position lies beyond {operands.MOST_POSITION}; it counts in 32 bits")
    return reasons


def memory(call: Call) -> int:
    """Bytes taken beside inputs and outputs: the logsumexp, and the parts of a call whose keys are split."""
    B, Hq, _, Lq, _, _, Dv = call.shapes
    return 4 * B * Hq * Lq * (1 if Lq > 64 else 32 * (Dv + 2))


def forward(call: Call) -> Result:
    """Compute the call."""
    from .kernels import forward as kernels

    B, Hq, Hkv, Lq, Lk, D, Dv = call.shapes
    device, dtype = call.query.device, call.query.dtype
    query, key, value = (operands.readable(x) for x in (call.query, call.key, call.value))
    output = torch.empty_like(query) if Dv == D else query.new_empty((B, Hq, Lq, Dv))
    logsumexp = torch.empty((B, Hq, Lq), dtype=torch.float32, device=device)
    lowered = call.lowered
    blind = lowered.spans == b"" or Lk == 0  # nobody sees anything
    if blind or not lowered.covers:
        output.zero_()
        logsumexp.copy_(operands.of_nobody(call).expand_as(logsumexp))
    group = Hq // Hkv
    pack = packed(Lq, group, lowered)
    first, rest, value_first, value_rest = held(call)
    widest = max(first + rest, value_first + value_rest)
    demanding = lowered.tiles is not None or bool(call.scores)
    tile = tuning.forward_tile(
        machine.generation(device), dtype.itemsize, widest, Lq * pack, demanding, call.dropout > 0
    )
    read = any(kind.of_pairs or kind.of_distances for kind in operands.kinds(call))
    if lowered.tiles is not None or len(lowered.segment_table) > 1 or read:
        # Bits come by 64 keys; a bias is read ahead and takes much shared memory; documents take registers.
        tile = tile._replace(keys=min(tile.keys, 64), stages=min(tile.stages, 2))
    sight = operands.sight(lowered, tile.rows // pack, device)
    programs = sight.tiles * (Hq // pack) * sight.rows
    if blind or programs == 0 or Dv == 0:
        return _result(call, output, logsumexp, blind)
    splits = tuning.splits(programs, machine.processors(device), -(-sight.longest // tile.keys))
    parts, logsumexps, strides = output, logsumexp, output.stride()[:3]
    if splits > 1:
        parts = torch.empty((splits, B, Hq, Lq, Dv), dtype=torch.float32, device=device)
        logsumexps = torch.full((2, splits, B, Hq, Lq), -torch.inf, dtype=torch.float32, device=device)
        strides = (Hq * Lq * Dv, Lq * Dv, Dv)
    sink = None if call.sink is None else call.sink.detach().contiguous()
    rules = operands.rules(call)
    whole = operands.form_of(call, rules, sight, pack, splits, tile)
    whole = dataclasses.replace(whole, WIDTH=first, REST=rest)  # values in one part: see `held`
    form = dataclasses.replace(whole, VALUE_WIDTH=value_first, VALUE_REST=value_rest)
    # The GPU sums every column in the same order, whatever stands beside it; the interpreter's products do not.
    rescued = form if machine.interpreted() else whole
    grid = (sight.tiles, Hq // pack, sight.rows * splits)
    flags = torch.empty(grid, dtype=torch.int32, device=device)
    for rescue in (False, True):
        kernels.forward[grid](
            query, key, value, parts, logsumexps, flags, None if splits > 1 else sink,
            query.stride()[:3], key.stride()[:3], value.stride()[:3], strides, B, Hq, group, Lq,
            *sight.operands, *operands.scoring(call, rules), *operands.chance(call),
            form=rescued if rescue else form, RESCUE=rescue,
            num_warps=tile.warps, num_stages=1 if rescue else tile.stages,
        )  # fmt: skip
    if splits > 1:
        rows = 16
        kernels.merge[(-(-B * Hq * Lq // rows),)](
            parts, logsumexps, output, logsumexp, sink, output.stride()[:3], Hq, Lq, B * Hq * Lq,
            SPLITS=splits, SINK=sink is not None, VALUE_D=Dv, VALUE_WIDTH=tuning.width(Dv), ROWS=rows,
        )  # fmt: skip
    return _result(call, output, logsumexp, blind)


def held(call: Call) -> tuple[int, int, int, int]:
    """The widths of keys and of values as the kernel holds them, a part and the rest: in two parts where that saves
    products, which limit long calls; short ones are limited by what they read. Values do not where blocks are not read
    ahead, because a map may leave them out, or in a rescue: there NVIDIA's assembler (12.8, for Hopper) makes the
    addresses of the second part of a register that it never set (``benchmarks/ahead.py`` looks for such).
    """
    D, Dv = call.shapes.D, call.shapes.Dv
    if call.shapes.Lq <= 64 or call.compare is not None:
        return tuning.width(D), 0, tuning.width(Dv), 0
    return *tuning.parts(D), *((tuning.width(Dv), 0) if call.lowered.tiles is not None else tuning.parts(Dv))


def packed(Lq: int, group: int, lowered: Lowered) -> int:
    """How many query heads of a group share a tile: of short queries as many as keep it within 64 rows."""
    if lowered.tiles is not None or Lq > 32:
        return 1
    return max(n for n in range(1, min(group, 16) + 1) if group % n == 0 and (n == 1 or n * Lq <= 64))


def _result(call: Call, output: Tensor, logsumexp: Tensor, blind: bool) -> Result:
    seen = None if call.observe is None else observing.observe(call, logsumexp, blind)
    return Result(output, logsumexp, seen)
