"""Induction: what came after the earlier copy of a token, in random tokens that are repeated (Olsson et al. 2022)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from ....text import Text
from ...subjects import Subject
from ..measure import Claim, Measure, Part, Probe, Request, Result
from ..sample import Sample
from ..sums import Offsets, Shares

TEXTS = 32
SHORTEST, LONGEST = 30, 60  # tokens that are repeated
APART = 24  # at most so many other tokens stand between the copies, so that no fixed offset leads to the first
COLUMNS = ("induction", "duplicate token", "previous token")
SOURCE = "more than half of the attention is clear: Olsson et al. 2022 (offset +1 from the earlier copy)"


def repeats(subject: Subject) -> Iterator[Sample]:
    """Random tokens, all different, some of which come twice; ``labels`` are ``first``, ``second`` and ``length``."""
    frame = subject.tokenize("a")
    special = [i for i, one in enumerate(frame.special) if one]
    content = [i for i, one in enumerate(frame.special) if not one]
    before = [i for i in special if not content or i < content[0]]
    after = [i for i in special if content and i > content[-1]]
    room = min(subject.limit or 1 << 30, 2 * LONGEST + APART + 2 + len(special)) - len(special)
    most = min((room - 1) // 2, subject.vocabulary // 4, LONGEST)
    for number in range(TEXTS if most >= 4 else 0):
        random = np.random.Generator(np.random.Philox(key=number))
        length = int(random.integers(max(most // 2, 4), most + 1))
        apart = int(random.integers(0, max(min(room - 1 - 2 * length, APART), 0) + 1))
        drawn = [int(i) for i in random.choice(subject.vocabulary, length + apart + 1, replace=False)]
        start, copy, between = drawn[:1], drawn[1 : length + 1], drawn[length + 1 :]
        ids = [*(frame.ids[i] for i in before), *start, *copy, *between, *copy, *(frame.ids[i] for i in after)]
        flags = [*(True for _ in before), *(False for _ in range(1 + 2 * length + apart)), *(True for _ in after)]
        first = len(before) + 1
        labels = {"first": first, "second": first + length + apart, "length": length}
        size = len(ids)
        text = Text("", tuple(ids), tuple(map(str, ids)), ((0, 0),) * size, (None,) * size, tuple(flags))
        yield Sample(text, number, labels)


class Induction(Measure):
    """The share that queries of the second copy give to three tokens: what came after the first copy, and two others.

    The others are the first copy itself and the token before the query.
    """

    name = "repeated random tokens"

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.shares = Shares(subject.layers, subject.heads, len(COLUMNS))
        self.after, self.same = Offsets(), Offsets()

    def request(self, sample: Sample) -> Request | None:
        first, second, length = (sample.labels[name] for name in ("first", "second", "length"))
        steps = torch.arange(length - 1, device="cpu")
        queries = second + steps
        self._counted = np.zeros((len(sample), len(COLUMNS)))
        self._counted[queries.numpy()] = 1.0
        offsets = (first - second + 1, first - second, -1)
        self._even = self.by_layer(sample, lambda reach: reach.even(sample.present, offsets))
        targets = (first + steps + 1, first + steps, queries - 1)
        return Request(frozenset({"sinks"}), pairs=torch.cat([torch.stack([queries, target], 1) for target in targets]))

    def add(self, sample: Sample, layer: int, seen: Part) -> None:
        assert seen.pairs is not None
        heads = seen.pairs.shape[0]
        part = seen.pairs.double().reshape(heads, len(COLUMNS), -1).sum(-1).numpy()
        left = 1.0 - seen.sink.double().numpy()
        self.shares.add(sample.number, layer, part, left, self._counted, self._even[layer])
        if layer == 0:
            away, cases = sample.labels["first"] - sample.labels["second"], sample.labels["length"] - 1
            self.after.add([away + 1] * cases, cases)
            self.same.add([away] * cases, cases)

    def results(self) -> list[Result]:
        best = (self.after.best()[1], self.same.best()[1], 0.0)
        return [
            self.share(
                self.shares, name, column, best=best[column], claim=None if column else Claim(name, 0.5, SOURCE, 1.5)
            )
            for column, name in enumerate(COLUMNS)
            if self.after.cases[0]
        ]


def induction_probe(subject: Subject) -> Probe:
    """Repeated random tokens, which no text explains."""
    tokens = round(TEXTS * (1.5 * LONGEST + APART / 2 + 1))
    return Probe("repeated random tokens", lambda: repeats(subject), lambda: [Induction(subject)], tokens, 4)
