"""Reader of Winogender schemas (Rudinger et al. 2018, arXiv:1804.09301): a pronoun, an occupation, a participant."""

from __future__ import annotations

import re
from collections.abc import Iterator
from os import PathLike

from ..labels import Reference, Span
from .files import Lines
from .tables import read_rows

WAY_OUT = "Pass all_sentences.tsv of https://github.com/rudinger/winogender-schemas, or leave it out."

_PRONOUNS = "he|she|they|him|her|them|his|their|hers|theirs"
_GENDERS = ("male", "female", "neutral")


def read_winogender(path: str | PathLike[str]) -> Iterator[Reference]:
    """The sentences of a Winogender file, one at a time; those of one occupation are one group.

    What the pronoun stands for is decided by the words behind it, so a causal model cannot find it.

    Args:
        path: the file: columns ``sentid`` (``technician.customer.1.male.txt``) and ``sentence``. The third part of
            ``sentid`` is 0 where the pronoun stands for the occupation and 1 where it stands for the participant.

    Raises:
        LabelError: the file cannot be read or is not Winogender (with the line).
    """
    lines = Lines(path, "Winogender", WAY_OUT)
    groups: dict[str, int] = {}
    for row in read_rows(lines, ("sentid", "sentence")):
        parts = row["sentid"].split(".")
        if len(parts) < 4 or parts[2] not in ("0", "1") or parts[3] not in _GENDERS:
            got = row["sentid"][:60]
            raise lines.error(f"has the sentid {got!r} instead of occupation.participant.answer.gender")
        occupation, participant, answer = parts[:3]
        spans = [_only(lines, row["sentence"], re.escape(word)) for word in (occupation, participant)]
        pronoun = _only(lines, row["sentence"], _PRONOUNS)
        group = groups.setdefault(occupation, len(groups))
        yield Reference(row["sentence"], pronoun, spans[int(answer)], (spans[1 - int(answer)],), group)


def _only(lines: Lines, sentence: str, pattern: str) -> Span:
    """Where the one match of a whole word lies."""
    found = [match.span() for match in re.finditer(rf"\b(?:{pattern})\b", sentence, re.IGNORECASE)]
    if len(found) != 1:
        what = "a pronoun" if pattern == _PRONOUNS else f"the word {pattern[:40]!r}"
        raise lines.error(f"has {what} {len(found)} times in its sentence instead of once")
    return found[0]
