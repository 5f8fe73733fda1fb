"""`flash3` in 8 bits: queries, keys, values and weights are rounded to float8 (e4m3) before they are multiplied.

It trades precision for speed, so it runs only when it is named (``backend="flash3-float8"``), on float16 or bfloat16
tensors, and returns their dtype. `limelight.backends.gpu.hopper.quantise` describes how the rounding is kept small.
"""

from __future__ import annotations

from ...contract import Call, Result
from . import flash3, tuning
from .quantise import quantise

NAME = "flash3-float8"
ABOUT = "flash3 with float8 products, scales by blocks and rotated queries and keys; runs only when it is named"


def status() -> str:
    """Whether the backend can run on this machine, in words."""
    return f"{ABOUT}; {flash3.status().split('; ', 1)[1]}"


def reasons_against(call: Call) -> list[str]:
    """Why the backend cannot serve the call."""
    reasons = flash3.reasons_against(call)
    if call.autograd_reason:
        reasons.append(f"flash3-float8 has no derivatives, and {call.autograd_reason}")
    return reasons


def memory(call: Call) -> int:
    """Bytes taken beside inputs and outputs: those of `flash3`, and queries, keys and values in float32 and float8."""
    B, Hq, Hkv, Lq, Lk, D, Dv = call.shapes
    return flash3.memory(call) + 5 * B * (Hq * Lq * D + Hkv * Lk * (D + Dv))


def forward(call: Call) -> Result:
    """Return the output of a call, its logsumexp where asked, and its observations."""
    return flash3.compute(call, lambda keys: quantise(call.query, call.key, call.value, keys), tuning.FLOAT8)
