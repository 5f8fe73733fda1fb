"""FlashAttention 3 (Shah et al. 2024) in Gluon: Hopper's bulk copies and asynchronous products, warps with roles.

It serves what its kernel is made for. With `flash2` it shares how a call becomes tables on the device, the gradients,
the observations, and the rescue of tiles whose numbers are not finite: rows of such a tile that see only finite numbers
agree with an undisturbed call to rounding, not to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ....forms.scores import ALiBi, SoftCap
from ...contract import Call, Result, unknown_positions
from .. import compatibility, gradients, machine, observing, operands
from .. import tuning as triton_tuning
from ..form import Form
from ..gradients import Found, Given, reasons_against_backward
from . import tuning
from .quantise import Quantised

NAME = "flash3"
ABOUT = "the FlashAttention 3 algorithm in Gluon, for Hopper GPUs"

__all__ = [
    "ABOUT", "NAME", "backward", "backward_by", "forward", "memory", "reasons_against", "reasons_against_backward",
    "reasons_to_pass_over", "status",
]  # fmt: skip


def status() -> str:
    """Whether the backend is there on this machine."""
    return f"{ABOUT}; {machine.status()}"


def reasons_against(call: Call) -> list[str]:
    """Why the backend cannot serve the call."""
    reasons = not_hopper(call.query.device)
    if call.query.dtype not in (torch.bfloat16, torch.float16):
        reasons.append(f"the dtype is {call.query.dtype}; it computes float16 and bfloat16")
    else:
        reasons += operands.unreadable(call)
    return reasons + unlike(call)


def reasons_to_pass_over(call: Call) -> list[str]:
    """Why `flash2` serves the call faster (at a width of 192, on an H200, this backend is 0.63 times as fast)."""
    if 128 < max(call.shapes.D, call.shapes.Dv) <= 192:
        return [
            "it holds a head width of 129 to 192 as 256, where flash2, with 128 and 64, is faster; name it to use it"
        ]
    return []


def not_hopper(device: torch.device) -> list[str]:
    """Why Gluon's kernels cannot run on a device."""
    if why := compatibility.missing(compatibility.OLDEST_GLUON):
        return [why]
    if device.type != "cuda":
        return [f"the tensors lie on {device}; it runs on Hopper GPUs (Triton's interpreter does not know Gluon)"]
    if machine.generation(device) != "hopper":
        return [f"the GPU is {torch.cuda.get_device_name(device)}; it uses what only Hopper has (H100, H200)"]
    return []


def unlike(call: Call) -> list[str]:
    """What the kernel does not know, as reasons."""
    shapes, reasons = call.shapes, []
    widths = (shapes.D, shapes.Dv)
    if min(widths) <= tuning.NARROWEST // 2 or max(widths) > tuning.WIDEST:
        which = " and ".join(map(str, dict.fromkeys(widths)))
        reasons.append(f"the head width is {which}; it takes {tuning.NARROWEST // 2 + 1} to {tuning.WIDEST}")
    if shapes.Lq < tuning.ROWS // 2:
        reasons.append(f"there are {shapes.Lq} queries, which would leave most of a tile of {tuning.ROWS} empty")
    reasons += [
        f"it does not know the score rule {rule!r}" for rule in call.scores if type(rule) not in (ALiBi, SoftCap)
    ]
    reasons += unknown_positions(call)
    if call.compare is not None:
        reasons.append("it compares by dot products, not Additive")
    if call.dropout:
        reasons.append("it has no dropout")
    if call.observe is not None and call.observe.top > observing.MOST_TOP:
        reasons.append(f"the {call.observe.top} largest weights are asked for; it keeps {observing.MOST_TOP}")
    if not reasons:
        if call.lowered.tiles is not None:
            reasons.append("the pattern is a map of bits; it takes intervals of keys")
        elif operands.far(call.lowered):
            reasons.append(f"a position lies beyond {operands.MOST_POSITION}; it counts in 32 bits")
    return reasons


