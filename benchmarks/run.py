"""Measure attention on this machine: ours against PyTorch's, and both against the machine's own peak.

    python benchmarks/run.py                      # every case of cases.toml, about two minutes
    python benchmarks/run.py --only causal --name laptop

The float32 multiply-add peak is measured before and after every case. When the two differ by more than 5 % the
machine was busy or changed its clock; the case is measured again, and when it never settles there is no report. Ours
and PyTorch's are run in turn, and the medians compared. The result is printed and written to
``benchmarks/results/NAME.json``.
"""

from __future__ import annotations

import argparse
import functools
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib  # type: ignore[no-redef]

import torch
from torch.nn.functional import scaled_dot_product_attention

import limelight
from limelight import Causal, Observe, RelativeBias, SoftCap, Window
from limelight.backends import native

HERE = Path(__file__).parent
TOLERANCE = 0.05  # between the two measurements of the peak
TRIES = 5


def main() -> int:
    options = read_options()
    cases = [c for c in tomllib.loads((HERE / "cases.toml").read_text())["case"] if options.only in c["name"]]
    if native._library is None:
        print(native._missing, file=sys.stderr)
        return 1
    torch.set_num_threads(options.threads)
    machine = {
        "processor": processor(),
        "threads": options.threads,
        "instruction set": native._library.ll_isa_name().decode(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    print("  ".join(f"{k}: {v}" for k, v in machine.items()))
    print(f"{'case':38} {'ms':>9} {'GFLOP/s':>8} {'of peak':>8} {'torch ms':>9} {'times as fast':>13}", flush=True)
    rows = []
    for case in cases:
        row = measure(case, options.threads, options.seconds)
        if row is None:
            print(
                f"{case['name']}: the machine's peak would not hold still within {TOLERANCE:.0%}; no report. "
                "Close other programs and try again.",
                file=sys.stderr,
            )
            return 1
        rows.append(row)
        print(f"{row['case']:38} {row['ms']:9.3f} {row['gflops']:8.1f} {row['of_peak']:8.1%} {row['torch_ms']:9.3f}"
              f" {row['ratio']:13.2f}", flush=True)  # fmt: skip
    target = HERE / "results" / f"{options.name}.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps({"machine": machine, "cases": rows}, indent=1) + "\n")
    print(f"written to {target}")
    return 0


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="only cases whose name contains this")
    parser.add_argument("--name", default=platform.node() or "machine", help="of the result file")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=3.0, help="spent on each case, roughly")
    return parser.parse_args()


def processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def measure(case: dict[str, Any], threads: int, seconds: float) -> dict[str, Any] | None:
    """One row of the table; ``None`` when the machine's peak moved in every try."""
    ours, peer, flop = calls(case)
    for _ in range(TRIES):
        before = peak(threads)
        mine, theirs = in_turn(ours, peer, seconds)
        after = peak(threads)
        if abs(before - after) <= TOLERANCE * max(before, after):
            speed = flop / mine * 1e-9
            return {
                "case": case["name"], "ms": mine * 1e3, "gflops": speed, "of_peak": speed / max(before, after),
                "torch_ms": theirs * 1e3, "ratio": theirs / mine, "peak_before": before, "peak_after": after,
            }  # fmt: skip
    return None


def peak(threads: int) -> float:
    """GFLOP/s; the larger of two short measurements, the first of which wakes the clock."""
    return max(native._library.ll_measure_peak(None, 0, threads, 0.1) for _ in range(2))


def in_turn(ours: Callable[[], Any], peer: Callable[[], Any], seconds: float) -> tuple[float, float]:
    """Median seconds of a call of each, measured alternately; short calls are repeated within one measurement."""
    with torch.no_grad():
        once = timed(ours, 2) + timed(peer, 2)
        repeats = max(1, int(0.002 / once))
        rounds = min(201, max(5, int(seconds / (once * repeats))))
        pairs = [(timed(ours, repeats), timed(peer, repeats)) for _ in range(rounds)]
    mine, theirs = zip(*pairs, strict=True)
    return statistics.median(mine), statistics.median(theirs)


def timed(call: Callable[[], Any], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def calls(case: dict[str, Any]) -> tuple[Callable[[], Any], Callable[[], Any], float]:
    """Ours, PyTorch's, and the floating-point operations of one call."""
    torch.manual_seed(0)
    heads, length, width = case["heads"], case["length"], case["width"]
    key_heads, queries = case.get("key_heads", heads), case.get("queries", length)
    query = torch.randn(1, heads, queries, width)
    key, value = torch.randn(1, key_heads, length, width), torch.randn(1, key_heads, length, width)
    pattern, rules = pattern_of(case.get("pattern", "")), rules_of(case.get("rule", ""), heads)
    observe = None
    if case.get("observe"):
        observe = Observe(logsumexp=True, max_score=True, max_weight=True, entropy=True, distance=True, top=8,
                          received=True, blocks=(64, 64))  # fmt: skip
    pairs = limelight.explain(query, key, value, pattern=pattern, scores=rules).pairs
    ours = functools.partial(
        limelight.attention, query, key, value, pattern=pattern, scores=rules, observe=observe, backend="native"
    )
    settings: dict[str, Any] = {"enable_gqa": key_heads != heads}
    if case.get("peer") == "is_causal":
        settings["is_causal"] = True
    elif case.get("peer") == "mask":
        settings["attn_mask"] = dense_mask(case, rules, queries, length)
    peer = functools.partial(scaled_dot_product_attention, query, key, value, **settings)
    return ours, peer, 4.0 * pairs * width


def pattern_of(words: str) -> limelight.Pattern | None:
    match words.split():
        case []:
            return None
        case ["causal"]:
            return Causal()
        case ["window", width]:
            return Window(int(width) - 1, 0)
        case _:
            raise ValueError(f"unknown pattern {words!r} in cases.toml")


def rules_of(words: str, heads: int) -> tuple[Any, ...]:
    rules = {"": (), "soft cap": (SoftCap(30.0),), "relative bias": (RelativeBias(torch.randn(heads, 32)),)}
    return rules[words]


def dense_mask(case: dict[str, Any], rules: tuple[Any, ...], queries: int, length: int) -> torch.Tensor:
    """What PyTorch must be given to mean the same: a mask or a bias of the size of the scores."""
    distance = torch.arange(length)[None] - torch.arange(length - queries, length)[:, None]
    for rule in rules:
        return rule.table[:, rule.buckets(distance)][None]
    width = int(case["pattern"].split()[1])
    return (distance <= 0) & (distance > -width)


if __name__ == "__main__":
    sys.exit(main())
