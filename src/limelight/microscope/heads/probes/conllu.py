"""Reader of CoNLL-U, the format of the treebanks of Universal Dependencies (https://universaldependencies.org/format).

A sentence is a line for each word, with ten columns that tabs separate, and ends with an empty line. Read are the
number, the form, the head, the relation, and ``SpaceAfter=No`` of the last column: the basic tree and the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike

from ..labels import Arc, Sentence, Span
from .files import Lines

COLUMNS = 10
MAX_WORDS = 10_000  # in a sentence
WAY_OUT = "Pass a treebank of Universal Dependencies, such as en_ewt-ud-dev.conllu, or leave the file out."

_NUMBER = re.compile(r"[1-9]\d{0,5}|0").fullmatch
_RANGE = re.compile(r"([1-9]\d{0,5})-([1-9]\d{0,5})").fullmatch
_EMPTY = re.compile(r"\d{1,6}\.[1-9]\d{0,5}").fullmatch


@dataclass
class _Word:
    form: str
    head: int
    relation: str
    space: bool  # whether a space follows
    line: int


@dataclass
class _Range:
    """A token of the text that several words share, ``first`` to ``last``: ``don't`` of ``do`` and ``n't``."""

    form: str
    first: int
    last: int
    space: bool


def read_conllu(path: str | PathLike[str]) -> Iterator[Sentence]:
    """The sentences of a CoNLL-U file, one at a time.

    The text is rebuilt from the forms. Words that share a multiword token have its characters between them where their
    forms add up to it; otherwise they are the first word's, and the others have an empty span (French *du* for
    *de le*). Empty nodes and the enhanced graph are left out, and so is the relation of the root.

    Args:
        path: the file.

    Raises:
        LabelError: the file cannot be read, is not CoNLL-U (with the line), or holds no sentence.
    """
    lines = Lines(path, "CoNLL-U", WAY_OUT)
    words: list[_Word] = []
    ranges: list[_Range] = []
    count = 0
    for line in lines:
        if line and not line.startswith("#"):
            _read_line(lines, line, words, ranges)
        elif not line and words:
            count += 1
            yield _sentence(lines, words, ranges)
            words, ranges = [], []
    if words:
        count += 1
        yield _sentence(lines, words, ranges)
    if not count:
        raise lines.empty("sentence")


def _read_line(lines: Lines, line: str, words: list[_Word], ranges: list[_Range]) -> None:
    """Add what a line of a sentence says to its words and multiword tokens."""
    columns = line.split("\t")
    if len(columns) != COLUMNS:
        raise lines.error(f"has {len(columns)} column{'s' * (len(columns) != 1)} instead of {COLUMNS}")
    number, form, head, relation = columns[0], columns[1], columns[6], columns[7]
    space = "SpaceAfter=No" not in columns[9].split("|")
    if _EMPTY(number):
        return
    if not form.strip():
        raise lines.error("has an empty form (column 2)")
    joined = _RANGE(number)
    if joined:
        first, last = int(joined[1]), int(joined[2])
        if first != len(words) + 1 or last <= first or (ranges and ranges[-1].last >= first):
            raise lines.error(f"begins the words {number} where word {len(words) + 1} is expected")
        ranges.append(_Range(form, first - 1, last - 1, space))
        return
    if number != str(len(words) + 1):
        raise lines.error(f"has the number {number[:20]!r} where {len(words) + 1} is expected")
    if len(words) == MAX_WORDS:
        raise lines.error(f"is word {number} of its sentence; at most {MAX_WORDS:,} are read")
    if not _NUMBER(head):
        raise lines.error(f"has the head {head[:20]!r} (column 7), which is not the number of a word")
    if relation in ("", "_"):
        raise lines.error("has no relation (column 8)")
    words.append(_Word(form, int(head), relation, space, lines.number))


def _sentence(lines: Lines, words: list[_Word], ranges: list[_Range]) -> Sentence:
    """The sentence that ended."""
    for number, word in enumerate(words, 1):
        if word.head > len(words) or word.head == number:
            what = "itself" if word.head == number else f"a sentence of length {len(words)}"
            raise lines.error(f"has the head {word.head}, in {what}", word.line)
    if ranges and ranges[-1].last >= len(words):
        raise lines.error(f"ends a sentence within the words {ranges[-1].first + 1}-{ranges[-1].last + 1}")
    text, spans = _rebuilt(words, ranges)
    arcs = tuple(
        Arc(number, word.head - 1, word.relation.partition(":")[0]) for number, word in enumerate(words) if word.head
    )
    return Sentence(text, spans, arcs)


def _rebuilt(words: list[_Word], ranges: list[_Range]) -> tuple[str, tuple[Span, ...]]:
    """The text of the words, and the span of each."""
    text, spans = "", []
    begin = {joined.first: joined for joined in ranges}
    number = 0
    while number < len(words):
        joined = begin.get(number, _Range(words[number].form, number, number, words[number].space))
        forms = [word.form for word in words[joined.first : joined.last + 1]]
        if "".join(forms) != joined.form:
            forms = [joined.form] + [""] * (len(forms) - 1)
        for form in forms:
            spans.append((len(text), len(text) + len(form)))
            text += form
        text += " " * joined.space
        number = joined.last + 1
    return text.rstrip(" "), tuple(spans)
