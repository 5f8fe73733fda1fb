"""Both forms of `flash3`'s forward pass, where one has never been measured: correctness first, then the time of each.

Each head width runs in a process of its own (``python -m on_gpu.candidates WIDTH SECONDS``) with a time limit, since a
form that never ran may wait for ever. The results say which form the table of `limelight.backends.gpu.hopper.tuning`
should name.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import limelight
from limelight import Causal, Observe
from limelight.backends.gpu.hopper import flash3
from limelight.backends.gpu.hopper.tuning import CANDIDATES, MEASURED
from limelight.forms.settings import Settings
from limelight.operator.calling import prepare

from .calls import excess, forms, poison, rounded
from .timing import median_ms

LIMIT = 240  # seconds of one head width
TABLES = {"measured": MEASURED, "candidate": MEASURED | CANDIDATES}
WIDTHS = {64: ((64, 64), (40, 56)), 192: ((192, 192), (136, 72)), 256: ((256, 256), (200, 248))}
SIZES = ((2, 4, 2, 257, 513), (1, 6, 2, 1500, 1300))  # B, Hq, Hkv, Lq, Lk
LENGTHS = (1024, 4096, 16384)


def candidates(options: argparse.Namespace, failures: list[str]) -> dict[str, Any]:
    """Check and measure every width that has a candidate, each in a process of its own."""
    found: dict[str, Any] = {}
    for width in CANDIDATES:
        command = [sys.executable, "-m", "on_gpu.candidates", str(width), str(options.seconds)]
        try:
            done = subprocess.run(
                command, cwd=Path(__file__).parents[1], timeout=LIMIT, stdout=subprocess.PIPE, text=True, check=False
            )
        except subprocess.TimeoutExpired:
            failures.append(f"candidate {width}: no end within {LIMIT} s; it hangs")
            continue
        *lines, last = done.stdout.splitlines() or [""]
        print("\n".join(lines), flush=True)
        if done.returncode:
            failures.append(f"candidate {width}: wrong, or ended with {done.returncode}")
        else:
            found[str(width)] = json.loads(last)
    return found


def wrong(device: torch.device, width: int, sizes: tuple[tuple[int, ...], ...], repetitions: int) -> list[str]:
    """Compare the candidate with the definition in float64, and with itself when repeated."""
    errors = []
    for B, Hq, Hkv, Lq, Lk in sizes:
        for D, Dv in WIDTHS[width]:
            for name, settings in forms(device, B, Hq, Lq, Lk, D):
                tensors = [
                    torch.randn(B, h, n, w, device=device).to(torch.float16)
                    for h, n, w in ((Hq, Lq, D), (Hkv, Lk, D), (Hkv, Lk, Dv))
                ]
                call = prepare(*tensors, Settings(**settings))
                if flash3.unsupported(call):
                    continue
                poison(device)
                with torch.no_grad():
                    ours = outputs(call)
                    with rounded(torch.float16):
                        plain = defined(tensors, settings)
                    truth = defined([t.double() for t in tensors], settings)
                    title = f"candidate {width}, {name} {(B, Hq, Hkv, Lq, Lk, D, Dv)}"
                    for what, x, y, exact in zip(("output", "logsumexp"), ours, plain, truth, strict=True):
                        if not (error := excess(x, y, exact, torch.float16)) <= 1.0:
                            errors.append(f"{title}: {error:.2f} times the allowed error of the {what}")
                    again = (outputs(call) for _ in range(repetitions))
                    if not all(torch.equal(x, y) for pair in again for x, y in zip(pair, ours, strict=True)):
                        errors.append(f"{title}: other bits when repeated")
    return errors


def outputs(call: Any) -> tuple[Tensor, Tensor]:
    """Output and logsumexp by the candidate."""
    result = flash3.compute(call, None, TABLES["candidate"])
    return result.output, result.logsumexp


def defined(tensors: list[Tensor], settings: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Output and logsumexp by the definition."""
    output, seen = limelight.attention(*tensors, backend="reference", observe=Observe(logsumexp=True), **settings)
    return output, seen.logsumexp


def times(device: torch.device, width: int, lengths: tuple[int, ...], seconds: float) -> list[dict[str, Any]]:
    """Measure both forms in turns, in bfloat16."""
    rows = []
    for length in lengths:
        heads, batch = (2048 // width // 8 * 8, max(1, 16384 // length)) if device.type == "cuda" else (1, 1)
        q, k, v = (torch.randn(batch, heads, length, width, device=device).to(torch.bfloat16) for _ in range(3))
        for name, settings in (("full", {}), ("causal", {"pattern": Causal()})):
            call = prepare(q, k, v, Settings(**settings))
            flop = 4.0 * limelight.explain(q, k, v, **settings).pairs * width
            turns = [
                {
                    form: median_ms(lambda table=table: flash3.compute(call, None, table), seconds / 2)  # noqa: B023
                    for form, table in TABLES.items()
                }
                for _ in range(2)
            ]
            row = {form: 1e-9 * flop / min(turn[form] for turn in turns) for form in TABLES}
            rows.append(
                {
                    "form": name, "direction": "forward", "D": width, "length": length, "dtype": "bfloat16",
                    "tflops": row, "gain": row["candidate"] / row["measured"],
                }
            )  # fmt: skip
            shown = "  ".join(f"{form} {value:6.1f}" for form, value in row.items())
            print(f"flash3 forward {width} {name} {length}: {shown} TFLOP/s, {rows[-1]['gain']:.2f}", flush=True)
    return rows


def main() -> int:
    width, seconds = int(sys.argv[1]), float(sys.argv[2])
    torch.manual_seed(0)
    device = torch.device("cuda")
    if errors := wrong(device, width, SIZES, 20):
        print("\n".join([*errors, ""]))
        return 1
    rows = times(device, width, LENGTHS, seconds)
    worst = min(row["gain"] for row in rows)
    advice = f"name CANDIDATES[{width}] in FORWARD" if worst > 1.0 else "keep the measured form"
    print(f"width {width}: right; {worst:.2f} times as fast at worst, so {advice} (hopper/tuning.py)")
    print(json.dumps(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
