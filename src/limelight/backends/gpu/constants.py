"""The compile-time constants of a kernel: it is compiled once for each `KernelConstants`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class KernelConstants:
    """What a kernel is specialized for. Never a length, an offset or a number of batch rows, so a text that grows
    recompiles nothing.
    """

    D: int
    WIDTH: int  # D as a power of two, or its first part
    VALUE_D: int
    VALUE_WIDTH: int
    RULE_KINDS: tuple[int, ...]  # one for each score rule, in order: `limelight.backends.gpu.score_rules`
    SCALE_FIRST: bool  # scores are scaled before rules and softmax; else the scale is part of the softmax's factor
    ADDITIVE: bool
    DROPOUT: bool
    SINK: bool
    SEGMENT_TABLE: bool  # segments lie in a table on the device; else the call has one, in the arguments
    INTERVALS: int  # of keys for each query, at most
    INTERVAL_ARRAYS: bool  # intervals lie in arrays; else they are computed from spans
    MAP_ROWS: int  # queries of a tile of the tile map: 64, 1, or 0 without a map
    PACK: int  # query heads of a group that share a tile
    SPLITS: int  # parts of the keys
    ROWS: int  # of a tile: queries, or queries by the heads of a pack
    BLOCK: int  # keys of a tile
    PAGE: int = 0  # keys of a page; 0 where they lie in rows
    REST: int = 0  # the second part of D where it lies in two parts, in `flash2`'s forward pass alone
    VALUE_REST: int = 0
    STATISTICS: int = 0  # of each row, in the forward pass: 1 largest score and weight, 2 entropy too

    @property
    def RULE_COUNT(self) -> int:
        """The number of score rules."""
        return len(self.RULE_KINDS)
