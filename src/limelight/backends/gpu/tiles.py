"""Tables of tiles: shapes, warps and pipeline stages for each generation of GPUs. `tuning` finds the one of a call.

The entries were chosen by compiling ahead of time (registers, shared memory, no spills; ``tests/backends/ahead.json``)
and, where a comment gives a number, by measuring; the others are to be confirmed on each chip by ``benchmarks/gpu.py``.
"""

from __future__ import annotations

from enum import Flag, auto
from typing import NamedTuple


class Tile(NamedTuple):
    """Rows (queries) and keys of a tile; warps of a program; stages of its pipeline; and for the owner of keys, queries
    of a part of a block that an edge cuts (0: the whole block)."""

    rows: int
    keys: int
    warps: int
    stages: int
    edge: int = 0


class Needs(Flag):
    """What a call computes beside plain scores, that takes registers or shared memory
    (`limelight.backends.gpu.arguments.needs`)."""

    RULES = auto()  # score rules
    PAIRS = auto()  # of these, a value for each pair
    DISTANCES = auto()  # a value for each distance
    MAP = auto()  # a tile map
    DOCUMENTS = auto()
    INTERVALS = auto()  # more than one for a query, or from memory
    DROPOUT = auto()
    ENTROPY = auto()
    COMPARE = auto()  # an additive comparison
    PAGES = auto()  # keys and values in pages, whose numbers are loaded first


NOTHING = Needs(0)

INTERPRETED = Tile(16, 16, 4, 1)

# Of a step of decoding over pages, which waits for memory alone: the compiler gives two to the numbers of pages, and
# two to keys and values, which are copied two blocks ahead.
STAGES_OVER_PAGES = 5

# (generation, bytes of an element) -> (largest head width, tile), ascending.
FORWARD: dict[tuple[str, int], tuple[tuple[int, Tile], ...]] = {
    ("hopper", 2): (
        (64, Tile(128, 64, 8, 3)),  # 399 TFLOP/s on an H200; of 128 keys 328, of 4 warps 383
        (128, Tile(128, 128, 8, 2)),
        (192, Tile(128, 64, 8, 2)),
        (256, Tile(128, 32, 8, 2)),
        (512, Tile(32, 32, 8, 1)),
    ),
    ("blackwell", 2): (
        (64, Tile(128, 128, 8, 3)),
        (96, Tile(128, 64, 8, 3)),  # in two parts, of 128 keys 16 bytes are spilled
        (128, Tile(128, 128, 8, 2)),
        (256, Tile(128, 32, 8, 2)),
        (512, Tile(32, 32, 8, 1)),
    ),
    ("other", 2): (  # on which nothing was measured: at most 99 KiB of shared memory and no spills for Ampere
        (64, Tile(128, 64, 8, 3)),  # 187 registers; with 4 warps, or 128 keys, all 255
        (128, Tile(128, 64, 8, 2)),  # with 4 warps it spills: 352 bytes, with 32 keys 140, with 64 queries 24
        (192, Tile(64, 16, 8, 3)),  # 180 to 215 registers; with 32 keys 4 bytes are spilled, and on sm_120 180
        (256, Tile(64, 32, 8, 2)),  # 240 registers
        (512, Tile(32, 32, 8, 1)),
    ),
    ("other", 4): (
        (64, Tile(32, 32, 8, 2)),
        (128, Tile(32, 32, 8, 1)),
        (256, Tile(32, 16, 8, 1)),
        (512, Tile(16, 16, 8, 1)),
    ),
}

# With the entropy of each row, for which exponents stay in registers beside the weights: half the keys, where there are
# more than 32, and for wide heads one stage more.
FORWARD_WITH_ENTROPY: dict[tuple[str, int], tuple[tuple[int, Tile], ...]] = {
    ("hopper", 2): (
        *FORWARD["hopper", 2][:1],
        (128, Tile(128, 64, 8, 3)),
        (192, Tile(128, 32, 8, 3)),
        (256, Tile(64, 32, 8, 2)),
    ),
    ("blackwell", 2): ((128, Tile(128, 64, 8, 3)), (256, Tile(64, 32, 8, 2))),  # width 64: of 128 keys 204 bytes
    ("other", 2): (
        *FORWARD["other", 2][:1],
        (128, Tile(128, 32, 8, 3)),
        (192, Tile(64, 16, 8, 2)),
        (256, Tile(32, 32, 8, 2)),
    ),
}


