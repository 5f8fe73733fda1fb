"""Beam search: several hypotheses of each prompt grow side by side, and the best finished one is returned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ..tensors.shapes import whole_number, wrong
from .guide import Guide
from .row import Row
from .sampling import check_above_0, is_number
from .session import Session, nothing_allowed


@dataclass(frozen=True)
class Beam:
    """Beam search: the ``width`` likeliest texts are continued; ended ones have ``sum log p / length ** penalty``.

    (Wu et al. 2016, arXiv:1609.08144, with the length alone for the penalty.) The search of a prompt is over when
    ``width`` texts have ended and the best unfinished one is no better than the worst of them.

    Args:
        width: number of beams.
        length_penalty: above 0 favours longer texts, 0 compares plain sums, below 0 favours shorter ones.
        repetition: penalty on tokens that are already in the text; 1 is off
            (`limelight.generation.sampling.penalised`, on log-probabilities).
    """

    width: int = 4
    length_penalty: float = 1.0
    repetition: float = 1.0

    def __post_init__(self) -> None:
        whole_number("width", self.width, at_least=1)
        check_above_0("repetition", self.repetition)
        if not (is_number(self.length_penalty) and math.isfinite(self.length_penalty)):
            raise wrong("length_penalty", "must be a number", f"it is {self.length_penalty!r}", "0 leaves the sum.")


@dataclass
class Search:
    """The search for the continuation of one prompt.

    Args:
        beam: the settings of the search.
        going: the unfinished texts, best first, with the sum of their log-probabilities.
        ended: those that have ended, best first, with their score.
    """

    beam: Beam
    going: list[tuple[float, Row]]
    ended: list[tuple[float, Row]] = field(default_factory=list)

    def step(self, sums: Tensor, logprobs: Tensor) -> list[int]:
        """Go one token on.

        Args:
            sums: ``(n, V)``, the sum of each unfinished text with each next token.
            logprobs: ``(n, V)``, the model's own log-probabilities of the tokens.

        Returns:
            For each unfinished text, which of those before it continues.
        """
        width, V = self.beam.width, sums.shape[1]
        # As many as must hold `width` unfinished texts, however many take a token that ends.
        most = min(width * max(2, 1 + len(self.going[0][1].ends)), sums.numel())
        best, places = sums.flatten().topk(most)
        going: list[tuple[float, Row]] = []
        parents: list[int] = []
        for rank, (total, place) in enumerate(zip(best.tolist(), places.tolist(), strict=True)):
            parent, token = divmod(place, V)
            if total == -math.inf or (rank >= width and len(going) == width):
                break
            row = self.going[parent][1].add(token, logprobs[parent, token].item())
            if not row.ended and len(going) < width:
                going.append((total, row))
                parents.append(parent)
            elif row.ended and rank < width:
                self.ended.append((self._score(total, row), row))
        self.ended = sorted(self.ended, key=lambda one: -one[0])[:width]
        self.going = going
        return parents

    @property
    def over(self) -> bool:
        """Whether no unfinished text can become better than those that have ended."""
        if not self.going:
            return True
        return len(self.ended) == self.beam.width and self._score(*self.going[0]) <= self.ended[-1][0]

    def _score(self, total: float, row: Row) -> float:
        return total / len(row.ids) ** self.beam.length_penalty  # type: ignore[no-any-return]


def search(session: Session, rows: Sequence[Row], beam: Beam, guide: Guide) -> list[list[tuple[float, Row]]]:
    """The texts found for each of the ``rows``, best first, with their scores; at most ``beam.width`` each."""
    searches = [Search(beam, [(0.0, row)]) for row in rows]
    scores = session.read([row.begun for row in rows])
    active = searches
    while True:
        texts = [row for one in active for _, row in one.going]
        logprobs = session.logprobs(scores, len(texts[0].ids))
        changed = guide.scores(logprobs, texts, beam.repetition)
        sums = changed + changed.new_tensor([total for one in active for total, _ in one.going])[:, None]
        parents: list[int] = []
        begin = 0
        for one in active:
            end = begin + len(one.going)
            found = one.step(sums[begin:end], logprobs[begin:end])
            parents += [] if one.over else [begin + parent for parent in found]
            begin = end
            if not (one.going or one.ended):
                raise nothing_allowed(len(texts[0].ids))
        active = [one for one in active if not one.over]
        if not active:
            return [one.ended for one in searches]
        session.select(parents)
        scores = session.read([row.ids[-1:] for one in active for _, row in one.going])
