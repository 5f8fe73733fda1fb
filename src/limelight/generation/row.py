"""One text that is being written."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .results import LIMIT, STRING, TOKEN, Continuation
from .writing import Writing


@dataclass(frozen=True)
class Row:
    """A text that grows by tokens. `add` gives a new one, so several may share a beginning.

    Args:
        begun: the tokens that were there before.
        ends: tokens that end it.
        most: as many tokens are written at most, at least 1.
        at_most: why no more, `limelight.generation.results.LIMIT` or ``POSITIONS``.
        writing: its characters; ``None`` without a tokenizer.
        copy: which of several continuations of one beginning.
        ids: the tokens written so far.
        logprobs: their log-probabilities.
        ended: why it ended; empty while it is unfinished.
    """

    begun: tuple[int, ...]
    ends: frozenset[int] = frozenset()
    most: int = 1
    at_most: str = LIMIT
    writing: Writing | None = None
    copy: int = 0
    ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    ended: str = ""

    def add(self, token: int, logprob: float) -> Row:
        """The text with one more token. The one that ends it is none of its characters."""
        ids, writing, ended = (*self.ids, token), self.writing, ""
        if token in self.ends:
            ended = TOKEN
        elif writing is not None:
            writing = writing.add(token)
            ended = STRING if writing.stopped else ""
        if not ended and len(ids) >= self.most:
            ended = self.at_most
        if ended and writing is not None and not writing.stopped:
            writing = writing.finished()
        return replace(self, ids=ids, logprobs=(*self.logprobs, logprob), writing=writing, ended=ended)

    @property
    def shown(self) -> str:
        """The characters that no further token changes."""
        if self.writing is None:
            return ""
        return self.writing.text if self.ended else self.writing.text[: self.writing.certain]

    def continuation(self, logprobs: bool, score: float | None = None) -> Continuation:
        """The continuation as it is returned, with log-probabilities if requested."""
        text = None if self.writing is None else self.writing.text
        return Continuation(self.ids, text, self.ended, self.logprobs if logprobs else None, score)
