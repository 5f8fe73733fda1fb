"""What a published configuration wants of the texts that its model writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..shapes import wrong

if TYPE_CHECKING:
    from .row import Row


@dataclass(frozen=True)
class Guide:
    """Which tokens end a text, which are never written, and which must stand first or last.

    Args:
        ends: tokens that end a text.
        never: tokens that are never written.
        never_first: tokens that are not written first.
        first: the token that must be written first, where nothing but the mark of the beginning stands before it.
        last: the token that must be written last, where a text reaches its limit.
    """

    ends: frozenset[int] = frozenset()
    never: tuple[int, ...] = ()
    never_first: tuple[int, ...] = ()
    first: int | None = None
    last: int | None = None

    @classmethod
    def of(cls, marks: Mapping[str, Any]) -> Guide:
        """The guide that ``marks`` with published names make (`limelight.models.Pretrained.marks`)."""
        words = marks.get("bad_words_ids") or ()
        if any(len(word) != 1 for word in words):
            raise wrong(
                "marks",
                "must name single tokens in bad_words_ids",
                f"a word of {max(map(len, words))} tokens is among them",
                "Leave them out: dataclasses.replace(model, marks={...}).",
            )
        return cls(
            ends=frozenset(_numbers(marks.get("eos_token_id"))),
            never=(*_numbers(marks.get("suppress_tokens")), *(number for word in words for number in word)),
            never_first=_numbers(marks.get("begin_suppress_tokens")),
            first=next(iter(_numbers(marks.get("forced_bos_token_id"))), None),
            last=next(iter(_numbers(marks.get("forced_eos_token_id"))), None),
        )

    def applied(self, scores: Tensor, rows: Sequence[Row]) -> Tensor:
        """Scores ``(R, V)`` of the next token of each of the ``rows``, minus infinity for what must not be written."""
        never = self.never + (self.never_first if not rows[0].ids else ())  # rows grow together
        if never:
            scores = scores.index_fill(-1, torch.tensor(never, device=scores.device), -torch.inf)
        wanted = [self._wanted(row) for row in rows]
        if any(token is not None for token in wanted):
            scores = scores.clone()
            for row_scores, token in zip(scores, wanted, strict=True):
                if token is not None:
                    row_scores.fill_(-torch.inf)[token] = 0.0
        return scores

    def _wanted(self, row: Row) -> int | None:
        """The only token that may be written next."""
        if not row.ids and len(row.begun) == 1 and self.first is not None:
            return self.first
        return self.last if len(row.ids) == row.most - 1 else None


def _numbers(value: Any) -> tuple[int, ...]:
    """One id, several, or none."""
    if value is None:
        return ()
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)
