"""The first FlashAttention (Dao et al. 2022) in Triton: what the second is measured and taught against.

Keys are the outer loop and queries the inner one, so output and statistics are read and written again for every block
of keys, and one program works for each batch row and head. Plain forms only, forward only.
"""

from __future__ import annotations

import torch

from ..contract import Call, Result
from . import machine, operands, tuning

NAME = "flash1"
ABOUT = "the first FlashAttention algorithm in Triton, to measure the second against; plain forms only"

MOST_WIDTH = 128


def status() -> str:
    """Whether the backend is there on this machine."""
    return f"{ABOUT}; {machine.status()}"


def reasons_against(call: Call) -> list[str]:
    """Why the backend cannot serve the call."""
    reasons = machine.reasons_against(call.query.device, call.query.dtype)
    reasons += operands.unreadable(call)
    if max(call.shapes.D, call.shapes.Dv) > MOST_WIDTH:
        reasons.append(f"the head width is {max(call.shapes.D, call.shapes.Dv)}; it takes {MOST_WIDTH}")
    plain = {
        "score rules": call.scores,
        "Additive": call.compare,
        "a sink": call.sink is not None,
        "dropout": call.dropout,
        "observations": call.observe is not None,
        "a scale that is not positive": call.scale <= 0,
    }
    reasons += [f"it has plain forms only, and the call has {what}" for what, there in plain.items() if there]
    if not reasons:
        lowered = call.lowered
        table = lowered.segment_table
        if lowered.tiles is not None or not lowered.spans or len(table) != 1 or table[0, 0] != -1:
            reasons.append("it takes intervals by arithmetic in one document a row, not bits, arrays or packed rows")
        elif operands.far(lowered):
            reasons.append(f"a position lies beyond {operands.MOST_POSITION}; it counts in 32 bits")
    return reasons


def memory(call: Call) -> int:
    """Bytes taken beside inputs and outputs: the output in float32, and two statistics of every query."""
    B, Hq, _, Lq, _, _, Dv = call.shapes
    return 4 * B * Hq * Lq * (Dv + 2)


def forward(call: Call) -> Result:
    """Compute the call."""
    from .kernels import first as kernels

    B, Hq, Hkv, Lq, _, D, Dv = call.shapes
    device = call.query.device
    query, key, value = (operands.readable(x) for x in (call.query, call.key, call.value))
    output = torch.zeros((B, Hq, Lq, Dv), dtype=torch.float32, device=device)
    maxima = torch.full((B, Hq, Lq), -torch.inf, dtype=torch.float32, device=device)
    sums = torch.zeros((B, Hq, Lq), dtype=torch.float32, device=device)
    if not output.numel():
        return Result(output.to(call.query.dtype), maxima)
    width = max(tuning.width(D), tuning.width(Dv))
    tile = tuning.first_tile(machine.generation(device), call.query.dtype.itemsize, width)
    sight = operands.sight(call.lowered, tile.rows, device)
    rules = operands.rules(call)
    form = operands.form_of(call, rules, sight, 1, 1, tile)
    kernels.first_forward[Hq, B](
        query, key, value, output, maxima, sums, query.stride()[:3], key.stride()[:3], value.stride()[:3],
        Hq, Hq // Hkv, Lq, sight.segment, sight.spans, sight.begins, sight.ends, sight.interval_strides, call.scale,
        form=form, num_warps=tile.warps, num_stages=1,
    )  # fmt: skip
    kernels.finish[(-(-maxima.numel() // 1024),)](maxima, sums, maxima.numel(), ROWS=1024)
    return Result(output.to(call.query.dtype), maxima)
