"""Times of calls on the GPU, and of a matrix product as the reference speed of the chip."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def host_time(call: Callable[[], Tensor]) -> float:
    """Measure the microseconds until a call without gradients returns, while the GPU still computes."""
    times = []
    for _ in range(20):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        start = time.perf_counter()
        with torch.no_grad():
            call()
        times.append(time.perf_counter() - start)
    return 1e6 * statistics.median(times)


def milliseconds(call: Callable[[], Tensor], grad: Tensor | None, seconds: float) -> float:
    """Measure the median time of a call on the GPU in milliseconds, with caches flushed between calls."""
    if grad is None:
        with torch.no_grad():
            return median_ms(call, seconds)
    output = call()
    leaves = [t for t in _leaves(output) if t is not None]

    def backward() -> None:
        for leaf in leaves:
            leaf.grad = None
        output.backward(grad, retain_graph=True)

    return median_ms(backward, seconds)


def _leaves(output: Tensor) -> list[Any]:
    """Return the tensors that a backward pass accumulates into."""
    found, open_ = [], [output.grad_fn]
    while open_:
        node = open_.pop()
        if node is None:
            continue
        if hasattr(node, "variable"):
            found.append(node.variable)
        open_ += [after for after, _ in node.next_functions]
    return found


def median_ms(call: Callable[[], Any], seconds: float) -> float:
    """Measure the median milliseconds of a call; without a GPU, of one call, to test this script."""
    if not torch.cuda.is_available():
        start = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - start)
    flush = torch.empty(2**28, dtype=torch.int8, device="cuda")
    for _ in range(3):
        call()
    times: list[float] = []
    start = time.perf_counter()
    while len(times) < 5 or (time.perf_counter() - start < seconds and len(times) < 200):
        # a millisecond of GPU work, during which the host launches the call: GPU time alone is measured
        for _ in range(16):
            flush.zero_()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def product_peak(device: torch.device) -> float:
    """Measure TFLOP/s of a bfloat16 product of 8192 x 8192: the reference speed of the chip."""
    side = 8192 if device.type == "cuda" else 64
    a = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    return 2 * side**3 / median_ms(lambda: a @ a, 0.1) * 1e-9
