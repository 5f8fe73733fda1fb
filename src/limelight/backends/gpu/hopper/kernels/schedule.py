"""The work of each program, and the blocks of keys of each tile: integer functions in Triton, so that they run in its
interpreter too. The Gluon kernels call them.

A *column* is a head of a batch row; an *item* is a tile of queries of a column, or, backward, of keys. A *plan*
holds `RECORD` int32 values for each tile, computed once for all heads, from which all partitions of a program read.
"""

import triton
import triton.language as tl

from ...kernels.visibility import (
    blocks,
    interval_of,
    intervals,
    ordered,
    program,
    program_of_keys,
    queries_of,
    query_blocks,
)
from ..tuning import LINE as _LINE

RECORD = tl.constexpr(32)  # values of a tile in the plan
# row, first query, query end, key begin, key end, query offset, key offset, then these:
EDGES, STEPS, BLOCKS = (tl.constexpr(n) for n in (7, 8, 9))
# and for each interval its first block, first and last whole block, last block (ends are not included).
# For a tile of keys, value 1 is its first key; BLOCKS is the first query that sees one of its keys, and BLOCKS + 1 the
# number of blocks of queries before the whole ones.
LINE = tl.constexpr(_LINE)


@triton.jit
def item_count(program, programs, items):
    """The number of items of a program, in the order of `item_number`."""
    whole = items // programs
    remainder = items % programs
    rank = tl.where(whole % 2 == 0, program, programs - 1 - program)
    return whole + (rank < remainder).to(tl.int32)


@triton.jit
def item_number(index, program, programs):
    """The number of a program's item ``index``. Items are dealt to the programs in alternating direction, so that items
    ordered from the longest to the shortest give each program about the same work."""
    return index * programs + tl.where(index % 2 == 0, program, programs - 1 - program)


@triton.jit
def tile_and_column(number, tiles, columns, section):
    """Tile and column of an item. ``section`` columns, whose keys and values fit the L2 cache, are adjacent;
    among them the tiles in their order, the longest first, and each tile for all columns."""
    part = number // (section * tiles)
    within = number - part * section * tiles
    wide = tl.minimum(section, columns - part * section)
    return within // wide, part * section + within % wide


@triton.jit
def _write_record(records, b, first, query_end, key_begin, key_end, query_offset, key_offset):
    """Write the first values of the record of this program's tile; its address."""
    at = records + (tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)) * RECORD
    tl.store(at, b)
    tl.store(at + 1, first)
    tl.store(at + 2, query_end)
    tl.store(at + 3, key_begin)
    tl.store(at + 4, key_end)
    tl.store(at + 5, query_offset)
    tl.store(at + 6, key_offset)
    return at


@triton.jit
def _clear_flags(flags, heads):
    """Set the flags of this program's tile to 0, for each of the heads."""
    for part in range(tl.cdiv(heads, 64)):
        h = part * 64 + tl.arange(0, 64)
        of_head = flags + (tl.program_id(1) * heads + h) * tl.num_programs(0) + tl.program_id(0)
        tl.store(of_head, 0, mask=h < heads)


@triton.jit
def step(record, t, edges, const: tl.constexpr):
    """``(n, k)``: the block of keys of step ``t``, and the interval it belongs to. All blocks that an edge cuts come
    first, then the whole ones; blocks of an interval ascend."""
    at = record + BLOCKS
    INTERVALS: tl.constexpr = const.INTERVALS
    n = 0
    k = 0
    left = t
    if t < edges:
        for interval in tl.static_range(INTERVALS):
            first = tl.load(at + 4 * interval)
            before = tl.load(at + 4 * interval + 1) - first
            whole_last = tl.load(at + 4 * interval + 2)
            count = before + tl.load(at + 4 * interval + 3) - whole_last
            mine = (left >= 0) & (left < count)
            n = tl.where(mine, tl.where(left < before, first, whole_last - before) + left, n)
            k = tl.where(mine, interval, k)
            left = left - count
    else:
        left = t - edges
        for interval in tl.static_range(INTERVALS):
            whole_first = tl.load(at + 4 * interval + 1)
            count = tl.load(at + 4 * interval + 2) - whole_first
            mine = (left >= 0) & (left < count)
            n = tl.where(mine, whole_first + left, n)
            k = tl.where(mine, interval, k)
            left = left - count
    return n, k


@triton.jit
def blocks_of_one(record):
    """What `block_of_one` needs, loaded once for all steps of a tile whose rows have one interval."""
    return tl.load(record + BLOCKS), tl.load(record + BLOCKS + 1), tl.load(record + BLOCKS + 2)


@triton.jit
def block_of_one(blocks_of_tile, t, edges):
    """The block of keys of step ``t``, as `step` gives it, of a tile whose rows have one interval."""
    first, whole_first, whole_last = blocks_of_tile
    before = whole_first - first
    of_edges = t + tl.where(t < before, first, whole_last - before)
    return tl.where(t < edges, of_edges, whole_first + t - edges)


