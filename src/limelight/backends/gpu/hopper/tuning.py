"""Tile shapes, pipeline stages and registers on Hopper; there is no autotuning.

Chosen by compiling ahead of time (no spills, nothing serialised, shared memory within 227 KiB;
``tests/backends/ahead.json``), and confirmed on an H200 by ``benchmarks/gpu.py`` where nothing else is said.
"""

from __future__ import annotations

from typing import NamedTuple

from ..tuning import width

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


# Backward: the owner of queries, for which blocks of keys move, and the owner of keys and values, for which queries
# move; or one of keys and one of values, where both sums are more than the registers.
BACKWARD: dict[int, tuple[Stages, ...]] = {
    64: (Stages(128, 3, computing=232, carry=True), Stages(64, 4, computing=232, carry=True)),
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


class ForwardStages(NamedTuple):
    """Forward: keys of a block, blocks of keys and of values in shared memory, and registers of a thread."""

    block: int
    stages: int
    alone: bool = False  # a program is one warpgroup, which copies for itself
    entry: int = 168
    computing: int = 240

    @property
    def rows(self) -> int:
        """The number of queries of a tile."""
        return ROWS // 2 if self.alone else ROWS

    @property
    def programs(self) -> int:
        """The number of programs that share a multiprocessor."""
        return 3 if self.alone else 1


# By the larger head width as a power of two; 192 stands for 129 to 192 in two parts, 128 and 64, which are otherwise
# padded to 256. `CANDIDATES` compile without spills and agree with the definition on a model of the machine, but have
# never run on a GPU: `benchmarks/gpu.py` checks and measures them beside `MEASURED`. To adopt one, name it here.
MEASURED = {64: ForwardStages(128, 2), 128: ForwardStages(128, 2), 256: ForwardStages(32, 4)}
CANDIDATES = {64: ForwardStages(128, 2, alone=True), 192: ForwardStages(64, 3), 256: ForwardStages(64, 2)}
FORWARD = MEASURED
FLOAT8 = {64: ForwardStages(128, 3), 128: ForwardStages(128, 3), 256: ForwardStages(64, 2)}


def forward_stages(
    table: dict[int, ForwardStages], D: int, Dv: int, rules: bool = False
) -> tuple[ForwardStages, tuple[int, int], tuple[int, int]]:
    """The entry of a table for head widths, and the widths of both parts of keys and of values.

    With score ``rules``, which take registers, no program is one warpgroup (it would spill 8 bytes).
    """
    if 128 < max(D, Dv) <= 192 and 192 in table:
        of_keys, of_values = ((128, 64) if size > 128 else (width(size), 0) for size in (D, Dv))
        return table[192], of_keys, of_values
    of_keys, of_values = ((width(size), 0) for size in (D, Dv))
    padded = max(NARROWEST, of_keys[0], of_values[0])
    return MEASURED[padded] if rules and table[padded].alone else table[padded], of_keys, of_values


def section(columns: int, bytes_of_one: int, group: int) -> int:
    """The number of heads computed together, in whole groups, so that their keys and values stay in the L2 cache."""
    shared = max(1, CACHE // max(1, bytes_of_one)) * group
    return max(1, min(columns, shared))
