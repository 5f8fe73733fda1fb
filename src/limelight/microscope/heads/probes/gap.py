"""Reader of GAP (Webster et al. 2018, arXiv:1810.05201): pronouns of Wikipedia with two names each."""

from __future__ import annotations

from collections.abc import Iterator
from os import PathLike

from ..labels import Reference, Span
from .files import Lines
from .tables import read_rows

COLUMNS = (
    *("Text", "Pronoun", "Pronoun-offset"),
    *("A", "A-offset", "A-coref", "B", "B-offset", "B-coref"),
)
WAY_OUT = "Pass a .tsv file of https://github.com/google-research-datasets/gap-coreference, or leave it out."


def read_gap(path: str | PathLike[str]) -> Iterator[Reference]:
    """The texts of a GAP file in which the pronoun stands for one of the two names, one at a time.

    Args:
        path: the file.

    Raises:
        LabelError: the file cannot be read or is not GAP (with the line).
    """
    lines = Lines(path, "GAP", WAY_OUT)
    for row in read_rows(lines, COLUMNS):
        pronoun, *names = (_span(lines, row, name) for name in ("Pronoun", "A", "B"))
        is_a, is_b = (_truth(lines, row, name) for name in ("A-coref", "B-coref"))
        if is_a and is_b:
            raise lines.error("says TRUE of both names")
        if is_a or is_b:
            antecedent, rival = names if is_a else reversed(names)
            yield Reference(row["Text"], pronoun, antecedent, (rival,))


def _span(lines: Lines, row: dict[str, str], name: str) -> Span:
    """The characters of the pronoun or of a name, compared with the text."""
    mention, offset = row[name], row[f"{name}-offset"]
    if not (offset.isascii() and offset.isdigit() and len(offset) < 10):
        raise lines.error(f"has {name}-offset {offset[:20]!r}, which is not a number of characters")
    start = int(offset)
    if not mention or row["Text"][start : start + len(mention)] != mention:
        raise lines.error(f"has no {mention[:40]!r} at character {start} of its text, where column {name!r} has it")
    return start, start + len(mention)


def _truth(lines: Lines, row: dict[str, str], name: str) -> bool:
    if row[name].upper() not in ("TRUE", "FALSE"):
        raise lines.error(f"has {row[name][:20]!r} in column {name!r} instead of TRUE or FALSE")
    return row[name].upper() == "TRUE"
