"""On a machine with a GPU: check the GPU backends against the definition, then measure them.

    python benchmarks/gpu.py                     # everything, about half an hour
    python benchmarks/gpu.py --part correctness  # or determinism, sanitizer, speed
    python benchmarks/gpu.py --list              # what would be measured; needs no GPU
    TRITON_INTERPRET=1 python benchmarks/gpu.py --tiny   # the script itself, without a GPU; its speeds mean nothing

- correctness: fresh random calls (a new seed every run, printed) in float64 against ``reference``, by the rule of the
  tests: at most 1.5 times the error of the plain computation that rounds where kernels round: output, logsumexp, the
  gradients of query, key, value and of everything that is learned beside, and every observation. Memory that the
  caching allocator hands out is filled with NaN first, so a number that nobody wrote shows.
- float8: the error of `flash3-float8` against float64, beside that of one scale for each tensor.
- determinism: the same call twenty times, forward and backward, bit for bit, while other kernels keep the GPU busy.
- sanitizer: the small correctness calls under NVIDIA's ``compute-sanitizer`` (memory and races), if it is there.
- speed: forward and backward in TFLOP/s (``4 pairs D`` forward, 2.5 times that backward), as a fraction of the chip's
  own bfloat16 product of 8192 x 8192, measured before and after each case, and as a ratio to cuDNN, to PyTorch's
  FlashAttention 2 and to FlexAttention, all in the same run, and ``flash1 : flash2 : flash3``. Backward passes of ours
  take seven products where five are counted; what they multiply is told beside. Decode is in GB/s of the measured
  memory bandwidth. Then what observations cost, whether CUDA graphs capture a call, and the goals and predictions
  (their log is ``benchmarks/predictions.md``) beside what was measured.

Everything lands in ``benchmarks/results/NAME.json`` with the date, the chip and the versions.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

import limelight
from limelight import (
    Additive,
    ALiBi,
    Bias,
    Causal,
    Explicit,
    KeyMask,
    Keys,
    Observe,
    Packed,
    Padded,
    RelativeBias,
    SoftCap,
    Window,
)
from limelight.backends import BACKENDS, reference
from limelight.backends.gluon import flash3, flash3_float8
from limelight.backends.gluon import tuning as flash3_tuning
from limelight.backends.gluon.quantise import Quantised, quantise
from limelight.backends.triton import machine
from limelight.forms.settings import Settings
from limelight.operator.calling import prepare

HERE = Path(__file__).parent
GPU_BACKENDS = [b.NAME for b in BACKENDS if b.NAME.startswith("flash")]
FLOAT8 = (
    flash3_float8.NAME
)  # rounds to 8 bits, so it is compared with the best that rounding allows, and runs forward only


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
            "PyTorch sees no GPU, and this script checks and measures one. --list says what it would do; "
            "TRITON_INTERPRET=1 and --tiny run its own logic on the CPU.",
            file=sys.stderr,
        )
        return 1
    if device.type == "cpu" and not options.tiny:
        print("In Triton's interpreter only --tiny ends within a day.", file=sys.stderr)
        return 1
    result: dict[str, Any] = {"about": about(device)}
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
    if options.part in ("all", "speed"):
        result["speed"] = speed(device, options)
        result["decode"] = decode(device, options.tiny, options.seconds)
        result["observations"] = observations(device, options.tiny, options.seconds)
        result["graph"] = graph(device, failures)
        result["goals"] = goals(result)
    result["failures"] = failures
    if not options.tiny and (options.mine.everything or options.name):
        target = HERE / "results" / f"{options.name or result['about']['chip'].lower().replace(' ', '-')}.json"
        target.parent.mkdir(exist_ok=True)
        target.write_text(json.dumps(result, indent=1) + "\n")
        print(f"written to {target}")
    print("\n".join(failures) or "no failures")
    return 1 if failures else 0


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--part", choices=("all", "correctness", "determinism", "sanitizer", "speed"), default="all")
    parser.add_argument("--name", default="", help="of the result file; by default the chip's")
    parser.add_argument("--seconds", type=float, default=0.5, help="spent on each measurement, roughly")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the random calls; by default a new one")
    parser.add_argument("--tiny", action="store_true", help="a few small calls and no result file")
    parser.add_argument("--only", default="", help="a pattern (re) that the names of calls have; kept only with --name")
    parser.add_argument(
        "--shard",
        default="0/1",
        help="K/N: every N-th call from the K-th on. Compiling takes the time, so that N "
        "processes side by side check N times as fast; kept only with --name",
    )
    parser.add_argument("--backends", nargs="*", choices=GPU_BACKENDS, default=GPU_BACKENDS, help="that are checked")
    parser.add_argument("--list", action="store_true", help="print what would run and end; needs no GPU")
    options = parser.parse_args()
    options.mine = Mine(options.only, *map(int, options.shard.split("/")))
    return options


class Mine:
    """Which calls this process makes: those whose names have a pattern, and of them every n-th."""

    def __init__(self, pattern: str, shard: int, shards: int) -> None:
        self.pattern, self.shard, self.shards = re.compile(pattern), shard, shards
        self.seen = 0

    def __call__(self, name: str) -> bool:
        if not self.pattern.search(name):
            return False
        self.seen += 1
        return (self.seen - 1) % self.shards == self.shard

    @property
    def everything(self) -> bool:
        return not self.pattern.pattern and self.shards == 1


def what_would_run(part: str) -> list[str]:
    """The cases of each part, by name."""
    names = [name for name, _ in forms(torch.device("cpu"), 1, 1, 2, 2, 16)]
    parts = {
        "correctness": [f"{sizes}: {', '.join(names)}" for sizes in SIZES],
        "determinism": [f"{sizes}, 20 times" for sizes in REPEATED[1:]],
        "sanitizer": ["memcheck and racecheck of the tiny calls"],
        "speed": [
            *(f"{form} {D} {length} {str(dtype)[6:]}, both ways" for dtype, D, length, form in speed_cases()),
            "decode", "observations", "CUDA graphs",
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


# --- Correctness ------------------------------------------------------------------------------------------------------


def forms(device: torch.device, B: int, Hq: int, Lq: int, Lk: int, D: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every form of the operator, for some sizes; what is learned is float32 and has gradients."""
    normal = functools.partial(torch.randn, device=device, requires_grad=True)
    flags = lambda *shape: torch.rand(*shape, device=device) < 0.4  # noqa: E731
    half_q, half_k = Lq // 2, Lk // 2
    yield "full", {}
    yield "causal", {"pattern": Causal()}
    yield "window", {"pattern": Causal() & Window(Lk // 3, 0)}
    yield "window and first keys", {"pattern": Causal() & (Window(Lk // 5, 0) | Keys(first=3))}
    yield "bits", {"pattern": Explicit(flags(B, Hq, Lq, Lk)) & Causal()}
    yield "holes", {"layout": KeyMask(flags(B, Lk))}
    yield "packed", {"layout": Packed((half_q, Lq - half_q), (Lk - half_k, half_k)), "pattern": Causal()}
    yield "padded", {"layout": Padded(torch.randint(0, Lq + 1, (B,)), torch.randint(0, Lk + 1, (B,)))}
    yield "dropout", {"pattern": Causal(), "dropout": 0.2, "seed": 7}
    yield "sink", {"pattern": Causal(), "sink": normal(Hq)}
    # As ALiBi's own, at most a half. Where slopes favour far keys by hundreds, the rounding of the output that `delta`
    # is made of shows in their gradients in 16 bits, times the distance.
    slopes = (torch.rand(Hq, device=device) / 2).requires_grad_()
    yield "slopes", {"pattern": Causal(), "scores": (ALiBi(slopes),)}
    yield "soft cap", {"pattern": Causal(), "scores": (SoftCap(5.0),)}
    yield "bias", {"scores": (Bias(normal(Hq, Lq, Lk)),)}
    yield "bias of keys", {"scores": (Bias(normal(Lk)), SoftCap(5.0))}
    yield "table", {"scores": (RelativeBias(normal(Hq, 32)),)}
    if D <= 32 and Lq * Lk <= 2**16:
        yield "additive", {"compare": Additive(normal(Hq, D))}


SIZES = (  # B, Hq, Hkv, Lq, Lk, D, Dv
    (1, 1, 1, 1, 1, 16, 16),
    (2, 4, 2, 113, 203, 64, 64),
    (1, 8, 1, 3, 799, 128, 128),
    (2, 6, 2, 257, 129, 80, 48),
    (1, 4, 2, 700, 900, 128, 128),
    (1, 2, 1, 300, 500, 192, 96),
    (1, 4, 4, 1023, 1024, 32, 32),
    (1, 2, 2, 300, 300, 256, 256),
    (1, 2, 1, 70, 90, 512, 100),
)
TINY = ((1, 2, 1, 5, 19, 8, 12),)


def correctness(device: torch.device, options: argparse.Namespace, failures: list[str]) -> list[dict[str, Any]]:
    print(f"correctness, seed {options.seed}")
    torch.manual_seed(options.seed)
    dtypes = (torch.float32, torch.float16, torch.bfloat16)[: 2 if machine.interpreted() else 3]
    rows: list[dict[str, Any]] = []
    for sizes in TINY if options.tiny else SIZES:
        B, Hq, Hkv, Lq, Lk, D, Dv = sizes
        for name, settings in forms(device, B, Hq, Lq, Lk, D):
            kinds = [(dtype, False) for dtype in (dtypes[:1] if options.tiny else dtypes)]
            if name != "dropout":  # of a row whose output is not a number, gradients may be numbers or not
                kinds.append((dtypes[0] if options.tiny else dtypes[-1], True))
            for dtype, spoiled in kinds:
                title = f"{'spoiled ' if spoiled else ''}{name} {str(dtype)[6:]} {sizes}"
                if not options.mine(title):
                    continue
                tensors = [
                    torch.randn(B, h, n, w, device=device).to(dtype)
                    for h, n, w in ((Hq, Lq, D), (Hkv, Lk, D), (Hkv, Lk, Dv))
                ]
                if spoiled:  # what is not finite may show only where somebody sees it
                    tensors[1][:, :, -1, 1], tensors[2][:, :, Lk // 2, 0] = float("nan"), float("inf")
                grad = torch.randn(B, Hq, Lq, Dv, device=device).to(dtype)
                backends = [name for name in options.backends if not spoiled or name != "flash1"]  # it promises less
                rows += compared(title, tensors, grad, settings, backends, failures)
    served = [row for row in rows if "error over allowed" in row]
    print(f"  {len(served)} calls compared, {len(rows) - len(served)} not served", flush=True)
    return rows


def compared(
    title: str, tensors: list[Tensor], grad: Tensor, settings: dict[str, Any], backends: list[str], failures: list[str]
) -> list[dict[str, Any]]:
    """One call by every backend that serves it, against the definition in float64."""
    dtype, rows = tensors[0].dtype, []
    truth = run("reference", [t.double() for t in tensors], grad.double(), settings)
    plain = run("plain", tensors, grad, settings)
    for backend in backends:
        row: dict[str, Any] = {"call": f"{backend} {title}"}
        rows.append(row)
        if reasons := by_name(backend).reasons_against(prepare(*tensors, Settings(**settings))):
            row["not served"] = "; ".join(reasons)
            continue
        poison(tensors[0].device)
        try:
            ours = run(backend, tensors, grad, settings)
        except Exception as error:
            print(f"{row['call']}: {error!r}", file=sys.stderr, flush=True)
            if "CUDA error" in str(error):  # after which the GPU computes nothing more for this process
                raise
            failures.append(f"{row['call']}: {error!r}"[:500])
            continue
        errors = {
            what: excess(x, y, exact, dtype)
            for what, x, y, exact in zip(what_is_compared(settings, tensors), ours, plain, truth, strict=True)
            if x is not None and exact.numel()
        }
        row["error over allowed"] = max(errors.values())
        row["worst"] = max(errors, key=lambda what: errors[what])
        if not row["error over allowed"] <= 1.0:
            failures.append(f"{row['call']}: {row['error over allowed']:.2f} times the allowed error in {row['worst']}")
    return rows


def what_is_compared(settings: dict[str, Any], tensors: list[Tensor]) -> list[str]:
    """What `run` gives, in its order."""
    learned = [
        f"gradient of what is learned, {n}" for n in range(len(prepare(*tensors, Settings(**settings)).operands))
    ]
    return ["output", "logsumexp", "dQ", "dK", "dV", *learned]


def by_name(backend: str) -> Any:
    return next(b for b in BACKENDS if backend == b.NAME)


def seen(device: torch.device, options: argparse.Namespace, failures: list[str]) -> list[dict[str, Any]]:
    """Every observation against the definition in float64."""
    rows = []
    for B, Hq, Hkv, Lq, Lk, D, _ in TINY if options.tiny else SIZES[1:4]:
        asked: dict[str, Any] = dict.fromkeys(ROW_STATISTICS, True) | {
            "received": True, "features": torch.randn(Lk, 9, device=device), "rows": (Lq - 1, 0), "blocks": (4, 7),
            "pairs": ((Lq - 1, 0), (0, Lk - 1)),
        }  # fmt: skip
        for name, settings in forms(device, B, Hq, Lq, Lk, D):
            dtype = torch.float32 if machine.interpreted() else torch.bfloat16
            title = f"sees {name} {str(dtype)[6:]} {(B, Hq, Hkv, Lq, Lk, D)}"
            if (options.tiny and name not in ("causal", "bits")) or not options.mine(title):
                continue
            tensors = [torch.randn(B, h, n, D, device=device).to(dtype) for h, n in ((Hq, Lq), (Hkv, Lk), (Hkv, Lk))]
            for backend in options.backends:
                call = prepare(*tensors, Settings(**settings, observe=Observe(**asked, top=5)))
                if by_name(backend).reasons_against(call):
                    continue
                poison(device)
                with torch.no_grad():
                    ours, plain, truth = (
                        limelight.attention(
                            *(t.to(kind) for t in tensors), **settings, observe=Observe(**asked, top=top), backend=by
                        )[1].seen()
                        for by, kind, top in (
                            (backend, dtype, 5), ("reference", dtype, 5), ("reference", torch.float64, 6)
                        )
                    )  # fmt: skip
                what = f"{backend} {title}"
                if not same_keys(ours.pop("top_keys"), truth.pop("top_keys"), truth["top_weights"]):
                    failures.append(f"{what}: other keys have the largest weights")
                truth["top_weights"] = truth["top_weights"][..., :5]
                worst = {
                    n: excess(ours[n].expand_as(x).double(), plain[n].double(), x.double(), torch.float32)
                    for n, x in truth.items()
                }
                rows.append({"call": what, "error over allowed": worst})
                failures += [f"{what}: {n} {x:.2f} times the allowed error" for n, x in worst.items() if not x <= 1.0]
    print(f"  observations of {len(rows)} calls compared", flush=True)
    return rows


ROW_STATISTICS = ("logsumexp", "max_score", "max_weight", "entropy", "distance")


def same_keys(ours: Tensor, truth: Tensor, weights: Tensor) -> bool:
    """Whether the keys of the largest weights are the same wherever no neighbour is as large, to rounding; ``truth``
    and ``weights`` have one key more.
    """
    apart = weights[..., :-1] - weights[..., 1:] > 1e-4
    clear = apart & torch.nn.functional.pad(apart, (1, -1), value=True)
    return torch.equal(ours[clear], truth[..., :-1][clear])


def float8(device: torch.device, options: argparse.Namespace, failures: list[str]) -> list[dict[str, Any]]:
    """The error of 8-bit products against float64, on normal numbers and where one in a thousand stands out, beside
    that of one scale for each tensor (weights of 8 bits too, all else in float64) and of `flash3`.
    """
    rows = []
    for length, D in ((160, 64),) if options.tiny else ((1000, 64), (4096, 128), (2000, 256)):
        for name, size in (("normal", 0.0), ("outliers", 10.0)):
            if not options.mine(f"float8 {name} {length} {D}"):
                continue
            q, k, v = torch.randn(3, 1, 4, length, D, device=device, dtype=torch.float64).unbind()
            q, k, v = (x + size * torch.randn_like(x) * (torch.rand_like(x) < 0.001) for x in (q, k, v))
            for pattern in (None, Causal()):
                truth = limelight.attention(q, k, v, pattern=pattern, backend="reference")
                error = lambda out: (out.double() - truth).square().mean().sqrt().item()  # noqa: B023, E731
                whole = [x.abs().max() / 448 for x in (q, k, v)]
                rounded = [(x / s).to(torch.float8_e4m3fn).double() * s for x, s in zip((q, k, v), whole, strict=True)]
                row: dict[str, Any] = {"length": length, "D": D, "inputs": name, "pattern": repr(pattern)}
                with rounded_to(eight_bits):
                    row["per tensor"] = error(limelight.attention(*rounded, pattern=pattern, backend="reference"))
                half = [x.to(torch.bfloat16) for x in (q, k, v)]
                for backend in (flash3, flash3_float8):
                    call = prepare(*half, Settings(pattern=pattern))
                    if reasons := backend.reasons_against(call):
                        row[backend.NAME] = "not served: " + "; ".join(reasons)
                    else:
                        poison(device)
                        row[backend.NAME] = error(backend.forward(call).output)
                found = row[FLOAT8]
                # Where no number stands out, scales by block win nothing, and may lose a twentieth.
                allowed = row["per tensor"] * (1.0 if name == "outliers" else 1.05)
                if isinstance(found, float) and not found <= allowed:
                    failures.append(f"{FLOAT8} {row}: a larger error than with one scale for each tensor")
                rows.append(row)
                print("  float8:", row, flush=True)
    return rows


def run(backend: str, tensors: list[Tensor], grad: Tensor, settings: dict[str, Any]) -> list[Any]:
    """Output, logsumexp (but of `flash1`), and gradients of query, key, value and what is learned beside."""
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    learned = prepare(*tensors, Settings(**settings)).operands
    for tensor in learned:
        tensor.grad = None
    with rounded(tensors[0].dtype) if backend == "plain" else nullcontext():
        name = "reference" if backend == "plain" else backend
        if backend == "flash1":  # plain forms only, so no observation
            output, logsumexp = limelight.attention(*leaves, backend=name, **settings), None
        else:
            output, seen = limelight.attention(*leaves, backend=name, observe=Observe(logsumexp=True), **settings)
            logsumexp = seen.logsumexp.detach()
        output.backward(grad)
    return [output.detach(), logsumexp, *[leaf.grad for leaf in (*leaves, *learned)]]


def rounded(dtype: torch.dtype) -> Any:
    """Inside, the reference rounds its weights and the gradients of its scores to ``dtype`` before they meet the other
    factor, as kernels do.
    """
    return rounded_to(lambda x: x.to(dtype).to(x.dtype))


def rounded_to(rounding: Callable[[Tensor], Tensor]) -> Any:
    """The same by a function."""
    mix, backward = reference.mix, reference._ScoresForward.backward
    stack = ExitStack()
    stack.enter_context(mock.patch.object(reference, "mix", lambda w, b, keep: mix(rounding(w), b, keep)))
    scores = staticmethod(lambda ctx, grad: backward(ctx, rounding(grad)))
    stack.enter_context(mock.patch.object(reference._ScoresForward, "backward", scores))
    return stack


def eight_bits(weights: Tensor) -> Tensor:
    """Weights as numbers of 8 bits whose largest, in each row, is 448, the most there is."""
    scale = weights.amax(-1, keepdim=True).clamp(min=1e-30) / 448
    return (weights / scale).to(torch.float8_e4m3fn).to(weights.dtype) * scale


def excess(ours: Tensor, plain: Tensor, truth: Tensor, dtype: torch.dtype) -> float:
    """The error as a multiple of what is allowed: 1.5 times the plain one's and a rounding step of the largest."""
    finite = truth.isfinite()
    if not torch.equal(ours.isfinite(), finite):
        return float("inf")
    if not finite.any():
        return 0.0
    truth, ours, plain = truth[finite], ours[finite].double(), plain[finite].double()
    step = (torch.finfo(dtype).eps + 16 * torch.finfo(torch.float32).eps) * max(1.0, truth.abs().max().item())
    allowed = [1.5 * norm(plain - truth) + step for norm in NORMS]
    return max((norm(ours - truth) / limit).item() for norm, limit in zip(NORMS, allowed, strict=True))


NORMS: tuple[Callable[[Tensor], Tensor], ...] = (lambda x: x.abs().max(), lambda x: x.square().mean().sqrt())


def poison(device: torch.device) -> None:
    """Fill what the allocator will hand out next with NaN."""
    if device.type == "cuda":
        for size in (2**12, 2**16, 2**20, 2**24):
            for _ in range(8):
                torch.full((size,), float("nan"), device=device)


# --- Determinism ------------------------------------------------------------------------------------------------------


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
            if not options.mine(f"repeated {name} {(B, Hq, Hkv, Lq, Lk, D)}"):
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


REPEATED = (  # B, Hq, Hkv, Lq, Lk, D; the first is tiny
    (1, 2, 1, 18, 20, 8),
    (2, 8, 2, 1000, 1100, 64),
    (1, 16, 4, 2500, 2500, 128),  # more tiles than multiprocessors, so that programs take one after another
)


def under_load(device: torch.device, way: Callable[[], list[Any]]) -> list[Any]:
    """The call beside another stream that multiplies, with poisoned memory."""
    poison(device)
    if device.type == "cuda":
        noise = torch.randn(512, 512, device=device)
        with torch.cuda.stream(torch.cuda.Stream()):
            noise @ noise
    return way()


def sanitizer(tiny: bool, failures: list[str]) -> dict[str, str]:
    """What ``compute-sanitizer`` says of the small calls."""
    found: dict[str, str] = {}
    program = shutil.which("compute-sanitizer")
    for tool in ("memcheck", "racecheck") if program and not tiny else ():
        print(f"compute-sanitizer, {tool}", flush=True)
        ran = subprocess.run(
            [str(program), "--tool", tool, "--error-exitcode", "3", sys.executable, __file__, "--tiny", "--part",
             "correctness"], capture_output=True, text=True,
        )  # fmt: skip
        found[tool] = ran.stdout[-500:] if ran.returncode else "nothing found"
        if ran.returncode == 3:
            failures.append(f"compute-sanitizer, {tool}: {found[tool]}")
    return found or {"not run": "compute-sanitizer is not there" if program is None else "a tiny run"}


# --- Speed ------------------------------------------------------------------------------------------------------------


FORMS = ("full", "causal", "window", "packed", "grouped")


def speed(device: torch.device, options: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    print(f"{'case':34} {'TFLOP/s':>8} {'of peak':>8}   ratio to others")
    if options.tiny:
        return [row for form in FORMS for row in measured(device, torch.float16, 16, 32, form, 0.0, heads=8, batch=1)]
    for dtype, D, length, form in speed_cases():
        if options.mine(f"{form} {D} {length} {str(dtype)[6:]}"):
            heads, batch = 2048 // D // 8 * 8, max(1, 16384 // length)
            rows += measured(device, dtype, D, length, form, options.seconds, heads, batch)
    return rows


def speed_cases() -> Iterator[tuple[torch.dtype, int, int, str]]:
    """The rows of the table: dtype, head width, length, form."""
    for dtype in (torch.bfloat16, torch.float16):
        for D in (64, 96, 128, 192, 256):
            for length in (1024, 2048, 4096, 8192, 16384, 32768):
                for form in FORMS if D in (64, 128, 256) else ("causal",):
                    yield dtype, D, length, form


def measured(
    device: torch.device, dtype: torch.dtype, D: int, length: int, form: str, seconds: float, heads: int, batch: int
) -> list[dict[str, Any]]:
    key_heads = heads // 8 if form == "grouped" else heads
    make = lambda h: torch.randn(batch, h, length, D, device=device, dtype=dtype, requires_grad=True)  # noqa: E731
    q, k, v = make(heads), make(key_heads), make(key_heads)
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
        for name, way in ways.items():
            try:
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


def host_time(way: Callable[[], Tensor]) -> float:
    """Microseconds until a call without gradients returns; the GPU computes on."""
    times = []
    for _ in range(20):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        start = time.perf_counter()
        with torch.no_grad():
            way()
        times.append(time.perf_counter() - start)
    return 1e6 * statistics.median(times)


def in_8_bits(q: Tensor, k: Tensor, v: Tensor, settings: dict[str, Any]) -> dict[str, Callable[[], Tensor]]:
    """`flash3-float8` as it is called, and its kernel alone, with numbers of 8 bits made before."""
    call = prepare(q.detach(), k.detach(), v.detach(), Settings(**settings))
    if flash3_float8.reasons_against(call):
        return {}
    made: dict[int, Quantised] = {}

    def kernel() -> Tensor:
        def numbers(keys: int) -> Quantised:
            if keys not in made:
                made[keys] = quantise(call.query, call.key, call.value, keys)
            return made[keys]

        return flash3.compute(call, numbers, flash3_tuning.FLOAT8).output

    return {FLOAT8: lambda: flash3_float8.forward(call).output, f"{FLOAT8} kernel": kernel}


def peers(q: Tensor, k: Tensor, v: Tensor, form: str) -> dict[str, Callable[[], Tensor]]:
    """PyTorch's ways to compute the same."""
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


def milliseconds(way: Callable[[], Tensor], grad: Tensor | None, seconds: float) -> float:
    """Median time of a call on the GPU, caches flushed between calls."""
    if grad is None:
        with torch.no_grad():
            return _median(way, seconds)
    output = way()
    leaves = [t for t in _leaves(output) if t is not None]

    def backward() -> None:
        for leaf in leaves:
            leaf.grad = None
        output.backward(grad, retain_graph=True)

    return _median(backward, seconds)


def _leaves(output: Tensor) -> list[Any]:
    """The tensors that a backward pass accumulates into."""
    found, open_ = [], [output.grad_fn]
    while open_:
        node = open_.pop()
        if node is None:
            continue
        if hasattr(node, "variable"):
            found.append(node.variable)
        open_ += [after for after, _ in node.next_functions]
    return found


def _median(call: Callable[[], Any], seconds: float) -> float:
    """Milliseconds; without a GPU of one call, for the script's own sake."""
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
        for _ in range(16):  # a millisecond, in which the call is made ready: what is measured is the GPU's time
            flush.zero_()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def product_peak(device: torch.device) -> float:
    """TFLOP/s of a bfloat16 product of 8192 x 8192, the chip's own measure."""
    side = 8192 if device.type == "cuda" else 64
    a = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    return 2 * side**3 / _median(lambda: a @ a, 0.1) * 1e-9


def decode(device: torch.device, tiny: bool, seconds: float) -> list[dict[str, Any]]:
    """One query of 32 heads against 8 key-value heads: bytes of the cache read in a second, against a plain copy."""
    dtype = torch.float16 if machine.interpreted() else torch.bfloat16
    source = torch.empty(2**16 if tiny else 2**30, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    bandwidth = 2 * source.nbytes / _median(lambda: target.copy_(source), seconds) * 1e-6
    rows = []
    for length in (64,) if tiny else (1024, 4096, 16384, 65536):
        for batch in (1,) if tiny else (1, 16):
            q = torch.randn(batch, 32, 1, 128, device=device, dtype=dtype)
            k, v = torch.randn(2, batch, 8, length, 128, device=device, dtype=dtype).unbind()
            way = functools.partial(limelight.attention, q, k, v, pattern=Causal(), backend="flash2")
            ms = milliseconds(way, None, seconds)
            speed = (k.nbytes + v.nbytes) / ms * 1e-6
            rows.append({"length": length, "batch": batch, "ms": ms, "GB/s": speed, "of bandwidth": speed / bandwidth})
            print(f"decode {batch} x {length}: {speed:.0f} GB/s, {speed / bandwidth:.1%} of a copy", flush=True)
    return rows


def observations(device: torch.device, tiny: bool, seconds: float) -> list[dict[str, Any]]:
    """What it costs to see: the time of a call with observations against one without, together and one by one."""
    rows = []
    asked: dict[str, dict[str, Any]] = {
        "entropy": {"entropy": True}, "max_weight": {"max_weight": True}, "top": {"top": 8},
        "received": {"received": True}, "blocks": {"blocks": (64, 64)},
    }  # fmt: skip
    asked["all"] = {name: value for settings in asked.values() for name, value in settings.items()}
    dtype = torch.float16 if machine.interpreted() else torch.bfloat16
    for length in (32,) if tiny else (2048, 8192):
        q, k, v = torch.randn(3, 1, 16, length, 16 if tiny else 128, device=device, dtype=dtype).unbind()
        call = prepare(q, k, v, Settings(pattern=Causal(), observe=Observe(**asked["all"])))
        serving = [b.NAME for b in BACKENDS if b.NAME in GPU_BACKENDS and not b.reasons_against(call)]
        if not serving:
            rows.append({"length": length, "served by": "none of the GPU backends"})
            continue
        way = functools.partial(limelight.attention, q, k, v, pattern=Causal(), backend=serving[0])
        plain = milliseconds(way, None, seconds)
        row: dict[str, Any] = {"length": length, "served by": serving[0], "plain ms": plain}
        for name, settings in asked.items():
            observe = Observe(**settings)
            row[name] = milliseconds(functools.partial(way, observe=observe), None, seconds) / plain
        rows.append(row)
        words = ", ".join(f"{name} {row[name]:.2f}" for name in asked)
        print(f"observations at {length}, times the plain forward pass: {words}", flush=True)
    return rows


def graph(device: torch.device, failures: list[str]) -> dict[str, bool]:
    """Whether a call, and its gradients, are captured by a CUDA graph and replayed on new numbers."""
    found: dict[str, bool] = {}
    for backend in GPU_BACKENDS if device.type == "cuda" else ():
        q, k, v, grad = torch.randn(4, 1, 4, 256, 64, device=device, dtype=torch.float16).unbind()
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        if by_name(backend).reasons_against(prepare(*leaves, Settings(pattern=Causal()))):
            continue
        forward = functools.partial(limelight.attention, *leaves, pattern=Causal(), backend=backend)

        def backward() -> Tensor:
            return torch.cat(torch.autograd.grad(forward(), leaves, grad))  # noqa: B023

        for name, way in (("forward", forward), ("backward", backward)):
            stream = torch.cuda.Stream()
            with torch.cuda.stream(stream):  # compiles and uploads its tables
                way()
            torch.cuda.synchronize()
            captured = torch.cuda.CUDAGraph()
            with torch.cuda.graph(captured):
                output = way()
            with torch.no_grad():
                leaves[0].normal_()
            captured.replay()
            torch.cuda.synchronize()
            same = torch.equal(output, way())
            found[f"{backend} {name}"] = same
            print(f"CUDA graph, {backend} {name}: {'replays' if same else 'replays wrong numbers'}")
            if not same:
                failures.append(f"{backend} {name}: a CUDA graph replays wrong numbers")
    return found


def goals(result: dict[str, Any]) -> list[dict[str, Any]]:
    """What is aimed at, beside the worst that was measured."""

    def worst(of: str, against: str, **case: Any) -> float | None:
        longest = case.pop("from_length", 0)
        ratios = [
            row["tflops"][of] / row["tflops"][against]
            for row in result["speed"]
            if of in row["tflops"] and against in row["tflops"] and row["length"] >= longest
            and all(row[name] in values for name, values in case.items())
        ]  # fmt: skip
        return min(ratios, default=None)

    wide = {"D": (128,), "dtype": ("bfloat16",), "form": ("full", "causal"), "from_length": 4096}
    eight = [
        row["tflops"][f"{FLOAT8} kernel"] for row in result["speed"]
        if f"{FLOAT8} kernel" in row["tflops"] and row["length"] == 16384 and row["form"] == "full" and row["D"] == 128
    ]  # fmt: skip
    found = [
        ("flash3 forward over cuDNN, from 4k", 0.9, worst("flash3", "cudnn", direction=("forward",), **wide)),
        ("flash3 backward over cuDNN, two owners", 0.6, worst("flash3", "cudnn", direction=("backward",), **wide)),
        ("flash3-float8 forward, full, 16k, TFLOP/s", 1000.0, min(eight, default=None)),
        ("flash2 forward over cuDNN", 0.75, worst("flash2", "cudnn", direction=("forward",))),
        ("flash2 forward over FlexAttention", 1.0, worst("flash2", "flex", direction=("forward",))),
        ("decode, of the memory bandwidth", 0.85, min((r["of bandwidth"] for r in result["decode"]), default=None)),
        (
            "a plain forward pass over one with all observations", 0.5,
            min((1 / r["all"] for r in result["observations"] if "all" in r), default=None),
        ),
    ]  # fmt: skip
    rows = []
    for goal, aim, measured in found:
        rows.append({"goal": goal, "aim": aim, "predicted": PREDICTED[goal], "measured": measured})
        words = "nothing" if measured is None else f"{measured:.3g}"
        print(f"goal: {goal}: {aim:g}; predicted {PREDICTED[goal]:g}, measured {words}", flush=True)
    return rows


# What was expected before the first run; the reasons stand in `benchmarks/predictions.md`.
PREDICTED = {
    "flash3 forward over cuDNN, from 4k": 0.88,
    "flash3 backward over cuDNN, two owners": 0.65,
    "flash3-float8 forward, full, 16k, TFLOP/s": 950.0,
    "flash2 forward over cuDNN": 0.58,
    "flash2 forward over FlexAttention": 0.95,
    "decode, of the memory bandwidth": 0.8,
    "a plain forward pass over one with all observations": 0.3,
}


if __name__ == "__main__":
    sys.exit(main())
