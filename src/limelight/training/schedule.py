"""The learning rate at each step: a pure function of the step, so that no scheduler state has to be saved."""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[int, int, int], float]


def cosine(step: int, warmup: int, steps: int) -> float:
    """Half a cosine, from 1 after the warm-up to 0 at the last step (Loshchilov & Hutter 2016, arXiv:1608.03983)."""
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))


def inverse_square_root(step: int, warmup: int, steps: int) -> float:
    """``sqrt(warmup / step)`` (Vaswani et al. 2017, arXiv:1706.03762, eq. 3, in units of the peak rate)."""
    return math.sqrt(max(1, warmup) / max(1, step))


def constant(step: int, warmup: int, steps: int) -> float:
    """1 at every step after the warm-up."""
    return 1.0


SCHEDULES: dict[str, Schedule] = {"cosine": cosine, "inverse-square-root": inverse_square_root, "constant": constant}


def learning_rate(step: int, *, schedule: str, peak: float, warmup: int, steps: int, min_ratio: float = 0.0) -> float:
    """Return the learning rate of a step: linear warm-up to ``peak``, then the schedule.

    >>> [round(learning_rate(s, schedule="cosine", peak=1.0, warmup=2, steps=4), 3) for s in (1, 2, 3, 4)]
    [0.5, 1.0, 0.5, 0.0]

    Args:
        step: the optimizer step, counted from 1.
        schedule: a key of `SCHEDULES`.
        peak: the rate at the end of the warm-up.
        warmup: number of warm-up steps; 0 for none.
        steps: total number of steps.
        min_ratio: minimum rate after the warm-up, as a share of ``peak``.
    """
    if step < warmup:
        return peak * step / warmup
    return peak * max(min_ratio, SCHEDULES[schedule](step, warmup, steps))
