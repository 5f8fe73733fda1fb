"""The same bits in every repetition, and the small calls under ``compute-sanitizer``."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from limelight.backends.gpu import machine
from limelight.forms.settings import Settings
from limelight.operator.calling import prepare

from .calls import forms, poison, run
from .selection import by_name


def determinism(device: torch.device, options: argparse.Namespace, failures: list[str]) -> dict[str, int]:
    torch.manual_seed(0)
    dtype = torch.float32 if machine.interpreted() else torch.bfloat16
    compared = 0
    for B, Hq, Hkv, Lq, Lk, D in REPEATED[:1] if options.tiny else REPEATED[1:]:
        tensors = [torch.randn(B, h, n, D, device=device, dtype=dtype) for h, n in ((Hq, Lq), (Hkv, Lk), (Hkv, Lk))]
        grad = torch.randn(B, Hq, Lq, D, device=device, dtype=dtype)
        for name, settings in forms(device, B, Hq, Lq, Lk, D):
            if options.tiny and name not in ("causal", "bias of keys"):
                continue
            if not options.selection(f"repeated {name} {(B, Hq, Hkv, Lq, Lk, D)}"):
                continue
            for backend in options.backends:
                if by_name(backend).reasons_against(prepare(*tensors, Settings(**settings))):
                    continue
                first = run(backend, tensors, grad, settings)
                for _ in range(1 if options.tiny else 20):
                    again = under_load(device, lambda: run(backend, tensors, grad, settings))  # noqa: B023
                    compared += 1
                    pairs = [xy for xy in zip(first, again, strict=True) if xy[0] is not None]
                    if not all(torch.equal(x.nan_to_num(7), y.nan_to_num(7)) for x, y in pairs):
                        failures.append(f"{backend} {name} {(B, Hq, Hkv, Lq, Lk, D)}: other bits when repeated")
                        break
    print(f"determinism: {compared} repetitions compared", flush=True)
    return {"repetitions": compared}


SCRIPT = Path(__file__).parents[1] / "gpu.py"
REPEATED = (  # B, Hq, Hkv, Lq, Lk, D; the first is tiny
    (1, 2, 1, 18, 20, 8),
    (2, 8, 2, 1000, 1100, 64),
    (1, 16, 4, 2500, 2500, 128),  # more tiles than multiprocessors, so that programs take one after another
)


def under_load(device: torch.device, way: Callable[[], list[Any]]) -> list[Any]:
    """Run a call while another stream multiplies, over memory filled with NaN."""
    poison(device)
    if device.type == "cuda":
        noise = torch.randn(512, 512, device=device)
        with torch.cuda.stream(torch.cuda.Stream()):
            noise @ noise
    return way()


def sanitizer(tiny: bool, failures: list[str]) -> dict[str, str]:
    """Run the small calls under ``compute-sanitizer``; return its verdict of each tool."""
    found: dict[str, str] = {}
    program = shutil.which("compute-sanitizer")
    for tool in ("memcheck", "racecheck") if program and not tiny else ():
        print(f"compute-sanitizer, {tool}", flush=True)
        ran = subprocess.run(
            [str(program), "--tool", tool, "--error-exitcode", "3", sys.executable, str(SCRIPT), "--tiny", "--part",
             "correctness"], capture_output=True, text=True,
        )  # fmt: skip
        found[tool] = ran.stdout[-500:] if ran.returncode else "nothing found"
        if ran.returncode == 3:
            failures.append(f"compute-sanitizer, {tool}: {found[tool]}")
    return found or {"not run": "compute-sanitizer is not there" if program is None else "a tiny run"}
