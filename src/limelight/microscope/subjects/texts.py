"""Texts as tokenizers read them, of ours and of transformers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from ...text import Text, Tokenizer, valid_text

MAX_WRITTEN = 256  # tokens that a model writes to a source
REACH = 64  # characters after the last token's in which the next one's are looked for
BLANKS = str.maketrans("", "", "▁Ġ")  # what stands for a blank before a word


def read_text(tokenizer: Any, text: str, *, target: bool = False) -> Text:
    """The tokens of a text by a tokenizer of transformers, special tokens included.

    Fast tokenizers say where each token stands in the text. Of others, each token is looked for in the text behind the
    one before, in any case; one that is not found there has an empty span.

    Args:
        tokenizer: called with a text.
        text: the text.
        target: whether it is read as the text of a decoder (``text_target``), which some models cut otherwise.

    Raises:
        ArgumentError: no text, or half a surrogate pair in it.
    """
    text = valid_text(text)
    fast = bool(getattr(tokenizer, "is_fast", False))
    how = {"return_offsets_mapping": fast, "return_special_tokens_mask": True, "verbose": False}
    read = tokenizer(text_target=text, **how) if target else tokenizer(text, **how)
    ids = [int(number) for number in read["input_ids"]]
    around = read.get("special_tokens_mask") or [0] * len(ids)
    known = set(getattr(tokenizer, "all_special_ids", ()))
    special = tuple(bool(mask) or number in known for number, mask in zip(ids, around, strict=True))
    tokens = tuple(map(str, tokenizer.convert_ids_to_tokens(ids)))
    if fast:
        spans = [_without_blank(text, *span) for span in read["offset_mapping"]]
        words: Sequence[int | None] = read.word_ids()
    else:
        spans = _found(text, tokens, special)
        words = [None] * len(ids)
    return Text(
        text=text,
        ids=tuple(ids),
        tokens=tokens,
        spans=tuple(spans),
        words=tuple(None if own else word for word, own in zip(words, special, strict=True)),
        special=special,
    )


def text_of(ids: Sequence[int], tokens: Sequence[str], special: Sequence[bool], decode: Callable[..., str]) -> Text:
    """The text that token ids spell, with the span of each: what decoding one token more adds to it.

    Args:
        ids: the tokens.
        tokens: their spelling.
        special: which of them stand for no text.
        decode: writes a list of ids as text.
    """
    kept: list[int] = []
    spans: list[tuple[int, int]] = []
    text = ""
    for number, own in zip(ids, special, strict=True):
        begin = len(text)
        if not own:
            kept.append(number)
            text = decode(kept).rstrip("\ufffd")  # half a character becomes one with the next token
        spans.append((begin, begin) if own else (min(begin, len(text)), len(text)))
    spans = [_without_blank(text, *span) for span in spans]
    return Text(text, tuple(ids), tuple(tokens), tuple(spans), (None,) * len(ids), tuple(special))


def after(ids: Sequence[int], tokens: Sequence[str], text: Text) -> Text:
    """A text with special tokens before it."""
    n = len(ids)
    return Text(
        text=text.text,
        ids=(*ids, *text.ids),
        tokens=(*tokens, *text.tokens),
        spans=((0, 0),) * n + text.spans,
        words=(None,) * n + text.words,
        special=(True,) * n + text.special,
    )


def cut(text: Text, n: int) -> Text:
    """A text without its tokens from the n-th on."""
    return Text(text.text, text.ids[:n], text.tokens[:n], text.spans[:n], text.words[:n], text.special[:n])


def unknown_token(tokenizer: Tokenizer) -> str | None:
    """The token that stands for text which the vocabulary does not have; ``None`` where every text has tokens.

    Example:
        >>> from limelight import load
        >>> unknown_token(load("minilm").tokenizer)
        '[UNK]'
    """
    model = json.loads(tokenizer.backend.to_str())["model"]
    number = model.get("unk_id")
    name = model.get("unk_token") if number is None else model["vocab"][number][0]
    return name if isinstance(name, str) else None


def unknown_token_of(tokenizer: Any) -> str | None:
    """The token that stands for text which the vocabulary does not have; ``None`` where every text has tokens."""
    if getattr(tokenizer, "is_fast", False):
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if getattr(getattr(backend, "model", None), "unk_token", None) is None and not _has_unknown_id(backend):
            return None
    token = getattr(tokenizer, "unk_token", None)
    return None if token is None else str(token)


def _has_unknown_id(backend: Any) -> bool:
    """Whether a unigram model has an unknown token, which its description alone says."""
    if type(getattr(backend, "model", None)).__name__ != "Unigram":
        return False
    return json.loads(backend.to_str())["model"].get("unk_id") is not None


def _without_blank(text: str, start: int, end: int) -> tuple[int, int]:
    """A span without the blanks before a word."""
    begin = start
    while begin < end and text[begin].isspace():
        begin += 1
    return (begin, end) if begin < end else (start, end)


def _found(text: str, tokens: Sequence[str], special: Sequence[bool]) -> list[tuple[int, int]]:
    """The span of each token, looked for behind the one before."""
    lower, at, spans = text.casefold(), 0, []
    if len(lower) != len(text):  # a letter that becomes two; places would differ
        lower = text
    for token, own in zip(tokens, special, strict=True):
        piece = token.removeprefix("##").removesuffix("</w>").removesuffix("@@").translate(BLANKS)
        found = -1 if own or not piece else lower.find(piece.casefold(), at, at + REACH + len(piece))
        if found < 0:
            spans.append((at, at))
            continue
        at = found + len(piece)
        spans.append((found, at))
    return spans
