"""Times of calls, compared with PyTorch and with the machine's own limits in the same run.

The compared calls run interleaved, for about the same time each, so that a change of the clock rate or other load
affects all of them; the medians are reported. The limit of decoding, reading memory, is measured in the same rounds.
The limit of other cases, multiply-adds in registers, is measured before and after each case; if the two differ by more
than 5 % the case is measured again, and marked as unsteady if they still differ.
"""

from __future__ import annotations

import functools
import itertools
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from .._version import __version__
from ..backends import native
from ..forms.layouts import Packed
from ..forms.observations import Observe
from ..forms.patterns import Causal, Pattern, Window
from ..forms.scores import ALiBi, Bias, SoftCap
from ..operator.attention import attention
from ..operator.explanation import explain
from .cases import EXTRAS, Case

TOLERANCE = 0.05  # relative difference of the two measurements of the limit
SLICE = 0.02  # seconds for which a short call is repeated in each round
ATTEMPTS = 4
MAX_CACHE_BYTES = 2 * 2**30
Function = Callable[[], Any]


def machine(threads: int) -> dict[str, Any]:
    """Describe the machine and the versions of a measurement."""
    return {
        "processor": processor(),
        "threads": threads,
        "instruction set": native.instruction_set(),
        "last-level cache MiB": round(last_level_cache() / 2**20, 1),
        "limelight": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def processor() -> str:
    """Return the name of the processor, as the system gives it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def last_level_cache() -> int:
    """Return the size of the last-level cache in bytes; 32 MiB where the system does not report it."""
    sizes = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max((int(size[:-1]) * {"K": 2**10, "M": 2**20}.get(size[-1], 1) for size in sizes), default=2**25)


# --- Limits -----------------------------------------------------------------------------------------------------------


def peak(dtype: str, threads: int, seconds: float = 0.1) -> float:
    """GFLOP/s of independent multiply-adds: the larger of two measurements, as the first one raises the clock rate."""
    return max(native.peak(getattr(torch, dtype), threads, seconds) for _ in range(2))


@functools.cache
def _large_array() -> Tensor:
    return torch.ones(min(8 * last_level_cache(), MAX_CACHE_BYTES) // 4)


def _readers() -> list[Function]:
    """Return functions that read `_large_array` fast: PyTorch's sum and dot product."""
    array = _large_array()
    return [array.sum, lambda: array.dot(array)]


def bandwidth() -> float:
    """Measure the GB/s of reading memory that is in no cache: the best of several runs."""
    return _large_array().nbytes / min(timed(function, 1) for _ in range(4) for function in _readers()) * 1e-9


# --- Time -------------------------------------------------------------------------------------------------------------


def timed(function: Function, repeats: int) -> float:
    """Measure the mean seconds of a call over ``repeats``."""
    start = time.perf_counter()
    for _ in range(repeats):
        function()
    return (time.perf_counter() - start) / repeats


def interleaved(functions: list[Function], seconds: float) -> list[list[float]]:
    """Measure functions round-robin; return for each the seconds of a call in every round.

    A short call is repeated within its slice of a round: called once after another, it would measure the wake-up of
    threads and cold caches.
    """
    # The first call includes one-time work.
    once = [min(timed(function, 1) for _ in range(2)) for function in functions]
    repeats = [max(1, int(SLICE / each)) for each in once]
    round_seconds = sum(each * count for each, count in zip(once, repeats, strict=True))
    rounds = min(201, max(3, int(seconds / round_seconds)))
    times = [[timed(f, count) for f, count in zip(functions, repeats, strict=True)] for _ in range(rounds)]
    return [list(each) for each in zip(*times, strict=True)]


def median_times(functions: list[Function], seconds: float) -> list[float]:
    """Measure functions round-robin; return the median seconds of a call of each."""
    return [statistics.median(each) for each in interleaved(functions, seconds)]


@dataclass
class Prepared:
    """The calls of a case: ours, PyTorch's where it has that form, and ours without the extra."""

    ours: Function
    peer: Function | None
    plain: Function | None = None
    flop: float = 0.0  # of the visible pairs
    bytes: float = 0.0  # of keys and values


@dataclass
class Measurement:
    """The times of one case."""

    case: Case
    seconds: float
    peer_seconds: float | None
    plain_seconds: float | None
    speed: float | None  # GFLOP/s or GB/s
    fraction: float | None  # of the limit
    limit: float | None
    steady: bool = True
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        """PyTorch's time as a multiple of ours."""
        return None if self.peer_seconds is None else self.peer_seconds / self.seconds

    @property
    def beside_plain(self) -> float | None:
        """Our time as a multiple of the plain call's."""
        return None if self.plain_seconds is None else self.seconds / self.plain_seconds

    def as_json(self) -> dict[str, Any]:
        """Return the measurement as JSON values."""
        unit = {"peak": "GFLOP/s", "bandwidth": "GB/s"}.get(self.case.per)
        return {
            "case": self.case.name, "group": self.case.group, "seconds": self.seconds,
            "torch_seconds": self.peer_seconds, "times_torch": self.ratio, "plain_seconds": self.plain_seconds,
            "times_plain": self.beside_plain, "speed": self.speed, "unit": unit, "limit": self.limit,
            "fraction": self.fraction, "steady": self.steady,
        }  # fmt: skip


def measure(case: Case, threads: int, seconds: float) -> Measurement:
    """Measure a case on ``threads`` threads for about ``seconds``."""
    prepared = prepare(case)
    functions = [f for f in (prepared.ours, prepared.peer, prepared.plain) if f is not None]
    readers = _readers() if case.per == "bandwidth" else []
    for attempt in itertools.count(1):
        peaks = [peak(case.dtype, threads)] if case.per == "peak" else []
        with torch.set_grad_enabled(case.backward):
            times = interleaved(functions + readers, seconds)
        peaks += [peak(case.dtype, threads)] if case.per == "peak" else []
        steady = not peaks or max(peaks) - min(peaks) <= TOLERANCE * max(peaks)
        if steady or attempt == ATTEMPTS:
            break
    mine, *others = (statistics.median(each) for each in times[: len(functions)])
    peer, plain = (None if f is None else others.pop(0) for f in (prepared.peer, prepared.plain))
    row = Measurement(case, mine, peer, plain, None, None, None, steady)
    if case.per == "peak":
        row.speed, row.limit = prepared.flop / mine * 1e-9, max(peaks)
        row.fraction = row.speed / row.limit
    if case.per == "bandwidth":
        limits = min(times[len(functions) :], key=statistics.median)  # of the fastest reader
        row.speed, row.limit = prepared.bytes / mine * 1e-9, _large_array().nbytes / statistics.median(limits) * 1e-9
        shares = [limit / each for limit, each in zip(limits, times[0], strict=True)]
        row.fraction = statistics.median(shares) * prepared.bytes / _large_array().nbytes
    return row


# --- Calls ------------------------------------------------------------------------------------------------------------


def prepare(case: Case) -> Prepared:
    """Return the calls of a case, on the same random tensors every time."""
    torch.manual_seed(0)
    if case.per == "bandwidth":
        return _decoding(case)
    if case.documents:
        return _documents(case)
    query, key, value = _tensors(case, case.length)
    settings, peer = _extra(case, query)
    plain: dict[str, Any] = {"pattern": pattern_of(case.pattern), "backend": "native"}
    pairs = explain(query, key, value, pattern=plain["pattern"]).pairs
    calls = [functools.partial(attention, query, key, value, **plain, **some) for some in (settings, {})]
    theirs = None if peer is None else functools.partial(scaled_dot_product_attention, query, key, value, **peer)
    flop = 4.0 * pairs * case.width
    if not case.backward:
        return Prepared(calls[0], theirs, calls[1] if case.extra else None, flop)
    leaves = [query, key, value]
    grad = torch.randn_like(query)
    rules = [t for rule in settings.get("scores", ()) for t in rule.tensors()]
    own = leaves + [t for t in (*rules, settings.get("sink")) if t is not None and t.requires_grad]
    mask = [] if peer is None or peer.get("attn_mask") is None else [peer["attn_mask"]]
    return Prepared(
        _training(calls[0], own, grad),
        None if theirs is None else _training(theirs, leaves + [t for t in mask if t.requires_grad], grad),
        _training(calls[1], leaves, grad) if case.extra else None,
        3.5 * flop,
    )


def _tensors(case: Case, length: int) -> list[Tensor]:
    Hkv, dtype = case.key_value_heads or case.heads, getattr(torch, case.dtype)
    shapes = [(case.heads, case.queries or length), (Hkv, length), (Hkv, length)]
    made = [torch.randn(1, H, L, case.width).to(dtype) for H, L in shapes]
    return [t.requires_grad_() for t in made] if case.backward else made


def _training(call: Function, leaves: list[Tensor], grad: Tensor) -> Function:
    return lambda: torch.autograd.grad(call(), leaves, grad)


def pattern_of(name: str) -> Pattern | None:
    """Return the pattern that a case names."""
    if name.startswith("window "):
        return Causal() & Window(int(name.split()[1]) - 1, 0)
    return Causal() if name == "causal" else None


def _extra(case: Case, query: Tensor) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return our settings, and the equivalent arguments of `scaled_dot_product_attention`, ``None`` if it has none."""
    H, L = case.heads, case.length
    causal: dict[str, Any] = {"is_causal": True} if case.pattern == "causal" else {}
    distance = torch.arange(L)[None] - torch.arange(L)[:, None]
    hidden = torch.where(distance <= 0, 0.0, -torch.inf) if case.extra in ("ALiBi", "bias") else torch.zeros(())
    if case.pattern.startswith("window "):
        return {}, {"attn_mask": (distance <= 0) & (distance > -int(case.pattern.split()[1]))}
    match case.extra:
        case "":
            return {}, causal
        case "ALiBi":
            slopes = ALiBi.standard(H).slopes
            dense = (hidden - slopes[:, None, None] * distance.abs())[None].to(query.dtype)
            return {"scores": (ALiBi(slopes.requires_grad_(case.backward)),)}, {"attn_mask": dense}
        case "bias":
            bias = torch.randn(1, H, L, L)
            dense = (bias + hidden).requires_grad_(case.backward)
            return {"scores": (Bias(bias.requires_grad_(case.backward)),)}, {"attn_mask": dense}
        case "soft cap":
            return {"scores": (SoftCap(30.0),)}, None
        case "sink":
            return {"sink": torch.zeros(H).requires_grad_(case.backward)}, None
        case "dropout":
            return {"dropout": 0.1, "seed": 1}, causal | {"dropout_p": 0.1}
        case "observations":
            return {"observe": Observe(entropy=True, max_weight=True, top=8, received=True, blocks=(64, 64))}, None
    raise ValueError(f"case {case.name!r}: unknown extra {case.extra!r}; known are {', '.join(EXTRAS)}")


def _documents(case: Case) -> Prepared:
    """Packed documents, against PyTorch on the same documents padded to the longest; forward only, causal."""
    lengths, longest = case.documents, max(case.documents)
    query, key, value = _tensors(case, sum(lengths))
    pattern, layout = pattern_of(case.pattern), Packed(lengths)
    padded = [
        torch.cat([pad(t, (0, 0, 0, longest - t.shape[2])) for t in torch.split(tensor, list(lengths), dim=2)])
        for tensor in (query, key, value)
    ]
    pairs = explain(query, key, value, pattern=pattern, layout=layout).pairs
    return Prepared(
        functools.partial(attention, query, key, value, pattern=pattern, layout=layout, backend="native"),
        lambda: scaled_dot_product_attention(padded[0], padded[1], padded[2], is_causal=True),
        flop=4.0 * pairs * case.width,
    )


def _decoding(case: Case) -> Prepared:
    """One query over key-value caches in turn, which together are eight times the last-level cache."""
    first = _tensors(case, case.length)
    size = first[1].nbytes + first[2].nbytes
    count = max(2, -(-min(8 * last_level_cache(), MAX_CACHE_BYTES) // size))
    caches = [first, *[_tensors(case, case.length) for _ in range(count - 1)]]
    ours = functools.partial(attention, pattern=pattern_of(case.pattern), backend="native")
    theirs = functools.partial(scaled_dot_product_attention, enable_gqa=case.key_value_heads not in (None, case.heads))
    return Prepared(_rotating(ours, caches), _rotating(theirs, caches), bytes=size)


def _rotating(call: Callable[..., Any], caches: list[list[Tensor]]) -> Function:
    endless: Iterator[list[Tensor]] = itertools.cycle(caches)
    return lambda: call(*next(endless))


# --- Memory -----------------------------------------------------------------------------------------------------------

_MEMORY = """
import resource, sys, torch, limelight
from pathlib import Path
tokens, threads = map(int, sys.argv[1:])
torch.set_num_threads(threads)
def run(length):
    tensors = [torch.randn(1, 1, length, 64).requires_grad_() for _ in range(3)]
    out = limelight.attention(*tensors, pattern=limelight.Causal(), backend="native")
    out.backward(torch.ones_like(out))
    return tensors, out
run(2048)  # loads libraries and starts threads
status = Path("/proc/self/status")
def now(field):  # Linux inherits ru_maxrss from the parent process, but not these
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(field)) * 1024
before = now("VmRSS")
held = run(tokens)
print(now("VmHWM") - before)
"""


def memory(tokens: int, threads: int) -> dict[str, Any]:
    """Measure the memory of a forward and a backward pass of one head in a process of its own.

    Returns:
        The bytes taken, and those of inputs, outputs and gradients (eight arrays).

    Raises:
        OSError: the process failed.
    """
    done = subprocess.run(
        [sys.executable, "-c", _MEMORY, str(tokens), str(threads)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise OSError(f"the process that measures memory failed: {done.stderr.strip()[-500:]}")
    taken, held = int(done.stdout), 8 * tokens * 64 * 4
    return {"tokens": tokens, "bytes": taken, "inputs_and_outputs": held, "times": taken / held}
