"""On a machine with a GPU: check the GPU backends against the definition, then measure them.

    python benchmarks/gpu.py                     # everything, about half an hour
    python benchmarks/gpu.py --part correctness  # or determinism, sanitizer, candidates, speed
    python benchmarks/gpu.py --list              # the cases; needs no GPU
    TRITON_INTERPRET=1 python benchmarks/gpu.py --tiny   # a test of the script without a GPU; its speeds mean nothing

- correctness: random calls (a new seed every run, printed) against ``reference`` in float64, by the rule of the tests:
  at most 1.5 times the error of the plain computation that rounds where kernels round. Compared are output, logsumexp,
  the gradients of query, key, value and of every learned operand, and every observation. The caching allocator's memory
  is filled with NaN first, so an element that was never written is found.
- float8: the error of `flash3-float8` against float64, compared with one scale for each tensor.
- determinism: the same call twenty times, forward and backward, bit for bit, while other kernels keep the GPU busy.
- sanitizer: the small correctness calls under NVIDIA's ``compute-sanitizer`` (memory and races), if it is installed.
- candidates: forms of `flash3`'s forward pass that were never measured, beside those in use: correctness first, then
  the speed of both, in a process with a time limit for each head width; about three minutes.
- speed: forward and backward in TFLOP/s (``4 pairs D`` forward, 2.5 times that backward), as a fraction of the chip's
  own bfloat16 product of 8192 x 8192, measured before and after each case, and as a ratio to cuDNN, to PyTorch's
  FlashAttention 2 and to FlexAttention, all in the same run, and ``flash1 : flash2 : flash3``. Our backward passes
  take seven products where five are counted; their rate counting all seven is given too. Decode is in GB/s, of the
  measured memory bandwidth, with keys in rows and in pages. Then the cost of observations, the host's time of a call,
  whether CUDA graphs capture a call, and the goals with their predictions (see ``benchmarks/predictions.md``) and what
  was measured before and now; where a candidate was measured in the same run, the faster form counts.

Results are written to ``benchmarks/results/NAME.json`` with the date, the chip and the versions.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from on_gpu.calls import SIZES, forms
from on_gpu.candidates import candidates
from on_gpu.correctness import correctness, float8, seen
from on_gpu.costs import decode, graph, observations
from on_gpu.determinism import REPEATED, determinism, sanitizer
from on_gpu.goals import goals
from on_gpu.host import host
from on_gpu.selection import GPU_BACKENDS, Selection
from on_gpu.speed import speed, speed_cases

import limelight
from limelight.backends.gpu import machine
from limelight.backends.gpu.hopper.tuning import CANDIDATES

HERE = Path(__file__).parent
PARTS = ("correctness", "determinism", "sanitizer", "candidates", "speed")


def main() -> int:
    options = read_options()
    if options.list:
        print("\n".join(what_would_run(options.part)))
        return 0
    if machine.missing():
        print(f"{machine.missing()}.", file=sys.stderr)
        return 1
    device = torch.device("cpu" if machine.interpreted() else "cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        print(
            "PyTorch sees no GPU, and this script checks and measures one. --list prints its cases; "
            "TRITON_INTERPRET=1 and --tiny run its own logic on the CPU.",
            file=sys.stderr,
        )
        return 1
    if device.type == "cpu" and not options.tiny:
        print("In Triton's interpreter only --tiny ends within a day.", file=sys.stderr)
        return 1
    result: dict[str, Any] = {"format": "limelight.gpu", "version": 1, "about": about(device)}
    print("  ".join(f"{k}: {v}" for k, v in result["about"].items()), flush=True)
    failures: list[str] = []
    if options.part in ("all", "correctness"):
        result["correctness"] = correctness(device, options, failures)
        result["seen"] = seen(device, options, failures)
        result["float8"] = float8(device, options, failures)
    if options.part in ("all", "determinism"):
        result["determinism"] = determinism(device, options, failures)
    if options.part in ("all", "sanitizer"):
        result["sanitizer"] = sanitizer(options.tiny, failures)
    if options.part in ("all", "candidates") and device.type == "cuda" and machine.generation(device) == "hopper":
        result["candidates"] = candidates(options, failures)
    if options.part in ("all", "speed"):
        result["speed"] = speed(device, options)
        result["decode"] = decode(device, options.tiny, options.seconds, failures)
        result["observations"] = observations(device, options.tiny, options.seconds)
        result["host"] = host(device, options.tiny)
        result["graph"] = graph(device, failures)
        result["goals"] = goals(result)
    result["failures"] = failures
    if not options.tiny and (options.selection.everything or options.name):
        target = HERE / "results" / f"{options.name or result['about']['chip'].lower().replace(' ', '-')}.json"
        target.parent.mkdir(exist_ok=True)
        target.write_text(json.dumps(result, indent=1) + "\n")
        print(f"written to {target}")
    print("\n".join(failures) or "no failures")
    return 1 if failures else 0


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--part", choices=("all", *PARTS), default="all")
    parser.add_argument("--name", default="", help="name of the result file; by default that of the chip")
    parser.add_argument("--seconds", type=float, default=0.5, help="approximate time of each measurement")
    parser.add_argument(
        "--seed", type=int, default=int(time.time()), help="seed of the random calls; a new one by default"
    )
    parser.add_argument("--tiny", action="store_true", help="a few small calls and no result file")
    parser.add_argument(
        "--only", default="", help="a regular expression that selects calls by name; results are kept only with --name"
    )
    parser.add_argument(
        "--shard",
        default="0/1",
        help="K/N: every N-th call from the K-th on. Most of the time is compilation, so N processes in parallel "
        "check N times as fast; results are kept only with --name",
    )
    parser.add_argument("--backends", nargs="*", choices=GPU_BACKENDS, default=GPU_BACKENDS, help="to check")
    parser.add_argument("--list", action="store_true", help="print what would run and end; needs no GPU")
    options = parser.parse_args()
    options.selection = Selection(options.only, *map(int, options.shard.split("/")))
    return options


def what_would_run(part: str) -> list[str]:
    """Return the cases of each part, by name."""
    names = [name for name, _ in forms(torch.device("cpu"), 1, 1, 2, 2, 16)]
    parts = {
        "correctness": [f"{sizes}: {', '.join(names)}" for sizes in SIZES],
        "determinism": [f"{sizes}, 20 times" for sizes in REPEATED[1:]],
        "sanitizer": ["memcheck and racecheck of the tiny calls"],
        "candidates": [f"flash3 forward {width}, both forms" for width in CANDIDATES],
        "speed": [
            *(f"{form} {D} {length} {str(dtype)[6:]}, both ways" for dtype, D, length, form in speed_cases()),
            "decode in rows and in pages", "observations", "host", "CUDA graphs",
        ],
    }  # fmt: skip
    return [f"{name}: {case}" for name in parts if part in ("all", name) for case in parts[name]]


def about(device: torch.device) -> dict[str, str]:
    import triton

    on_gpu = device.type == "cuda"
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "chip": torch.cuda.get_device_name() if on_gpu else "interpreter",
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()) if on_gpu else "none",
        "triton": triton.__version__,
        "limelight": limelight.__version__,
    }


if __name__ == "__main__":
    sys.exit(main())
