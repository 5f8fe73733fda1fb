"""FlashAttention 2 (Dao 2023) in Triton: the default on GPUs, for every call of the operator."""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...forms.lowering import Lowered
from ..contract import Call, Result, unknown_positions
from . import arguments, machine, observing, plans, tuning
from .arguments import reasons_against_pages
from .gradients import backward, reasons_against_backward
from .launching import Numbers, launch, specialized_for
from .score_rules import kernel_rules, rule_arguments, unsupported_rules
from .visibility import Visibility, beyond_32_bits, nothing_visible, visibility

NAME = "flash2"
ABOUT = "the FlashAttention 2 algorithm in Triton, memory linear in the length"

__all__ = [
    "ABOUT", "NAME", "backward", "forward", "memory", "reasons_against", "reasons_against_backward",
    "reasons_against_pages", "status",
]  # fmt: skip

WIDEST = 512


def status() -> str:
    """Whether the backend can run on this machine, in words."""
    return f"{ABOUT}; {machine.status()}"


def reasons_against(call: Call) -> list[str]:
    """Why the backend cannot serve the call."""
    reasons = machine.reasons_against(call.query.device, call.query.dtype)
    reasons += arguments.unsupported_tensors(call)
    if max(call.shapes.D, call.shapes.Dv) > WIDEST:
        reasons.append(f"the head width is {max(call.shapes.D, call.shapes.Dv)}; flash2 takes up to {WIDEST}")
    if call.observe is not None and call.observe.top > observing.TOP_LIMIT:
        reasons.append(f"the {call.observe.top} largest weights are requested; GPU kernels keep {observing.TOP_LIMIT}")
    reasons += unsupported_rules(call) + unknown_positions(call)
    return reasons or beyond_32_bits(call.lowered)


def memory(call: Call) -> int:
    """Bytes taken beside inputs and outputs: the logsumexp, and the parts of a call whose keys are split."""
    B, Hq, _, Lq, _, _, Dv = call.shapes
    return 4 * B * Hq * Lq * (1 if Lq > 64 else 32 * (Dv + 2))


def forward(call: Call) -> Result:
    """Return the output of a call, its logsumexp where asked, and its observations."""
    return plans.forward(call, NAME, _forward, _lengths)


class _Cut(NamedTuple):
    """How a call is divided among programs."""

    widths: tuple[int, int, int, int]  # `width_parts`
    pack: int  # query heads of a tile
    tile: tuning.Tile
    visible: Visibility
    programs: int
    splits: int  # parts of the keys


