"""The text of tokens as they come: whole characters only, and nothing that may become a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..text import Tokenizer

BROKEN = "\ufffd"  # replaces bytes that are not, or not yet, a character
CONTEXT = 8  # tokens before the text, of which a decoder may look at the last


@dataclass(frozen=True)
class Writing:
    """A text that grows by tokens. `add` gives a new one, so several continuations may share a beginning.

    A character may take several tokens, and a token's text may depend on the one before it (a blank between words), so
    tokens are decoded together with those of the piece before, and kept back while they end within a character.

    Args:
        tokenizer: makes text of tokens.
        stops: strings that end the text. They are looked for in the text with its special tokens spelled out.
        text: what is written so far.
        window: the last tokens, from the beginning of a character.
        done: tokens of the window whose characters are written.
        special: special tokens written so far, where in the text and how they are spelled (not kept without stops).
        stopped: whether one of the ``stops`` was reached; the text ends before it.
    """

    tokenizer: Tokenizer
    stops: tuple[str, ...] = ()
    text: str = ""
    window: tuple[int, ...] = ()
    done: int = 0
    special: tuple[tuple[int, str], ...] = ()
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
            grown = replace(self, window=window)
        else:
            grown = replace(self, text=self.text + piece, window=window[self.done :], done=len(window) - self.done)
        spelled = self.tokenizer.special_token(token) if self.stops else None
        if spelled is not None:
            grown = replace(grown, special=(*grown.special, (len(grown.text), spelled)))
        return grown._cut(len(self.text))

    def finished(self) -> Writing:
        """The text, with the withheld end."""
        return replace(self, text=self.text + self._piece(self.tokenizer.write(self.window)))._cut(len(self.text))

    @property
    def certain(self) -> int:
        """Characters that may be shown: those behind them may be the beginning of one of the ``stops``."""
        if self.stopped or not self.stops:
            return len(self.text)
        spelled, places = self._spelled(len(self.text))
        kept = max((n for stop in self.stops for n in range(1, len(stop)) if spelled.endswith(stop[:n])), default=0)
        return places[len(spelled) - kept]

    def _piece(self, whole: str) -> str:
        """The part of ``whole``, the text of the window, that follows the tokens already written."""
        before = self.tokenizer.write(self.window[: self.done])
        # a character that `before` broke off in may be whole now
        same = (place for place, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b)
        return whole[next(same, len(before)) :]

    def _cut(self, checked: int) -> Writing:
        """The text up to the first of the ``stops`` in it, which is not in its first ``checked`` characters."""
        if not self.stops:
            return self
        spelled, places = self._spelled(checked)
        found = [place for place in (spelled.find(stop) for stop in self.stops) if place >= 0]
        return replace(self, text=self.text[: places[min(found)]], stopped=True) if found else self

    def _spelled(self, checked: int) -> tuple[str, list[int]]:
        """The text with special tokens spelled out, from where a stop that ends after ``checked`` characters may begin.

        Beside it, for each character and for the end, its place in the text; of a special token where it stands.
        """
        begin = max(0, checked - max(map(len, self.stops)))
        spelled, places = "", []
        for place, token in (*(one for one in self.special if one[0] >= begin), (len(self.text), "")):
            spelled += self.text[begin:place] + token
            places += [*range(begin, place), *[place] * len(token)]
            begin = place
        return spelled, [*places, len(self.text)]
