"""Kernels that write down what the functions of `limelight.backends.gpu.hopper.kernels.schedule` give. Import it where
Triton's interpreter is switched on."""

import triton
import triton.language as tl

from limelight.backends.gpu.hopper.kernels.schedule import (
    EDGES,
    STEPS,
    block_of_one,
    blocks_of_one,
    item_count,
    item_number,
    query_step,
    step,
    tile_and_column,
)
from limelight.backends.gpu.kernels.visibility import interval_of, intervals


@triton.jit
def steps(record, found, bounds, spans, begins, ends, strides, const: tl.constexpr):
    """Block and kind of each step of a tile, and the interval of each of its rows."""
    edges = tl.load(record + EDGES)
    b = tl.load(record)
    r = tl.arange(0, const.ROWS)
    i = tl.load(record + 1) + r
    seen_by = intervals(
        spans, begins, ends, strides, b, i, i + tl.load(record + 5), i < tl.load(record + 2),
        tl.load(record + 3), tl.load(record + 4), tl.load(record + 6), const,
    )  # fmt: skip
    for t in range(tl.load(record + STEPS)):
        n, k = step(record, t, edges, const)
        if const.INTERVALS == 1:
            n = tl.where(n == block_of_one(blocks_of_one(record), t, edges), n, -1)
        tl.store(found + 2 * t, n)
        tl.store(found + 2 * t + 1, (t < edges).to(tl.int32))
        begin, end = interval_of(k, seen_by, const)
        tl.store(bounds + (t * const.ROWS + r) * 2, begin)
        tl.store(bounds + (t * const.ROWS + r) * 2 + 1, end)


@triton.jit
def numbers(found, programs, items):
    """Counts the items of all programs."""
    for turn in range(item_count(tl.program_id(0), programs, items)):
        number = item_number(turn, tl.program_id(0), programs)
        tl.store(found + number, tl.load(found + number) + 1)


@triton.jit
def places(found, items, tiles, columns, section):
    """Tile and column of each item."""
    for number in range(items):
        tile, column = tile_and_column(number, tiles, columns, section)
        tl.store(found + 2 * number, tile)
        tl.store(found + 2 * number + 1, column)


@triton.jit
def query_steps(record, found, group, const: tl.constexpr):
    """Head, first query and kind of each step of a tile of keys."""
    edges = tl.load(record + EDGES) * group
    for t in range(tl.load(record + STEPS) * group):
        g, first = query_step(record, t, group, const)
        tl.store(found + 3 * t, g)
        tl.store(found + 3 * t + 1, first)
        tl.store(found + 3 * t + 2, (t < edges).to(tl.int32))
