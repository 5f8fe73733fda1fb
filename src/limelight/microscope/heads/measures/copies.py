"""Heads that find an earlier copy of the token, or what came after it."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import torch

from ...subjects import Subject
from ..measure import Claim, Measure, Part, Request, Result
from ..reach import Reach
from ..sample import Sample
from ..sums import Numbers, Offsets, Shares

NEAREST = 16  # copies of a token beyond so many are not counted
DUPLICATE = Claim("duplicate token", 0.3, "three tenths of the attention; there is no agreed threshold", 2.0)


class Copies(Measure):
    """The share on the nearest 16 earlier copies of the token (shift 0), or on the tokens after them (shift 1).

    Only queries with such a key count.

    Args:
        subject: the model.
        shift: how far behind the copy the key lies.
    """

    def __init__(self, subject: Subject, shift: int) -> None:
        super().__init__(subject)
        self.name = ("duplicate token", "token after an earlier copy")[shift]
        self.shift = shift
        self.shares, self.offsets = Shares(subject.layers, subject.heads), Offsets()

    def request(self, sample: Sample) -> Request | None:
        pairs = self._pairs(sample)
        if not pairs:
            return None
        chosen = torch.tensor(pairs, dtype=torch.int64, device="cpu")
        found = torch.bincount(chosen[:, 0], minlength=len(sample)).double().numpy()
        self._counted = (found > 0).astype(np.float64)[:, None]
        self._away = (chosen[:, 1] - chosen[:, 0]).numpy()
        queries = chosen[:, 0].numpy()

        def even(reach: Reach) -> Numbers:
            seen = np.bincount(queries[reach.sees(self._away)], minlength=len(sample))
            return np.asarray((seen / np.maximum(reach.total(sample.present), 1.0))[:, None])

        self._even = self.by_layer(sample, even)
        return Request(frozenset({"sinks"}), pairs=chosen)

    def _pairs(self, sample: Sample) -> list[tuple[int, int]]:
        earlier: dict[int, list[int]] = defaultdict(list)
        sinks, pairs = set(sample.sinks), []
        for i, token in enumerate(sample.text.ids):
            if i in sinks:
                continue
            keys = [j + self.shift for j in earlier[token][-NEAREST:]]
            pairs += [(i, j) for j in keys if j != i and j not in sinks]
            earlier[token].append(i)
        return pairs

    def add(self, sample: Sample, layer: int, seen: Part) -> None:
        assert seen.pairs is not None
        part = seen.pairs.double().sum(1).numpy()[:, None]
        left = 1.0 - seen.sink.double().numpy()
        self.shares.add(sample.number, layer, part, left, self._counted, self._even[layer])
        if layer == 0:
            self.offsets.add(self._away, float(self._counted.sum()))

    def results(self) -> list[Result]:
        offset, best = self.offsets.best()
        if not np.isfinite(best):
            return []
        note = f"best fixed offset: {offset:+d} ({best:.2f})"
        claim = DUPLICATE if self.shift == 0 else None
        return [self.share(self.shares, "", best=best, claim=claim, notes=(note,))]
