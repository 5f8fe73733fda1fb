"""Text in and out of a model: ids, the pieces they stand for, and where each piece lies in the text."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any, NamedTuple

import tokenizers
import torch
from torch import Tensor

from ..forms.layouts import Layout, Padded
from ..tensors.shapes import ArgumentError, wrong
from .limits import Growth

_STAND_IN = secrets.token_hex(16)  # no text holds it by chance
_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")  # a character beyond U+FFFF in two halves
_HALF = re.compile("[\ud800-\udfff]")

CONTROLS = "[\x7f-\x9f\u202a-\u202e\u2066-\u2069]"  # beside C0: DEL, C1, and what reorders a line
_ESCAPED = re.compile("[\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_PICTURES = {
    **{code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"},
    **{code: f"<U+{code:04X}>" for code in range(0x2070) if re.match(CONTROLS, chr(code))},
    0x7F: "\u2421",
    **dict.fromkeys(range(0xD800, 0xE000), "\ufffd"),
}


def printable(text: str) -> str:
    """The text as a terminal may print it: every control character stands as a visible picture.

    A terminal acts on control characters: they clear the screen, set its title, overwrite what stands there or reverse
    a line. Newlines and tabs stay; the other C0 controls and DEL become Unicode's control pictures (``␛`` for ESC), C1
    controls and bidirectional embeddings, overrides and isolates become ``<U+202E>``, and surrogates, which no terminal
    can print, become U+FFFD.

    >>> printable("a\\x1b[2Jb\\u202e")
    'a␛[2Jb<U+202E>'
    """
    return text.translate(_PICTURES)


def printable_json(text: str) -> str:
    """JSON with every control character as an escape, which a reader of JSON turns back into that character.

    In JSON they occur only inside strings, where an escape means the same.

    >>> printable_json('"a\\x9bb"')
    '"a\\\\u009bb"'
    """
    return _ESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def valid_text(text: object, name: str = "text") -> str:
    """The text, as Unicode has it: a character in two surrogate halves, as JSON may hold it, becomes that character.

    Args:
        text: what must be a text.
        name: name of the argument, for the error message.

    Raises:
        ArgumentError: no ``str``, or half of a surrogate pair in it, which is no character: Python puts it in the place
            of a byte that is no UTF-8 on the command line.
    """
    if not isinstance(text, str):
        got = f"it is a {type(text).__name__}"
        raise wrong(name, "must be a str", got, "Decode bytes first: text.decode('utf-8').")
    if text.isascii() or not _HALF.search(text):
        return text
    whole = _PAIR.sub(lambda pair: pair[0].encode("utf-16", "surrogatepass").decode("utf-16"), text)
    half = _HALF.search(whole)
    if half is None:
        return whole
    code = ord(half[0])
    byte = f", in the place of the byte {code - 0xDC00:#04x}, which is no UTF-8" if 0xDC80 <= code <= 0xDCFF else ""
    raise wrong(
        name,
        "must be characters that UTF-8 can write",
        f"character {half.start():,} is U+{code:04X}, half of a surrogate pair{byte}",
        "Read the text in its own encoding, or decode it with errors='replace'.",
    )


@dataclass(frozen=True)
class WordSpan:
    """A word of a text: its characters ``text[start:end]`` and its tokens ``first .. last - 1``."""

    text: str
    start: int
    end: int
    first: int
    last: int


@dataclass(frozen=True)
class Text:
    """One text as a model reads it; the tuples hold one entry per token.

    Args:
        text: the characters.
        ids: numbers of the tokens in the vocabulary.
        tokens: their spelling in the vocabulary (``"##ing"``, ``"Ġbank"``).
        spans: ``(start, end)`` in ``text``, without the blank before a word; empty where a token stands for no text.
        words: index of the word that a token belongs to, ``None`` for a special token.
        special: whether the token is one of the model's special tokens (``[CLS]``, ``<|im_start|>``).
    """

    text: str
    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]
    words: tuple[int | None, ...]
    special: tuple[bool, ...]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def pieces(self) -> tuple[str, ...]:
        """The part of the text that each token covers; for a special token its name."""
        written = (self.text[start:end] for start, end in self.spans)
        return tuple(piece or token for piece, token in zip(written, self.tokens, strict=True))

    @property
    def whole_words(self) -> tuple[WordSpan, ...]:
        """The words in order. Which characters make a word is the tokenizer's view: "river." is two."""
        found = []
        for number, group in groupby(range(len(self)), key=lambda i: self.words[i]):
            if number is not None:
                at = list(group)
                start, end = self.spans[at[0]][0], self.spans[at[-1]][1]
                found.append(WordSpan(self.text[start:end], start, end, at[0], at[-1] + 1))
        return tuple(found)


@dataclass(frozen=True)
class Tokens:
    """A batch of texts, ready for a model.

    Args:
        texts: what was read.
        ids: ``(B, L)`` int64, padded with 0 to the longest text.
        layout: where the padding stands; ``None`` when there is none.
    """

    texts: tuple[Text, ...]
    ids: Tensor
    layout: Layout | None

    def __len__(self) -> int:
        return len(self.texts)

    def to(self, device: torch.device | str) -> Tokens:
        """The batch with its ids on another device."""
        return Tokens(self.texts, self.ids.to(device), self.layout)


