"""Pronouns: which heads look from a pronoun at what it stands for rather than at another candidate."""

from __future__ import annotations

import itertools

import numpy as np
import torch

from ...subjects import Subject
from ..labels import Reference, label_of, tokens_of
from ..measure import Claim, Measure, Part, Request, Result
from ..sample import Sample
from ..sums import Ratio

LEAST = 50  # cases in each half for a claim
THRESHOLD = 0.5
SOURCE = "10 % over the baseline, as for relations of syntax (Clark et al. 2019, section 4, arXiv:1906.04341)"


class Coreference(Measure):
    """The share of pronouns that give their antecedent more weight than every other candidate.

    The weight of a candidate is the mean over its tokens and over those of the pronoun: with a sum, an even spread
    would favour long names. In a causal model only texts are counted in which all candidates come before the pronoun.

    The baseline is the nearer candidate (in tokens), or the farther one if that is right more often in the half of the
    texts that chooses. With two candidates, chance is 0.5.

    Args:
        subject: the model.
        name: in tables.
        role: the name of the role.
    """

    def __init__(self, subject: Subject, name: str = "coreference", role: str = "coreference") -> None:
        super().__init__(subject)
        self.name, self.role = name, role
        self.hits = Ratio(subject.layers, subject.heads, common_whole=True)
        self.nearer = np.zeros((2, 2))  # half; the nearest candidate is the antecedent: no, yes
        self._last: tuple[Sample, list[tuple[int, ...]] | None] | None = None

    def request(self, sample: Sample) -> Request | None:
        """The pairs of the pronoun's tokens with those of the candidates."""
        places = self._places(sample)
        if places is None:
            return None
        pronoun, *candidates = places
        pairs = [pair for tokens in candidates for pair in itertools.product(pronoun, tokens)]
        return Request(pairs=torch.tensor(pairs, dtype=torch.int64, device="cpu"))

    def add(self, sample: Sample, layer: int, seen: Part) -> None:
        """Count whether the antecedent has the largest mean weight."""
        places = self._places(sample)
        assert places is not None
        assert seen.pairs is not None
        pronoun, *candidates = places
        reference = label_of(sample, Reference)
        assert reference is not None
        number = sample.number if reference.group is None else reference.group
        if layer == 0:
            distances = [min(abs(i - j) for i, j in itertools.product(pronoun, tokens)) for tokens in candidates]
            self.nearer[number % 2, int(distances[0] < min(distances[1:]))] += 1
        sizes = [len(pronoun) * len(tokens) for tokens in candidates]
        means = [part.float().mean(-1).numpy() for part in torch.split(seen.pairs, sizes, dim=-1)]  # (H,) each
        self.hits.add(number, layer, means[0] > np.max(means[1:], axis=0), 1.0, 1.0)

    def results(self) -> list[Result]:
        """One, where there are cases in both halves."""
        cases = self.nearer.sum(1)
        if not cases.all():
            return []
        near = self.nearer[0, 1] >= self.nearer[0, 0]
        few = cases.min() < LEAST
        return [
            self.result(
                self.hits,
                "",
                baseline=float(self.nearer[1, int(near)] / cases[1]),
                baseline_name=f"always the {'nearest' if near else 'farther'} candidate",
                unit="accuracy",
                claim=None if few else Claim(self.role, THRESHOLD, SOURCE, over_baseline=1.1),
                notes=(f"No claim from fewer than {LEAST} cases in each half.",) if few else (),
            )
        ]

    def _places(self, sample: Sample) -> list[tuple[int, ...]] | None:
        """The tokens of the pronoun, of the antecedent, and of each rival; ``None`` where they cannot be compared."""
        if self._last is None or self._last[0] is not sample:
            self._last = sample, self._find(sample)
        return self._last[1]

    def _find(self, sample: Sample) -> list[tuple[int, ...]] | None:
        reference = label_of(sample, Reference)
        if reference is None:
            return None
        places = list(tokens_of(sample, (reference.pronoun, reference.antecedent, *reference.rivals)))
        if not all(places) or set(sample.sinks).intersection(*[itertools.chain(*places)]):
            return None
        if self.subject.causal and max(itertools.chain(*places[1:])) >= places[0][0]:
            return None
        return places
