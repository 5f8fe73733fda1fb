"""Sums over the texts of a corpus, in memory that does not grow with it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]

REPLICATES = 200  # of the bootstrap


@dataclass(frozen=True)
class Interval:
    """A score with its 95 % interval, each ``(N, H)``, over ``n`` cases of ``texts`` texts."""

    score: Numbers
    low: Numbers
    high: Numbers
    n: float
    texts: int


class Ratio:
    """``sum of parts / sum of wholes`` for every head, in each half of the texts, with bootstrap intervals.

    The bootstrap over texts is that of Poisson weights (Hanley and MacGibbon 2006): in replicate ``r`` a text counts
    ``Poisson(1)`` times, a pure function of its number and ``r``, so that nothing of a text has to be kept.

    Args:
        layers: ``N``.
        heads: ``H``.
    """

    def __init__(self, layers: int, heads: int) -> None:
        # replicate 0 counts every text once
        self.parts = np.zeros((2, REPLICATES + 1, layers, heads))
        self.wholes = np.zeros((2, REPLICATES + 1, layers, heads))
        self.cases = np.zeros((2, layers))
        self.texts = np.zeros((2, layers), np.int64)

    def add(self, number: int, layer: int, part: npt.ArrayLike, whole: npt.ArrayLike, cases: float) -> None:
        """Count one layer of one text.

        Args:
            number: of the text.
            layer: from 0.
            part: ``(H,)``.
            whole: ``(H,)``, or one number for all heads.
            cases: how many queries or labels of the text were counted.
        """
        half, weights = number % 2, _weights(number)
        self.parts[half, :, layer] += weights[:, None] * np.asarray(part, np.float64)
        self.wholes[half, :, layer] += weights[:, None] * np.asarray(whole, np.float64)
        self.cases[half, layer] += cases
        self.texts[half, layer] += 1

    def interval(self, half: int | None = None) -> Interval:
        """The score over one half of the texts, or over all of them; NaN where nothing was counted."""
        halves = slice(None) if half is None else slice(half, half + 1)
        parts, wholes = self.parts[halves].sum(0), self.wholes[halves].sum(0)
        with np.errstate(invalid="ignore", divide="ignore"):
            scores = np.where(wholes > 0, parts / wholes, np.nan)
        some = np.isfinite(scores[1:]).any(0)
        replicates = np.where(some, scores[1:], 0.0)
        low, high = np.nanpercentile(replicates, [2.5, 97.5], axis=0)
        n, texts = float(self.cases[halves].sum(0).max()), int(self.texts[halves].sum(0).max())
        return Interval(scores[0], np.where(some, low, np.nan), np.where(some, high, np.nan), n, texts)

    def state(self) -> dict[str, npt.NDArray[np.generic]]:
        """The sums as arrays, for a file from which a run goes on."""
        return {"parts": self.parts, "wholes": self.wholes, "cases": self.cases, "texts": self.texts}

    def restore(self, state: dict[str, npt.NDArray[np.generic]]) -> None:
        """Take over the sums of `state`."""
        for name, array in self.state().items():
            array[...] = state[name]


def _weights(number: int) -> Numbers:
    """How often a text counts: once, then in each replicate of the bootstrap."""
    drawn = np.random.Generator(np.random.Philox(key=number)).poisson(1.0, REPLICATES)
    return np.concatenate([[1.0], drawn])
