"""What kinds of tokens a head looks at."""

from __future__ import annotations

import numpy as np
import torch

from ...subjects import Subject
from ..measure import Claim, Measure, Part, Request, Result
from ..reach import Reach
from ..sample import Sample
from ..sums import Numbers, Shares

CLASSES = (
    "punctuation",
    "sentence end",
    "blank or newline",
    "number",
    "capitalised",
    "function word",
    "content word",
    "first piece of a word",
    "later piece of a word",
)
NEAR = tuple(range(-8, 9))
SOURCE = "more than half of the attention (as Clark et al. 2019 for separators), and half as much again as the baseline"


def classes_of(sample: Sample) -> Numbers:
    """``(L, C)``: 1 where a token belongs to a class; a special token belongs to none."""
    tokens, words = sample.joined
    found = np.zeros((len(tokens), len(CLASSES)))
    for i, token in enumerate(tokens):
        if token.special:
            continue
        if token.word < 0:
            blank = not sample.text.text[token.start : token.end].strip()
            found[i, 2] = blank
            continue
        word = words[token.word]
        whole = word.text
        found[i] = (
            word.is_punctuation,
            whole in ".!?…。！？",
            False,
            whole[0].isdigit(),
            whole[0].isupper(),
            not word.is_punctuation and not word.content,
            word.content,
            not word.is_punctuation and i == word.tokens[0],
            i != word.tokens[0],
        )
    return found


class TokenClasses(Measure):
    """The share of each class of tokens among the keys, beside its share of the text and the best fixed offset."""

    name = "token class"

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.shares = Shares(subject.layers, subject.heads, len(CLASSES))
        self.at_offset = np.zeros((len(NEAR), len(CLASSES)))  # how often the key at an offset is of the class
        self.queries = np.zeros(len(NEAR))

    def request(self, sample: Sample) -> Request | None:
        queries = sample.queries.numpy()
        if not len(queries):
            return None
        classes, length = classes_of(sample), len(sample)
        classes[list(sample.sinks)] = 0.0
        self._counted = np.zeros((length, len(CLASSES)))
        self._counted[queries] = 1.0

        def even(reach: Reach) -> Numbers:
            return reach.total(classes) / np.maximum(reach.total(sample.present), 1.0)[:, None]

        self._even = self.by_layer(sample, even)
        self._near = np.zeros_like(self.at_offset), np.zeros_like(self.queries)
        for row, offset in enumerate(NEAR):
            keys = queries + offset
            keys = keys[(keys >= 0) & (keys < length)] if offset <= 0 or not self.subject.causal else keys[:0]
            self._near[0][row], self._near[1][row] = classes[keys].sum(0), len(queries)
        return Request(frozenset({"sinks"}), features=torch.from_numpy(classes.astype(np.float32)))

    def add(self, sample: Sample, layer: int, seen: Part) -> None:
        assert seen.features is not None
        part = seen.features[:, sample.queries].double().sum(1).numpy()
        left = 1.0 - seen.sink.double().numpy()
        self.shares.add(sample.number, layer, part, left, self._counted, self._even[layer])
        if layer == 0:
            self.at_offset += self._near[0]
            self.queries += self._near[1]

    def results(self) -> list[Result]:
        best = (self.at_offset / np.maximum(self.queries, 1.0)[:, None]).max(0)
        return [
            self.share(self.shares, name, column, best=float(best[column]), claim=Claim(name, 0.5, SOURCE, 1.5))
            for column, name in enumerate(CLASSES)
            if best[column] > 0
        ]
