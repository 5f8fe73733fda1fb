"""How fast a model learns, by the step: a pure function, so that nothing of it has to be saved."""

from __future__ import annotations

import math
from collections.abc import Callable

Shape = Callable[[int, int, int], float]


def cosine(step: int, warmup: int, steps: int) -> float:
    """Half a wave, from 1 after the warm-up to 0 at the last step (Loshchilov & Hutter 2016, arXiv:1608.03983)."""
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))


def inverse_square_root(step: int, warmup: int, steps: int) -> float:
    """``sqrt(warmup / step)`` (Vaswani et al. 2017, arXiv:1706.03762, eq. 3, in units of the highest rate)."""
    return math.sqrt(max(1, warmup) / max(1, step))


def constant(step: int, warmup: int, steps: int) -> float:
    """1."""
    return 1.0


SHAPES: dict[str, Shape] = {"cosine": cosine, "inverse-square-root": inverse_square_root, "constant": constant}


def rate(step: int, *, shape: str, highest: float, warmup: int, steps: int, floor: float = 0.0) -> float:
    """The learning rate of ``step``, counted from 1: a straight line up to ``highest`` at ``warmup``, then its shape.

    >>> [round(rate(s, shape="cosine", highest=1.0, warmup=2, steps=4), 3) for s in (1, 2, 3, 4)]
    [0.5, 1.0, 0.5, 0.0]

    Args:
        step: 1 or later.
        shape: a key of `SHAPES`.
        highest: the rate at the end of the warm-up.
        warmup: steps of the warm-up; 0 for none.
        steps: all steps.
        floor: the share of ``highest`` below which the rate never falls after the warm-up.
    """
    if step < warmup:
        return highest * step / warmup
    return highest * max(floor, SHAPES[shape](step, warmup, steps))
