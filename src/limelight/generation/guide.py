"""Constraints of a published configuration on the texts that its model writes, and the repetition penalty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..tensors.shapes import wrong
from .row import Row
from .sampling import penalised, tokens_in


@dataclass(frozen=True)
class Guide:
    """Which tokens end a text, which are never written, and which must stand first or last.

    Args:
        ends: tokens that end a text.
        never: tokens that are never written.
        never_first: tokens that are not written first.
        words: runs of two tokens or more that are never written: once all but the last stand there, the last is not.
        first: the token that must be written first, where only the beginning-of-text token is before it.
        last: the token that must be written last, where a text reaches its limit.
    """

    ends: frozenset[int] = frozenset()
    never: tuple[int, ...] = ()
    never_first: tuple[int, ...] = ()
    words: tuple[tuple[int, ...], ...] = ()
    first: int | None = None
    last: int | None = None

    @classmethod
    def of(cls, ids: Mapping[str, Any], vocabulary: int) -> Guide:
        """The guide that special token ``ids`` make, by their published names (`Pretrained.special_token_ids`).

        Ids beyond the vocabulary of the model are never written anyway, and left out.

        Raises:
            ArgumentError: a token that must be written is none of the vocabulary.
        """
        ends = frozenset(_numbers(ids.get("eos_token_id")))
        # As published code has it, a token that ends a text is no bad word: no text would end.
        words = [tuple(word) for word in ids.get("bad_words_ids") or () if len(word) > 1 or not ends.issuperset(word)]
        words = [word for word in words if all(token < vocabulary for token in word)]
        never = (*_numbers(ids.get("suppress_tokens")), *(word[0] for word in words if len(word) == 1))
        return cls(
            ends=ends,
            never=tuple(token for token in never if token < vocabulary),
            never_first=tuple(n for n in _numbers(ids.get("begin_suppress_tokens")) if n < vocabulary),
            words=tuple(word for word in words if len(word) > 1),
            first=_forced("forced_bos_token_id", ids, vocabulary),
            last=_forced("forced_eos_token_id", ids, vocabulary),
        )

    def scores(self, scores: Tensor, rows: Sequence[Row], repetition: float) -> Tensor:
        """Scores ``(R, V)`` of the next token of each of the ``rows``, as tokens are chosen by them.

        Tokens that are already in a row are penalised (`limelight.generation.sampling.penalised`; ``repetition`` 1
        is off), and what must not be written gets minus infinity.
        """
        if repetition != 1:
            scores = penalised(scores, tokens_in([(*row.begun, *row.ids) for row in rows], scores), repetition)
        return self._allowed(scores, rows)

    def _allowed(self, scores: Tensor, rows: Sequence[Row]) -> Tensor:
        """The scores with minus infinity for what must not be written."""
        never = self.never + (self.never_first if not rows[0].ids else ())  # rows grow together
        if never:
            scores = scores.index_fill(-1, torch.tensor(never, dtype=torch.int64, device=scores.device), -torch.inf)
        if self.words:
            scores = scores.clone()
            for row_scores, row in zip(scores, rows, strict=True):
                row_scores[self._completing(row)] = -torch.inf
        wanted = [self._wanted(row) for row in rows]
        if any(token is not None for token in wanted):
            scores = scores.clone()
            for row_scores, token in zip(scores, wanted, strict=True):
                if token is not None:
                    row_scores.fill_(-torch.inf)[token] = 0.0
        return scores

    def _completing(self, row: Row) -> list[int]:
        """The tokens that would complete one of the words."""
        text = row.begun + row.ids
        return [word[-1] for word in self.words if text[1 - len(word) :] == word[:-1]]

    def _wanted(self, row: Row) -> int | None:
        """The only token that may be written next."""
        if not row.ids and len(row.begun) == 1 and self.first is not None:
            return self.first
        return self.last if len(row.ids) == row.most - 1 else None


def _forced(name: str, ids: Mapping[str, Any], vocabulary: int) -> int | None:
    """The id of a token that must be written."""
    token = next(iter(_numbers(ids.get(name))), None)
    if token is not None and token >= vocabulary:
        rule = f"of the checkpoint must be one of the model's {vocabulary} tokens"
        raise wrong(name, rule, f"it is {token}", "Correct generation_config.json or config.json.")
    return token


def _numbers(value: Any) -> tuple[int, ...]:
    """One id, several, or none."""
    if value is None:
        return ()
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)
