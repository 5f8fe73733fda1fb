"""Goals and predictions beside what was measured, before and now."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from .costs import PAGE
from .selection import FLOAT8
from .speed import OWN_BACKWARD

Result = dict[str, Any]
Selector = Callable[[Result], float | None]


class Goal(NamedTuple):
    """A goal, what was predicted and measured before, and what selects the measurement of a run.

    ``predicted`` is that of the newest row of ``benchmarks/predictions.md``, which gives the reasons; ``before`` was
    measured on an H200 (``benchmarks/results/h200.json``).
    """

    name: str
    aim: float
    predicted: float
    before: float | None
    measured: Selector
    at_most: bool = False  # less is better


def rate(ways: tuple[str, ...], direction: str, form: str, D: int, length: int) -> Selector:
    """TFLOP/s of a case in bfloat16, by the fastest of some ways that were measured."""
    case = {"direction": direction, "form": form, "D": D, "length": length, "dtype": "bfloat16"}

    def measured(result: Result) -> float | None:
        rows = [*result["speed"], *(row for rows in result.get("candidates", {}).values() for row in rows)]
        rates = [row["tflops"] for row in rows if all(row[name] == value for name, value in case.items())]
        return max((found[way] for found in rates for way in ways if way in found), default=None)

    return measured


def ratio(ways: tuple[str, ...], peer: str, *case: Any) -> Selector:
    """The rate of a case over that of a peer, by the fastest of some ways."""

    def measured(result: Result) -> float | None:
        ours, theirs = rate(ways, *case)(result), rate((peer,), *case)(result)
        return None if ours is None or theirs is None else ours / theirs

    return measured


def of_bandwidth(page: int) -> Selector:
    """The smallest fraction of the memory bandwidth, of 16 sequences from 16k on; ``page`` is 0 for keys in rows."""
    return lambda result: min(
        (
            row["of bandwidth"]
            for row in result["decode"]
            if row["batch"] == 16 and row["length"] >= 16384 and row.get("page", 0) == page
        ),
        default=None,
    )


def over_plain(backend: str, what: str) -> Selector:
    """The time of a forward pass with observations over one without, causal, 8k, width 128."""
    case = {"served by": backend, "length": 8192, "D": 128}
    return lambda result: next(
        (row[what] for row in result["observations"] if all(row.get(n) == value for n, value in case.items())), None
    )


def host_time(backend: str, call: str) -> Selector:
    """Microseconds of the host."""
    return lambda result: next((row.get(backend) for row in result["host"] if row["call"] == call), None)


FLASH3 = ("flash3", "candidate")  # the form in use, and one that is to be measured
FLASH3_BACKWARD = ("flash3", OWN_BACKWARD)

GOALS = (
    *(
        Goal(f"flash3 forward, {form} {D} 4096, TFLOP/s", *numbers, rate(FLASH3, "forward", form, D, 4096))
        for form, D, *numbers in (
            ("full", 64, 450, 450, 389),
            ("causal", 64, 410, 400, 319),
            ("causal", 128, 535, 525, 458),
            ("causal", 192, 490, 470, 224),
            ("causal", 256, 510, 480, 389),
        )
    ),
    *(
        Goal(f"flash3 forward over cuDNN, {form} {D} 4096", *numbers, ratio(FLASH3, "cudnn", "forward", form, D, 4096))
        for form, D, *numbers in (
            ("full", 64, 0.93, 0.93, 0.81),
            ("causal", 64, 0.93, 0.92, 0.73),
            ("causal", 128, 0.93, 0.91, 0.80),
            ("causal", 192, 0.85, 0.82, 0.39),
            ("causal", 256, 0.85, 0.80, 0.65),
        )
    ),
    Goal(
        "flash3-float8 kernel, full 128 16384, TFLOP/s", 850, 820, 602,
        rate((f"{FLOAT8} kernel",), "forward", "full", 128, 16384),
    ),
    *(
        Goal(
            f"flash3 backward, {form} {D} {length}, TFLOP/s", *numbers,
            rate(FLASH3_BACKWARD, "backward", form, D, length),
        )
        for form, D, length, *numbers in (
            ("causal", 128, 16384, 445, 460, 409),
            ("causal", 128, 4096, 400, 425, 360),
            ("full", 64, 4096, 440, 400, 359),
            ("causal", 192, 4096, 190, 220, 47),
            ("causal", 256, 4096, 225, 300, 56),
        )
    ),
    *(
        Goal(
            f"flash2 backward over FlexAttention, causal {D} 4096", 1.0, 0.75, before,
            ratio(("flash2",), "flex", "backward", "causal", D, 4096),
        )
        for D, before in ((128, 0.33), (64, None))
    ),
    Goal("decoding, 16 sequences from 16k on, of the bandwidth", 0.85, 0.88, 0.86, of_bandwidth(0)),
    Goal(f"the same over pages of {PAGE} keys", 0.85, 0.84, None, of_bandwidth(PAGE)),
    *(
        Goal(f"{title} over a plain pass, {backend}", *numbers, over_plain(backend, what), at_most=True)
        for title, what, backend, *numbers in (
            ("entropy", "entropy", "flash2", 1.3, 1.15, 2.51),
            ("8 largest weights", "top", "flash2", 3, 1.7, 11.6),
            ("all observations", "all", "flash2", 4, 2.4, 39.7),
            ("entropy", "entropy", "flash3", 1.3, 1.1, None),
            ("8 largest weights", "top", "flash3", 3, 2.1, None),
            ("all observations", "all", "flash3", 4, 2.9, None),
        )
    ),
    *(
        Goal(f"host time, {call}, {backend}, µs", *numbers, host_time(backend, call), at_most=True)
        for call, backend, *numbers in (
            ("causal", "flash2", 60, 60, 380),
            ("causal", "flash3", 60, 70, None),
            ("causal, both ways", "flash2", 120, 310, None),
            ("causal, both ways", "flash3", 120, 350, None),
        )
    ),
)  # fmt: skip


def goals(result: Result, table: tuple[Goal, ...] = GOALS) -> list[dict[str, Any]]:
    """Return each goal beside its prediction and its measurements, and print them as a table."""
    rows = []
    print(f"{'goal':54} {'aim':>8} {'predicted':>10} {'before':>13} {'now':>13}")
    for goal in table:
        now = goal.measured(result)
        met = None if now is None else now <= goal.aim if goal.at_most else now >= goal.aim
        aim = f"{'<= ' if goal.at_most else ''}{goal.aim:g}"
        before, measured = ("not measured" if x is None else f"{x:.4g}" for x in (goal.before, now))
        verdict = {None: "", True: "  met", False: "  missed"}[met]
        print(f"{goal.name:54} {aim:>8} {goal.predicted:10g} {before:>13} {measured:>13}{verdict}", flush=True)
        rows.append(
            {
                "goal": goal.name, "aim": goal.aim, "at most": goal.at_most, "predicted": goal.predicted,
                "before": goal.before, "measured": now, "met": met,
            }
        )  # fmt: skip
    return rows
