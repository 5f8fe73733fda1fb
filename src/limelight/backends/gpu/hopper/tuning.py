"""Sides of the tiles, stages and registers on Hopper. Nothing is tried out at the first call.

What was chosen by compiling ahead (no spills, nothing serialised, shared memory within 227 KiB;
``tests/backends/ahead.json``) and is to be confirmed by ``benchmarks/gpu.py``.
"""

from __future__ import annotations

from typing import NamedTuple

ROWS = 128  # queries of a tile: two warpgroups of 64
LINE = 4  # numbers of 32 bits in the 16 bytes at whose multiples bulk copies of a line begin
NARROWEST, WIDEST = 64, 256  # head widths as the kernels hold them
CACHE = 24 * 2**20  # bytes of keys and values that programs share through half of the second-level cache


class Stages(NamedTuple):
    """Rows of a block that moves by, blocks in shared memory, registers of a thread: at entry, and when it computes."""

    block: int
    stages: int
    entry: int = 168  # three warpgroups share 504: two that compute, and the one of the warp that copies, 24
    computing: int = 240


FORWARD = {64: Stages(128, 2), 128: Stages(128, 2), 256: Stages(32, 4)}  # by the larger width, as a power of two
# Backward: the owner of queries, by which blocks of keys move, and that of keys, by which blocks of queries do.
BACKWARD = {64: (Stages(128, 3, computing=232), Stages(64, 3)), 128: (Stages(64, 4, computing=232), Stages(64, 3))}
BACKWARD_WITH_RULES = {  # which take registers
    64: (Stages(64, 4, computing=224), Stages(64, 3)),
    128: (Stages(32, 4, computing=232), Stages(32, 4, computing=232)),
}
WIDEST_BACKWARD = 128
FLOAT8 = {64: Stages(128, 3), 128: Stages(128, 3), 256: Stages(64, 2)}


def section(columns: int, bytes_of_one: int, group: int) -> int:
    """How many heads are computed together, so that their keys and values stay in the cache: whole groups."""
    shared = max(1, CACHE // max(1, bytes_of_one)) * group
    return max(1, min(columns, shared))
