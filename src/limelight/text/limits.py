"""Limits on how much a tokenizer's file can lengthen a text.

A ``tokenizer.json`` is a small program. If it replaces one letter by a thousand, or doubles it thirty times in a row,
it uses up all memory inside of a library that cannot be interrupted. So each of its steps has an upper bound on the
characters that it makes of ``n``. A file whose steps together have no reasonable bound is refused. Where they may
lengthen a long text much, they are applied one by one, to pieces of it, before the text is tokenized.

The time of a regular expression needs no limit here: the library's engine stops after a number of steps.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from tokenizers import normalizers

from ..tensors.shapes import wrong

FREE_CHARACTERS = 2**19  # characters that need no such trial; some steps take two microseconds for each
MAX_STEPS = 100  # of one kind (normalizer, decoder, ...); published tokenizers have about ten
MAX_GROWTH = 10**5  # ratio of the characters after the normalizer to those before it
MAX_STEP_GROWTH = 64  # the same ratio for other steps; published tokenizers make at most three of one
MAX_SPECIAL_TOKENS = 1000  # around a text
MAX_WORD = 10_000  # characters of a word that WordPiece splits; published tokenizers have 100
MAX_AFFIX = 64  # characters of "##" and the like

# The most characters that a step makes of one: the longest decompositions of Unicode, white space around Chinese
# characters, one for each byte.
_UNICODE = {"NFKC": 18, "NFKD": 18, "NFC": 4, "NFD": 4, "StripAccents": 4, "Lowercase": 3, "BertNormalizer": 36}
_CHILDREN = ("normalizers", "pretokenizers", "decoders", "processors")


def bound(step: Any, n: int) -> int:
    """The most characters that a step, as a file describes it, makes of ``n``."""
    if not isinstance(step, Mapping):
        return n
    kind = step.get("type")
    if kind == "Sequence":
        for child in _children(step):
            n = bound(child, n)
        return n
    if kind == "Replace":
        pattern, content = step.get("pattern"), len(str(step.get("content", "")))
        literal = pattern.get("String") if isinstance(pattern, Mapping) else None
        if isinstance(literal, str) and literal:
            return max(n, n // len(literal) * content + n % len(literal))
        return n + (n + 1) * content  # an expression may match the empty string between any two characters
    if kind == "Prepend":
        return n + len(str(step.get("prepend", "")))
    if kind == "Precompiled":
        return n * max(1, *map(len, _characters(step).split(b"\0")))
    if kind == "ByteLevel":
        return 4 * n + 1
    if kind in ("Metaspace", "WordPiece", "BPEDecoder", "CTC"):
        return 2 * n + 1
    return n * _UNICODE.get(str(kind), 1)


def reasons_against(values: Mapping[str, Any]) -> Iterator[str]:
    """Why a tokenizer file, read as JSON, is not passed to the library; empty for every published one."""
    for name in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        if _count(values.get(name)) > MAX_STEPS:
            yield f"its {name} has more than {MAX_STEPS} steps"
            return
    normalizer = values.get("normalizer")
    if bound(normalizer, 1000) > 1000 * MAX_GROWTH:
        yield f"its normalizer may make more than {MAX_GROWTH:,} characters of one"
    added = [one for one in _list(values.get("added_tokens")) if isinstance(one, Mapping)]
    spelled = sum(len(str(one.get("content"))) for one in added)
    # The library normalizes each of them while it reads the file.
    if bound(normalizer, spelled) > FREE_CHARACTERS + MAX_STEP_GROWTH * spelled:
        yield "its normalizer may make too many characters of its added tokens"
    for name in ("pre_tokenizer", "decoder"):
        if bound(values.get(name), 1000) > 1000 * MAX_STEP_GROWTH:
            yield f"its {name} may make more than {MAX_STEP_GROWTH} characters of one"
    if _special(values.get("post_processor")) > MAX_SPECIAL_TOKENS:
        yield f"its post_processor writes more than {MAX_SPECIAL_TOKENS:,} tokens around a text, or the text again"
    model = values.get("model")
    model = model if isinstance(model, Mapping) else {}
    longest = model.get("max_input_chars_per_word")
    if isinstance(longest, int) and longest > MAX_WORD:
        yield f"its max_input_chars_per_word is {longest}, more than {MAX_WORD:,}"
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        if len(str(model.get(name) or "")) > MAX_AFFIX:
            yield f"its {name} has more than {MAX_AFFIX} characters"


class Growth:
    """A limit on how much a normalizer may lengthen a text.

    Args:
        normalizer: that of a loaded tokenizer; ``None`` for none.
    """

    def __init__(self, normalizer: normalizers.Normalizer | None) -> None:
        self._steps = [] if normalizer is None else [(step, _described(step)) for step in _flat(normalizer)]
        thousand = 1000
        for _, described in self._steps:
            thousand = bound(described, thousand)
        programmed = any(described["type"] in ("Replace", "Precompiled", "Prepend") for _, described in self._steps)
        # Longer texts are checked. Steps that only follow Unicode's own rules are harmless at any length.
        self._unchecked = FREE_CHARACTERS * 1000 // thousand if programmed or len(self._steps) > MAX_STEPS else math.inf

    def check(self, text: str) -> None:
        """Raise an `ArgumentError` where the steps make a text far longer."""
        if len(text) <= self._unchecked:
            return
        size, more = len(text), FREE_CHARACTERS + 4 * len(text)
        for step, described in self._steps:
            # A prefix is added to the whole text. Other steps get pieces so short that each result is harmless.
            prefix = described["type"] == "Prepend"
            piece = len(text) if prefix else max(1, FREE_CHARACTERS * 1000 // bound(described, 1000))
            made, length = [], 0
            for begin in range(0, len(text), piece):
                made.append(step.normalize_str(text[begin : begin + piece]))
                length += len(made[-1])
                if length - size > more:
                    got = f"the normalizer of this model makes {length:,} characters and more of its {size:,}"
                    raise wrong("text", "must stay of reasonable length", got, "Inspect tokenizer.json.")
            more -= max(0, length - size)
            text = "".join(made)


def _described(step: normalizers.Normalizer) -> dict[str, Any]:
    """The description of a step, as in ``tokenizer.json``."""
    return json.loads(step.__getstate__())  # type: ignore[no-any-return]


def _flat(normalizer: normalizers.Normalizer) -> Iterator[normalizers.Normalizer]:
    """The steps of a normalizer, one by one."""
    if isinstance(normalizer, normalizers.Sequence):
        for place in range(len(normalizer)):
            yield from _flat(normalizer[place])
    else:
        yield normalizer


def _count(step: Any) -> int:
    """The steps that a file describes, nested ones included."""
    return 1 + sum(map(_count, _children(step))) if isinstance(step, Mapping) else 0


def _children(step: Mapping[str, Any]) -> list[Any]:
    return next(filter(None, (_list(step.get(name)) for name in _CHILDREN)), [])


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _characters(step: Mapping[str, Any]) -> bytes:
    """The replacement strings of SentencePiece's normalisation map, stored after a trie and its size in bytes.

    Raises:
        ValueError: there is no such map; the library would reserve the memory that it claims.
    """
    written = base64.b64decode(str(step.get("precompiled_charsmap")), validate=True)
    size = int.from_bytes(written[:4], "little")
    if len(written) < 4 or size > len(written) - 4:
        raise ValueError("its precompiled_charsmap is cut")
    return written[4 + size :]


def _special(processor: Any) -> int:
    """How many tokens a post-processor writes around a text, at most; a text that is repeated counts as too many."""
    if not isinstance(processor, Mapping):
        return 0
    if processor.get("type") == "Sequence":
        return sum(map(_special, _children(processor)))
    special = processor.get("special_tokens")
    parts = [one for one in _list(processor.get("single")) if isinstance(one, Mapping)]
    texts = sum("Sequence" in one for one in parts)
    named = [one["SpecialToken"].get("id") for one in parts if isinstance(one.get("SpecialToken"), Mapping)]
    ids = {name: len(one.get("ids", ())) for name, one in special.items()} if isinstance(special, Mapping) else {}
    return sum(ids.get(name, 0) for name in named) + (MAX_SPECIAL_TOKENS + 1 if texts > 1 else 0)
