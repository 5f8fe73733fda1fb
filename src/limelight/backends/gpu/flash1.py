"""The first FlashAttention (Dao et al. 2022) in Triton, as a baseline for FlashAttention 2.

Keys are the outer loop and queries the inner one, so output and statistics are read and written again for every block
of keys, and one program computes all queries of a batch row and head. Forward only; no rules, sink or dropout.
"""

from __future__ import annotations

import torch

from ..contract import Call, Result
from . import arguments, machine, plans, tuning
from .launching import launch
from .score_rules import rule_arguments
from .visibility import beyond_32_bits, visibility

NAME = "flash1"
ABOUT = "the first FlashAttention algorithm in Triton, for comparison; no score rules, sink or dropout"

WIDEST = 128


def status() -> str:
    """Whether the backend can run on this machine, in words."""
    return f"{ABOUT}; {machine.status()}"


def reasons_against(call: Call) -> list[str]:
    """Why the backend cannot serve the call."""
    reasons = machine.reasons_against(call.query.device, call.query.dtype)
    reasons += arguments.unsupported_tensors(call)
    if max(call.shapes.D, call.shapes.Dv) > WIDEST:
        reasons.append(f"the head width is {max(call.shapes.D, call.shapes.Dv)}; flash1 takes up to {WIDEST}")
    unsupported = {
        "score rules": call.scores,
        "Additive": call.compare,
        "a sink": call.sink is not None,
        "dropout": call.dropout,
        "observations": call.observe is not None,
        "a scale that is not positive": call.scale <= 0,
    }
    reasons += [f"flash1 does not compute {what}" for what, present in unsupported.items() if present]
    if not reasons:
        lowered = call.lowered
        table = lowered.segment_table
        if lowered.tiles is not None or not lowered.spans or len(table) != 1 or table[0, 0] != -1:
            reasons.append(
                "the pattern or layout needs interval arrays, a tile map or several segments; flash1 takes spans"
            )
        else:
            reasons += beyond_32_bits(lowered)
    return reasons


def memory(call: Call) -> int:
    """Bytes taken beside inputs and outputs: the output in float32, and two statistics of every query."""
    B, Hq, _, Lq, _, _, Dv = call.shapes
    return 4 * B * Hq * Lq * (Dv + 2)


def forward(call: Call) -> Result:
    """Return the output of a call, its logsumexp where asked, and its observations."""
    return plans.forward(call, NAME, _forward)


def _forward(call: Call) -> Result:
    from .kernels import flash1 as kernels

    B, Hq, Hkv, Lq, _, D, Dv = call.shapes
    device = call.query.device
    query, key, value = (arguments.with_unit_stride(x) for x in (call.query, call.key, call.value))
    output = torch.zeros((B, Hq, Lq, Dv), dtype=torch.float32, device=device)
    maxima = torch.full((B, Hq, Lq), -torch.inf, dtype=torch.float32, device=device)
    sums = torch.zeros((B, Hq, Lq), dtype=torch.float32, device=device)
    if not output.numel():
        return Result(output.to(call.query.dtype), maxima)
    width = max(tuning.width(D), tuning.width(Dv))
    tile = tuning.flash1_tile(machine.generation(device), call.query.dtype.itemsize, width)
    visible = visibility(call.lowered, tile.rows, device)
    rules = rule_arguments(call)
    const = arguments.constants(call, rules, visible, 1, 1, tile)
    launch(
        kernels.first_forward, (Hq, B),
        query, key, value, output, maxima, sums, query.stride()[:3], key.stride()[:3], value.stride()[:3],
        Hq, Hq // Hkv, Lq, visible.segment, *visible.interval_tables, call.scale,
        const=const, num_warps=tile.warps, num_stages=1,
    )  # fmt: skip
    launch(kernels.finish, (-(-maxima.numel() // 1024),), maxima, sums, maxima.numel(), ROWS=1024)
    return Result(output.to(call.query.dtype), maxima)
