"""FlashAttention 3 (Shah et al. 2024) in Gluon: Hopper's bulk copies and asynchronous products, warps with roles.

It serves long queries with head widths of 33 to 256. With `flash2` it shares the tables on the device, the host side of
the gradients, the observations, and the rescue of tiles with non-finite outputs: rows of such a tile that see only
finite values agree with a call without non-finite values to rounding, not to the bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ....forms.scores import ALiBi, SoftCap
from ...contract import Call, Result, unknown_positions
from .. import arguments, compatibility, gradients, launching, machine, observing, plans
from .. import tuning as triton_tuning
from ..gradients import reasons_against_backward
from ..score_rules import kernel_rules, rule_arguments
from ..visibility import beyond_32_bits, interval_count, nothing_visible, visibility
from . import tuning
from .bulk import bulk_copyable
from .gradients import launch_owners
from .quantise import Quantised
from .sections import balanced_section
from .variant import Variant

NAME = "flash3"
ABOUT = "the FlashAttention 3 algorithm in Gluon, for Hopper GPUs"

__all__ = [
    "ABOUT", "NAME", "backward", "backward_by", "forward", "memory", "reasons_against", "reasons_against_backward",
    "reasons_to_pass_over", "status",
]  # fmt: skip


def status() -> str:
    """Whether the backend can run on this machine, in words."""
    return f"{ABOUT}; {machine.status()}"


def reasons_against(call: Call) -> list[str]:
    """Why the backend cannot serve the call."""
    reasons = not_hopper(call.query.device)
    if call.query.dtype not in (torch.bfloat16, torch.float16):
        reasons.append(f"the dtype is {call.query.dtype}; flash3 computes float16 and bfloat16")
    else:
        reasons += arguments.unsupported_tensors(call)
    return reasons + unsupported(call)


def reasons_to_pass_over(call: Call) -> list[str]:
    """Why `flash2` serves the call faster (at a width of 192, on an H200, this backend is 0.63 times as fast)."""
    if 128 < max(call.shapes.D, call.shapes.Dv) <= 192 and 192 not in tuning.FORWARD:
        return [
            "it pads a head width of 129 to 192 to 256, where flash2, with 128 and 64, is faster; name it to use it"
        ]
    return []


def not_hopper(device: torch.device) -> list[str]:
    """Why Gluon's kernels cannot run on a device."""
    if why := compatibility.missing(compatibility.OLDEST_GLUON):
        return [why]
    if device.type != "cuda":
        return [f"the tensors are on {device}; flash3 runs on Hopper GPUs (Triton's interpreter cannot run Gluon)"]
    if machine.generation(device) != "hopper":
        name = torch.cuda.get_device_name(device)
        return [f"the GPU is {name}; flash3 uses instructions that only Hopper has (H100, H200)"]
    return []


def unsupported(call: Call) -> list[str]:
    """A reason for each feature of the call that the kernel does not support."""
    shapes, reasons = call.shapes, []
    widths = (shapes.D, shapes.Dv)
    if min(widths) <= tuning.NARROWEST // 2 or max(widths) > tuning.WIDEST:
        which = " and ".join(map(str, dict.fromkeys(widths)))
        reasons.append(f"the head width is {which}; flash3 takes {tuning.NARROWEST // 2 + 1} to {tuning.WIDEST}")
    if shapes.Lq < tuning.ROWS // 2:
        reasons.append(f"Lq is {shapes.Lq}; a tile of {tuning.ROWS} queries would be more than half empty")
    if call.scores:
        served = (ALiBi, SoftCap)
        reasons += [f"the score rule {rule!r} has no flash3 kernel" for rule in call.scores if type(rule) not in served]
    reasons += unknown_positions(call)
    if call.compare is not None:
        reasons.append("Additive has no flash3 kernel, which computes dot products")
    if call.dropout:
        reasons.append("dropout has no flash3 kernel")
    if call.observe is not None and call.observe.top > observing.TOP_LIMIT:
        reasons.append(f"the {call.observe.top} largest weights are requested; GPU kernels keep {observing.TOP_LIMIT}")
    if not reasons:
        if call.lowered.tiles is not None:
            reasons.append("the pattern needs a tile map; flash3 takes intervals of keys")
        else:
            reasons += beyond_32_bits(call.lowered)
    return reasons