class Most(NamedTuple):
    """At most so many rows, keys and stages of a tile, for calls with all of some needs."""

    needs: Needs
    of: tuple[str, ...] | None  # generations; None for all
    widths: tuple[int, int]  # for head widths above the first, up to the second
    rows: int
    keys: int
    stages: int
    itemsize: int | None = None  # bytes of an element; None for all


OTHERS = ("other", "rocm")
BEFORE_HOPPER = ("ampere", *OTHERS)  # and GeForce GPUs since
MOST = (
    Most(Needs.MAP, None, (0, 512), 128, 64, 2),  # a tile map has tiles of 64 keys
    Most(Needs.PAIRS, None, (0, 512), 128, 64, 2),  # prefetched values take shared memory
    Most(Needs.DISTANCES, None, (0, 512), 128, 64, 2),
    Most(Needs.DOCUMENTS, None, (0, 512), 128, 64, 2),  # registers, here and below
    Most(Needs.PAIRS, ("ampere",), (0, 32), 128, 32, 2),
    Most(Needs.RULES, BEFORE_HOPPER, (64, 512), 128, 32, 2),
    Most(Needs.MAP, BEFORE_HOPPER, (64, 512), 128, 32, 2),
    Most(Needs.DROPOUT, (*BEFORE_HOPPER, "blackwell"), (0, 512), 128, 32, 3),
    Most(Needs.DROPOUT, ("hopper",), (64, 512), 128, 64, 3),
    Most(Needs.DROPOUT, ("hopper",), (128, 512), 128, 32, 3),
    Most(Needs.DROPOUT, ("blackwell",), (128, 512), 64, 32, 3),
    *(Most(need, BEFORE_HOPPER, (128, 192), 32, 32, 2) for need in (Needs.RULES, Needs.INTERVALS, Needs.DROPOUT)),
    *(Most(need, OTHERS, (64, 128), 64, 32, 2) for need in (Needs.PAIRS, Needs.DISTANCES)),
    Most(Needs.PAIRS, None, (64, 128), 32, 16, 1, itemsize=4),
    Most(Needs.INTERVALS, BEFORE_HOPPER, (64, 128), 128, 32, 2),
    Most(Needs.INTERVALS, ("hopper",), (64, 128), 128, 64, 2),
    Most(Needs.INTERVALS, ("blackwell",), (64, 96), 128, 32, 3),  # two parts
    Most(Needs.INTERVALS, ("blackwell",), (64, 128), 128, 64, 2),
    Most(Needs.INTERVALS, ("hopper",), (128, 192), 128, 32, 2),
    Most(Needs.MAP | Needs.PAIRS, ("hopper",), (64, 192), 128, 32, 2),
    Most(Needs.MAP | Needs.PAIRS, ("hopper",), (192, 512), 32, 32, 2),
    Most(Needs.INTERVALS, ("blackwell",), (128, 512), 64, 32, 2),
    Most(Needs.PAIRS, ("blackwell",), (128, 512), 64, 32, 2),
    *(Most(need, BEFORE_HOPPER, (192, 512), 32, 32, 2) for need in (Needs.MAP, Needs.INTERVALS)),
    # a plain call of this width has 255 registers already
    *(
        Most(need, ("hopper",), (192, 512), 64, 32, 2)
        for need in (Needs.RULES, Needs.MAP, Needs.DOCUMENTS, Needs.INTERVALS, Needs.DROPOUT)
    ),
    Most(Needs.ENTROPY | Needs.INTERVALS, None, (0, 512), 128, 32, 3),
    Most(Needs.ENTROPY | Needs.PAIRS, None, (0, 512), 64, 32, 1),
    Most(Needs.ENTROPY | Needs.DISTANCES, None, (0, 512), 64, 32, 1),
    *(Most(Needs.ENTROPY | need, BEFORE_HOPPER, (64, 128), 32, 32, 1) for need in (Needs.PAIRS, Needs.DISTANCES)),
    *(
        Most(Needs.ENTROPY | need, ("hopper", "blackwell"), (192, 256), 32, 32, 1)
        for need in (Needs.PAIRS, Needs.DISTANCES)
    ),
    Most(Needs.ENTROPY | Needs.INTERVALS, ("blackwell",), (192, 256), 32, 32, 2),
    Most(Needs.ENTROPY | Needs.DOCUMENTS, OTHERS, (128, 192), 32, 32, 2),
    *(
        Most(Needs.ENTROPY | need, BEFORE_HOPPER, (128, 256), 32, 32, 1)
        for need in (Needs.MAP, Needs.RULES, Needs.DROPOUT)
    ),
)

