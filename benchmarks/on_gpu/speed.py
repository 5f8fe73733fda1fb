"""Speed forward and backward, beside cuDNN and PyTorch's FlashAttention 2 and FlexAttention."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

import limelight
from limelight import (
    Causal,
    Packed,
    Window,
)
from limelight.backends.gpu.hopper import flash3, flash3_float8
from limelight.backends.gpu.hopper import tuning as flash3_tuning
from limelight.backends.gpu.hopper.quantise import Quantised, quantise
from limelight.forms.settings import Settings
from limelight.operator.calling import prepare

from .selection import FLOAT8, GPU_BACKENDS, by_name
from .timing import host_time, milliseconds, product_peak

FORMS = ("full", "causal", "window", "packed", "grouped")
# `flash3` with its own backward kernels at every width; by default those of `flash2` compute wide heads.
OWN_BACKWARD = "flash3 own backward"


def own_backward(name: str) -> AbstractContextManager[Any]:
    """Inside, `flash3` takes its own backward kernels at every width, if that is what ``name`` means."""
    everywhere = mock.patch.object(flash3_tuning, "WIDEST_BACKWARD", flash3_tuning.WIDEST)
    return everywhere if name == OWN_BACKWARD else nullcontext()


def speed(device: torch.device, options: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    print(f"{'case':34} {'TFLOP/s':>8} {'of peak':>8}   ratio to others")
    if options.tiny:
        return [row for form in FORMS for row in measured(device, torch.float16, 16, 32, form, 0.0, heads=8, batch=1)]
    for dtype, D, length, form in speed_cases():
        if options.selection(f"{form} {D} {length} {str(dtype)[6:]}"):
            heads, batch = 2048 // D // 8 * 8, max(1, 16384 // length)
            rows += measured(device, dtype, D, length, form, options.seconds, heads, batch)
    return rows


def speed_cases() -> Iterator[tuple[torch.dtype, int, int, str]]:
    """Yield the cases of the table: dtype, head width, length, form."""
    for dtype in (torch.bfloat16, torch.float16):
        for D in (64, 96, 128, 192, 256):
            for length in (1024, 2048, 4096, 8192, 16384, 32768):
                for form in FORMS if D in (64, 128, 256) else ("causal",):
                    yield dtype, D, length, form


def measured(
    device: torch.device, dtype: torch.dtype, D: int, length: int, form: str, seconds: float, heads: int, batch: int
) -> list[dict[str, Any]]:
    key_value_heads = heads // 8 if form == "grouped" else heads
    make = lambda h: torch.randn(batch, h, length, D, device=device, dtype=dtype, requires_grad=True)  # noqa: E731
    q, k, v = make(heads), make(key_value_heads), make(key_value_heads)
    grad = torch.randn_like(q)
    settings: dict[str, Any] = {
        "full": {},
        "causal": {"pattern": Causal()},
        "window": {"pattern": Causal() & Window(1023, 0)},
        "packed": {"pattern": Causal(), "layout": Packed((length // 4,) * 4)},
        "grouped": {"pattern": Causal()},
    }[form]
    flop = 4.0 * limelight.explain(q, k, v, **settings).pairs * D
    ways: dict[str, Callable[[], Tensor]] = {}
    for backend in GPU_BACKENDS:
        if backend == "flash1" and length > 4096:
            continue  # it reads and writes its output for every block of keys: a call takes a second
        if not by_name(backend).reasons_against(prepare(q, k, v, Settings(**settings))):
            ways[backend] = functools.partial(limelight.attention, q, k, v, backend=backend, **settings)
    ways |= peers(q, k, v, form)
    rows = []
    for direction in ("forward", "backward"):
        before, times = product_peak(device), {}
        if direction == "forward":
            ways |= in_8_bits(q, k, v, settings)
        else:  # of those that have kernels for it
            forward_only = [n for n in GPU_BACKENDS if not hasattr(by_name(n), "backward")]
            ways = {name: way for name, way in ways.items() if not name.startswith((FLOAT8, *forward_only))}
            if "flash3" in ways and flash3_tuning.WIDEST_BACKWARD < D:
                ways[OWN_BACKWARD] = ways["flash3"]
        for name, way in ways.items():
            try:
                with own_backward(name):
                    times[name] = milliseconds(way, grad if direction == "backward" else None, seconds)
            except Exception as error:  # a peer that cannot serve the case
                print(f"  {name}: {str(error).splitlines()[0]}", file=sys.stderr)
        host = {name: host_time(way) for name, way in ways.items() if name in times and direction == "forward"}
        after = product_peak(device)
        work = flop * (2.5 if direction == "backward" else 1.0)
        row: dict[str, Any] = {
            "form": form, "direction": direction, "D": D, "length": length, "batch": batch, "heads": heads,
            "dtype": str(dtype)[6:], "ms": times, "tflops": {n: work / t * 1e-9 for n, t in times.items()},
            "peak_before": before, "peak_after": after, "host us": host,
        }  # fmt: skip
        if direction == "backward":  # scores and dO V twice, by each of two owners
            row["tflops of seven products"] = {n: 1.4 * x for n, x in row["tflops"].items() if n in GPU_BACKENDS}
        rows.append(row)
        # Our best, by name: flash3 where it serves the case. The ratio to flash2 and flash1 is the step between them.
        name = next((n for n in ("flash3", "flash2") if n in times), "flash2")
        best = row["tflops"].get(name, 0.0)
        others = "  ".join(f"{n} {best / s:.2f}" for n, s in row["tflops"].items() if n != name)
        title = f"{direction} {form} {D} {length} {str(dtype)[6:]}"
        steps = [row["tflops"].get(n, 0.0) / (row["tflops"].get("flash1") or 1.0) for n in ("flash2", "flash3")]
        others += f"  1 : {steps[0]:.2f} : {steps[1]:.2f}" if "flash1" in row["tflops"] else ""
        if name in host:
            others += f"  host {host[name]:.0f} us"
        print(f"{title:34} {best:8.1f} {best / max(before, after):8.1%}   {others}", flush=True)
    return rows


def in_8_bits(q: Tensor, k: Tensor, v: Tensor, settings: dict[str, Any]) -> dict[str, Callable[[], Tensor]]:
    """`flash3-float8` as it is called, and its kernel alone, with tensors that are quantised before."""
    call = prepare(q.detach(), k.detach(), v.detach(), Settings(**settings))
    if flash3_float8.reasons_against(call):
        return {}
    made: dict[int, Quantised] = {}

    def kernel() -> Tensor:
        def quantised(keys: int) -> Quantised:
            if keys not in made:
                made[keys] = quantise(call.query, call.key, call.value, keys)
            return made[keys]

        return flash3.compute(call, quantised, flash3_tuning.FLOAT8).output

    return {FLOAT8: lambda: flash3_float8.forward(call).output, f"{FLOAT8} kernel": kernel}


def peers(q: Tensor, k: Tensor, v: Tensor, form: str) -> dict[str, Callable[[], Tensor]]:
    """Return the equivalent calls of PyTorch."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    length = q.shape[2]

    def by(backend: SDPBackend) -> Tensor:
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(q, k, v, is_causal=form != "full", enable_gqa=form == "grouped")

    found: dict[str, Callable[[], Tensor]] = {}
    if q.device.type == "cpu":
        return {"torch": functools.partial(by, SDPBackend.MATH)}
    if form in ("full", "causal", "grouped"):
        found["cudnn"] = functools.partial(by, SDPBackend.CUDNN_ATTENTION)
        found["torch flash"] = functools.partial(by, SDPBackend.FLASH_ATTENTION)
    rules = {
        "causal": lambda b, h, i, j: i >= j,
        "grouped": lambda b, h, i, j: i >= j,
        "window": lambda b, h, i, j: (i >= j) & (i - j < 1024),
        "packed": lambda b, h, i, j: (i >= j) & (i // (length // 4) == j // (length // 4)),
    }
    mask = create_block_mask(rules[form], None, None, length, length, device=str(q.device)) if form in rules else None
    flex = torch.compile(flex_attention)
    found["flex"] = lambda: flex(q, k, v, block_mask=mask, enable_gqa=form == "grouped")
    return found
