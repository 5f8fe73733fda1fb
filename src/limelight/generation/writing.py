"""The text of tokens as they come: whole characters only, and nothing that may turn out to end it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..text import Tokenizer

BROKEN = "\ufffd"  # what stands for bytes that are no character, or not yet
CONTEXT = 8  # tokens before the text, of which a decoder may look at the last


@dataclass(frozen=True)
class Writing:
    """A text that grows by tokens. `add` gives a new one, so several continuations may share a beginning.

    A character may take several tokens, and a token's text may depend on the one before it (a blank between words), so
    tokens are decoded together with those of the piece before, and kept back while they end within a character.

    Args:
        tokenizer: makes text of tokens.
        stops: strings that end the text.
        text: what is written so far.
        window: the last tokens, from the beginning of a character.
        done: tokens of the window whose characters are written.
        stopped: whether one of the ``stops`` was reached; the text stands before it.
    """

    tokenizer: Tokenizer
    stops: tuple[str, ...] = ()
    text: str = ""
    window: tuple[int, ...] = ()
    done: int = 0
    stopped: bool = False

    @classmethod
    def after(cls, tokenizer: Tokenizer, context: Sequence[int], stops: tuple[str, ...] = ()) -> Writing:
        """An empty text that follows the tokens ``context``."""
        cuts = (tuple(context[-size:]) for size in range(CONTEXT, CONTEXT + 4))  # a character has up to four bytes
        window = next((cut for cut in cuts if BROKEN not in tokenizer.write(cut)), tuple(context[-CONTEXT:]))
        return cls(tokenizer, stops, window=window, done=len(window))

    def add(self, token: int) -> Writing:
        """The text with one more token."""
        window = (*self.window, token)
        whole = self.tokenizer.write(window)
        piece = self._piece(whole)
        if whole.endswith(BROKEN) or not piece:
            return replace(self, window=window)
        return replace(self._with(piece), window=window[self.done :], done=len(window) - self.done)

    def finished(self) -> Writing:
        """The text with what was kept back."""
        return self._with(self._piece(self.tokenizer.write(self.window)))

    @property
    def certain(self) -> int:
        """Characters that may be shown: those behind them may be the beginning of one of the ``stops``."""
        if self.stopped:
            return len(self.text)
        kept = [n for stop in self.stops for n in range(1, len(stop)) if self.text.endswith(stop[:n])]
        return len(self.text) - max(kept, default=0)

    def _piece(self, whole: str) -> str:
        """What ``whole``, the text of the window, has beyond the tokens that are done."""
        before = self.tokenizer.write(self.window[: self.done])
        # a character that `before` broke off in may be whole now
        same = (place for place, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b)
        return whole[next(same, len(before)) :]

    def _with(self, piece: str) -> Writing:
        text = self.text + piece
        begin = max(0, len(self.text) - max(map(len, self.stops), default=0))  # one may have begun there
        found = [place for place in (text.find(stop, begin) for stop in self.stops) if place >= 0]
        return replace(self, text=text[: min(found)] if found else text, stopped=bool(found))
