"""Tile shapes, warps and pipeline stages for each generation of GPUs; there is no autotuning.

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


def width(size: int) -> int:
    """A head width padded to a power of two, at least the 16 that a matrix instruction takes."""
    return max(16, 1 << (size - 1).bit_length())


def parts(size: int) -> tuple[int, int]:
    """A head width as two powers of two, 96 as 64 and 32, where their sum is less than `width`; else ``(width, 0)``."""
    first = 1 << (size.bit_length() - 1)
    rest = width(size - first)
    return (first, rest) if 32 <= first < size and first + rest < width(size) else (width(size), 0)


_INTERPRETED = Tile(16, 16, 4, 1)

# Of a step of decoding over pages, which waits for memory alone: the compiler gives two to the numbers of pages, and
# two to keys and values, which are copied two blocks ahead.
_STAGES_OVER_PAGES = 5

# (generation, bytes of an element) -> (largest head width, tile), ascending.
_FORWARD: dict[tuple[str, int], tuple[tuple[int, Tile], ...]] = {
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
_FORWARD_WITH_ENTROPY: dict[tuple[str, int], tuple[tuple[int, Tile], ...]] = {
    ("hopper", 2): (
        *_FORWARD["hopper", 2][:1],
        (128, Tile(128, 64, 8, 3)),
        (192, Tile(128, 32, 8, 3)),
        (256, Tile(64, 32, 8, 2)),
    ),
    ("blackwell", 2): ((128, Tile(128, 64, 8, 3)), (256, Tile(64, 32, 8, 2))),  # width 64: of 128 keys 204 bytes
    ("other", 2): (*_FORWARD["other", 2][:1], (128, Tile(128, 32, 8, 3)), (192, Tile(64, 16, 8, 2))),
}


class _Most(NamedTuple):
    """At most so many rows, keys and stages of a forward tile, for calls with all of some needs."""

    needs: Needs
    of: tuple[str, ...] | None  # generations; None for all
    widths: tuple[int, int]  # for head widths above the first, up to the second
    rows: int
    keys: int
    stages: int
    itemsize: int | None = None  # bytes of an element; None for all


_BEFORE_HOPPER = ("ampere", "other")  # and GeForce GPUs since
_MOST = (
    _Most(Needs.MAP, None, (0, 512), 128, 64, 2),  # a tile map has tiles of 64 keys
    _Most(Needs.PAIRS, None, (0, 512), 128, 64, 2),  # prefetched values take shared memory
    _Most(Needs.DISTANCES, None, (0, 512), 128, 64, 2),
    _Most(Needs.DOCUMENTS, None, (0, 512), 128, 64, 2),  # registers, here and below
    _Most(Needs.RULES, _BEFORE_HOPPER, (64, 512), 128, 32, 2),
    _Most(Needs.MAP, _BEFORE_HOPPER, (64, 512), 128, 32, 2),
    _Most(Needs.DROPOUT, (*_BEFORE_HOPPER, "blackwell"), (0, 512), 128, 32, 3),
    _Most(Needs.DROPOUT, ("hopper",), (64, 512), 128, 64, 3),
    _Most(Needs.DROPOUT, ("hopper",), (128, 512), 128, 32, 3),
    _Most(Needs.DROPOUT, ("blackwell",), (128, 512), 64, 32, 3),
    *(_Most(need, _BEFORE_HOPPER, (128, 192), 32, 32, 2) for need in (Needs.RULES, Needs.INTERVALS, Needs.DROPOUT)),
    *(_Most(need, ("other",), (64, 128), 64, 32, 2) for need in (Needs.PAIRS, Needs.DISTANCES)),
    _Most(Needs.PAIRS, None, (64, 128), 32, 16, 1, itemsize=4),
    _Most(Needs.INTERVALS, _BEFORE_HOPPER, (64, 128), 128, 32, 2),
    _Most(Needs.INTERVALS, ("hopper",), (64, 128), 128, 64, 2),
    _Most(Needs.INTERVALS, ("blackwell",), (64, 96), 128, 32, 3),  # two parts
    _Most(Needs.INTERVALS, ("blackwell",), (64, 128), 128, 64, 2),
    _Most(Needs.INTERVALS, ("hopper",), (128, 192), 128, 32, 2),
    _Most(Needs.MAP | Needs.PAIRS, ("hopper",), (64, 192), 128, 32, 2),
    _Most(Needs.MAP | Needs.PAIRS, ("hopper",), (192, 512), 32, 32, 2),
    _Most(Needs.INTERVALS, ("blackwell",), (128, 512), 64, 32, 2),
    _Most(Needs.PAIRS, ("blackwell",), (128, 512), 64, 32, 2),
    *(_Most(need, _BEFORE_HOPPER, (192, 512), 32, 32, 2) for need in (Needs.MAP, Needs.INTERVALS)),
    # a plain call of this width has 255 registers already
    *(
        _Most(need, ("hopper",), (192, 512), 64, 32, 2)
        for need in (Needs.RULES, Needs.MAP, Needs.DOCUMENTS, Needs.INTERVALS, Needs.DROPOUT)
    ),
    _Most(Needs.ENTROPY | Needs.INTERVALS, None, (0, 512), 128, 32, 3),
    _Most(Needs.ENTROPY | Needs.PAIRS, None, (0, 512), 64, 32, 1),
    _Most(Needs.ENTROPY | Needs.DISTANCES, None, (0, 512), 64, 32, 1),
    *(_Most(Needs.ENTROPY | need, _BEFORE_HOPPER, (128, 256), 32, 32, 1) for need in (Needs.MAP, Needs.RULES)),
)

# For the two backward kernels: (largest head width, tile of the owner of queries, tile of the owner of keys).
_BACKWARD: dict[tuple[str, int], tuple[tuple[int, Tile, Tile], ...]] = {
    ("hopper", 2): (
        # 128 keys: each warpgroup has 64, so weights stay in its registers as operands of the next product.
        (64, Tile(128, 64, 8, 2), Tile(64, 128, 8, 2, edge=32)),
        (128, Tile(128, 64, 8, 2), Tile(64, 128, 8, 2, edge=16)),
        (256, Tile(128, 32, 8, 2), Tile(32, 32, 8, 1)),
        (512, Tile(32, 32, 8, 1), Tile(16, 16, 8, 1)),
    ),
    ("blackwell", 2): (
        (64, Tile(128, 64, 8, 2), Tile(64, 64, 8, 2)),
        (128, Tile(128, 64, 8, 2), Tile(64, 128, 8, 2, edge=16)),
        (256, Tile(32, 32, 8, 1), Tile(32, 32, 8, 1)),
        (512, Tile(32, 32, 8, 1), Tile(16, 16, 8, 1)),
    ),
    ("other", 2): (
        (64, Tile(64, 64, 4, 2), Tile(64, 64, 4, 2, edge=32)),
        (128, Tile(32, 64, 8, 2), Tile(64, 64, 8, 2, edge=16)),
        (256, Tile(32, 32, 8, 1), Tile(32, 32, 8, 1)),
        (512, Tile(32, 32, 8, 1), Tile(16, 16, 8, 1)),
    ),
    ("other", 4): (
        (64, Tile(32, 32, 8, 1), Tile(32, 32, 8, 1)),
        (128, Tile(32, 16, 8, 1), Tile(16, 32, 8, 1)),
        (512, Tile(16, 16, 8, 1), Tile(16, 16, 8, 1)),
    ),
}

# The same for scores that need more registers: a tile map, a bias, dropout, in wide heads other rules. A call with all
# of these and every score rule still fits.
_DEMANDING: dict[tuple[str, int], tuple[tuple[int, Tile, Tile], ...]] = {
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
        (512, Tile(32, 16, 8, 1), Tile(16, 16, 8, 1)),
    ),
}

# The same for a bias and nothing else of these: at width 96, the smaller tile of the owner of keys spills 12 bytes.
_BIASED: dict[tuple[str, int], tuple[tuple[int, Tile, Tile], ...]] = {
    ("blackwell", 2): (_DEMANDING["blackwell", 2][0], (128, Tile(64, 32, 8, 1), Tile(64, 64, 8, 1))),
}

# The owners of tiles of a bias, and of blocks of distances. The latter have at least as many keys as rows, since they
# cut the keys of all rows out of two tiles.
_BIASES: dict[tuple[str, int], tuple[tuple[int, Tile], ...]] = {
    ("hopper", 2): ((128, Tile(64, 64, 8, 1)), (256, Tile(64, 32, 8, 1)), (512, Tile(16, 16, 8, 1))),
    ("blackwell", 2): ((128, Tile(64, 64, 8, 1)), (256, Tile(64, 32, 8, 1)), (512, Tile(16, 16, 8, 1))),
    ("other", 2): ((128, Tile(32, 32, 8, 1)), (256, Tile(16, 16, 8, 1)), (512, Tile(16, 16, 4, 1))),
    ("other", 4): ((128, Tile(32, 32, 8, 1)), (512, Tile(16, 16, 8, 1))),
}
_DISTANCES: dict[tuple[str, int], tuple[tuple[int, Tile], ...]] = {
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
    ("other", 4): ((256, Tile(32, 32, 8, 1)), (512, Tile(16, 16, 8, 1))),
}


# The owners of queries that keep their largest weights. 124 registers on Hopper, so that two programs run side by side;
# on Blackwell 32 rows, whose products leave results in registers (a reduction of theirs in tensor memory fails).
_LARGEST: dict[tuple[str, int], tuple[tuple[int, Tile], ...]] = {
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
_COLUMNS: dict[tuple[str, int], tuple[tuple[int, Tile], ...]] = {
    ("hopper", 2): ((128, Tile(64, 128, 4, 2)), (256, Tile(64, 64, 8, 2)), (512, Tile(16, 16, 8, 1))),
    ("blackwell", 2): ((128, Tile(64, 64, 4, 2)), (256, Tile(16, 64, 4, 1)), (512, Tile(16, 16, 8, 1))),
    ("ampere", 2): ((128, Tile(64, 64, 4, 2)), (256, Tile(32, 64, 4, 1)), (512, Tile(16, 16, 8, 1))),
    ("other", 2): ((128, Tile(64, 64, 8, 2)), (256, Tile(16, 64, 4, 1)), (512, Tile(16, 16, 8, 1))),
    ("other", 4): ((256, Tile(16, 16, 4, 1)), (512, Tile(16, 16, 8, 1))),  # 32 keys spill up to 15 KB
}

# Scores for which the kernels of largest weights and of sums have smaller tiles.
_OBSERVED = Needs.MAP | Needs.PAIRS | Needs.DISTANCES | Needs.COMPARE


def score_tiles(generation: str, itemsize: int, widest: int) -> tuple[Tile, Tile]:
    """The tiles of the kernels that own tiles of a bias and blocks of distances."""
    if generation == "interpreter":
        return _INTERPRETED, _INTERPRETED
    of_biases, of_distances = (
        next(tile for limit, tile in table.get((generation, itemsize)) or table["other", itemsize] if widest <= limit)
        for table in (_BIASES, _DISTANCES)
    )
    return of_biases, of_distances


def backward_tiles(generation: str, itemsize: int, widest: int, needs: Needs = NOTHING) -> tuple[Tile, Tile]:
    """The tiles of the kernel that owns queries and of the one that owns keys."""
    if generation == "interpreter":
        return _INTERPRETED, _INTERPRETED
    kind = (generation, itemsize) if (generation, itemsize) in _BACKWARD else ("other", itemsize)
    demanding = needs & (Needs.MAP | Needs.PAIRS | Needs.DROPOUT)
    if widest > 128:
        demanding |= needs & (Needs.DISTANCES | (Needs.RULES | Needs.INTERVALS if generation == "hopper" else NOTHING))
    biased = demanding == Needs.PAIRS and Needs.DISTANCES not in needs
    tables = (_BIASED if biased else {}, _DEMANDING if demanding else {}, _BACKWARD)
    table = [line for of_needs in tables for line in of_needs.get(kind, ())]
    return next((of_queries, of_keys) for limit, of_queries, of_keys in table if widest <= limit)


def forward_tile(generation: str, itemsize: int, widest: int, rows: int, needs: Needs = NOTHING) -> Tile:
    """The tile of a forward pass whose larger head width (as a power of two, or two) is ``widest``.

    ``rows``: queries times heads that could share a tile; the tile is smaller where these are few.
    """
    if generation == "interpreter":
        return _INTERPRETED
    kind = (generation, itemsize) if (generation, itemsize) in _FORWARD else ("other", itemsize)
    table = (*(_FORWARD_WITH_ENTROPY.get(kind, ()) if Needs.ENTROPY in needs else ()), *_FORWARD[kind])
    tile = next(tile for limit, tile in table if widest <= limit)
    for most in _MOST:
        meant = (most.of is None or generation in most.of) and most.itemsize in (None, itemsize)
        if meant and most.needs in needs and most.widths[0] < widest <= most.widths[1]:
            tile = tile._replace(
                rows=min(tile.rows, most.rows), keys=min(tile.keys, most.keys), stages=min(tile.stages, most.stages)
            )
    if rows < tile.rows:
        few = max(16, 1 << (rows - 1).bit_length())
        full = itemsize == 4 or (widest > 128 and Needs.MAP | Needs.PAIRS in needs)  # which takes 8 warps' registers
        tile = tile._replace(rows=few, warps=4 if few <= 64 and not full else tile.warps)
        if generation == "blackwell" and tile.keys > 64:  # 128 keys spill in some widths
            tile = tile._replace(keys=64, stages=3)
        if Needs.PAGES in needs:
            tile = tile._replace(stages=_STAGES_OVER_PAGES)
    return tile


def flash1_tile(generation: str, itemsize: int, widest: int) -> Tile:
    """The tile of `flash1`; its blocks of keys are long, since output is read and written for each."""
    if generation == "interpreter":
        return _INTERPRETED
    if itemsize == 4 or widest > 128:
        return Tile(32, 32, 8, 1) if widest <= 64 else Tile(16, 32, 8, 1)
    return Tile(32, 64 if generation in ("ampere", "hopper") else 32, 8, 1)


def splits(programs: int, processors: int, blocks: int) -> int:
    """The number of parts in which the keys of a short call are computed concurrently, to use all multiprocessors."""
    if programs * 2 > processors:
        return 1
    return max(1, min(32, processors // programs, blocks // 4))


def observing_tile(generation: str, itemsize: int, widest: int, needs: Needs = NOTHING) -> Tile:
    """The tile of the observing kernels: small, since they keep all its weights in registers."""
    if generation == "interpreter":
        return _INTERPRETED
    if widest > 256:
        return Tile(16, 16, 8, 1)
    limit = 64 if generation == "blackwell" else 128
    if itemsize == 2 and (Needs.MAP in needs or (widest > 128 and needs & _OBSERVED)):
        return Tile(32, 16, 8, 1)
    return Tile(64, 64, 8, 1) if itemsize == 2 and widest <= limit else Tile(32, 32, 8, 1)


def summing_tile(generation: str, itemsize: int, widest: int) -> Tile:
    """The tile of the normalizers' kernel: as for observing, or with fewer keys for Ampere's registers."""
    tile = observing_tile(generation, itemsize, widest)
    return tile._replace(keys=32) if generation == "ampere" and widest == 128 and tile.keys > 32 else tile


def _of_table(
    table: dict[tuple[str, int], tuple[tuple[int, Tile], ...]], generation: str, itemsize: int, widest: int
) -> Tile:
    lines = table.get((generation, itemsize)) or table["other", itemsize]
    return next(tile for limit, tile in lines if widest <= limit)


def largest_tile(generation: str, itemsize: int, widest: int, needs: Needs, top: int) -> Tile:
    """The tile of the kernel that keeps the ``top`` largest weights of each query; smaller for many weights."""
    if generation == "interpreter":
        return _INTERPRETED
    tile = _of_table(_LARGEST, generation, itemsize, widest)
    if needs & _OBSERVED and itemsize == 4 and widest <= 256:
        return Tile(16, 16, 4, 1)  # larger ones spill 4 to 112 bytes on every GPU
    if needs & _OBSERVED:
        if generation == "hopper" or widest > 256:
            return tile._replace(keys=min(tile.keys, 32), stages=1)
        if widest > 128:
            return Tile(32, 16, 8, 1)
        return Tile(32, 32, 4, 1) if generation == "blackwell" else Tile(64, 32, 8, 1)
    return tile._replace(keys=min(tile.keys, 32), stages=1) if tile.rows > 32 and top > 16 else tile


def column_tile(
    generation: str, itemsize: int, widest: int, needs: Needs, high: int, wide: int | None
) -> tuple[Tile, int]:
    """The tile of the kernel that sums weights over queries, and how many columns of blocks it holds.

    ``high`` and ``wide`` are the queries and keys of a block; ``wide`` is ``None`` where keys alone are summed.
    """
    tile = _INTERPRETED if generation == "interpreter" else _of_table(_COLUMNS, generation, itemsize, widest)
    if needs & _OBSERVED and generation != "interpreter" and itemsize < 4:
        # 120 registers; 32 rows spill on some GPUs, whatever the warps
        tile = Tile(16, min(tile.keys, 32 if widest <= 128 else 16), 8, 1)
    elif Needs.PAGES in needs:
        tile = tile._replace(keys=min(tile.keys, 64))
    if wide is None:
        return tile, 1
    tile = tile._replace(rows=fitting(high, tile.rows))
    if wide < tile.keys and wide & (wide - 1) == 0:
        return tile, tile.keys // wide
    return tile._replace(keys=fitting(wide, tile.keys)), 1


def fitting(size: int, most: int) -> int:
    """The side of the tiles, a power of two from 16 to ``most``, that cover ``size`` at the least cost: each costs its
    side and 16 more."""
    sides = [1 << n for n in range(4, most.bit_length())]
    return min(sides, key=lambda side: (-(-size // side) * (side + 16), -side))