def _cut(call: Call) -> _Cut:
    _, Hq, Hkv, Lq, *_ = call.shapes
    device = call.query.device
    pack = heads_per_tile(Lq, Hq // Hkv, call.lowered)
    widths = width_parts(call)
    tile = tuning.forward_tile(
        machine.generation(device), call.query.itemsize, max(sum(widths[:2]), sum(widths[2:])), Lq * pack,
        arguments.needs(call),
    )  # fmt: skip
    visible = visibility(call.lowered, tile.rows // pack, device)
    programs = visible.tiles * (Hq // pack) * visible.rows
    blocks = -(-visible.longest // tile.keys)
    splits = tuning.splits(programs, machine.processors(device), blocks) if programs else 1
    return _Cut(widths, pack, tile, visible, programs, splits)


def _lengths(call: Call) -> plans.Lengths | None:
    """What of `_forward` follows from the lengths of a call; ``None`` where other things do, too."""
    lowered, unit = call.lowered, all(x.stride(-1) == 1 for x in (call.key, call.value))
    rules = kernel_rules(call)
    if not unit or any(rule.of_pairs or rule.of_distances for rule in rules) or nothing_visible(lowered):
        return None
    cut = _cut(call)
    visible, strides = cut.visible, (call.key.stride(), call.value.stride())
    numbers = {"key": strides[0][:3], "value": strides[1][:3], "segment": visible.segment}
    tables = () if visible.work is None or visible.segments is None else (visible.work, visible.segments)
    kind = (
        cut.pack, cut.tile, cut.splits, visible.tiles, visible.rows, lowered.covers, strides if call.pages else None,
        specialized_for(numbers), tuple([table.data_ptr() & 15 for table in tables]),
    )  # fmt: skip
    return plans.Lengths(kind, numbers, tables) if cut.programs and call.shapes.Dv else None


def _strides(call: Call, which: str, tensor: Tensor) -> Any:
    found = arguments.stored_strides(call, tensor)
    return Numbers(which, found) if call.pages is None else found


def _forward(call: Call) -> Result:
    from .kernels import forward as kernels

    B, Hq, Hkv, Lq, _, D, Dv = call.shapes
    device = call.query.device
    query, key, value = (arguments.with_unit_stride(x) for x in (call.query, call.key, call.value))
    output = torch.empty_like(query) if Dv == D else query.new_empty((B, Hq, Lq, Dv))
    logsumexp = torch.empty((B, Hq, Lq), dtype=torch.float32, device=device)
    lowered = call.lowered
    empty = nothing_visible(lowered)
    if empty or not lowered.covers:
        output.zero_()
        logsumexp.copy_(arguments.empty_logsumexp(call).expand_as(logsumexp))
    (first, rest, value_first, value_rest), pack, tile, visible, programs, splits = _cut(call)
    if empty or programs == 0 or Dv == 0:
        return _result(call, output, logsumexp, empty)
    statistics = of_parts = observing.new_statistics(call)
    parts, logsumexps, strides = output, logsumexp, output.stride()[:3]
    if splits > 1:
        parts = torch.empty((splits, B, Hq, Lq, Dv), dtype=torch.float32, device=device)
        logsumexps = torch.full((2, splits, B, Hq, Lq), -torch.inf, dtype=torch.float32, device=device)
        strides = (Hq * Lq * Dv, Lq * Dv, Dv)
        of_parts = observing.new_statistics(call, splits)
    sink = arguments.sink(call)
    rules = rule_arguments(call)
    stored = _strides(call, "key", key), _strides(call, "value", value)
    whole = arguments.constants(call, rules, visible, pack, splits, tile)
    level = observing.statistics_level(call)
    whole = dataclasses.replace(whole, WIDTH=first, REST=rest, STATISTICS=level)  # values in one part: `width_parts`
    const = dataclasses.replace(whole, VALUE_WIDTH=value_first, VALUE_REST=value_rest)
    # A GPU sums each column in an order that does not depend on the others; the interpreter's products do not.
    rescued = const if machine.interpreted() else whole
    grid = (visible.tiles, Hq // pack, visible.rows * splits)
    flags = torch.empty(grid, dtype=torch.int32, device=device)
    for rescue in (False, True):
        launch(
            kernels.forward, grid,
            query, key, value, parts, logsumexps, of_parts, flags, None if splits > 1 else sink,
            query.stride()[:3], *stored, strides, B, Hq, Hq // Hkv, Lq,
            *visible.of_tile, *arguments.scoring(call, rules), *arguments.dropout(call),
            const=rescued if rescue else const, RESCUE=rescue,
            num_warps=tile.warps, num_stages=1 if rescue else tile.stages,
        )  # fmt: skip
    if splits > 1:
        rows = 16
        launch(
            kernels.merge, (-(-B * Hq * Lq // rows),),
            parts, logsumexps, of_parts, output, logsumexp, statistics, sink, output.stride()[:3], Hq, Lq, B * Hq * Lq,
            SPLITS=splits, SINK=sink is not None, STATISTICS=level, VALUE_D=Dv, VALUE_WIDTH=tuning.width(Dv), ROWS=rows,
        )  # fmt: skip
    return _result(call, output, logsumexp, empty, statistics)


def width_parts(call: Call) -> tuple[int, int, int, int]:
    """``(keys' first part, rest, values' first part, rest)``: head widths as powers of two, in the forward kernel.

    Two parts save products, which limit long calls; short calls are limited by memory, and have one part. Values have
    one part with a tile map and in a rescue, where blocks are not prefetched: without a pipeline, NVIDIA's assembler
    (12.8, for Hopper) computes the addresses of a second part from a register that was never set
    (``benchmarks/ahead.py`` looks for such code).
    """
    D, Dv = call.shapes.D, call.shapes.Dv
    if call.shapes.Lq <= 64 or call.compare is not None:
        return tuning.width(D), 0, tuning.width(Dv), 0
    return *tuning.parts(D), *((tuning.width(Dv), 0) if call.lowered.tiles is not None else tuning.parts(Dv))


def heads_per_tile(Lq: int, group: int, lowered: Lowered) -> int:
    """The number of query heads of a group that share a tile: for short queries as many as fit in 64 rows."""
    if lowered.tiles is not None or Lq > 32:
        return 1
    return _heads_per_tile(Lq, group)


@lru_cache(maxsize=256)
def _heads_per_tile(Lq: int, group: int) -> int:
    return max(n for n in range(1, min(group, 16) + 1) if group % n == 0 and (n == 1 or n * Lq <= 64))


def _result(
    call: Call, output: Tensor, logsumexp: Tensor, empty: bool, statistics: observing.RowStatistics | None = None
) -> Result:
    seen = None if call.observe is None else observing.observe(call, logsumexp, empty, statistics)
    return Result(output, logsumexp, seen)
