"""The host's time of a call, beside that of PyTorch's scaled dot-product attention."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

import limelight
from limelight import Causal
from limelight.backends.gpu import machine
from limelight.forms.settings import Settings
from limelight.operator.calling import prepare

from .selection import by_name


def host(device: torch.device, tiny: bool) -> list[dict[str, Any]]:
    """Measure calls so short that the GPU waits for the host: microseconds of a call, without waiting for its end."""
    dtype = torch.float16 if machine.interpreted() else torch.bfloat16
    calls, rounds = (2, 1) if tiny else (200, 15)
    rows = []
    for name, queries, keys, gradients in (
        ("causal", 256, 256, False), ("causal, both ways", 256, 256, True), ("one query", 1, 1024, False),
    ):  # fmt: skip
        queries, keys = (min(n, 16) if tiny else n for n in (queries, keys))
        q = torch.randn(1, 4, queries, 64, device=device, dtype=dtype, requires_grad=gradients)
        k, v = (torch.randn(1, 4, keys, 64, device=device, dtype=dtype, requires_grad=gradients) for _ in range(2))
        grad = torch.ones_like(q)
        ways: dict[str, Callable[[], torch.Tensor]] = {
            "sdpa": lambda q=q, k=k, v=v: scaled_dot_product_attention(q, k, v, is_causal=q.shape == k.shape)
        }
        for backend in ("flash2", "flash3"):
            if not by_name(backend).reasons_against(prepare(q, k, v, Settings(pattern=Causal()))):
                ways[backend] = lambda q=q, k=k, v=v, backend=backend: limelight.attention(
                    q, k, v, pattern=Causal(), backend=backend
                )
        row: dict[str, Any] = {"call": name}
        leaves = (q, k, v) if gradients else ()
        for way, attend in ways.items():
            row[way] = microseconds(functools.partial(_both, attend, leaves, grad) if leaves else attend, calls, rounds)
        rows.append(row)
        print(f"host, {name}: " + ", ".join(f"{way} {row[way]:.0f} µs" for way in ways), flush=True)
    return rows


def _both(attend: Callable[[], torch.Tensor], leaves: tuple[torch.Tensor, ...], grad: torch.Tensor) -> None:
    torch.autograd.grad(attend(), leaves, grad)


def microseconds(run: Callable[[], Any], calls: int, rounds: int) -> float:
    """The median over ``rounds`` of the mean of so many ``calls``, none of which waits for the GPU."""
    times = []
    for _ in range(rounds + 1):  # the first compiles
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            run()
        times.append((time.perf_counter() - start) / calls * 1e6)
    return statistics.median(times[1:])
