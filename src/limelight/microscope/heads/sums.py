"""Sums over the texts of a corpus, in memory that does not grow with it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]
State = dict[str, npt.NDArray[np.generic]]

REPLICATES = 200  # of the bootstrap
FARTHEST = 512  # offsets beyond it are no baseline


@dataclass(frozen=True)
class Interval:
    """A score with its 95 % interval, each ``(N, H)``, over ``n`` cases of ``texts`` texts; NaN where there is none."""

    score: Numbers
    low: Numbers
    high: Numbers
    n: float
    texts: int


class Ratio:
    """``sum of parts / sum of wholes`` for every head, in each half of the texts, with bootstrap intervals.

    The bootstrap over texts is that of Poisson weights (Hanley and MacGibbon 2006): in replicate ``r`` a text counts
    ``Poisson(1)`` times, a pure function of its number and ``r``, so that nothing of a text has to be kept. What is
    added for one text is gathered over its layers, and enters the replicates in one step.

    Args:
        layers: ``N``.
        heads: ``H``.
        columns: ``C``: so many ratios are kept side by side.
        replicates: of the bootstrap; 0 for a ratio without an interval.
        common_whole: whether the wholes are the same for all heads, as numbers of cases are; they are then kept once.
    """

    def __init__(
        self, layers: int, heads: int, columns: int = 1, *, replicates: int = REPLICATES, common_whole: bool = False
    ) -> None:
        shape, of_wholes = (layers, heads, columns), (layers, 1 if common_whole else heads, columns)
        self.replicates = replicates
        self.parts, self.wholes = np.zeros((2, *shape)), np.zeros((2, *of_wholes))
        self.part_replicates = np.zeros((2, replicates, *shape), np.float32)
        self.whole_replicates = np.zeros((2, replicates, *of_wholes), np.float32)
        self.cases = np.zeros((2, layers, columns))
        self.texts = np.zeros((2, layers, columns), np.int64)
        self._number: int | None = None  # of the text that is being added
        self._part, self._whole = np.zeros(shape), np.zeros(of_wholes)
        self._cases = np.zeros((layers, columns))

    def add(
        self, number: int, layer: int, part: npt.ArrayLike, whole: npt.ArrayLike, cases: npt.ArrayLike, column: int = -1
    ) -> None:
        """Count one layer of one text.

        Args:
            number: of the text.
            layer: from 0.
            part: ``(H, C)``, or ``(H,)`` for one column.
            whole: the same, ``(1, C)``, or one number for all heads.
            cases: how many queries or labels of the text were counted: ``(C,)`` or one number.
            column: which one; -1 for all of them, or for the only one.
        """
        if number != self._number:
            self._flush()
            self._number = number
        at = slice(None) if column < 0 else slice(column, column + 1)
        self._part[layer, :, at] += _columns(part)
        self._whole[layer, :, at] += _columns(whole)
        self._cases[layer, at] += np.asarray(cases)

    def without_intervals(self) -> None:
        """Keep no replicates from now on; nothing may have been added before."""
        self.replicates = 0
        self.part_replicates, self.whole_replicates = self.part_replicates[:, :0], self.whole_replicates[:, :0]

    def interval(self, half: int | None = None, column: int = 0) -> Interval:
        """The score over one half of the texts, or over all of them; NaN where nothing was counted.

        A single text has a score without an interval.
        """
        self._flush()
        halves = [0, 1] if half is None else [half]
        score = _quotient(self.parts[halves, ..., column].sum(0), self.wholes[halves, ..., column].sum(0))
        low, high = np.full_like(score, np.nan), np.full_like(score, np.nan)
        n, texts = self.cases[halves, :, column].sum(0).max(), self.texts[halves, :, column].sum(0).max()
        if self.replicates and texts > 1:
            parts = self.part_replicates[halves, ..., column].sum(0)
            scores = _quotient(parts, self.whole_replicates[halves, ..., column].sum(0))
            scores = np.where(np.isfinite(scores), scores, score)  # a replicate in which no text counts
            low, high = np.percentile(scores, [2.5, 97.5], axis=0)
        return Interval(score, low, high, float(n), int(texts))

    def per_case(self, column: int = 0) -> Numbers:
        """``sum of parts / cases``, ``(N, H)``: where the wholes are ``1 - sink``, the share with the sinks left in."""
        self._flush()
        return _quotient(self.parts[..., column].sum(0), self.cases[..., column].sum(0)[:, None])

    def state(self) -> State:
        """The sums as arrays, for a file from which a run goes on."""
        self._flush()
        names = ("parts", "wholes", "part_replicates", "whole_replicates", "cases", "texts")
        return {name: getattr(self, name) for name in names}

    def restore(self, state: State) -> None:
        """Take over the sums of `state`."""
        for name, array in self.state().items():
            array[...] = state[name]

    def _flush(self) -> None:
        """Let the text that was added enter the sums and the replicates."""
        if self._number is None:
            return
        half = self._number % 2
        self.parts[half] += self._part
        self.wholes[half] += self._whole
        self.cases[half] += self._cases
        self.texts[half] += self._cases > 0
        if self.replicates:
            weights = _weights(self._number, self.replicates)
            self.part_replicates[half] += np.multiply.outer(weights, self._part.astype(np.float32))
            self.whole_replicates[half] += np.multiply.outer(weights, self._whole.astype(np.float32))
        self._part[...], self._whole[...], self._cases[...] = 0.0, 0.0, 0.0
        self._number = None


class Shares:
    """Shares of the attention on chosen keys, the sinks taken out, beside those of an even spread over the other keys.

    ``sum_i w_i / sum_i (1 - sink_i)`` over the queries that count, with ``w_i`` the weight on the chosen keys.

    Args:
        layers: ``N``.
        heads: ``H``.
        columns: ``C``, the sets of keys.
    """

    def __init__(self, layers: int, heads: int, columns: int = 1) -> None:
        self.ratio = Ratio(layers, heads, columns)
        self.even = Ratio(layers, heads, columns, replicates=0)

    def add(self, number: int, layer: int, part: Numbers, left: Numbers, counted: Numbers, even: Numbers) -> None:
        """Count one layer of one text.

        Args:
            number: of the text.
            layer: from 0.
            part: ``(H, C)``: the weight on the chosen keys, summed over the queries that count.
            left: ``(H, L)``: what each query leaves the sinks, ``1 - sink``.
            counted: ``(L, C)``: 1 for a query that counts.
            even: ``(L, C)``: the share of the chosen keys among those that the query sees, without the sinks.
        """
        whole, cases = left @ counted, counted.sum(0)
        self.ratio.add(number, layer, part, whole, cases)
        self.even.add(number, layer, left @ (even * counted), whole, cases)

    def state(self) -> State:
        """The sums as arrays, for a file from which a run goes on."""
        parts = {"ratio": self.ratio, "even": self.even}
        return {f"{name}.{key}": array for name, part in parts.items() for key, array in part.state().items()}

    def restore(self, state: State) -> None:
        """Take over the sums of `state`."""
        for name, array in self.state().items():
            array[...] = state[name]


class Offsets:
    """How often the key that is looked for lies at each offset from its query: the best that position alone can do."""

    def __init__(self) -> None:
        self.counts = np.zeros(2 * FARTHEST + 1)
        self.cases = np.zeros(1)

    def add(self, offsets: npt.ArrayLike, cases: float) -> None:
        """Count cases.

        Args:
            offsets: ``key - query`` of every right answer; a case may have several.
            cases: how many there are.
        """
        found = np.asarray(offsets, np.int64).reshape(-1)
        found = found[np.abs(found) <= FARTHEST] + FARTHEST
        self.counts += np.bincount(found, minlength=len(self.counts))
        self.cases += cases

    def best(self) -> tuple[int, float]:
        """The offset that is right most often, and the share of the cases in which it is; NaN without cases."""
        if not self.cases[0]:
            return 0, float("nan")
        at = int(self.counts.argmax())
        return at - FARTHEST, float(self.counts[at] / self.cases[0])

    def state(self) -> State:
        """The counts as arrays, for a file from which a run goes on."""
        return {"counts": self.counts, "cases": self.cases}

    def restore(self, state: State) -> None:
        """Take over the counts of `state`."""
        for name, array in self.state().items():
            array[...] = state[name]


def _columns(values: npt.ArrayLike) -> Numbers:
    """``(H,)`` as one column; ``(H, C)`` and single numbers as they are."""
    array = np.asarray(values, np.float64)
    return array[:, None] if array.ndim == 1 else array


def _quotient(part: npt.NDArray[np.floating], whole: npt.NDArray[np.floating]) -> Numbers:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(whole > 0, part / whole, np.nan).astype(np.float64)


def _weights(number: int, replicates: int) -> npt.NDArray[np.float32]:
    """How often a text counts in each replicate of the bootstrap."""
    return np.random.Generator(np.random.Philox(key=number)).poisson(1.0, replicates).astype(np.float32)