# For the two backward kernels: (largest head width, tile of the owner of queries, tile of the owner of keys).
BACKWARD: dict[tuple[str, int], tuple[tuple[int, Tile, Tile], ...]] = {
    ("hopper", 2): (
        # 128 keys: each warpgroup has 64, so weights stay in its registers as operands of the next product.
        (64, Tile(128, 64, 8, 2), Tile(64, 128, 8, 2, edge=16)),
        (128, Tile(128, 64, 8, 2), Tile(64, 128, 8, 2, edge=16)),
        (256, Tile(128, 32, 8, 2), Tile(32, 32, 8, 1)),
        (512, Tile(32, 32, 8, 1), Tile(16, 16, 8, 1)),
    ),
    ("blackwell", 2): (
        (64, Tile(128, 64, 8, 2), Tile(64, 64, 8, 2, edge=32)),
        (128, Tile(128, 64, 8, 2), Tile(64, 128, 8, 2, edge=16)),
        (256, Tile(32, 32, 8, 1), Tile(32, 32, 8, 1)),
        (512, Tile(16, 16, 8, 1), Tile(16, 16, 8, 3)),
    ),
    ("other", 2): (
        (64, Tile(64, 64, 8, 2), Tile(64, 64, 4, 2, edge=32)),
        (128, Tile(32, 64, 8, 2), Tile(64, 64, 8, 2, edge=16)),
        (256, Tile(32, 32, 8, 1), Tile(32, 32, 8, 1)),
        (512, Tile(16, 16, 8, 1), Tile(16, 16, 8, 3)),
    ),
    ("other", 4): (
        (64, Tile(32, 32, 8, 1), Tile(32, 32, 8, 1)),
        (128, Tile(32, 16, 8, 1), Tile(16, 32, 8, 1)),
        (512, Tile(16, 16, 8, 1), Tile(16, 16, 8, 1)),
    ),
}

# The same for scores that need more registers: a tile map, a bias, dropout, in wide heads other rules. A call with all
# of these and every score rule still fits.
DEMANDING: dict[tuple[str, int], tuple[tuple[int, Tile, Tile], ...]] = {
    ("hopper", 2): (
        (64, Tile(128, 32, 8, 1), Tile(16, 64, 4, 1)),
        (128, Tile(128, 32, 8, 1), Tile(32, 32, 8, 1)),
        (256, Tile(64, 16, 8, 2), Tile(32, 32, 8, 1)),
    ),
    ("blackwell", 2): (
        (64, Tile(64, 32, 4, 1), Tile(16, 64, 4, 1)),
        (128, Tile(64, 32, 8, 1), Tile(32, 64, 8, 1)),
        (256, Tile(64, 32, 8, 1), Tile(32, 16, 8, 1)),
    ),
    ("other", 2): (
        (64, Tile(32, 32, 4, 1), Tile(32, 32, 4, 1)),
        (128, Tile(32, 32, 8, 1), Tile(32, 32, 8, 1)),
        (256, Tile(16, 32, 8, 1), Tile(16, 16, 8, 1)),
        (512, Tile(16, 16, 8, 1), Tile(16, 16, 8, 3)),
    ),
}

# The same for a bias and nothing else of these: at width 96, the smaller tile of the owner of keys spills 12 bytes.
BIASED: dict[tuple[str, int], tuple[tuple[int, Tile, Tile], ...]] = {
    ("blackwell", 2): (DEMANDING["blackwell", 2][0], (128, Tile(64, 32, 8, 1), Tile(64, 32, 8, 1))),
}

# Limits, as in `MOST`, of the tiles of the owner of queries and of the owner of keys.
MOST_OF_QUERIES = (Most(Needs.INTERVALS, BEFORE_HOPPER, (0, 128), 64, 32, 2),)
MOST_OF_KEYS = (
    Most(Needs.INTERVALS, ("hopper",), (0, 128), 64, 64, 2),
    Most(Needs.DISTANCES, OTHERS, (0, 64), 32, 64, 2),
    Most(Needs.MAP | Needs.PAIRS | Needs.DROPOUT, OTHERS, (0, 128), 16, 16, 1),
)

