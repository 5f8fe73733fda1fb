"""What a head writes, key by key: attention weighted by the norms of the values (Kobayashi et al. 2020)."""

from __future__ import annotations

import numpy as np

from ...reading.norms import ValueNorms
from ...subjects import Subject
from ..measure import Measure, Part, Request, Result
from ..sample import Sample
from ..sums import Numbers, Ratio
from .classes import CLASSES, classes_of
from .positions import NAMES

ROWS = 32  # queries of each text whose weights are read whole
SINKS = ("sinks", "first token", "special tokens")
NOTES = (
    f"Mean over at most {ROWS} queries of each text, drawn at random; the other measures count every query.",
    "Sinks are left in.",
)


class Contributions(Measure):
    """The share of what a head writes that comes from one kind of key, beside the mean weight on it.

    With ``f(x_j)`` the value of key ``j`` behind the head's part of the output projection, the share of a key is
    ``p_ij |f(x_j)| / sum_k p_ik |f(x_k)|``, the sinks included; mean over a few queries of every text. A key that is a
    sink counts in no other kind.
    """

    name = "norm-weighted"
    controlled = False

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.offsets = tuple(offset for offset in NAMES if offset <= 0 or not subject.causal)
        self.kinds = (*SINKS, *CLASSES, *(NAMES[offset] for offset in self.offsets))
        self.written = Ratio(subject.layers, subject.heads, len(self.kinds), common_whole=True)
        self.weights = Ratio(subject.layers, subject.heads, len(self.kinds), replicates=0, common_whole=True)
        self.present = np.zeros(len(self.kinds))  # keys of each kind that there were
        self.norms = ValueNorms(subject)

    def request(self, sample: Sample) -> Request | None:
        if not len(sample.queries):
            return None
        self._rows = sample.some_queries(ROWS)
        sink = np.zeros(len(sample))
        sink[list(sample.sinks)] = 1.0
        special = np.array(sample.text.special, np.float64)
        first = np.arange(len(sample)) == 0
        classes = classes_of(sample) * (1.0 - sink)[:, None]
        self._kinds = np.concatenate([np.stack([sink, first, special], 1), classes], 1)  # (L, kinds of keys)
        self._near = []  # for each offset the rows and keys that are measured
        for offset in self.offsets:
            keys = self._rows.numpy() + offset
            rows = np.flatnonzero((keys >= 0) & (keys < len(sample)))
            rows = rows[sink[keys[rows]] == 0]
            self._near.append((rows, keys[rows]))
        return Request(frozenset({"values"}), rows=self._rows)

    def add(self, sample: Sample, layer: int, seen: Part) -> None:
        assert seen.rows is not None
        assert seen.values is not None
        weights = seen.rows.double().numpy()
        norms = self.norms(self.subject.attention_names[layer], seen.values[None])
        shares = np.full_like(weights, np.nan)
        if norms is not None:
            written = weights[: len(norms)] * norms[:, None]
            total = written.sum(-1, keepdims=True)
            shares[: len(norms)] = np.divide(written, total, out=np.zeros_like(written), where=total > 0)
        count = len(self._rows)
        for ratio, each in ((self.written, shares), (self.weights, weights)):
            ratio.add(sample.number, layer, self._by_kind(each), count, count)
        if layer == 0:
            self.present += [*self._kinds.sum(0), *(len(rows) for rows, _ in self._near)]

    def _by_kind(self, shares: Numbers) -> Numbers:
        """``(H, kinds)``: the sum over the queries of ``(H, R, L)`` shares."""
        near = [shares[:, rows, keys].sum(1) for rows, keys in self._near]
        return np.concatenate([shares.sum(1) @ self._kinds, np.stack(near, 1)], 1)

    def results(self) -> list[Result]:
        found = []
        for column, kind in enumerate(self.kinds):
            weight = self.weights.interval(None, column).score
            name, unit = "mean weight, without the norms", "share of what is written"
            facts = {"baseline_name": name, "unit": unit, "notes": NOTES}
            result = self.result(self.written, kind, column, baseline=weight, **facts)
            if self.present[column] and np.isfinite(result.total.score).any():
                found.append(result)
        return found
