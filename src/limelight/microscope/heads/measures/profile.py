"""How the attention of a head falls with the distance."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from ...subjects import Subject
from ..measure import Measure, Part, Request, Result
from ..sample import Sample
from ..sums import Numbers

ROWS = 8  # queries of each text whose weights are read whole
EDGES = (0, 1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33, 49, 65, 97, 129, 193, 257, 385, 513, 1025, 2049, 4097, 1 << 40)


class Profile(Measure):
    """The share of each distance between key and query, the sinks taken out, from a few queries of every text.

    Bins are those of ``bins``: ``(first, last)`` offsets ``key - query``.
    """

    name = "profile"
    controlled = False

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        back = [(1 - after, -before) for before, after in pairwise(EDGES)]
        self.bins = (*back[::-1], *([] if subject.causal else [(-b, -a) for a, b in back[1:]]))
        self.weights = np.zeros((subject.layers, subject.heads, len(self.bins)))
        self.even = np.zeros(len(self.bins))
        self.queries = np.zeros(1)

    def request(self, sample: Sample) -> Request | None:
        if len(sample.queries) < 2:
            return None
        self._rows = sample.some_queries(ROWS)
        away = np.arange(len(sample)) - self._rows.numpy()[:, None]
        starts = np.array([first for first, _ in self.bins])
        self._bin = np.clip(np.searchsorted(starts, away, side="right") - 1, 0, len(self.bins) - 1)
        self._seen = self.by_layer(sample, lambda reach: reach.sees(away) * sample.present)
        return Request(rows=self._rows)

    def add(self, sample: Sample, layer: int, seen: Part) -> None:
        assert seen.rows is not None
        weights = seen.rows.double().numpy() * self._seen[layer]  # (H, R, L)
        for head, each in enumerate(weights):
            self.weights[layer, head] += np.bincount(self._bin.ravel(), each.ravel(), len(self.bins))
        even = self._seen[layer] / np.maximum(self._seen[layer].sum(1, keepdims=True), 1.0)
        self.even += np.bincount(self._bin.ravel(), even.ravel(), len(self.bins))  # the mean over the layers
        self.queries += len(self._rows)

    def results(self) -> list[Result]:
        return []

    @property
    def shares(self) -> Numbers:
        """``(N, H, bins)``: the share of each distance; they add up to 1."""
        total = self.weights.sum(-1, keepdims=True)
        shares: Numbers = np.divide(self.weights, total, out=np.full_like(self.weights, np.nan), where=total > 0)
        return shares