# The owners of tiles of a bias, and of blocks of distances. The latter have at least as many keys as rows, since they
# cut the keys of all rows out of two tiles.
BIASES: dict[tuple[str, int], tuple[tuple[int, Tile], ...]] = {
    ("hopper", 2): ((128, Tile(64, 64, 8, 1)), (256, Tile(64, 32, 8, 1)), (512, Tile(16, 16, 8, 1))),
    ("blackwell", 2): ((256, Tile(64, 32, 8, 1)), (512, Tile(16, 16, 8, 1))),
    ("other", 2): ((128, Tile(32, 32, 8, 1)), (256, Tile(16, 16, 8, 1)), (512, Tile(16, 16, 4, 1))),
    ("other", 4): ((64, Tile(32, 32, 8, 1)), (128, Tile(32, 16, 8, 1)), (512, Tile(16, 16, 8, 1))),
}
DISTANCES: dict[tuple[str, int], tuple[tuple[int, Tile], ...]] = {
    ("hopper", 2): ((128, Tile(64, 64, 8, 1)), (256, Tile(32, 64, 8, 1)), (512, Tile(16, 16, 4, 1))),
    ("blackwell", 2): (
        (64, Tile(32, 32, 8, 1)),
        (128, Tile(64, 64, 8, 1)),
        (256, Tile(16, 32, 8, 1)),
        (512, Tile(16, 16, 4, 1)),
    ),
    ("other", 2): (
        (64, Tile(16, 32, 8, 1)),
        (128, Tile(32, 32, 8, 1)),
        (256, Tile(16, 32, 8, 1)),
        (512, Tile(16, 16, 8, 1)),
    ),
    ("other", 4): ((512, Tile(16, 16, 8, 1)),),
}


# The owners of queries that keep their largest weights. 124 registers on Hopper, so that two programs run side by side;
# on Blackwell 32 rows, whose products leave results in registers (a reduction of theirs in tensor memory fails).
LARGEST: dict[tuple[str, int], tuple[tuple[int, Tile], ...]] = {
    ("hopper", 2): ((128, Tile(128, 64, 8, 2)), (256, Tile(64, 64, 8, 2)), (512, Tile(32, 32, 8, 1))),
    ("blackwell", 2): ((128, Tile(32, 64, 8, 1)), (256, Tile(32, 32, 8, 1)), (512, Tile(16, 16, 8, 1))),
    ("ampere", 2): ((128, Tile(128, 64, 8, 2)), (256, Tile(64, 64, 8, 2)), (512, Tile(16, 16, 8, 1))),
    ("other", 2): ((128, Tile(128, 64, 8, 2)), (256, Tile(32, 32, 8, 1)), (512, Tile(16, 16, 8, 1))),
    ("other", 4): (
        (64, Tile(32, 32, 8, 1)),
        (128, Tile(16, 16, 4, 1)),
        (256, Tile(16, 32, 8, 1)),
        (512, Tile(16, 16, 8, 1)),
    ),
}

# The owners of keys that sum weights over queries. They read all queries once for each tile of keys, from the L2 cache:
# 128 keys on Hopper, where 64 would need more than its bandwidth; on Blackwell 128 spill. On Ampere and Ada 4 warps
# leave room for two programs; on GeForce Blackwell they spill 52 bytes.
COLUMNS: dict[tuple[str, int], tuple[tuple[int, Tile], ...]] = {
    ("hopper", 2): ((128, Tile(64, 128, 4, 2)), (256, Tile(64, 64, 8, 2)), (512, Tile(16, 16, 8, 1))),
    ("blackwell", 2): ((128, Tile(64, 64, 4, 2)), (256, Tile(16, 64, 4, 1)), (512, Tile(16, 16, 8, 1))),
    ("ampere", 2): ((128, Tile(64, 64, 4, 2)), (256, Tile(32, 64, 4, 1)), (512, Tile(16, 16, 8, 1))),
    ("other", 2): ((128, Tile(64, 64, 8, 2)), (256, Tile(16, 64, 4, 1)), (512, Tile(16, 16, 8, 1))),
    ("other", 4): ((256, Tile(16, 16, 4, 1)), (512, Tile(16, 16, 8, 1))),  # 32 keys spill up to 15 KB
}

# Scores for which the kernels of largest weights and of sums have smaller tiles.
OBSERVED = Needs.MAP | Needs.PAIRS | Needs.DISTANCES | Needs.COMPARE
