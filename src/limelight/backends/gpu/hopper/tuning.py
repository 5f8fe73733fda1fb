"""Tile shapes, pipeline stages and registers on Hopper; there is no autotuning.

Chosen by compiling ahead of time (no spills, nothing serialised, shared memory within 227 KiB;
``tests/backends/ahead.json``), to be confirmed by ``benchmarks/gpu.py``.
"""

from __future__ import annotations

from typing import NamedTuple

ROWS = 128  # queries of a tile: two warpgroups of 64
LINE = 4  # 32-bit values in 16 bytes, at whose multiples bulk copies of a line begin
NARROWEST, WIDEST = 64, 256  # padded head widths
CACHE = 24 * 2**20  # bytes of keys and values that programs share through half of the L2 cache


class Stages(NamedTuple):
    """Rows of a block that moves through shared memory, blocks held there, and registers of a thread.

    The last two are of the backward pass alone: blocks of values or of the gradient of the output, where fewer are
    held, and whether a block's last product is issued with the products of the next one.
    """

    block: int
    stages: int
    entry: int = 168  # at the launch; three warpgroups share 504, of which the one that copies keeps 24
    computing: int = 240  # of the two warpgroups that compute
    second_stages: int = 0  # 0: as many as ``stages``
    carry: bool = False


FORWARD = {64: Stages(128, 2), 128: Stages(128, 2), 256: Stages(32, 4)}  # by the larger width, as a power of two
# Backward: the owner of queries, for which blocks of keys move, and the owner of keys and values, for which queries
# move; or one of keys and one of values, where both sums are more than the registers.
BACKWARD: dict[int, tuple[Stages, ...]] = {
    64: (Stages(128, 3, computing=232, carry=True), Stages(64, 3)),
    128: (Stages(64, 4, computing=232, carry=True), Stages(64, 3)),
    256: (Stages(64, 2, second_stages=1), Stages(64, 2, second_stages=1), Stages(64, 2)),
}
BACKWARD_WITH_RULES: dict[int, tuple[Stages, ...]] = {  # score rules take registers
    64: (Stages(64, 4, computing=224, carry=True), Stages(64, 3)),
    128: (Stages(32, 4, computing=232, carry=True), Stages(32, 4, computing=232)),
}
# The widest heads whose backward pass is computed by these kernels; wider ones take those of `flash2`. With 256 these
# would compute all widths: above 128 they have been compiled and simulated, but not yet run on a GPU.
WIDEST_BACKWARD = 128
FLOAT8 = {64: Stages(128, 3), 128: Stages(128, 3), 256: Stages(64, 2)}


def section(columns: int, bytes_of_one: int, group: int) -> int:
    """The number of heads computed together, in whole groups, so that their keys and values stay in the L2 cache."""
    shared = max(1, CACHE // max(1, bytes_of_one)) * group
    return max(1, min(columns, shared))
