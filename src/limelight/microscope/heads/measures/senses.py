"""Word senses: after which layers the vector of a word tells in which of its senses it is used."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ...subjects import Run, Subject
from ..labels import SenseExample, label_of, tokens_of
from ..measure import Result
from ..sample import Sample
from ..sums import Ratio
from .states import OfStates, word_vectors


class Senses(OfStates):
    """The share of examples whose sense is that of the nearest centroid, for the embedding and after each layer.

    The vector of a word is the mean over its tokens, scaled to length 1. The centroid of a sense is the mean over its
    other examples (leave-one-out), and the nearest is that of the largest cosine. An example that is the only one of
    its sense is left out. The baseline always answers the most frequent sense of the word. A result of layers, not of
    heads; `Result` arrays are ``(N + 1, 1)``.

    Source: Wiedemann et al. 2019 (arXiv:1909.10430), who take the nearest neighbours instead of centroids.

    Args:
        subject: the model.
    """

    name = "senses"

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.hits = Ratio(subject.layers + 1, 1)
        self.majority = np.zeros((2, 2))  # half; the most frequent sense is the right one: no, yes
        self._vectors: list[Tensor] = []  # (N + 1, width) of each example of the word at hand
        self._examples: list[tuple[int, str]] = []  # its number and its sense

    def finish(self, sample: Sample, run: Run) -> None:
        """Keep the vectors of the word; after its last example, classify all of them."""
        example = label_of(sample, SenseExample)
        if example is None:
            return
        (tokens,) = tokens_of(sample, [example.word])
        if tokens:
            self._vectors.append(word_vectors(run.hidden, [tokens])[0])
            self._examples.append((sample.number, example.sense))
        if example.last:
            self._classify()
            self._vectors, self._examples = [], []

    def _classify(self) -> None:
        """Count the examples of one word."""
        names, of_example, counts = np.unique(
            [sense for _, sense in self._examples], return_inverse=True, return_counts=True
        )
        if len(names) < 2:
            return
        right = nearest_sense(torch.stack(self._vectors), torch.from_numpy(of_example), len(names))
        frequent = counts.argmax()
        for at, (number, _) in enumerate(self._examples):
            if counts[of_example[at]] < 2:
                continue
            self.majority[number % 2, int(of_example[at] == frequent)] += 1
            for depth, hit in enumerate(right[:, at].tolist()):
                self.hits.add(number, depth, [hit], 1.0, 1.0)

    def results(self) -> list[Result]:
        """One, where examples were counted in both halves."""
        cases = self.majority.sum(1)
        if not cases.all():
            return []
        baseline = float(self.majority[1, 1] / cases[1])
        name = "always the most frequent sense of the word"
        return [self.result(self.hits, "", baseline=baseline, baseline_name=name, unit="accuracy")]


def nearest_sense(vectors: Tensor, senses: Tensor, count: int) -> Tensor:
    """Whether the nearest centroid of the other examples is that of the right sense.

    Args:
        vectors: ``(E, N + 1, width)``, of length 1.
        senses: ``(E,)``, from 0.
        count: how many senses there are.

    Returns:
        ``(N + 1, E)`` bool.
    """
    of_sense = torch.nn.functional.one_hot(senses, count).float()  # (E, S)
    sums = torch.einsum("es,enw->nsw", of_sense, vectors)
    others = sums[:, None] - torch.einsum("es,enw->nesw", of_sense, vectors)  # (N + 1, E, S, width)
    cosine = torch.einsum("nesw,enw->nes", torch.nn.functional.normalize(others, dim=-1), vectors)
    return cosine.argmax(-1) == senses
