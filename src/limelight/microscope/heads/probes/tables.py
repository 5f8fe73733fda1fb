"""Reader of tab-separated files with a header, without quotes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .files import Lines


def read_rows(lines: Lines, columns: Sequence[str]) -> Iterator[dict[str, str]]:
    """The rows of a table, one at a time, by the names of its columns; others than ``columns`` may stand beside them.

    Args:
        lines: of the file.
        columns: the names that its first line must hold.

    Raises:
        LabelError: a column is missing, a row has too few or too many cells, or there is no row.
    """
    names: list[str] | None = None
    count = 0
    for line in lines:
        cells = line.split("\t")
        if names is None:
            names = cells
            lacking = [name for name in columns if name not in names]
            if lacking:
                raise lines.error(f"names no column {', '.join(map(repr, lacking))}; it must be a header")
        elif line:
            if len(cells) != len(names):
                raise lines.error(f"has {len(cells)} cell{'s' * (len(cells) != 1)} instead of {len(names)}")
            count += 1
            yield dict(zip(names, cells, strict=True))
    if not count:
        raise lines.empty("row")
