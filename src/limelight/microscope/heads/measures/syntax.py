"""Relations of a parse: which heads look from a word at the word that it belongs to (Clark et al. 2019, section 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...subjects import Subject
from ..labels import Sentence, label_of, tokens_of
from ..measure import Claim, Measure, Part, Request, Result
from ..sample import Sample
from ..sums import FARTHEST, Ratio

LEAST = 50  # cases in each half for a claim
DIRECTIONS = ("dependent to head", "head to dependent")
THRESHOLD = 0.5
SOURCE = "right in most cases, and 10 % over the best fixed offset: Clark et al. 2019, section 4.2 (arXiv:1906.04341)"


@dataclass(frozen=True)
class _Cases:
    """What is counted in one sentence.

    Args:
        rows: ``(R,)``: the tokens of the words that are queries.
        mean: ``(Q, R)``: the mean over the tokens of each such word.
        total: ``(L, W)``: the sum over the tokens of each word of the sentence.
        barred: ``(Q, W)``: words that a query may not choose.
        query: ``(K,)``: the query of each case, from 0 to Q - 1.
        target: ``(K,)``: the word that is right.
        columns: ``(K,)``: the column of its relation and direction.
        offsets: ``(K,)``: in words, of the target from the query.
    """

    rows: Tensor
    mean: Tensor
    total: Tensor
    barred: Tensor
    query: Tensor
    target: Tensor
    columns: np.ndarray[tuple[int], np.dtype[np.int64]]
    offsets: np.ndarray[tuple[int], np.dtype[np.int64]]


class Syntax(Measure):
    """The share of a relation's words whose strongest word is the right one, in both directions.

    The weight between two words is the sum over the tokens *to* a word and the mean over the tokens *from* it (Clark et
    al. 2019, section 4.1). The strongest is chosen among all words, punctuation included, but for the word itself and
    those that hold a sink (special tokens, the first token). In a causal model only words before the query are
    candidates, and only relations whose target is one of them are counted. Cases with a single candidate are left out.

    The baseline is the best fixed offset in words: chosen in one half of the sentences, scored in the other.

    Args:
        subject: the model.
        relations: those that are measured, without subtypes.
        name: in tables.
    """

    def __init__(self, subject: Subject, relations: Sequence[str], name: str = "syntax") -> None:
        super().__init__(subject)
        self.name = name
        self.relations = {relation: number for number, relation in enumerate(relations)}
        columns = len(DIRECTIONS) * len(self.relations)
        self.hits = Ratio(subject.layers, subject.heads, columns, common_whole=True)
        self.offsets = np.zeros((2, columns, 2 * FARTHEST + 1))
        self.cases = np.zeros((2, columns))
        self._last: tuple[Sample, _Cases | None] | None = None

    def request(self, sample: Sample) -> Request | None:
        """The rows of the words that are queries of a relation."""
        cases = self._prepared(sample)
        return None if cases is None else Request(rows=cases.rows)

    def add(self, sample: Sample, layer: int, seen: Part) -> None:
        """Count the relations whose strongest word is the right one."""
        cases = self._prepared(sample)
        assert cases is not None
        assert seen.rows is not None
        if layer == 0:
            for column, offset in zip(cases.columns, cases.offsets, strict=True):
                self.cases[sample.half, column] += 1
                if abs(offset) <= FARTHEST:
                    self.offsets[sample.half, column, offset + FARTHEST] += 1
        weights = cases.mean @ seen.rows.float() @ cases.total  # (H, Q, W)
        strongest = weights.masked_fill(cases.barred, -1.0).argmax(-1)
        right = (strongest[:, cases.query] == cases.target).numpy().astype(np.float64)  # (H, K)
        of_columns = np.eye(self.cases.shape[1])[cases.columns]  # (K, C)
        count = of_columns.sum(0)
        self.hits.add(sample.number, layer, right @ of_columns, count[None], count)

    def results(self) -> list[Result]:
        """One for each relation and direction of which there are cases in both halves."""
        found = []
        for relation, number in self.relations.items():
            for way, direction in enumerate(DIRECTIONS):
                column = len(DIRECTIONS) * number + way
                cases = self.cases[:, column]
                if not cases.all():
                    continue
                best = int(self.offsets[0, column].argmax())
                detail = f"{relation}, {direction}"
                few = cases.min() < LEAST
                result = self.result(
                    self.hits,
                    detail,
                    column,
                    baseline=float(self.offsets[1, column, best] / cases[1]),
                    baseline_name=f"always the word at offset {best - FARTHEST:+d}",
                    unit="accuracy",
                    claim=None if few else Claim(detail, THRESHOLD, SOURCE, over_baseline=1.1),
                    notes=(f"No claim from fewer than {LEAST} cases in each half.",) if few else (),
                )
                found.append(result)
        return found

    def _prepared(self, sample: Sample) -> _Cases | None:
        if self._last is None or self._last[0] is not sample:
            self._last = sample, self._prepare(sample)
        return self._last[1]

    def _prepare(self, sample: Sample) -> _Cases | None:
        """What is counted in a sentence; ``None`` for nothing."""
        sentence = label_of(sample, Sentence)
        if sentence is None:
            return None
        words = tokens_of(sample, sentence.words)
        sinks = set(sample.sinks)
        candidate = np.array([bool(tokens) and not sinks.intersection(tokens) for tokens in words])
        at = np.arange(len(words))
        cases = []  # (query, target, column)
        for arc in sentence.arcs:
            if arc.relation not in self.relations:
                continue
            for way, (query, target) in enumerate(((arc.dependent, arc.head), (arc.head, arc.dependent))):
                possible = candidate & (at < query) if self.subject.causal else candidate & (at != query)
                if words[query] and possible[target] and possible.sum() > 1:
                    cases.append((query, target, len(DIRECTIONS) * self.relations[arc.relation] + way))
        if not cases:
            return None
        queries, target, columns = np.array(cases, np.int64).T
        distinct, numbers = np.unique(queries, return_inverse=True)
        barred = ~candidate[None] | (at >= distinct[:, None] if self.subject.causal else at == distinct[:, None])
        rows = [token for word in distinct for token in words[word]]
        mean, total = torch.zeros(len(distinct), len(rows)), torch.zeros(len(sample), len(words))
        first = 0
        for number, word in enumerate(distinct):
            mean[number, first : first + len(words[word])] = 1 / len(words[word])
            first += len(words[word])
        for number, tokens in enumerate(words):
            total[list(tokens), number] = 1.0
        return _Cases(
            torch.tensor(rows, dtype=torch.int64, device="cpu"),
            mean,
            total,
            torch.from_numpy(barred),
            torch.from_numpy(numbers.reshape(-1)),
            torch.from_numpy(target),
            columns,
            target - queries,
        )
