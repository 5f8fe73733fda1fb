"""Semantic heads: whether a head gives more weight to words of like meaning, beyond what their distance explains."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...reading.words import Word
from ...subjects import Subject
from ..measure import Claim, Measure, Part, Request, Result
from ..sample import Sample
from ..sums import Ratio

PAIRS = 1_500  # at most, of a text
REACH = 24  # words between the two of a pair
LEAST = 30  # degrees of freedom of a text that counts
THRESHOLD = 0.2
ENDS = frozenset(".!?")


@dataclass(frozen=True)
class _Cases:
    """The pairs of words of one text.

    Args:
        pairs: ``(P, 2)`` pairs of tokens (query, key).
        members: ``(P,)``: the pair of words that each belongs to.
        shares: ``(P,)``: one over the number of tokens of the query word.
        similarity: ``(K,)``: the cosine of each pair of words.
        groups: ``(K,)``: the number of its offset.
    """

    pairs: Tensor
    members: Tensor
    shares: Tensor
    similarity: Tensor
    groups: Tensor


class Semantic(Measure):
    """The correlation between the weight and the similarity of two words, at equal distances.

    Pairs are of different content words of one sentence. The weight is the sum over the tokens to a word, the mean over
    those from it; the similarity is the cosine of their static embeddings (mean over tokens). From both, the mean over
    all pairs of the text with the same offset in words is subtracted, so that distance explains nothing; the score is
    Pearson's correlation of what remains, the mean over texts weighted by their degrees of freedom (pairs minus
    offsets). The correlation with the distance left in stands beside it. A text with fewer than 30 degrees of freedom
    does not count.

    No threshold is published. A role is claimed from 0.2 on, well above what heads without a relation to meaning reach
    by chance, and only above the control.

    Args:
        subject: the model.
    """

    name = "semantic"

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.correlations = Ratio(
            subject.layers, subject.heads, 2, common_whole=True
        )  # at equal distances; with the distance left in
        self._last: tuple[Sample, _Cases | None] | None = None

    def request(self, sample: Sample) -> Request | None:
        """The pairs of the words' tokens."""
        cases = self._prepared(sample)
        return None if cases is None else Request(pairs=cases.pairs)

    def add(self, sample: Sample, layer: int, seen: Part) -> None:
        """Count the correlation of each head in this text."""
        cases = self._prepared(sample)
        assert cases is not None
        assert seen.pairs is not None
        shared = seen.pairs.double() * cases.shares
        weights = shared.new_zeros(len(shared), len(cases.similarity)).index_add_(1, cases.members, shared)
        free = len(cases.similarity) - int(cases.groups.max()) - 1
        beyond = correlation(_without_means(weights, cases.groups), _without_means(cases.similarity, cases.groups))
        plain = correlation(weights - weights.mean(-1, keepdim=True), cases.similarity - cases.similarity.mean())
        parts = torch.stack([beyond, plain], -1).numpy() * free
        self.correlations.add(sample.number, layer, parts, float(free), float(len(cases.similarity)))

    def results(self) -> list[Result]:
        """The correlation at equal distances and the plain one, where a text was counted."""
        if not self.correlations.interval().n:
            return []
        source = "no published figure, the threshold is Limelight's own"
        at_equal = self.result(
            self.correlations,
            "at equal distances",
            0,
            baseline=0.0,
            baseline_name="no relation beyond distance",
            unit="correlation",
            claim=Claim("semantic similarity", THRESHOLD, source),
        )
        plain = self.result(
            self.correlations,
            "distance left in",
            1,
            baseline=0.0,
            baseline_name="no relation",
            unit="correlation",
        )
        return [at_equal, plain]

    def _prepared(self, sample: Sample) -> _Cases | None:
        if self._last is None or self._last[0] is not sample:
            self._last = sample, self._prepare(sample)
        return self._last[1]

    def _prepare(self, sample: Sample) -> _Cases | None:
        """The pairs of a text; ``None`` where there are too few."""
        _, words = sample.joined
        found = word_pairs(words, frozenset(sample.sinks), self.subject.causal)
        if len(found) > PAIRS:
            found = [found[at] for at in np.linspace(0, len(found) - 1, PAIRS).astype(int)]
        offsets, groups = np.unique([key - query for query, key in found], return_inverse=True)
        if len(found) - len(offsets) < LEAST:
            return None
        queries, keys = np.array(found).T
        units = self._units(sample, words)
        pairs, members, shares = [], [], []
        for number, (query, key) in enumerate(found):
            several = [(i, j) for i in words[query].tokens for j in words[key].tokens]
            pairs += several
            members += [number] * len(several)
            shares += [1 / len(words[query].tokens)] * len(several)
        return _Cases(
            torch.tensor(pairs, dtype=torch.int64, device="cpu"),
            torch.tensor(members, dtype=torch.int64, device="cpu"),
            torch.tensor(shares, dtype=torch.float64, device="cpu"),
            (units[queries] * units[keys]).sum(-1),
            torch.from_numpy(groups.reshape(-1)),
        )

    def _units(self, sample: Sample, words: tuple[Word, ...]) -> Tensor:
        """``(W, width)``: the mean static embedding of each word's tokens, scaled to length 1."""
        table = self.subject.embeddings()
        vectors = table[sample.ids[0].to(table.device)].double().cpu()
        means = torch.stack([vectors[list(word.tokens)].mean(0) for word in words])
        return torch.nn.functional.normalize(means, dim=-1)


def word_pairs(words: tuple[Word, ...], sinks: frozenset[int], causal: bool) -> list[tuple[int, int]]:
    """Pairs (query, key) of different content words of one sentence, at most 24 words apart, by their numbers.

    Args:
        words: of the text.
        sinks: tokens whose words are left out.
        causal: whether the key must come first.
    """
    sentence, content = 0, []  # (number, sentence, word in lower case)
    for number, word in enumerate(words):
        if word.content and not sinks.intersection(word.tokens):
            content.append((number, sentence, word.text.casefold()))
        sentence += word.text in ENDS
    return [
        (query, key)
        for query, of_query, name in content
        for key, of_key, other in content
        if of_query == of_key and name != other and abs(key - query) <= REACH and (key < query or not causal)
    ]


def correlation(first: Tensor, second: Tensor) -> Tensor:
    """Pearson's correlation of centred numbers, ``(H, K)`` and ``(K,)``; 0 where one of them does not vary."""
    norms = first.norm(dim=-1) * second.norm()
    return torch.where(norms > 1e-12, first @ second / norms.clamp(min=1e-12), 0.0)


def _without_means(values: Tensor, groups: Tensor) -> Tensor:
    """``(..., K)`` minus the mean over each group."""
    count = torch.bincount(groups).double()
    sums = values.new_zeros(*values.shape[:-1], len(count)).index_add_(-1, groups, values)
    return values - (sums / count)[..., groups]
