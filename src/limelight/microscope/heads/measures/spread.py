"""How much a head gives to sinks, how broadly it spreads the rest, and how far away."""

from __future__ import annotations

import numpy as np
import torch

from ...subjects import Subject
from ..measure import Claim, Measure, Part, Request, Result
from ..reach import Reach
from ..sample import Sample
from ..sums import Numbers, Ratio
from .positions import strongest

SINK = Claim("sink", 0.3, "a mean weight of more than 0.3: Gu et al. 2024, section 3", 1.5, None)
LONG = Claim("long range", 1.25, "a quarter farther than an even spread; there is no agreed threshold", 1.0, None)


class Sinks(Measure):
    """The weight on the first token and on special tokens (Xiao et al. 2023; Gu et al. 2024)."""

    name = "sink"
    details = ("", "first token", "special tokens")

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.weight = Ratio(subject.layers, subject.heads, len(self.details), common_whole=True)
        self.even, self.queries = np.zeros((subject.layers, len(self.details))), np.zeros(1)

    def request(self, sample: Sample) -> Request | None:
        if not len(sample.queries):
            return None
        sinks, queries = np.array(sample.sinks), sample.queries.numpy()
        of_kinds = np.stack([sinks >= 0, sinks == 0, np.array(sample.text.special)[sinks]], 1).astype(np.float64)
        self._kinds = of_kinds

        def even(reach: Reach) -> Numbers:
            seen = reach.sees(sinks - queries[:, None]) / reach.total(np.ones(len(sample)))[queries, None]
            return np.asarray((seen @ of_kinds).sum(0))

        self._even = self.by_layer(sample, even)
        return Request(frozenset({"sinks"}))

    def add(self, sample: Sample, layer: int, seen: Part) -> None:
        assert seen.sinks is not None
        count = len(sample.queries)
        on = seen.sinks[:, sample.queries].double().sum(1).numpy()  # (H, S)
        self.weight.add(sample.number, layer, on @ self._kinds, count, count)
        self.even[layer] += self._even[layer]
        if layer == 0:
            self.queries += count

    def results(self) -> list[Result]:
        even = self.even / np.maximum(self.queries, 1.0)
        heads = self.subject.heads
        return [
            self.result(
                self.weight, name, column, baseline=_beside(even[:, column], heads), claim=None if name else SINK
            )
            for column, name in enumerate(self.details)
            if even[:, column].any()
        ]


class Spread(Measure):
    """Entropy, largest weight and distance of what the sinks leave, each beside that of an even spread.

    With ``s`` the weight on the sinks, the other weights ``p`` of a query are read as ``p / (1 - s)``, and the query
    counts ``1 - s`` times.
    """

    name = "spread"
    columns = ("entropy", "largest weight", "distance", "long range")

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        size = subject.layers, subject.heads
        self.left = Ratio(*size, len(self.columns))
        self.even = Ratio(*size, len(self.columns), replicates=0)
        self.whole = Ratio(*size, common_whole=True)  # the entropy with the sinks left in
        self.whole_even, self.queries = np.zeros(subject.layers), np.zeros(1)

    def request(self, sample: Sample) -> Request | None:
        queries = sample.queries
        if not len(queries):
            return None

        def even(reach: Reach) -> tuple[Numbers, float]:
            at = queries.numpy()
            visible, distance = reach.total(sample.present)[at], reach.distance(sample.present)[at]
            whole = np.log(reach.total(np.ones(len(sample)))[at]).sum()
            return np.stack([np.log(visible), 1.0 / visible, distance, np.ones_like(distance)], 1), float(whole)

        self._even = self.by_layer(sample, even)
        return Request(frozenset({"sinks", "entropy", "distance"}), top=len(sample.sinks) + 1)

    def add(self, sample: Sample, layer: int, seen: Part) -> None:
        assert seen.sinks is not None
        assert seen.entropy is not None
        assert seen.distance is not None
        at, number = sample.queries, sample.number
        sinks = seen.sinks[:, at].double()
        left = (1.0 - sinks.sum(-1)).clamp(min=0.0)
        whole = seen.entropy[:, at].double()
        entropy = (whole + torch.xlogy(sinks, sinks).sum(-1) + torch.xlogy(left, left)).clamp(min=0.0)
        away = (at[:, None] - torch.tensor(sample.sinks, device="cpu")).abs().double()  # (Q, S)
        distance = (seen.distance[:, at].double() - (sinks * away).sum(-1)).clamp(min=0.0)
        largest = strongest(sample, seen)[0][:, at].double()
        parts = [each.sum(1).numpy() for each in (entropy, largest, distance, distance)]
        remaining, count = left.numpy(), len(at)
        wholes = np.repeat(remaining.sum(1)[:, None], len(self.columns), 1)
        spread, whole_even = self._even[layer]
        even = remaining @ spread
        even_far = even[:, 2]
        self.left.add(number, layer, np.stack(parts, 1), np.concatenate([wholes[:, :3], even_far[:, None]], 1), count)
        self.even.add(number, layer, even, wholes, count)
        self.whole.add(number, layer, whole.sum(1).numpy(), count, count)
        self.whole_even[layer] += whole_even
        if layer == 0:
            self.queries += count

    def results(self) -> list[Result]:
        units = ("nats", "share", "tokens", "times an even spread")
        claims = (None, None, None, LONG)
        found = [
            self.result(
                self.left,
                "",
                column,
                baseline=self.even.interval(None, column).score,
                measure=name,
                unit=units[column],
                claim=claims[column],
            )
            for column, name in enumerate(self.columns)
        ]
        even = _beside(self.whole_even / max(float(self.queries[0]), 1.0), self.subject.heads)
        return [*found, self.result(self.whole, "sink included", baseline=even, measure="entropy", unit="nats")]


def _beside(even: Numbers, heads: int) -> Numbers | float:
    """``(N,)`` of each layer as a baseline: one number where all layers see as far, else ``(N, H)``."""
    return float(even[0]) if (even == even[0]).all() else np.repeat(even[:, None], heads, 1)
