"""Host side of `flash3`'s backward kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...contract import Call
from .. import arguments, gradients, machine
from .. import tuning as triton_tuning
from ..constants import KernelConstants
from ..gradients import BackwardInputs, Gradients
from ..launching import launch
from ..score_rules import rule_arguments
from ..visibility import Visibility, visibility
from . import tuning
from .bulk import bulk_copyable, padded_line
from .constants import OwnerConstants
from .sections import balanced_section

# The gradients that a launch fills: of queries or keys, of values; ``None`` for one that it does not sum.
Target = tuple[Tensor | None, Tensor | None]


def launch_owners(call: Call, inputs: BackwardInputs, found: Gradients, needed: tuple[bool, bool]) -> None:
    """Fill ``found`` by one kernel that owns tiles of queries and one that owns tiles of keys, where ``needed``.

    The gradients of slopes, and of queries with them, come from the kernel of `flash2`.
    """
    if found.slopes:  # whose sums would take registers that the owner of queries does not have
        gradients.launch_owners(call, inputs, found, (True, False))
        needed = (False, needed[1])
    query, key, value, grad = (bulk_copyable(x) for x in inputs[:4])
    statistics = (padded_line(inputs.normalizers.fast), padded_line(inputs.delta))
    widest = max(tuning.NARROWEST, triton_tuning.width(max(call.shapes.D, call.shapes.Dv)))
    rescue, rescue_of_keys = triton_tuning.backward_tiles("hopper", query.itemsize, widest)
    rules = rule_arguments(call)
    scoring = arguments.scoring(call, rules)
    common = (*scoring, *arguments.dropout(call))
    visible = visibility(call.lowered, tuning.ROWS, query.device)
    stages, *of_keys = (tuning.BACKWARD_WITH_RULES if call.scores else tuning.BACKWARD)[widest]
    if needed[0] and visible.tiles * visible.rows:
        const = arguments.constants(call, rules, visible, 1, 1, triton_tuning.Tile(tuning.ROWS, stages.block, 4, 1))
        flags = launch_owner(
            call, visible, const, scoring, [stages], (query, grad), (key, value), statistics, (), [(found.query, None)]
        )
        tile = rescue._replace(rows=tuning.ROWS)
        gradients.query_gradient(call, inputs, found, flags, visible, const, common, tile, True, -1)
    by_keys = visible.by_keys(call.lowered, tuning.ROWS, query.device)
    if needed[1] and by_keys.tiles * by_keys.rows:
        lines = (*statistics, interval_bounds(call, visible))
        targets: list[Target] = [(found.key, found.value)]
        if len(of_keys) == 2:  # one launch for each
            targets = [(found.key, None), (None, found.value)]
        tile = triton_tuning.Tile(of_keys[0].block, tuning.ROWS, 4, 1)
        const = arguments.constants(call, rules, by_keys, 1, 1, tile)
        flags = launch_owner(
            call, by_keys, const, scoring, of_keys, (key, value), (query, grad), statistics, lines, targets
        )
        tile = rescue_of_keys._replace(keys=tuning.ROWS)
        gradients.key_gradient(call, inputs, found, flags, by_keys, const, common, tile, True)


def interval_bounds(call: Call, visible: Visibility) -> Tensor:
    """Begins and ends of the intervals of each query, ``(2 intervals, B, Lq)`` int32, padded as `padded_line` does."""
    from .kernels import schedule

    B, _, _, Lq, *_ = call.shapes
    shape = (2 * visible.intervals, B, Lq + -Lq % tuning.LINE)
    bounds = torch.zeros(shape, dtype=torch.int32, device=call.query.device)
    if visible.tiles * visible.rows:
        tile = triton_tuning.Tile(tuning.ROWS, tuning.ROWS, 4, 1)
        const = arguments.constants(call, rule_arguments(call), visible, 1, 1, tile)
        launch(
            schedule.bounds, (visible.tiles, visible.rows),
            bounds, B, bounds.shape[2], visible.work, visible.segments, visible.segment, *visible.interval_tables,
            const=const, num_warps=4,
        )  # fmt: skip
    return bounds


def launch_owner(
    call: Call, visible: Visibility, const: KernelConstants, scoring: tuple[Any, ...], stages: list[tuning.Stages],
    owned: tuple[Tensor, Tensor], moving: tuple[Tensor, Tensor], statistics: tuple[Tensor, Tensor],
    lines: tuple[Tensor, ...], targets: list[Target],
) -> Tensor:  # fmt: skip
    """Launch the owner of queries, or with ``lines`` the owner of keys; the flags of tiles with non-finite gradients.

    Args:
        call: the call.
        visible: its visibility tables, by tiles of what is owned.
        const: the constants of the kernel.
        scoring: the arguments of scores and score rules.
        stages: blocks that move through shared memory, and registers, of each launch; their blocks are equally long.
        owned: queries and the gradient of the output, or keys and values.
        moving: the two others, read block by block.
        statistics: what is subtracted from scores, and deltas, of each query: `padded_line`.
        lines: both again and the bounds of intervals, where they move with the queries; else empty.
        targets: the gradients that each launch fills.
    """
    from .descriptors import describe, describe_line
    from .kernels import backward as kernels
    from .kernels import schedule

    B, Hq, Hkv, *_ = call.shapes
    keys = bool(lines)
    device, group, heads = call.query.device, Hq // Hkv, Hkv if keys else Hq
    records = torch.empty(visible.rows * visible.tiles * 32, dtype=torch.int32, device=device)
    flags = torch.empty((visible.rows, heads, visible.tiles), dtype=torch.int32, device=device)
    plan = schedule.plan_keys if keys else schedule.plan
    launch(
        plan, (visible.tiles, visible.rows),
        records, flags, heads, visible.work, visible.segments, visible.segment, *visible.interval_tables,
        const=const, num_warps=4,
    )  # fmt: skip
    columns = visible.rows * heads
    items = columns * visible.tiles
    # What moves stays in the L2 cache: keys and values of a group, or all queries of a head of keys.
    bytes_of_one = sum(x.shape[2] * x.shape[3] * x.itemsize for x in moving)
    limit = tuning.section(columns, bytes_of_one * (group if keys else 1), 1 if keys else group)
    programs = min(items, machine.processors(device))
    section = balanced_section(visible.tiles, columns, programs, limit, 1 if keys else group)
    widths, block = (const.WIDTH, const.VALUE_WIDTH), stages[0].block
    copied = [describe(x, tuning.ROWS // 2, width) for x, width in zip(owned, widths, strict=True)]
    copied += [describe(x, block, width) for x, width in zip(moving, widths, strict=True)]
    copied += [describe_line(x, block) for x in lines] or [None] * 3
    for (first, second), of_launch in zip(targets, stages, strict=True):
        kind = OwnerConstants(
            keys, first is not None, second is not None, of_launch.carry, of_launch.stages,
            of_launch.second_stages or of_launch.stages,
        )  # fmt: skip
        launch(
            kernels.gradient, (programs,),
            *copied, *statistics, first, strides_of(first), second, strides_of(second), flags,
            items, visible.tiles, columns, section, heads, group, B, statistics[0].shape[2], records,
            *visible.interval_tables, *scoring,
            const=const, kind=kind, REGISTERS=of_launch.computing, num_warps=4, maxnreg=of_launch.entry,
        )  # fmt: skip
    return flags


def strides_of(gradient: Tensor | None) -> tuple[int, ...]:
    """The strides of a gradient without the last, which is 1; zeros where there is none."""
    return (0, 0, 0) if gradient is None else gradient.stride()[:3]
