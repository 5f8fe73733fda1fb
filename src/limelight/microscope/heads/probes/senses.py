"""Reader of examples of word senses: a word, the name of its sense, a sentence, separated by tabs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from os import PathLike

from ..labels import SenseExample
from .files import Lines
from .tables import read_rows

MAX_EXAMPLES = 20_000
WAY_OUT = "Its columns are word, sense and sentence, as in: bank<TAB>river<TAB>They sat on the bank and fished."


def read_senses(path: str | PathLike[str]) -> Iterator[SenseExample]:
    """The examples of a file, those of one word together.

    Args:
        path: the file: columns ``word``, ``sense``, ``sentence`` in any order. The word stands in its sentence in the
            same form, in any case; if it stands there several times, the first is meant. At most 20,000 examples.

    Raises:
        LabelError: the file cannot be read or is not of this form (with the line), or a word has one sense alone.
    """
    lines = Lines(path, "a table of word senses", WAY_OUT)
    words: dict[str, list[tuple[str, str]]] = {}
    for count, row in enumerate(read_rows(lines, ("word", "sense", "sentence")), 1):
        word, sense = row["word"].strip().casefold(), row["sense"].strip()
        if not word or not sense:
            raise lines.error("has no word or no sense")
        if count > MAX_EXAMPLES:
            raise lines.error(f"is example {count:,}; at most {MAX_EXAMPLES:,} are read")
        if _find(word, row["sentence"]) is None:
            raise lines.error(f"has no word {word[:40]!r} in its sentence")
        words.setdefault(word, []).append((sense, row["sentence"]))
    for word, examples in words.items():
        if len({sense for sense, _ in examples}) < 2:
            raise lines.empty(f"second sense of {word[:40]!r}")
        for number, (sense, sentence) in enumerate(examples, 1):
            found = _find(word, sentence)
            assert found is not None
            yield SenseExample(sentence, found.span(), word, sense, number == len(examples))


def _find(word: str, sentence: str) -> re.Match[str] | None:
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", sentence, re.IGNORECASE)
