"""Retrieval: the head that reads an answer out of a long text while the answer is written (Wu et al. 2024)."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files

import numpy as np
import torch
from torch import Tensor

from ...subjects import Run, Subject
from ..measure import Claim, Measure, Part, Probe, Request, Result
from ..sample import Sample
from ..sums import Offsets, Ratio

TEXTS = 12
LENGTH = 1024  # tokens
NAMES = [
    "Anthony",
    "Beatrice",
    "Cornelius",
    "Dorothea",
    "Edmund",
    "Felicity",
    "Gregory",
    "Harriet",
    "Isidore",
    "Josephine",
    "Lionel",
    "Matilda",
]
WORDS = [
    "anchor",
    "basket",
    "candle",
    "desert",
    "engine",
    "feather",
    "garden",
    "hammer",
    "island",
    "jacket",
    "kettle",
    "ladder",
    "magnet",
    "needle",
    "orange",
    "pepper",
    "quarry",
    "ribbon",
    "saddle",
    "temple",
    "umbrella",
    "velvet",
    "window",
    "yellow",
    "zebra",
    "bottle",
    "copper",
    "dragon",
    "falcon",
    "glacier",
]
SOURCE = "at least 0.1: Wu et al. 2024, section 2"


def needles(subject: Subject) -> Iterator[Sample]:
    """Chapters with a sentence that holds five random words, and at their end a question and its answer.

    ``labels`` are ``queries``, the tokens before each token of the answer, and ``keys``, the same tokens in the
    sentence.
    """
    novel = (files(__package__.rpartition(".")[0]) / "data/persuasion.txt").read_text(encoding="utf-8")
    most = min(LENGTH, subject.limit or LENGTH)
    sample = novel[:4000]
    per_token = len(sample) / max(len(subject.tokenize(sample)), 1)
    size = int((most - 64) * per_token * 0.9)  # characters
    number = 0
    for attempt in range(TEXTS if size > 200 else 0):
        random = np.random.Generator(np.random.Philox(key=attempt))
        start = int(random.integers(0, max(len(novel) - size, 0) + 1))
        hay = novel[start : start + size]
        depth = hay.find(". ", int(random.uniform(0.05, 0.85) * size))
        depth = depth + 2 if depth >= 0 else 0
        name, words = str(random.choice(NAMES)), " ".join(random.choice(WORDS, 5, replace=False))
        statement = f"The five secret words of {name} are"
        question = f"Which five words did {name} keep secret? They were"
        head = f"{hay[:depth]}{statement} {words}. {hay[depth:]}\n\n{question}"
        text = f"{head} {words}"
        read = subject.tokenize(text)
        keys = _covering(read.spans, depth + len(statement), depth + len(statement) + 1 + len(words))
        answer = _covering(read.spans, len(head), len(text))
        if len(read) <= most and [read.ids[i] for i in keys] == [read.ids[i] for i in answer]:
            labels = {"queries": [i - 1 for i in answer], "keys": keys}
            yield Sample(read, number, labels)
            number += 1


def _covering(spans: tuple[tuple[int, int], ...], start: int, end: int) -> list[int]:
    """The tokens that lie in a part of the text."""
    return [i for i, (first, last) in enumerate(spans) if first >= start and last <= end and last > first]


class Retrieval(Measure):
    """The share of a needle's tokens that a head copies while the model writes them (Wu et al. 2024, section 2).

    A token is copied if the model writes it, and the largest weight of the query that predicts it, among those on all
    keys, lies on that token in the inserted sentence. Sinks stay in the comparison, as in the paper: a head that gives
    most to the first token retrieves nothing. The answer is part of the text (teacher forcing), and the model writes a
    token if it is the likeliest after those before it; without an output embedding every token counts as written.
    """

    name = "needle"
    hidden = True

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.hits, self.offsets = Ratio(subject.layers, subject.heads, common_whole=True), Offsets()
        self.written = np.zeros(2)  # tokens of the needles that the model writes, and all of them

    def request(self, sample: Sample) -> Request | None:
        self._found: list[Tensor] = []  # (H, K) of each layer: whether the largest weight is on the token
        return Request(rows=torch.tensor(sample.labels["queries"], dtype=torch.int64, device="cpu"))

    def add(self, sample: Sample, layer: int, seen: Part) -> None:
        assert seen.rows is not None
        keys = torch.tensor(sample.labels["keys"], device="cpu")
        found = (seen.rows.argmax(-1) == keys).double()
        self._found.append(found.masked_fill(seen.rows.isnan().any(-1), float("nan")))

    def finish(self, sample: Sample, run: Run) -> None:
        queries, keys = sample.labels["queries"], sample.labels["keys"]
        written = self._written(sample, run)
        for layer, found in enumerate(self._found):
            hits = (found * written).sum(-1).numpy()
            self.hits.add(sample.number, layer, hits, len(keys), len(keys))
        self.written += [float(written.sum()), len(keys)]
        away = np.array(keys) - np.array(queries)
        self.offsets.add(away, len(away))

    def _written(self, sample: Sample, run: Run) -> Tensor:
        """``(K,)``: 1 for a token of the needle that the model predicts."""
        queries = sample.labels["queries"]
        logits = self.subject.lens(run.hidden[-1][:, queries], self.subject.layers)
        if logits is None:
            return torch.ones(len(queries), dtype=torch.float64, device="cpu")
        answer = sample.ids[0, [query + 1 for query in queries]]
        return (logits[0].argmax(-1).cpu() == answer).double()

    def results(self) -> list[Result]:
        offset, best = self.offsets.best()
        if not np.isfinite(best):
            return []
        written = self.written[0] / self.written[1]
        return [
            self.result(
                self.hits,
                "",
                baseline=best,
                baseline_name=f"best fixed offset ({offset:+d})",
                unit="share of needle tokens",
                claim=Claim("retrieval", 0.1, SOURCE, 1.5),
                notes=(f"The model writes {written:.2f} of the needles' tokens; no head can have more.",),
            )
        ]


def retrieval_probe(subject: Subject) -> Probe:
    """Texts with an inserted sentence that a question at their end is about; only for models that write."""
    tokens = TEXTS * min(LENGTH, subject.limit or LENGTH) * 9 // 10
    return Probe("needles", lambda: needles(subject), lambda: [Retrieval(subject)], tokens, 6)