class SpecialToken(NamedTuple):
    """A special token in a text: its id, its spelling, and ``text[start:end]`` that it stands for."""

    token: int
    name: str
    start: int
    end: int


class Tokenizer:
    """The tokenizer of a model, by the ``tokenizers`` library.

    Args:
        backend: the loaded tokenizer. Padding and truncation written into its file are switched off: a text is read
            whole, and a model that cannot take it says so.
        chat_template: the text of the template for conversations, if the checkpoint has one, or several by their names,
            of which the one called ``"default"`` is taken. It is rendered in a process of its own, within limits
            of time and, on Linux, of memory (`limelight.generation.templates`).
        special_tokens: special tokens by the names that templates give them (``{"eos_token": "</s>"}``), as
            ``tokenizer_config.json`` has them; ``None`` where there is no such file.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        chat_template: str | Mapping[str, str] | None = None,
        special_tokens: Mapping[str, str] | None = None,
    ) -> None:
        backend.no_padding()
        backend.no_truncation()
        self.backend = backend
        named = {"default": chat_template} if isinstance(chat_template, str) else dict(chat_template or {})
        self.chat_templates: Mapping[str, str] = named
        self.special_tokens = special_tokens
        added = backend.get_added_tokens_decoder()
        self._special = {number: token.content for number, token in added.items() if token.special}
        self._growth = Growth(backend.normalizer)
        self._plain: dict[tuple[str, ...], tokenizers.Tokenizer] = {}

    @property
    def chat_template(self) -> str | None:
        """The text of the template that conversations are written with."""
        return self.chat_templates.get("default")

    @property
    def size(self) -> int:
        """Number of tokens in the vocabulary."""
        return self.backend.get_vocab_size()

    def special_token(self, token: int) -> str | None:
        """How a special token is spelled; ``None`` for other tokens."""
        return self._special.get(token)

    @cached_property
    def unknown_token_id(self) -> int | None:
        """The token that stands for what the vocabulary cannot spell (``[UNK]``); ``None`` where it spells all."""
        model = self.backend.model
        if isinstance(model, tokenizers.models.Unigram):  # has its unknown token in its file alone
            number = json.loads(self.backend.to_str())["model"].get("unk_id")
            return number if isinstance(number, int) else None
        token = model.unk_token
        return None if token is None else self.backend.token_to_id(token)

    def named_special_tokens(self, ids: Mapping[str, Any]) -> Mapping[str, str]:
        """Special tokens as they are spelled, by the names that chat templates use (``"eos_token"``).

        Those of ``tokenizer_config.json``; without that file, those of ``ids`` (``{"eos_token_id": 2}``). Of several
        ids that end a text, the first counts.
        """
        if self.special_tokens is not None:
            return self.special_tokens
        named = {name: ids.get(f"{name}_token_id") for name in ("bos", "eos", "pad", "unk")}
        first = {name: one[0] if isinstance(one, (list, tuple)) and one else one for name, one in named.items()}
        spelled = {
            f"{name}_token": self.backend.id_to_token(token) for name, token in first.items() if isinstance(token, int)
        }
        return {name: token for name, token in spelled.items() if token is not None}

    def unknown(self, text: Text) -> tuple[int, ...]:
        """Places of the tokens of a text that stand for characters which the vocabulary cannot spell.

        >>> model = limelight.load("minilm")  # doctest: +SKIP
        >>> model.tokenizer.unknown(model.tokenizer.read("Hello 👋"))  # [CLS] hello [UNK] [SEP]  # doctest: +SKIP
        (2,)
        """
        return tuple(place for place, number in enumerate(text.ids) if number == self.unknown_token_id)

    def read(self, text: str, *, add_special_tokens: bool = True) -> Text:
        """Tokenize one text, by default with the special tokens that the model expects around it."""
        text = valid_text(text)
        found = self.encode(text, add_special_tokens=add_special_tokens)
        return Text(
            text=text,
            ids=tuple(found.ids),
            tokens=tuple(found.tokens),
            spans=tuple(_without_blank(text, *span) for span in found.offsets),
            words=tuple(
                None if i in self._special else word for i, word in zip(found.ids, found.word_ids, strict=True)
            ),
            special=tuple(i in self._special for i in found.ids),
        )

    def encode(self, text: str, *, add_special_tokens: bool = False) -> tokenizers.Encoding:
        """Encode a text with the ``tokenizers`` library; its errors become `ArgumentError`."""
        return _encode(self.backend, self._growth, text, add_special_tokens)

    def read_around(self, text: str, own: Sequence[SpecialToken], tokens: tuple[str, ...]) -> Text:
        """Tokenize a text in which only the ``own`` tokens are special, and the spelling of any other is plain text.

        Args:
            text: the characters.
            own: the special tokens, in their order.
            tokens: the spelling of all tokens that are text where they are not among ``own``.

        Raises:
            ArgumentError: the vocabulary holds one of the ``tokens`` as a word, which plain text becomes.
        """
        backend = self._plain.get(tokens)
        if backend is None:
            backend = self._plain[tokens] = _without(self.backend, tokens)
        pieces, places, begin = [], [], 0
        for _, _, start, end in own:
            pieces += [text[begin:start], _STAND_IN]
            places += [*range(begin, start), *[start] * len(_STAND_IN)]
            begin = end
        places += range(begin, len(text) + 1)
        found = _encode(backend, self._growth, "".join((*pieces, text[begin:])), False)
        remaining = iter(own)
        plain = {self.backend.token_to_id(token) for token in tokens} - {self.unknown_token_id}
        ids, names, spans, words, special = [], [], [], [], []
        for number, name, (start, end), word in zip(
            found.ids, found.tokens, found.offsets, found.word_ids, strict=True
        ):
            span = _without_blank(text, places[start], places[end])
            if name == _STAND_IN:
                number, name, start, end = next(remaining)
                span = _without_blank(text, start, end)
            elif number in plain:
                got = f"the tokenizer of this model makes {name!r} of them"
                raise wrong("text", "must be characters that are no special token", got, "Take them out.")
            ids.append(number)
            names.append(name)
            spans.append(span)
            special.append(number in self._special)
            words.append(None if special[-1] else word)
        return Text(text, tuple(ids), tuple(names), tuple(spans), tuple(words), tuple(special))

    def __call__(self, texts: str | Sequence[str], *, side: str = "right") -> Tokens:
        """Tokenize one text or several, as one batch.

        Args:
            texts: a text, or a sequence of them.
            side: where shorter texts are padded, ``"right"`` or ``"left"``.
        """
        if not isinstance(texts, Iterable) or isinstance(texts, bytes):
            got = f"it is {texts!r:.80}"
            raise wrong("texts", "must be a text or a sequence of texts", got, 'For example: ["one", "two"].')
        return self.batch([self.read(text) for text in ([texts] if isinstance(texts, str) else texts)], side=side)

    def batch(self, texts: Sequence[Text], *, side: str = "right") -> Tokens:
        """Lay out texts that were read as one batch of token ids.

        Args:
            texts: what `read` returned.
            side: where shorter texts are padded, ``"right"`` or ``"left"``.

        Raises:
            ArgumentError: another side.
        """
        if side not in ("right", "left"):
            raise wrong("side", 'must be "right" or "left"', f"it is {side!r}", "It names where the padding stands.")
        read = tuple(texts)
        lengths = [len(text) for text in read]
        longest = max(lengths, default=0)
        ids = torch.zeros(len(read), longest, dtype=torch.int64, device="cpu")
        for row, text in zip(ids, read, strict=True):
            first = 0 if side == "right" else longest - len(text)
            row[first : first + len(text)] = torch.tensor(text.ids, dtype=torch.int64, device="cpu")
        padded = any(length < longest for length in lengths)
        counted = torch.tensor(lengths, dtype=torch.int64, device="cpu")
        return Tokens(read, ids, Padded(counted, side=side) if padded else None)

    def write(self, ids: Sequence[int] | Tensor, *, skip_special_tokens: bool = True) -> str:
        """The text of token ids, by default without the special tokens among them."""
        numbers = ids.tolist() if isinstance(ids, Tensor) else list(ids)
        with _library_errors("ids", "be token ids that the tokenizer of this model can write"):
            return self.backend.decode(numbers, skip_special_tokens=skip_special_tokens)


@contextmanager
def _library_errors(name: str, rule: str) -> Iterator[None]:
    """Turn errors of the ``tokenizers`` library into `ArgumentError`: plain `Exception`, and Rust panics."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, ArgumentError):
            raise
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise  # an interruption
        got = f"the tokenizers library says {(str(error) or repr(error)).splitlines()[0]!r:.300}"
        raise wrong(name, f"must {rule}", got, "Check tokenizer.json.") from error


def _encode(backend: tokenizers.Tokenizer, growth: Growth, text: str, add_special_tokens: bool) -> tokenizers.Encoding:
    with _library_errors("text", "be tokenized by the tokenizer of this model"):
        growth.check(text)
        return backend.encode(text, add_special_tokens=add_special_tokens)


def _without(backend: tokenizers.Tokenizer, tokens: tuple[str, ...]) -> tokenizers.Tokenizer:
    """The same tokenizer, but with ``tokens`` nothing but text, and with the stand-in as a token that stays whole."""
    values = json.loads(backend.to_str())
    for token in values["added_tokens"]:
        token["special"] = token["content"] in tokens
    copy = tokenizers.Tokenizer.from_str(json.dumps(values))
    copy.encode_special_tokens = True  # as what they are spelled with
    copy.add_tokens([tokenizers.AddedToken(_STAND_IN, normalized=False, special=False)])
    return copy


def _without_blank(text: str, start: int, end: int) -> tuple[int, int]:
    """A span without the white space before the word, unless there is nothing else in it."""
    bare = len(text[start:end].lstrip())
    return (end - bare, end) if bare else (start, end)
