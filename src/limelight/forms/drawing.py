"""Pictures of a pattern: text for a terminal, SVG for a page. Queries go down, keys go right."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ..tensors.shapes import whole_number
from .layouts import Layout
from .layouts.base import check_layout
from .lowering import lower
from .patterns import Pattern

MAX_LENGTH = 2**24  # queries, and keys, of a picture
MAX_CELLS = 48  # cells of a side; beyond, a cell stands for a block of pairs
_SHADES = "·░▒▓█"


@dataclass(frozen=True)
class Drawing:
    """A picture of a pattern: ``shares[i, j]``, from 0 to 1, is the share of the pairs of a cell that are seen."""

    shares: NDArray[np.float64]
    title: str
    queries_per_cell: int
    keys_per_cell: int

    def __str__(self) -> str:
        exact = self.queries_per_cell == self.keys_per_cell == 1
        rows = ["".join(_cell(share, exact) for share in row) for row in self.shares]
        if exact:
            rows = [" ".join(row) for row in rows]
            return "\n".join(rows)
        note = f"one cell is {self.queries_per_cell} queries by {self.keys_per_cell} keys; darker: more pairs are seen"
        return "\n".join([*rows, note])

    def svg(self, cell: int = 10) -> str:
        """The picture as an SVG document, ``cell`` pixels for each cell."""
        height, width = (cell * n for n in self.shares.shape)
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-1 -1 {width + 2} {height + 2}" '
            f'width="{width + 2}" height="{height + 2}" shape-rendering="crispEdges" role="img" '
            f'aria-label="{escape(self.title, quote=True)}">',
            f"<title>{escape(self.title)}</title>",
            f'<rect width="{width}" height="{height}" fill="#f4f1ea" stroke="#8a8577"/>',
        ]
        for i, row in enumerate(self.shares):
            for first, last, share in _runs(row):
                parts.append(
                    f'<rect x="{first * cell}" y="{i * cell}" width="{(last - first) * cell}" height="{cell}" '
                    f'fill="#1f4e79" fill-opacity="{share:.3g}"/>'
                )
        return "\n".join([*parts, "</svg>"])

    def _repr_svg_(self) -> str:
        return self.svg()


def draw(
    pattern: Pattern,
    queries: int,
    keys: int | None = None,
    *,
    layout: Layout | None = None,
    head: int = 0,
    heads: int = 1,
) -> Drawing:
    """The picture of a pattern under a layout, for the first batch row and one of ``heads`` query heads.

    Raises:
        ArgumentError: a size is no whole number, or there are more queries or keys than `MAX_LENGTH`.
    """
    check_layout(layout)
    keys = queries if keys is None else keys
    for name, size in (("queries", queries), ("keys", keys)):
        whole_number(name, size, at_least=0, at_most=MAX_LENGTH)
    whole_number("heads", heads, at_least=1)
    whole_number("head", head, at_least=0, at_most=heads - 1)
    bq, bk = (max(1, -(-n // MAX_CELLS)) for n in (queries, keys))
    rows = layout.tensors()[0].shape[0] if layout is not None and layout.tensors() and layout.documents == 1 else 1
    pairs = lower(pattern, layout, rows, heads, queries, keys).block_pairs(bq, bk)
    counts = pairs[0, head if pairs.shape[1] > 1 else 0]
    sizes = np.outer(np.minimum(bq, queries - np.arange(0, queries, bq)), np.minimum(bk, keys - np.arange(0, keys, bk)))
    title = f"{pattern!r} over {queries} queries and {keys} keys"
    return Drawing(counts / np.maximum(sizes, 1), title, bq, bk)


def _cell(share: float, exact: bool) -> str:
    if exact:
        return "■" if share else "·"
    return _SHADES[0 if share == 0 else min(4, 1 + int(share * 4))]


def _runs(row: NDArray[np.float64]) -> list[tuple[int, int, float]]:
    """Neighbouring cells of equal, non-zero share."""
    edges = [0, *(np.flatnonzero(np.diff(row)) + 1).tolist(), len(row)]
    return [(a, b, float(row[a])) for a, b in pairwise(edges) if b > a and row[a] > 0]
