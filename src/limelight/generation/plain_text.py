"""Messages in which the spelling of a special token is plain text.

A chat template puts messages between special tokens, and a tokenizer finds these by their spelling: a message that
contains one would end its own turn and begin another. So the texts of messages are escaped before the template is
rendered: the spelling of a special token is put between two characters that occur nowhere else. The rendered text is
tokenized twice: once to find the special tokens of the template itself, and once with a stand-in for each of those and
no other special token. A text without such spellings is tokenized as usual.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..tensors.shapes import wrong
from ..text import SpecialToken, Text, Tokenizer

PRIVATE = range(0xE000, 0xF900)  # characters that Unicode leaves to private use


@dataclass(frozen=True)
class Escapes:
    """How the texts of one conversation are escaped.

    Args:
        tokenizer: tokenizes the rendered text.
        tokens: the spelling of each special token, and of each other added token that the template writes.
        begin: a character that neither the template nor the messages contain; put before the spelling of a token.
        end: another one; put after it.
        separator: another one; put where a text begins or ends with a part of a token's spelling, which the template
            or text next to it might complete.
    """

    tokenizer: Tokenizer
    tokens: tuple[str, ...]
    begin: str
    end: str
    separator: str

    @classmethod
    def of(cls, tokenizer: Tokenizer, template: str, messages: Any) -> Escapes:
        """The escapes for these messages."""
        used = set(template).union(*_texts(messages))
        free = [character for character in map(chr, PRIVATE) if character not in used]
        if len(free) < 3:
            rule = "must leave three characters of Unicode's private use unused, to be read as plain text"
            raise wrong("conversation", rule, f"of {len(PRIVATE)} it leaves {len(free)}", "Remove some.")
        added = tokenizer.backend.get_added_tokens_decoder().values()
        # As in transformers: white space, which Gemma's tokenizer adds, is text in every template.
        tokens = {
            one.content for one in added if one.special or (one.content in template and not one.content.isspace())
        }
        return cls(tokenizer, tuple(sorted(tokens, key=lambda token: (-len(token), token))), *free[:3])

    def escaped(self, value: Any) -> Any:
        """Messages with all texts escaped except the roles, which come from the caller and not from other people."""
        if isinstance(value, dict):
            return {key: one if key == "role" else self.escaped(one) for key, one in value.items()}
        if isinstance(value, list):
            return [self.escaped(one) for one in value]
        if not isinstance(value, str) or not self.tokens:
            return value
        begins = tuple(token[:n] for token in self.tokens for n in range(1, len(token)))
        ends = tuple(token[n:] for token in self.tokens for n in range(1, len(token)))
        first, last = (self.separator if there else "" for there in (value.startswith(ends), value.endswith(begins)))
        return first + re.sub(self._any_token, rf"{self.begin}\g<0>{self.end}", value) + last

    def read(self, rendered: str) -> Text:
        """Tokenize a rendered template of escaped messages; the ``text`` returned is without the escapes.

        Raises:
            ArgumentError: the tokenizer makes a special token of plain text (the vocabulary also has it as a word).
        """
        for escape in (self.begin, self.end, self.separator):  # as `tojson` may write them
            rendered = rendered.replace(json.dumps(escape)[1:-1], escape)
        text, hidden, places = self._parted(rendered)
        own, others = [], False
        found = self.tokenizer.encode(hidden)
        for token, name, (start, end) in zip(found.ids, found.tokens, found.offsets, strict=True):
            spelled = self.tokenizer.backend.id_to_token(token)
            if spelled in self.tokens:
                if hidden[start:end].strip() == spelled.strip():  # some tokens take the white space beside them
                    own.append(SpecialToken(token, name, places[start], places[end]))
                else:  # a normalizer made it of other characters, which no template writes
                    others = True
        if text == rendered and not others:
            return self.tokenizer.read(text, add_special_tokens=False)
        return self.tokenizer.read_around(text, own, self.tokens)

    @property
    def _any_token(self) -> str:
        return "|".join(map(re.escape, self.tokens))

    def _parted(self, rendered: str) -> tuple[str, str, list[int]]:
        """The text; the same with escaped parts hidden, so that no token is found there; the place in the text of each
        of its characters."""
        escapes = f"{self.begin}{self.end}{self.separator}"
        text, hidden, places, done = list[str](), list[str](), list[int](), 0
        for part in re.finditer(f"{self.begin}({self._any_token}){self.end}|[{escapes}]|[^{escapes}]+", rendered):
            shown = part[1] if part[1] else ("" if part[0] in escapes else part[0])
            text.append(shown)
            hidden.append(self.separator * max(1, len(shown)) if part[1] or not shown else shown)
            places += range(done, done + len(shown)) if shown else [done]
            done += len(shown)
        return "".join(text), "".join(hidden), [*places, done]


def _texts(value: Any) -> Iterator[str]:
    """All texts in plain data."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _texts(one)
