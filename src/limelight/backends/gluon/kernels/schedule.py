"""Who computes what, and which blocks of keys: small functions of whole numbers, in Triton, so that they run in its
interpreter too. The kernels of Gluon call them.

A *column* is a head of a batch row; an *item* is a tile of queries of a column. A *plan* holds what the partitions of a
program must agree on for each tile of queries: `RECORD` int32 numbers, worked out once for all heads.
"""

import triton
import triton.language as tl

from ...triton.kernels.visibility import blocks, chosen, intervals, program

RECORD = tl.constexpr(32)  # numbers of a tile in the plan
# row, first query, query end, key begin, key end, query offset, key offset, then these:
EDGES, STEPS, BLOCKS = (tl.constexpr(n) for n in (7, 8, 9))
# and for each interval its first block, first and last whole block, last block (ends are not included).


@triton.jit
def turns(program, programs, items):
    """How many items a program has: see `item`."""
    whole = items // programs
    rest = items % programs
    place = tl.where(whole % 2 == 0, program, programs - 1 - program)
    return whole + (place < rest).to(tl.int32)


@triton.jit
def item(turn, program, programs):
    """The number of a program's item: turns go to and fro over the programs, so that an order from the longest to the
    shortest gives each about the same work."""
    return turn * programs + tl.where(turn % 2 == 0, program, programs - 1 - program)


@triton.jit
def place(number, tiles, columns, section):
    """Tile and column of an item. ``section`` columns, whose keys and values fit the second-level cache, come together;
    among them the tiles in their order, the longest first, and each tile for all columns."""
    part = number // (section * tiles)
    within = number - part * section * tiles
    wide = tl.minimum(section, columns - part * section)
    return within // wide, part * section + within % wide


@triton.jit
def step(record, t, edges, form: tl.constexpr):
    """``(n, k)``: the block of keys of step ``t``, and the interval it belongs to. All blocks that an edge cuts come
    first, then the whole ones; blocks of an interval ascend."""
    at = record + BLOCKS
    INTERVALS: tl.constexpr = form.INTERVALS
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


@triton.jit(do_not_specialize=["segment", "heads"])
def plan(
    records, flags, heads, work, segments, segment, spans, begins, ends, interval_strides, form: tl.constexpr
):  # fmt: skip
    """The record of a tile of queries (grid: tiles, batch rows); the last tiles come first. A tile that sees nothing
    has one step, whose comparison finds nothing. The flags of the tile are set to 0, for each of the heads."""
    row, first, query_end, key_begin, key_end, query_offset, key_offset, _ = program(work, segments, segment, form)
    b = tl.where(row < 0, tl.program_id(1), row)
    i = first + tl.arange(0, form.ROWS)
    exists = i < query_end
    seen_by = intervals(
        spans, begins, ends, interval_strides, b, i, i + query_offset, exists, key_begin, key_end, key_offset, form
    )
    at = records + (tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)) * RECORD
    tl.store(at, b)
    tl.store(at + 1, first)
    tl.store(at + 2, query_end)
    tl.store(at + 3, key_begin)
    tl.store(at + 4, key_end)
    tl.store(at + 5, query_offset)
    tl.store(at + 6, key_offset)
    INTERVALS: tl.constexpr = form.INTERVALS
    edges = 0
    whole = 0
    for k in tl.static_range(INTERVALS):
        begin, end = chosen(k, seen_by, form)
        low, whole_first, whole_last, last = blocks(begin, end, exists, form)
        edges += whole_first - low + last - whole_last
        whole += whole_last - whole_first
        tl.store(at + BLOCKS + 4 * k, low)
        tl.store(at + BLOCKS + 4 * k + 1, whole_first)
        tl.store(at + BLOCKS + 4 * k + 2, whole_last)
        tl.store(at + BLOCKS + 4 * k + 3, last)
    edges = tl.where(edges + whole == 0, 1, edges)
    tl.store(at + EDGES, edges)
    tl.store(at + STEPS, edges + whole)
    for part in range(tl.cdiv(heads, 64)):
        h = part * 64 + tl.arange(0, 64)
        of_head = flags + (tl.program_id(1) * heads + h) * tl.num_programs(0) + tl.program_id(0)
        tl.store(of_head, 0, mask=h < heads)
