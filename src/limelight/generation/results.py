"""The results of generation: continuations and why each one ended."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

from ..tensors.shapes import wrong

# Why a text ended, `Continuation.ended`.
TOKEN = "token"  # a token that ends texts
STRING = "string"  # a string that was to end it
LIMIT = "limit"  # the maximum number of new tokens
POSITIONS = "positions"  # the last position that the model has


@dataclass(frozen=True)
class Continuation:
    """The continuation of one text.

    Args:
        ids: the tokens that were written, the one that ended the text included.
        text: their text without special tokens, up to what ended it; ``None`` for a model without a tokenizer.
        ended: why it ended: ``"token"`` that ends texts, ``"string"`` of `stop`, ``"limit"`` of tokens,
            ``"positions"`` used up; ``""`` while it is unfinished.
        logprobs: the model's own log-probability of each token, in nats, before any sampler's change, or
            ``None`` unless requested.
        score: of a text found by `Beam`: the sum of its log-probabilities divided by its length to the power of the
            penalty.
    """

    ids: tuple[int, ...]
    text: str | None
    ended: str
    logprobs: tuple[float, ...] | None = None
    score: float | None = None


@dataclass(frozen=True)
class Generation(Sequence[Continuation]):
    """The continuations of all prompts, those of one prompt beside each other."""

    rows: tuple[Continuation, ...]

    @overload
    def __getitem__(self, place: int) -> Continuation: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[Continuation, ...]: ...
    def __getitem__(self, place: int | slice) -> Continuation | tuple[Continuation, ...]:
        return self.rows[place]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Continuation]:
        return iter(self.rows)

    @property
    def text(self) -> str:
        """The text of the only continuation."""
        if len(self.rows) != 1:
            raise wrong("text", "is that of a single continuation", f"there are {len(self.rows)}", "Take `texts`.")
        return self.texts[0]

    @property
    def texts(self) -> tuple[str, ...]:
        """The text of each continuation."""
        found = tuple(row.text for row in self.rows if row.text is not None)
        if len(found) != len(self.rows):
            raise wrong("texts", "need a tokenizer", "the model has none", "Take the `ids` of each continuation.")
        return found

    @property
    def ids(self) -> tuple[tuple[int, ...], ...]:
        """The tokens of each continuation."""
        return tuple(row.ids for row in self.rows)
