"""Decoding, the cost of observations, and capture by CUDA graphs."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

import limelight
from limelight import Causal, Observe, Paged
from limelight.backends import BACKENDS
from limelight.backends.gpu import machine
from limelight.forms.settings import Settings
from limelight.operator.calling import prepare

from .selection import GPU_BACKENDS, by_name
from .timing import median_ms, milliseconds

PAGE = 64  # keys of a page


def decode(device: torch.device, tiny: bool, seconds: float, failures: list[str]) -> list[dict[str, Any]]:
    """Measure one query of 32 heads over 8 key-value heads: bytes of the cache per second, against a plain copy.

    The same keys and values lie in rows, and then in pages of 64 keys in random order. A layout is made once, as for
    all layers of a server's step, and its table is on the device after the first call.
    """
    dtype = torch.float16 if machine.interpreted() else torch.bfloat16
    source = torch.empty(2**16 if tiny else 2**30, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    bandwidth = 2 * source.nbytes / median_ms(lambda: target.copy_(source), seconds) * 1e-6
    rows = []
    for length in (2 * PAGE,) if tiny else (1024, 4096, 16384, 65536):
        for batch in (2,) if tiny else (1, 16):
            q = torch.randn(batch, 32, 1, 128, device=device, dtype=dtype)
            k, v = torch.randn(2, batch, 8, length, 128, device=device, dtype=dtype).unbind()
            numbers = torch.randperm(batch * length // PAGE)
            layout = Paged((1,) * batch, (length,) * batch, numbers.view(batch, -1))
            stored = (_in_pages(x, numbers.to(device)) for x in (k, v))
            attend = functools.partial(limelight.attention, pattern=Causal(), backend="flash2")
            ways = {
                0: functools.partial(attend, q, k, v),
                PAGE: functools.partial(attend, q.transpose(0, 2), *stored, layout=layout),
            }
            title = f"decode {batch} x {length}"
            for page, way in ways.items():
                ms = milliseconds(way, None, seconds)
                speed = (k.nbytes + v.nbytes) / ms * 1e-6
                rows.append(
                    {
                        "length": length, "batch": batch, "page": page, "ms": ms, "GB/s": speed,
                        "of bandwidth": speed / bandwidth,
                    }
                )  # fmt: skip
                where = f"in pages of {page}" if page else "in rows"
                print(f"{title} {where}: {speed:.0f} GB/s, {speed / bandwidth:.1%} of a copy", flush=True)
            expected, found = ways[0]().float(), ways[PAGE]().transpose(0, 2).float()
            # Weights and outputs are rounded to 16 bits in both, in blocks of other lengths.
            if not (found - expected).abs().max() <= 2 * torch.finfo(dtype).eps * expected.abs().max():
                failures.append(f"{title}: pages give another output than rows")
    return rows


def _in_pages(rows: Tensor, numbers: Tensor) -> Tensor:
    """Rows ``(B, H, L, D)`` as pages ``(B L / size, H, size, D)``; the pages of all texts have these ``numbers``."""
    in_order = rows.unflatten(2, (-1, PAGE)).transpose(1, 2).flatten(0, 1)
    stored = torch.empty_like(in_order)
    stored[numbers] = in_order
    return stored


def observations(device: torch.device, tiny: bool, seconds: float) -> list[dict[str, Any]]:
    """Measure the time of a call with observations over one without, together and one by one, for each backend."""
    rows = []
    columns: dict[str, Any] = {"received": True, "blocks": (64, 64)}
    requested: dict[str, dict[str, Any]] = {
        "max_weight": {"max_weight": True}, "entropy": {"entropy": True}, "top": {"top": 8},
        "received": {"received": True}, "blocks": {"blocks": (64, 64)}, "received, blocks": columns,
        "all": {"entropy": True, "max_weight": True, "top": 8, **columns},
    }  # fmt: skip
    dtype = torch.float16 if machine.interpreted() else torch.bfloat16
    for length, width in ((32, 16),) if tiny else ((2048, 128), (8192, 64), (8192, 128)):
        q, k, v = torch.randn(3, 1, 16, length, width, device=device, dtype=dtype).unbind()
        call = prepare(q, k, v, Settings(pattern=Causal(), observe=Observe(**requested["all"])))
        serving = [b.NAME for b in BACKENDS if b.NAME in GPU_BACKENDS and not b.reasons_against(call)]
        if not serving:
            rows.append({"length": length, "D": width, "served by": "none of the GPU backends"})
        for backend in serving:
            attend = functools.partial(limelight.attention, q, k, v, pattern=Causal(), backend=backend)
            plain = milliseconds(attend, None, seconds)
            row: dict[str, Any] = {"length": length, "D": width, "served by": backend, "plain ms": plain}
            for name, settings in requested.items():
                observe = Observe(**settings)
                row[name] = milliseconds(functools.partial(attend, observe=observe), None, seconds) / plain
            rows.append(row)
            summary = ", ".join(f"{name} {row[name]:.2f}" for name in requested)
            print(f"{backend}, observations at {length} x {width}, times its plain forward pass: {summary}", flush=True)
    return rows


def graph(device: torch.device, failures: list[str]) -> dict[str, bool]:
    """Check that a call and its gradients are captured by a CUDA graph that is right for new values too."""
    found: dict[str, bool] = {}
    for backend in GPU_BACKENDS if device.type == "cuda" else ():
        q, k, v, grad = torch.randn(4, 1, 4, 256, 64, device=device, dtype=torch.float16).unbind()
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        if by_name(backend).reasons_against(prepare(*leaves, Settings(pattern=Causal()))):
            continue
        forward = functools.partial(limelight.attention, *leaves, pattern=Causal(), backend=backend)

        def backward() -> Tensor:
            return torch.cat(torch.autograd.grad(forward(), leaves, grad))  # noqa: B023

        for name, attend in (("forward", forward), ("backward", backward)):
            stream = torch.cuda.Stream()
            with torch.cuda.stream(stream):  # compiles and uploads its tables
                attend()
            torch.cuda.synchronize()
            captured = torch.cuda.CUDAGraph()
            with torch.cuda.graph(captured):
                output = attend()
            with torch.no_grad():
                leaves[0].normal_()
            captured.replay()
            torch.cuda.synchronize()
            same = torch.equal(output, attend())
            found[f"{backend} {name}"] = same
            print(f"CUDA graph, {backend} {name}: {'right' if same else 'wrong results'}")
            if not same:
                failures.append(f"{backend} {name}: a CUDA graph gives wrong results")
    return found
