"""Contextuality: how alike the vectors of one word are in different contexts, layer by layer (Ethayarajh 2019)."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor

from ...subjects import Run, Subject
from ..measure import Result
from ..sample import Sample
from ..sums import Ratio, State
from .states import OfStates, word_vectors

WORDS = 256  # so many words are followed


class Contextuality(OfStates):
    """The mean cosine of a word with itself in another text, minus that of two different words.

    The first occurrence of each word in a text is compared with its occurrence in an earlier text of the same half, and
    with that of another word there. The more the vectors of one word depend on the context, the smaller is their
    cosine; but in many models any two vectors are alike (anisotropy), so that only the difference means something
    (Ethayarajh 2019, arXiv:1909.00512, sections 3.3 and 4.1). The vector of a word is the mean over its tokens; 256
    words are followed in each half, those that come first. `Result` arrays are ``(N + 1, 1)``.

    Args:
        subject: the model.
    """

    name = "contextuality"

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.cosines = Ratio(subject.layers + 1, 1, 3)  # of a word with itself, of different words, their difference
        self._words = np.zeros((2, WORDS), np.int64)  # the checksum of the word in each place, 0 for none
        self._vectors: list[dict[int, Tensor]] = [{}, {}]  # (N + 1, width) by place, of length 1

    def finish(self, sample: Sample, run: Run) -> None:
        """Compare the words of a text with those of earlier texts, then keep them for the next ones."""
        known, vectors = self._words[sample.half], self._vectors[sample.half]
        tokens = self._followed(sample, known)
        current = dict(zip(tokens, word_vectors(run.hidden, list(tokens.values())), strict=True))
        same, other = self._compared(current, vectors)
        for depth in range(len(run.hidden) if len(same) else 0):
            parts = [[float(same[:, depth].sum()), float(other[:, depth].sum()), float((same - other)[:, depth].sum())]]
            self.cosines.add(sample.number, depth, parts, float(len(same)), float(len(same)))
        vectors.update({place: vector.clone() for place, vector in current.items()})  # not views of the whole text

    @staticmethod
    def _followed(sample: Sample, known: np.ndarray[tuple[int], np.dtype[np.int64]]) -> dict[int, tuple[int, ...]]:
        """The tokens of the first occurrence of each word that is followed, by its place in ``known``."""
        found: dict[int, tuple[int, ...]] = {}
        sinks = set(sample.sinks)
        for word in sample.joined[1]:
            if word.is_punctuation or sinks.intersection(word.tokens):
                continue
            checksum = zlib.crc32(word.text.casefold().encode("utf-8", "replace")) + 1
            place = checksum % WORDS
            if known[place] in (0, checksum) and place not in found:
                known[place], found[place] = checksum, word.tokens
        return found

    @staticmethod
    def _compared(current: dict[int, Tensor], earlier: dict[int, Tensor]) -> tuple[Tensor, Tensor]:
        """``(K, N + 1)`` twice: cosines of words with themselves, and with the next other word that is known."""
        places = [place for place in current if place in earlier]
        if not places or len(earlier) < 2:
            return torch.zeros(0, 0), torch.zeros(0, 0)
        known = sorted(earlier)
        after = dict(zip(known, [*known[1:], known[0]], strict=True))
        now = torch.stack([current[place] for place in places])
        same = torch.stack([earlier[place] for place in places])
        other = torch.stack([earlier[after[place]] for place in places])
        return (now * same).sum(-1), (now * other).sum(-1)

    def state(self) -> State:
        """The sums, and the vectors that later texts are compared with."""
        found = super().state()
        for half, vectors in enumerate(self._vectors):
            found[f"places.{half}"] = np.array(list(vectors), np.int64)
            found[f"vectors.{half}"] = np.stack([each.numpy() for each in vectors.values()] or [np.zeros((0, 0))])
        return found

    def restore(self, state: State) -> None:
        """Take over the sums and vectors of `state`."""
        for half in (0, 1):
            places, vectors = state[f"places.{half}"].tolist(), torch.from_numpy(np.array(state[f"vectors.{half}"]))
            self._vectors[half] = dict(zip(places, vectors, strict=False))
        super().restore(state)

    def results(self) -> list[Result]:
        """The cosine beside that of different words, and the difference."""
        if not self.cosines.interval().n:
            return []
        different = self.cosines.interval(None, 1).score
        return [
            self.result(
                self.cosines,
                "same word",
                0,
                baseline=different,
                baseline_name="two different words",
                unit="cosine",
            ),
            self.result(
                self.cosines,
                "same word minus different words",
                2,
                baseline=0.0,
                baseline_name="a word is no more like itself than like others",
                unit="cosine",
            ),
        ]
