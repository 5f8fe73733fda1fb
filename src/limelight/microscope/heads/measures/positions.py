"""Heads that look at a fixed offset, whatever the tokens are."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ...subjects import Subject
from ..measure import Claim, Measure, Part, Request, Result
from ..sample import Sample
from ..sums import Numbers, Ratio, Shares

FARTHEST = 8
CLARK = "more than half of the attention: Clark et al. 2019, section 3.1"
VOITA = "the largest weight of at least 90 % of the queries: Voita et al. 2019, section 5.1"
NAMES = {-1: "previous token", 0: "same token", 1: "next token"}


def strongest(sample: Sample, seen: Part) -> tuple[Tensor, Tensor]:
    """The largest weight of every query on a key that is no sink, and the key, ``(H, L)`` each; 0 and -1 without one.

    The request must be for ``top = len(sample.sinks) + 1``.
    """
    assert seen.top_keys is not None
    assert seen.top_weights is not None
    sink = torch.zeros(len(sample) + 1, dtype=torch.bool, device="cpu")  # the last entry is that of the key -1
    sink[list(sample.sinks)] = True
    first = sink[seen.top_keys].to(torch.int8).argmin(-1, keepdim=True)
    weights, keys = (each.gather(-1, first)[..., 0] for each in (seen.top_weights, seen.top_keys))
    nothing = sink[keys]
    return weights.masked_fill(nothing, 0.0), keys.masked_fill(nothing, -1)


class Positions(Measure):
    """The share of each fixed offset, as mean weight and as the place of the largest weight (Voita et al. 2019)."""

    name = "offset"

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.offsets = tuple(range(-FARTHEST, 1 if subject.causal else FARTHEST + 1))
        self.shares = Shares(subject.layers, subject.heads, len(self.offsets))
        self.largest = Ratio(subject.layers, subject.heads, len(self.offsets), common_whole=True)

    def request(self, sample: Sample) -> Request | None:
        length, queries = len(sample), sample.queries
        if not len(queries):
            return None
        sink = torch.zeros(length, dtype=torch.bool, device="cpu")
        sink[list(sample.sinks)] = True
        counted = torch.zeros(length, len(self.offsets), dtype=torch.float64, device="cpu")
        pairs, columns = [], []
        for column, offset in enumerate(self.offsets):
            keys = queries + offset
            inside = (keys >= 0) & (keys < length)
            inside &= ~sink[keys.clamp(0, length - 1)]
            counted[queries[inside], column] = 1.0
            pairs.append(torch.stack([queries[inside], keys[inside]], 1))
            columns.append(torch.full((len(pairs[-1]),), column, dtype=torch.int64, device="cpu"))
        self._columns, self._counted = torch.cat(columns), counted.numpy()
        self._even = self.by_layer(sample, lambda reach: reach.even(sample.present, self.offsets))
        return Request(frozenset({"sinks"}), top=len(sample.sinks) + 1, pairs=torch.cat(pairs))

    def add(self, sample: Sample, layer: int, seen: Part) -> None:
        assert seen.pairs is not None
        heads = seen.pairs.shape[0]
        part = torch.zeros(heads, len(self.offsets), dtype=torch.float64, device="cpu")
        part.index_add_(1, self._columns, seen.pairs.double())
        left = 1.0 - seen.sink.double().numpy()
        self.shares.add(sample.number, layer, part.numpy(), left, self._counted, self._even[layer])
        weights, places = strongest(sample, seen)
        keys = places.numpy()
        away = np.where(keys >= 0, keys - np.arange(len(sample)), 2 * FARTHEST + len(sample))
        hits: Numbers = np.stack([((away == offset) @ self._counted[:, c]) for c, offset in enumerate(self.offsets)], 1)
        hits[np.isnan(weights.numpy()).any(1)] = np.nan  # a head that the layer lacks
        counts = self._counted.sum(0)
        self.largest.add(sample.number, layer, hits, counts[None], counts)

    def results(self) -> list[Result]:
        found = []
        for column, offset in enumerate(self.offsets):
            near = Claim(NAMES[offset], 0.5, CLARK, 1.5, None) if offset in NAMES else None
            far = None if offset in NAMES else Claim(f"position {offset:+d}", 0.9, VOITA, 1.5, None)
            even = self.shares.even.interval(None, column).score
            found.append(self.share(self.shares, f"{offset:+d}", column, claim=near))
            found.append(
                self.result(
                    self.largest,
                    f"{offset:+d}",
                    column,
                    baseline=even,
                    measure="largest weight at offset",
                    unit="share of queries",
                    claim=far,
                )
            )
        return found
