"""Time the host's part of a GPU call, without a GPU: the Python from `limelight.attention` to the launch.

    python benchmarks/host_time.py                 # every case, medians in microseconds
    python benchmarks/host_time.py decode          # cases with this in their names
    python benchmarks/host_time.py --profile decode  # where the time goes (cProfile)

Tensors on the CPU pose as those of an H200. Kernels are compiled for it, and everything up to Triton's launcher runs:
the checks, the choice of a backend, the lowering, PyTorch's autograd, plans, Triton's own dispatch where it is called.
The launcher's C function is replaced by one that returns at once. Times are processor time of one core.

Not included, since they need a GPU: the launcher's C function, which converts arguments and calls the driver (2 to 3 µs
a launch); what PyTorch's allocator takes on a GPU beyond its time on the CPU (about 1 µs a tensor); the launch that
clears or fills a tensor there (about 3 µs); and the change of threads for a backward pass (about 10 µs). The columns
say how many launches, new tensors and filled tensors a call has as it is written, before it has a plan. On the other
hand, small tensors are cleared by the CPU here, and a check of ``is_cpu`` ends some others early.

The floor of a call with its backward is PyTorch's own time, the case "PyTorch alone, both ways": a function with the
same inputs and saved tensors that only allocates its results, and `torch.autograd.grad`.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import json
import pstats
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import triton
from ahead import TARGETS, NamedGPU
from torch.utils._python_dispatch import TorchDispatchMode
from triton.backends.nvidia import driver as nvidia

import limelight
from limelight import ALiBi, Aligned, Causal, Packed, Window
from limelight.backends import native
from limelight.backends.contract import Result
from limelight.backends.gpu import machine
from limelight.backends.gpu.hopper import flash3

CALLS, ROUNDS = 50, 40  # calls of a round, whose mean is one measurement; rounds, whose median is reported
Case = Callable[[], Any]


class StubbedGPU(NamedGPU):
    """A GPU that is not present, on which launches succeed and do nothing."""

    def __init__(self, architecture: int) -> None:
        super().__init__(architecture)
        self.launches = 0
        self.utils = self
        self.launcher_cls = nvidia.CudaLauncher

    def launch(self, *arguments: Any) -> None:
        self.launches += 1

    def load_binary(self, *arguments: Any) -> tuple[int, ...]:
        return 1, 1, 0, 0, 1024

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 227 * 1024}

    def build_signature_metadata(self, signature: list[str]) -> bytes:
        return bytes(len(signature))

    def fill_tma_descriptor_tiled(self, *arguments: Any) -> None:
        return None


@contextmanager
def posing(generation: str = "hopper") -> Iterator[StubbedGPU]:
    """Inside, tensors on the CPU are served by the GPU backends, whose kernels are compiled and not launched."""
    gpu = StubbedGPU(TARGETS[generation])
    triton.runtime.driver.set_active(gpu)
    always: dict[tuple[Any, str], Any] = {
        (nvidia, "PyKernelArg"): lambda **_: None,
        (native, "reasons_against"): lambda call: ["the tensors lie on a GPU"],
        (machine, "reasons_against"): lambda device, dtype: [],
        (machine, "generation"): lambda device: generation,
        (machine, "processors"): lambda device: 132,
        (flash3, "not_hopper"): lambda device: [],
    }
    patches = [mock.patch.object(owner, name, value) for (owner, name), value in always.items()]
    for patch in patches:
        patch.start()
    try:
        yield gpu
    finally:
        for patch in patches:
            patch.stop()


def tensors(L: int, heads: tuple[int, int] = (2, 2), keys: int | None = None, D: int = 64) -> list[torch.Tensor]:
    """Query, key and value. Small, since the CPU clears and copies memory at its own speed."""
    make = lambda H, n: torch.zeros(1, H, n, D, dtype=torch.bfloat16)  # noqa: E731
    return [make(heads[0], L), make(heads[1], keys or L), make(heads[1], keys or L)]


def forward(*operands: torch.Tensor, **settings: Any) -> Case:
    query, key, value = operands
    return lambda: limelight.attention(query, key, value, **settings)


def both(*operands: torch.Tensor, **settings: Any) -> Case:
    leaves = [x.requires_grad_() for x in operands]
    query, key, value = leaves
    grad = torch.zeros_like(query)

    def run() -> None:
        torch.autograd.grad(limelight.attention(query, key, value, **settings), leaves, grad)

    return run


def growing(backend: str | None) -> Case:
    """One token after the other: keys and values are the first of two buffers, one more in each call."""
    query, key, value = tensors(1, (32, 8), 2**14, 16)
    length = 1000

    def run() -> None:
        nonlocal length
        length = length + 1 if length < 2**14 else 1000
        limelight.attention(query, key[:, :, :length], value[:, :, :length], pattern=Causal(), backend=backend)

    return run


def cases() -> dict[str, Callable[[], Case]]:
    """``{name: function that makes the case}``."""
    found: dict[str, Callable[[], Case]] = {"decode, growing flash2": lambda: growing("flash2")}
    packed = Packed((128, 128))
    for name in ("flash2", "flash3"):
        found |= {
            f"plain {name}": lambda name=name: forward(*tensors(256), backend=name),
            f"causal {name}": lambda name=name: forward(*tensors(256), pattern=Causal(), backend=name),
            f"window {name}": lambda name=name: forward(*tensors(256), pattern=Causal() & Window(64, 0), backend=name),
            f"packed {name}": lambda name=name: forward(*tensors(256), layout=packed, pattern=Causal(), backend=name),
            f"grouped {name}": lambda name=name: forward(*tensors(256, (4, 1)), pattern=Causal(), backend=name),
            f"ALiBi {name}": lambda name=name: forward(
                *tensors(256), pattern=Causal(), scores=(ALiBi(torch.ones(2)),), backend=name
            ),
            f"both ways {name}": lambda name=name: both(*tensors(256), pattern=Causal(), backend=name),
            f"both ways, packed {name}": lambda name=name: both(
                *tensors(256), layout=packed, pattern=Causal(), backend=name
            ),
        }
    found |= {
        "decode flash2": lambda: forward(*tensors(1, (32, 8), 1000), pattern=Causal(), backend="flash2"),
        "decode, split flash2": lambda: forward(*tensors(1, (32, 8), 8192), pattern=Causal(), backend="flash2"),
        "decode, lengths flash2": lambda: forward(
            *tensors(1, (32, 8), 1000), pattern=Causal(),
            layout=Aligned(query_start=torch.tensor([600])), backend="flash2",
        ),
        "chosen": lambda: forward(*tensors(256), pattern=Causal()),
        "PyTorch alone, both ways": pytorch_alone,
        "operator alone": lambda: alone(forward),
        "operator alone, both ways": lambda: alone(both),
    }  # fmt: skip
    return found


def alone(way: Callable[..., Case]) -> Case:
    """The operator without its backend: checks, choice, lowering, autograd."""
    operands = tensors(256)
    output, logsumexp = torch.zeros_like(operands[0]), torch.zeros(1, 2, 256)
    gradients = tuple(torch.zeros_like(x) for x in operands)
    run = way(*operands, pattern=Causal())

    def without() -> None:
        with (
            mock.patch.object(flash3, "forward", lambda call: (call.lowered, Result(output, logsumexp))[1]),
            mock.patch.object(flash3, "backward", lambda *_: gradients),  # noqa: PT008 (a mock takes longer)
        ):
            for _ in range(CALLS):
                run()

    without.calls = CALLS  # type: ignore[attr-defined]
    return without


class Allocating(torch.autograd.Function):
    """What PyTorch itself does for a call and its backward: the results are allocated, and not computed."""

    @staticmethod
    def forward(ctx: Any, call: Any, backend: Any, *operands: torch.Tensor) -> torch.Tensor:
        output, logsumexp = torch.empty_like(operands[0]), operands[0].new_empty(operands[0].shape[:3])
        ctx.call, ctx.backend = call, backend
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*operands, output, logsumexp)
        return output

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return None, None, *map(torch.empty_like, ctx.saved_tensors[:3])


def pytorch_alone() -> Case:
    leaves = [x.requires_grad_() for x in tensors(256)]
    grad = torch.zeros_like(leaves[0])
    return lambda: torch.autograd.grad(Allocating.apply(None, None, *leaves), leaves, grad)  # type: ignore[no-untyped-call]


class Counted(TorchDispatchMode):
    """Counts the tensors that are made, and those that are filled or computed, which on a GPU is a launch."""

    made = computed = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        self.made += name in ("empty", "empty_like", "empty_strided", "new_empty", "zeros", "zeros_like", "full")
        self.computed += name in (
            "zero_",
            "fill_",
            "copy_",
            "zeros",
            "zeros_like",
            "full",
            "_to_copy",
            "constant_pad_nd",
        )
        return function(*args, **kwargs or {})


def measure(run: Case) -> float:
    """The median, over `ROUNDS`, of the processor time of a call, a mean over `CALLS`, in microseconds."""
    calls = getattr(run, "calls", 0)
    for _ in range(1 if calls else CALLS):
        run()
    times = []
    gc.disable()
    for _ in range(ROUNDS):
        start = time.thread_time()
        for _ in range(1 if calls else CALLS):
            run()
        times.append((time.thread_time() - start) / CALLS * 1e6)
    gc.enable()
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="parts of the names of cases; all of them by default")
    parser.add_argument("--profile", action="store_true", help="print where the time goes instead")
    parser.add_argument("--json", action="store_true", help="print the times as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    table: dict[str, float] = {}
    with posing() as gpu:
        for name, make in cases().items():
            if options.names and not any(part in name for part in options.names):
                continue
            run = make()
            run()
            if options.profile:
                profile(name, run)
                continue
            before = gpu.launches
            with Counted() as counted:
                run()
            launches = gpu.launches - before
            table[name] = round(measure(run), 1)
            if not options.json:
                print(
                    f"{name:28s} {table[name]:7.1f} µs  launches {launches}  tensors {counted.made}"
                    f"  filled {counted.computed}", flush=True,
                )  # fmt: skip
    if options.json:
        print(json.dumps(table, indent=1))


def profile(name: str, run: Case) -> None:
    """Print the functions in which a case spends its time."""
    for _ in range(CALLS):
        run()
    with cProfile.Profile() as profiler:
        for _ in range(20 * CALLS):
            run()
    print(f"== {name}: microseconds of {20 * CALLS} calls, in thousands")
    pstats.Stats(profiler, stream=sys.stdout).sort_stats("tottime").print_stats(35)


if __name__ == "__main__":
    main()