def memory(call: Call) -> int:
    """Bytes taken beside inputs and outputs: the logsumexp, and the plan of each tile of queries."""
    B, Hq, _, Lq, _, _, _ = call.shapes
    return 4 * B * Hq * Lq + 4 * 32 * B * -(-Lq // tuning.ROWS)


def forward(call: Call) -> Result:
    """Compute the call."""
    return compute(call, None, tuning.FORWARD)


def compute(call: Call, quantise: Callable[[int], Quantised] | None, tiles: dict[int, tuning.Stages]) -> Result:
    """Compute the call with tiles by width; with numbers of 8 bits, in blocks of so many keys, where they are made."""
    query, key, value = (copyable(x) for x in (call.query, call.key, call.value))
    B, Hq, _, Lq, Lk, D, Dv = call.shapes
    output = torch.empty_like(query) if Dv == D else query.new_empty((B, Hq, Lq, Dv))
    logsumexp = torch.empty((B, Hq, Lq), dtype=torch.float32, device=query.device)
    lowered = call.lowered
    blind = lowered.spans == b"" or Lk == 0  # nobody sees anything
    if blind or not lowered.covers:
        output.zero_()
        logsumexp.copy_(operands.of_nobody(call).expand_as(logsumexp))
    if not blind and B * Hq:
        stages = tiles[max(tuning.NARROWEST, triton_tuning.width(max(D, Dv)))]
        launch(call, query, key, value, output, logsumexp, stages, quantise(stages.block) if quantise else None)
    seen = None if call.observe is None else observing.observe(call, logsumexp, blind)
    return Result(output, logsumexp, seen)


def launch(
    call: Call, query: Tensor, key: Tensor, value: Tensor, output: Tensor, logsumexp: Tensor, stages: tuning.Stages,
    small: Quantised | None,
) -> None:  # fmt: skip
    """Fill ``output`` and ``logsumexp`` where queries belong to a segment."""
    from ..kernels import forward as triton_kernels
    from .descriptors import describe
    from .kernels import forward as kernels
    from .kernels import schedule

    B, Hq, Hkv, Lq, Lk, D, Dv = call.shapes
    device, itemsize = query.device, query.dtype.itemsize
    sight = operands.sight(call.lowered, tuning.ROWS, device)
    if not sight.tiles * sight.rows:
        return
    rules = operands.rules(call)
    tile = triton_tuning.Tile(tuning.ROWS, stages.block, 4, stages.stages)
    form = operands.form_of(call, rules, sight, 1, 1, tile)
    records = torch.empty(sight.rows * sight.tiles * 32, dtype=torch.int32, device=device)
    flags = torch.empty((sight.rows, Hq, sight.tiles), dtype=torch.int32, device=device)
    sees = (sight.spans, sight.begins, sight.ends, sight.interval_strides)
    schedule.plan[sight.tiles, sight.rows](
        records, flags, Hq, sight.work, sight.segments, sight.segment, *sees, form=form, num_warps=4
    )
    columns = sight.rows * Hq
    items = columns * sight.tiles
    section = tuning.section(columns, Lk * (D + Dv) * itemsize, Hq // Hkv)
    sink = None if call.sink is None else call.sink.detach().contiguous()
    scoring = operands.scoring(call, rules)
    if small is None:
        scales: tuple[Any, ...] | None = None
        numbers, value_block = (query, key, value), (form.BLOCK, form.VALUE_WIDTH)
    else:
        scales = (*small[3:], small.query_scales.shape[2], small.key_scales.shape[2])
        numbers, value_block = small[:3], (form.VALUE_WIDTH, form.BLOCK)
    blocks = ((tuning.ROWS // 2, form.WIDTH), (form.BLOCK, form.WIDTH), value_block)
    copied = [describe(tensor, *block) for tensor, block in zip(numbers, blocks, strict=True)]
    kernels.forward[(min(items, machine.processors(device)),)](
        *copied, scales, output, logsumexp, flags, sink, output.stride()[:3],
        items, sight.tiles, columns, section, Hq, Hq // Hkv, Lq, records, *sees, *scoring,
        form=form, FLOAT8=small is not None, STAGES=stages.stages, REGISTERS=stages.computing,
        num_warps=4, maxnreg=stages.entry,
    )  # fmt: skip
    rescue = triton_tuning.forward_tile("hopper", itemsize, max(form.WIDTH, form.VALUE_WIDTH), tuning.ROWS)
    triton_kernels.forward[sight.tiles, Hq, sight.rows](
        query, key, value, output, logsumexp, flags, sink,
        query.stride()[:3], key.stride()[:3], value.stride()[:3], output.stride()[:3], B, Hq, Hq // Hkv, Lq,
        *sight.operands, *scoring, *operands.chance(call),
        form=operands.form_of(call, rules, sight, 1, 1, rescue), RESCUE=True, num_warps=rescue.warps, num_stages=1,
    )  # fmt: skip


def backward_by(call: Call) -> str:
    """Whose kernels take the gradients of the call, and why, where they are not these."""
    if too_wide_backward(call):
        which = " and ".join(map(str, dict.fromkeys((call.shapes.D, call.shapes.Dv))))
        return f"the kernels of flash2 ({NAME}: the head width is {which}; its gradients take {tuning.WIDEST_BACKWARD})"
    rules = zip(operands.kinds(call), call.scores, strict=True)
    if any(kind.of_queries and rule.tensors()[0].requires_grad for kind, rule in rules):
        return f"{NAME}, those of queries and slopes by the kernel of flash2"
    return NAME


def too_wide_backward(call: Call) -> bool:
    """The backward kernels of `flash2` serve the call."""
    return max(call.shapes.D, call.shapes.Dv) > tuning.WIDEST_BACKWARD


def backward(
    call: Call,
    output: Tensor,
    logsumexp: Tensor,
    grad_output: Tensor,
    grad_logsumexp: Tensor | None,
    wanted: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """Gradients of the query, the key, the value, the sink and slopes."""
    owners = None if too_wide_backward(call) else launch_backward
    return gradients.backward(call, output, logsumexp, grad_output, grad_logsumexp, wanted, owners)


def launch_backward(call: Call, given: Given, found: Found, asked: tuple[bool, bool]) -> None:
    """Fill what is asked for: gradients of queries, of keys and values; those of slopes come from `flash2`'s kernel."""
    if found.slopes:  # their sums would take registers that the queries' owner has not
        gradients.by_owners(call, given, found, (True, False))
        asked = (False, asked[1])
    query, key, value, grad = (copyable(x) for x in given[:4])
    statistics = (line(given.normalizers.fast), line(given.delta))
    widest = max(tuning.NARROWEST, triton_tuning.width(max(call.shapes.D, call.shapes.Dv)))
    stages, stages_of_keys = (tuning.BACKWARD_WITH_RULES if call.scores else tuning.BACKWARD)[widest]
    rescue, rescue_of_keys = triton_tuning.backward_tiles("hopper", query.itemsize, widest)
    rules = operands.rules(call)
    scoring = operands.scoring(call, rules)
    common = (*scoring, *operands.chance(call))
    sight = operands.sight(call.lowered, tuning.ROWS, query.device)
    if asked[0] and sight.tiles * sight.rows:
        form = operands.form_of(call, rules, sight, 1, 1, triton_tuning.Tile(tuning.ROWS, stages.block, 4, 1))
        flags = own(
            call, sight, form, scoring, stages, (query, grad), (key, value), statistics, (), (found.query, None)
        )
        tile = rescue._replace(rows=tuning.ROWS)
        gradients.query_gradient(call, given, found, flags, sight, form, common, tile, True, -1)
    mine = operands.keys_of(sight, call.lowered, tuning.ROWS, query.device)
    if asked[1] and mine.tiles * mine.rows:
        lines, both = (*statistics, bounds(call, sight)), (found.key, found.value)
        tile = triton_tuning.Tile(stages_of_keys.block, tuning.ROWS, 4, 1)
        form = operands.form_of(call, rules, mine, 1, 1, tile)
        flags = own(call, mine, form, scoring, stages_of_keys, (key, value), (query, grad), statistics, lines, both)
        tile = rescue_of_keys._replace(keys=tuning.ROWS)
        gradients.key_gradient(call, given, found, flags, mine, form, common, tile, True)


def bounds(call: Call, sight: operands.Sight) -> Tensor:
    """Begins and ends of the intervals of keys of each query, ``(2 intervals, B, Lq)`` int32, Lq as in `line`."""
    from .kernels import schedule

    B, _, _, Lq, *_ = call.shapes
    found = torch.zeros((2 * sight.intervals, B, Lq + -Lq % tuning.LINE), dtype=torch.int32, device=call.query.device)
    if sight.tiles * sight.rows:
        tile = triton_tuning.Tile(tuning.ROWS, tuning.ROWS, 4, 1)
        form = operands.form_of(call, operands.rules(call), sight, 1, 1, tile)
        sees = (sight.spans, sight.begins, sight.ends, sight.interval_strides)
        schedule.bounds[sight.tiles, sight.rows](
            found, B, found.shape[2], sight.work, sight.segments, sight.segment, *sees, form=form, num_warps=4
        )
    return found


def line(numbers: Tensor) -> Tensor:
    """``(B, Hq, Lq)`` numbers of 32 bits with zeros behind, so that those of each head begin at a multiple of 16 bytes,
    as bulk copies must."""
    return torch.nn.functional.pad(numbers, (0, -numbers.shape[2] % tuning.LINE))


def own(
    call: Call, sight: operands.Sight, form: Form, scoring: tuple[Any, ...], stages: tuning.Stages,
    owned: tuple[Tensor, Tensor], moving: tuple[Tensor, Tensor], statistics: tuple[Tensor, Tensor],
    lines: tuple[Tensor, ...], target: tuple[Tensor, Tensor | None],
) -> Tensor:  # fmt: skip
    """Fill the gradients of an owner of queries, or, where ``lines`` move by too (numbers of each query), of keys.

    Tells which tiles have some that are not finite.
    """
    from .descriptors import describe, describe_line
    from .kernels import backward as kernels
    from .kernels import schedule

    B, Hq, Hkv, *_ = call.shapes
    keys = bool(lines)
    device, group, heads = call.query.device, Hq // Hkv, Hkv if keys else Hq
    records = torch.empty(sight.rows * sight.tiles * 32, dtype=torch.int32, device=device)
    flags = torch.empty((sight.rows, heads, sight.tiles), dtype=torch.int32, device=device)
    sees = (sight.spans, sight.begins, sight.ends, sight.interval_strides)
    plan = schedule.plan_keys if keys else schedule.plan
    plan[sight.tiles, sight.rows](
        records, flags, heads, sight.work, sight.segments, sight.segment, *sees, form=form, num_warps=4
    )
    columns = sight.rows * heads
    items = columns * sight.tiles
    # What moves by stays in the second-level cache: keys and values of a group, or all queries that a head of keys has.
    bytes_of_one = sum(x.shape[2] * x.shape[3] * x.itemsize for x in moving)
    section = tuning.section(columns, bytes_of_one * (group if keys else 1), 1 if keys else group)
    widths = (form.WIDTH, form.VALUE_WIDTH)
    copied = [describe(x, tuning.ROWS // 2, width) for x, width in zip(owned, widths, strict=True)]
    copied += [describe(x, stages.block, width) for x, width in zip(moving, widths, strict=True)]
    copied += [describe_line(x, stages.block) for x in lines] or [None] * 3
    first, second = target
    kernels.gradient[(min(items, machine.processors(device)),)](
        *copied, *statistics,
        first, first.stride()[:3], second, (0, 0, 0) if second is None else second.stride()[:3], flags,
        items, sight.tiles, columns, section, heads, group, B, statistics[0].shape[2], records, *sees, *scoring,
        form=form, KEYS=keys, STAGES=stages.stages, REGISTERS=stages.computing,
        num_warps=4, maxnreg=stages.entry,
    )  # fmt: skip
    return flags


def copyable(tensor: Tensor) -> Tensor:
    """The tensor as bulk copies take it: rows of neighbouring numbers that start at multiples of 16 bytes.

    Another one is copied once, into rows padded to such a multiple.
    """
    tensor = operands.readable(tensor)
    step = 16 // tensor.itemsize
    fits = tensor.data_ptr() % 16 == 0 and all(
        stride % step == 0 and stride > 0
        for size, stride in zip(tensor.shape[:-1], tensor.stride()[:-1], strict=True)
        if size > 1
    )
    if fits or not tensor.numel():
        return tensor
    *sizes, wide = tensor.shape
    padded = tensor.new_empty((*sizes, -(-wide // step) * step))[..., :wide]
    return padded.copy_(tensor)
