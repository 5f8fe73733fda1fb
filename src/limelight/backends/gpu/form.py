"""What the compiler is told of a call: a kernel is compiled once for each form."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Form:
    """Never a length, an offset or a number of rows: a text that grows compiles nothing anew."""

    D: int
    WIDTH: int  # D as a power of two, or its first part
    VALUE_D: int
    VALUE_WIDTH: int
    KINDS: tuple[int, ...]  # of the score rules
    NATURAL: bool  # scores are scaled, and rules applied, before the softmax; else the scale is part of its factor
    ADDITIVE: bool
    DROPOUT: bool
    SINK: bool
    TABLE: bool  # segments lie in a table
    INTERVALS: int  # per query, at most
    LISTED: bool  # intervals lie in arrays
    TILE_ROWS: int  # queries of a tile of bits: 64, 1, or 0 without a map
    PACK: int  # query heads of a group in one tile
    SPLITS: int  # parts of the keys
    ROWS: int  # of a tile
    BLOCK: int  # keys of a tile
    REST: int = 0  # the second part of D, where it lies in two; only `flash2`'s forward pass knows it
    VALUE_REST: int = 0

    @property
    def COUNT(self) -> int:
        """How many score rules there are."""
        return len(self.KINDS)
