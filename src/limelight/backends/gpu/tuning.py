"""Which tile a kernel takes, for each generation of GPUs and what a call needs; there is no autotuning."""

from __future__ import annotations

from collections.abc import Iterable

from .tiles import (
    BACKWARD,
    BEFORE_HOPPER,
    BIASED,
    BIASES,
    COLUMNS,
    DEMANDING,
    DISTANCES,
    FORWARD,
    FORWARD_WITH_ENTROPY,
    INTERPRETED,
    LARGEST,
    MOST,
    MOST_OF_KEYS,
    MOST_OF_QUERIES,
    OBSERVED,
    STAGES_OVER_PAGES,
    Most,
)
from .tiles import NOTHING as NOTHING
from .tiles import Needs as Needs
from .tiles import Tile as Tile


def width(size: int) -> int:
    """A head width padded to a power of two, at least the 16 that a matrix instruction takes."""
    return max(16, 1 << (size - 1).bit_length())


def parts(size: int) -> tuple[int, int]:
    """A head width as two powers of two, 96 as 64 and 32, where their sum is less than `width`; else ``(width, 0)``."""
    first = 1 << (size.bit_length() - 1)
    rest = width(size - first)
    return (first, rest) if 32 <= first < size and first + rest < width(size) else (width(size), 0)


def score_tiles(generation: str, itemsize: int, widest: int) -> tuple[Tile, Tile]:
    """The tiles of the kernels that own tiles of a bias and blocks of distances."""
    if generation == "interpreter":
        return INTERPRETED, INTERPRETED
    return _of_table(BIASES, generation, itemsize, widest), _of_table(DISTANCES, generation, itemsize, widest)


def backward_tiles(generation: str, itemsize: int, widest: int, needs: Needs = NOTHING) -> tuple[Tile, Tile]:
    """The tiles of the kernel that owns queries and of the one that owns keys."""
    if generation == "interpreter":
        return INTERPRETED, INTERPRETED
    kind = (generation, itemsize) if (generation, itemsize) in BACKWARD else ("other", itemsize)
    demanding = needs & (Needs.MAP | Needs.PAIRS | Needs.DROPOUT)
    if widest > 128:
        demanding |= needs & (Needs.DISTANCES | (Needs.RULES | Needs.INTERVALS if generation == "hopper" else NOTHING))
    biased = demanding == Needs.PAIRS and Needs.DISTANCES not in needs
    tables = (BIASED if biased else {}, DEMANDING if demanding else {}, BACKWARD)
    table = [line for of_needs in tables for line in of_needs.get(kind, ())]
    of_queries, of_keys = next((of_queries, of_keys) for limit, of_queries, of_keys in table if widest <= limit)
    call = (generation, itemsize, widest, needs)
    return _at_most(of_queries, MOST_OF_QUERIES, *call), _at_most(of_keys, MOST_OF_KEYS, *call)


def forward_tile(generation: str, itemsize: int, widest: int, rows: int, needs: Needs = NOTHING) -> Tile:
    """The tile of a forward pass whose larger head width (as a power of two, or two) is ``widest``.

    ``rows``: queries times heads that could share a tile; the tile is smaller where these are few.
    """
    if generation == "interpreter":
        return INTERPRETED
    kind = (generation, itemsize) if (generation, itemsize) in FORWARD else ("other", itemsize)
    table = (*(FORWARD_WITH_ENTROPY.get(kind, ()) if Needs.ENTROPY in needs else ()), *FORWARD[kind])
    tile = next(tile for limit, tile in table if widest <= limit)
    tile = _at_most(tile, MOST, generation, itemsize, widest, needs)
    if rows < tile.rows:
        few = max(16, 1 << (rows - 1).bit_length())
        full = itemsize == 4 or (widest > 128 and Needs.MAP | Needs.PAIRS in needs)  # 4 warps would spill
        tile = tile._replace(rows=few, warps=4 if few <= 64 and not full else tile.warps)
        if generation == "blackwell" and tile.keys > 64:  # 128 keys spill in some widths
            tile = tile._replace(keys=64, stages=3)
        if Needs.PAGES in needs and generation != "rocm":  # AMD's GPUs have 64 KiB of shared memory
            tile = tile._replace(stages=STAGES_OVER_PAGES)
    return tile


def _at_most(tile: Tile, limits: Iterable[Most], generation: str, itemsize: int, widest: int, needs: Needs) -> Tile:
    """A tile within all limits that are meant for a call."""
    for most in limits:
        meant = (most.of is None or generation in most.of) and most.itemsize in (None, itemsize)
        if meant and most.needs in needs and most.widths[0] < widest <= most.widths[1]:
            rows, keys, stages = (min(pair) for pair in zip(tile[:2] + tile[3:4], most[3:6], strict=True))
            tile = tile._replace(rows=rows, keys=keys, stages=stages)
    return tile


def flash1_tile(generation: str, itemsize: int, widest: int) -> Tile:
    """The tile of `flash1`; its blocks of keys are long, since output is read and written for each."""
    if generation == "interpreter":
        return INTERPRETED
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
        return INTERPRETED
    if widest > 256:
        return Tile(16, 16, 8, 1)
    limit = 64 if generation == "blackwell" or needs & OBSERVED else 128
    if Needs.MAP in needs or (widest > 128 and needs & OBSERVED):
        return Tile(32, 16, 8, 1)
    narrow = generation == "blackwell" and widest <= 32 and needs & OBSERVED  # 64 keys spill 256 bytes
    return Tile(64, 64, 8, 1) if itemsize == 2 and widest <= limit and not narrow else Tile(32, 32, 8, 1)


def summing_tile(generation: str, itemsize: int, widest: int) -> Tile:
    """The tile of the normalizers' kernel: as for observing, or with fewer keys for the registers of width 128."""
    tile = observing_tile(generation, itemsize, widest)
    few = generation in BEFORE_HOPPER and widest == 128 and tile.keys > 32
    return tile._replace(keys=32) if few else tile


def _of_table(
    table: dict[tuple[str, int], tuple[tuple[int, Tile], ...]], generation: str, itemsize: int, widest: int
) -> Tile:
    lines = table.get((generation, itemsize)) or table["other", itemsize]
    return next(tile for limit, tile in lines if widest <= limit)


def largest_tile(generation: str, itemsize: int, widest: int, needs: Needs, top: int) -> Tile:
    """The tile of the kernel that keeps the ``top`` largest weights of each query; smaller for many weights."""
    if generation == "interpreter":
        return INTERPRETED
    tile = _of_table(LARGEST, generation, itemsize, widest)
    if needs & OBSERVED and itemsize == 4 and widest <= 256:
        return Tile(16, 16, 4, 1)  # larger ones spill 4 to 112 bytes on every GPU
    if needs & OBSERVED:
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
    tile = INTERPRETED if generation == "interpreter" else _of_table(COLUMNS, generation, itemsize, widest)
    if needs & OBSERVED and generation != "interpreter" and itemsize < 4:
        # 120 registers; 32 rows spill on some GPUs, whatever the warps
        tile = Tile(16, min(tile.keys, 32 if widest <= 128 else 16), 8, 1)
    elif needs & (Needs.PAGES | Needs.RULES):
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