def memory(call: Call) -> int:
    """Bytes taken beside inputs and outputs: the logsumexp, and the plan of each tile of queries."""
    B, Hq, _, Lq, _, _, _ = call.shapes
    return 4 * B * Hq * Lq + 4 * 32 * B * -(-Lq // (tuning.ROWS // 2))


def forward(call: Call) -> Result:
    """Return the output of a call, its logsumexp where asked, and its observations."""
    return plans.forward(call, NAME, lambda call: compute(call, None, tuning.FORWARD))


def compute(
    call: Call,
    quantise: Callable[[int], Quantised] | None,
    table: dict[int, tuning.ForwardStages],
    statistics: tuple[Tensor, Tensor, Tensor | None] | None = None,
) -> Result:
    """Compute the call, with the stages that ``table`` has for its head width.

    Args:
        call: the call.
        quantise: makes the 8-bit inputs, in blocks of that many keys; without it the kernel reads the call's tensors.
        table: stages by head width.
        statistics: tensors for the largest score, the largest weight and the entropy of each row, ``(B, Hq, Lq)``
            float32, which the kernel fills beside the output; by default those that the call observes.
    """
    query, key, value = (bulk_copyable(x) for x in (call.query, call.key, call.value))
    B, Hq, _, Lq, _, D, Dv = call.shapes
    output = torch.empty_like(query) if Dv == D else query.new_empty((B, Hq, Lq, Dv))
    logsumexp = torch.empty((B, Hq, Lq), dtype=torch.float32, device=query.device)
    lowered = call.lowered
    empty = nothing_visible(lowered)
    if empty or not lowered.covers:
        output.zero_()
        logsumexp.copy_(arguments.empty_logsumexp(call).expand_as(logsumexp))
    own = observing.new_statistics(call) if statistics is None and quantise is None else None
    if not empty and B * Hq:
        block = tuning.forward_stages(table, D, Dv, bool(call.scores))[0].block
        quantised = quantise(block) if quantise else None
        launch(call, (query, key, value), output, logsumexp, statistics or own, table, quantised)
    seen = None if call.observe is None else observing.observe(call, logsumexp, empty, own)
    return Result(output, logsumexp, seen)


def launch(
    call: Call, tensors: tuple[Tensor, Tensor, Tensor], output: Tensor, logsumexp: Tensor,
    statistics: tuple[Tensor, Tensor, Tensor | None] | None, table: dict[int, tuning.ForwardStages],
    quantised: Quantised | None,
) -> None:  # fmt: skip
    """Fill ``output`` and ``logsumexp`` where queries belong to a segment."""
    from ..kernels import forward as triton_kernels
    from .descriptors import describe
    from .kernels import forward as kernels
    from .kernels import schedule

    B, Hq, Hkv, Lq, Lk, D, Dv = call.shapes
    query, key, value = tensors
    device, itemsize = query.device, query.dtype.itemsize
    stages, of_keys, of_values = tuning.forward_stages(table, D, Dv, bool(call.scores))
    visible = visibility(call.lowered, stages.rows, device)
    if not visible.tiles * visible.rows:
        return
    rules = rule_arguments(call)
    tile = triton_tuning.Tile(stages.rows, stages.block, 4, stages.stages)
    const = dataclasses.replace(
        arguments.constants(call, rules, visible, 1, 1, tile),
        WIDTH=of_keys[0], REST=of_keys[1], VALUE_WIDTH=of_values[0], VALUE_REST=of_values[1],
        STATISTICS=0 if statistics is None else 1 if statistics[2] is None else 2,
    )  # fmt: skip
    records = torch.empty(visible.rows * visible.tiles * 32, dtype=torch.int32, device=device)
    flags = torch.empty((visible.rows, Hq, visible.tiles), dtype=torch.int32, device=device)
    launching.launch(
        schedule.plan, (visible.tiles, visible.rows),
        records, flags, Hq, visible.work, visible.segments, visible.segment, *visible.interval_tables,
        const=const, num_warps=4,
    )  # fmt: skip
    columns = visible.rows * Hq
    items = columns * visible.tiles
    programs = min(items, stages.programs * machine.processors(device))
    limit = tuning.section(columns, Lk * (D + Dv) * itemsize, Hq // Hkv)
    section = balanced_section(visible.tiles, columns, programs, limit, Hq // Hkv)
    sink = arguments.sink(call)
    scoring = arguments.scoring(call, rules)
    scales: tuple[Any, ...] | None = None
    blocks = (tuning.ROWS // 2, const.BLOCK, const.BLOCK)
    if quantised is not None:
        scales = (*quantised[3:], quantised.query_scales.shape[2], quantised.key_scales.shape[2])
        tensors, blocks, of_values = quantised[:3], (*blocks[:2], const.VALUE_WIDTH), (const.BLOCK, 0)
    parts = list(zip(tensors, blocks, (of_keys, of_keys, of_values), strict=True))
    variant = Variant(stages.stages, stages.computing, quantised is not None, stages.alone)
    launching.launch(
        kernels.forward, (programs,),
        *(describe(tensor, block, widths[0]) for tensor, block, widths in parts),
        *(describe(tensor, block, widths[1]) if widths[1] else None for tensor, block, widths in parts),
        scales, output, logsumexp, statistics, flags, sink, output.stride()[:3],
        items, visible.tiles, columns, section, Hq, Hq // Hkv, Lq, records, *visible.interval_tables, *scoring,
        const=const, variant=variant, num_warps=4, maxnreg=stages.entry,
    )  # fmt: skip
    rescue = triton_tuning.forward_tile(
        "hopper", itemsize, max(triton_tuning.width(D), triton_tuning.width(Dv)), stages.rows
    )
    rescued = arguments.constants(call, rules, visible, 1, 1, rescue)
    launching.launch(
        triton_kernels.forward, (visible.tiles, Hq, visible.rows),
        query, key, value, output, logsumexp, statistics, flags, sink,
        query.stride()[:3], key.stride()[:3], value.stride()[:3], output.stride()[:3], B, Hq, Hq // Hkv, Lq,
        *visible.of_tile, *scoring, *arguments.dropout(call),
        const=dataclasses.replace(rescued, STATISTICS=const.STATISTICS), RESCUE=True,
        num_warps=rescue.warps, num_stages=1,
    )  # fmt: skip


def backward_by(call: Call) -> str:
    """The backend whose kernels compute the gradients of the call, and why where it is not this one alone."""
    if reason := reason_against_own_backward(call):
        return f"the kernels of flash2 ({NAME}: {reason})"
    rules = zip(kernel_rules(call), call.scores, strict=True)
    if any(kind.of_queries and rule.tensors()[0].requires_grad for kind, rule in rules):
        return f"{NAME}, those of queries and slopes by the kernel of flash2"
    return NAME


def reason_against_own_backward(call: Call) -> str:
    """Why the backward kernels of `flash2` serve the call instead of these; empty where these do."""
    widths = (call.shapes.D, call.shapes.Dv)
    if max(widths) <= 128:
        return ""
    which = "the head width is " + " and ".join(map(str, dict.fromkeys(widths)))
    if max(widths) > tuning.WIDEST_BACKWARD:
        return f"{which}; its own take {tuning.WIDEST_BACKWARD}"
    if call.scores or interval_count(call.lowered) > 1:
        return f"{which}; its own take more than 128 only without score rules and with one interval of keys per query"
    return ""


def backward(
    call: Call,
    output: Tensor,
    logsumexp: Tensor,
    grad_output: Tensor,
    grad_logsumexp: Tensor | None,
    wanted: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """Gradients of a call: by the kernels of `flash2` for wide heads, else by `launch_owners` of Hopper's."""
    launch = None if reason_against_own_backward(call) else launch_owners
    return gradients.backward(call, output, logsumexp, grad_output, grad_logsumexp, wanted, launch)