@triton.jit(do_not_specialize=["segment", "heads"])
def plan(
    records, flags, heads, work, segments, segment, spans, begins, ends, interval_strides, const: tl.constexpr
):  # fmt: skip
    """The record of a tile of queries (grid: tiles, batch rows); the last tiles come first. A tile that sees no
    key has one step, in which every pair is masked. The flags of the tile are set to 0, for each of the heads."""
    row, first, query_end, key_begin, key_end, query_offset, key_offset, _ = program(work, segments, segment, const)
    b = tl.where(row < 0, tl.program_id(1), row)
    i = first + tl.arange(0, const.ROWS)
    exists = i < query_end
    seen_by = intervals(
        spans, begins, ends, interval_strides, b, i, i + query_offset, exists, key_begin, key_end, key_offset, const
    )
    at = _write_record(records, b, first, query_end, key_begin, key_end, query_offset, key_offset)
    INTERVALS: tl.constexpr = const.INTERVALS
    edges = 0
    whole = 0
    for k in tl.static_range(INTERVALS):
        begin, end = interval_of(k, seen_by, const)
        low, whole_first, whole_last, last = blocks(begin, end, exists, const)
        edges += whole_first - low + last - whole_last
        whole += whole_last - whole_first
        tl.store(at + BLOCKS + 4 * k, low)
        tl.store(at + BLOCKS + 4 * k + 1, whole_first)
        tl.store(at + BLOCKS + 4 * k + 2, whole_last)
        tl.store(at + BLOCKS + 4 * k + 3, last)
    edges = tl.where(edges + whole == 0, 1, edges)
    tl.store(at + EDGES, edges)
    tl.store(at + STEPS, edges + whole)
    _clear_flags(flags, heads)


@triton.jit
def query_step(record, t, group, const: tl.constexpr):
    """``(g, first)``: of step ``t`` of a tile of keys the head within its group, and the first query of the block. The
    blocks that an edge cuts come first, for all heads of the group, then the whole ones."""
    edges = tl.load(record + EDGES)
    low = tl.load(record + BLOCKS)
    before = tl.load(record + BLOCKS + 1)
    whole = tl.load(record + STEPS) - edges
    g = 0
    n = 0
    if t < edges * group:
        g = t // edges
        r = t % edges
        n = tl.where(r < before, r, r + whole)
    else:
        left = t - edges * group
        g = left // whole
        n = before + left % whole
    return g, low + n * const.ROWS


@triton.jit(do_not_specialize=["segment", "heads"])
def plan_keys(
    records, flags, heads, work, segments, segment, spans, begins, ends, interval_strides, const: tl.constexpr
):  # fmt: skip
    """The record of a tile of keys (grid: tiles, batch rows): blocks from the first query that sees one of its keys, or
    up to three before, to the last; a tile that no query sees has one step. The flags of the tile are set to 0, for
    each of the heads. The statistics of queries are bulk-copied from multiples of 16 bytes, so blocks begin at
    multiples of four queries; the queries before see none of the keys, and are masked like all of a block that an edge
    cuts."""
    row, first, query_begin, query_end, key_begin, key_end, query_offset, key_offset, _ = program_of_keys(
        work, segments, segment, const
    )
    b = tl.where(row < 0, tl.program_id(1), row)
    low, high, whole_low, whole_high = queries_of(
        spans, begins, ends, interval_strides, b, first, query_begin, query_end, key_begin, key_end, query_offset,
        key_offset, const, 256,
    )  # fmt: skip
    unseen = high < low
    low = tl.where(unseen, query_begin, low) // LINE * LINE
    count, before, whole = query_blocks(low, high, whole_low, whole_high, const)
    at = _write_record(records, b, first, query_end, key_begin, key_end, query_offset, key_offset)
    total = tl.maximum(count, 1)
    tl.store(at + EDGES, total - whole)
    tl.store(at + STEPS, total)
    tl.store(at + BLOCKS, low)
    tl.store(at + BLOCKS + 1, before)
    _clear_flags(flags, heads)


@triton.jit(do_not_specialize=["segment", "batch", "queries"])
def bounds(
    result, batch, queries, work, segments, segment, spans, begins, ends, interval_strides, const: tl.constexpr
):  # fmt: skip
    """Begins and ends of the intervals of each query, ascending, ``(2 INTERVALS, B, queries)`` (grid: tiles, batch
    rows)."""
    row, first, query_end, key_begin, key_end, query_offset, key_offset, _ = program(work, segments, segment, const)
    b = tl.where(row < 0, tl.program_id(1), row)
    i = first + tl.arange(0, const.ROWS)
    exists = i < query_end
    seen_by = intervals(
        spans, begins, ends, interval_strides, b, i, i + query_offset, exists, key_begin, key_end, key_offset, const
    )
    seen_by = ordered(seen_by, const)
    INTERVALS: tl.constexpr = const.INTERVALS
    for k in tl.static_range(INTERVALS):
        begin, end = interval_of(k, seen_by, const)
        tl.store(result + (2 * k * batch + b) * queries + i, begin, mask=exists)
        tl.store(result + ((2 * k + 1) * batch + b) * queries + i, end, mask=exists)
