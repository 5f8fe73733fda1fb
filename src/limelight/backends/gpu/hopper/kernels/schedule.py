"""Who computes what, and which blocks of keys: small functions of whole numbers, in Triton, so that they run in its
interpreter too. The kernels of Gluon call them.

A *column* is a head of a batch row; an *item* is a tile of queries of a column, or, backward, of keys. A *plan* holds
what the partitions of a program must agree on for each tile: `RECORD` int32 numbers, worked out once for all heads.
"""

import triton
import triton.language as tl

from ...kernels.visibility import blocks, chosen, covers, intervals, ordered, program, program_of_keys, touches
from ..tuning import LINE as _LINE

RECORD = tl.constexpr(32)  # numbers of a tile in the plan
# row, first query, query end, key begin, key end, query offset, key offset, then these:
EDGES, STEPS, BLOCKS = (tl.constexpr(n) for n in (7, 8, 9))
# and for each interval its first block, first and last whole block, last block (ends are not included).
# Of a tile of keys number 1 is its first key; from BLOCKS on stand the first query that sees something of it, and how
# many blocks of queries come before the whole ones.
LINE = tl.constexpr(_LINE)


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
def _record(records, b, first, query_end, key_begin, key_end, query_offset, key_offset):
    """Begins the record of this program's tile; where it lies."""
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
def _lower(flags, heads):
    """Sets the flags of this program's tile to 0, for each of the heads."""
    for part in range(tl.cdiv(heads, 64)):
        h = part * 64 + tl.arange(0, 64)
        of_head = flags + (tl.program_id(1) * heads + h) * tl.num_programs(0) + tl.program_id(0)
        tl.store(of_head, 0, mask=h < heads)


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
    at = _record(records, b, first, query_end, key_begin, key_end, query_offset, key_offset)
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
    _lower(flags, heads)


@triton.jit
def query_step(record, t, group, form: tl.constexpr):
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
    return g, low + n * form.ROWS


@triton.jit(do_not_specialize=["segment", "heads"])
def plan_keys(
    records, flags, heads, work, segments, segment, spans, begins, ends, interval_strides, form: tl.constexpr
):  # fmt: skip
    """The record of a tile of keys (grid: tiles, batch rows): blocks from the first query that sees something of it, or
    up to three before, to the last; a tile that nobody sees has one step. The flags of the tile are set to 0, for each
    of the heads. Numbers of each query are copied in bulk, from multiples of 16 bytes: hence blocks begin at multiples
    of four queries; those before see nothing of the tile, and are masked as all of a block that an edge cuts."""
    row, first, query_begin, query_end, key_begin, key_end, query_offset, key_offset, _ = program_of_keys(
        work, segments, segment, form
    )
    b = tl.where(row < 0, tl.program_id(1), row)
    low = query_end
    high = query_begin - 1
    whole_low = query_end
    whole_high = query_begin - 1
    whole_count = 0
    for part in range(tl.cdiv(query_end - query_begin, 256)):
        i = query_begin + part * 256 + tl.arange(0, 256)
        seen_by = intervals(
            spans, begins, ends, interval_strides, b, i, i + query_offset, i < query_end, key_begin, key_end,
            key_offset, form,
        )  # fmt: skip
        found = touches(seen_by, first, first + form.BLOCK, form)
        low = tl.minimum(low, tl.min(tl.where(found, i, query_end), 0))
        high = tl.maximum(high, tl.max(tl.where(found, i, query_begin - 1), 0))
        found = covers(seen_by, first, first + form.BLOCK, form)
        whole_low = tl.minimum(whole_low, tl.min(tl.where(found, i, query_end), 0))
        whole_high = tl.maximum(whole_high, tl.max(tl.where(found, i, query_begin - 1), 0))
        whole_count += tl.sum(found.to(tl.int32), 0)
    blind = high < low
    low = tl.where(blind, query_begin, low) // LINE * LINE
    # Queries that see the whole tile count only where they stand in one row.
    in_a_row = (whole_count > 0) & (whole_count == whole_high - whole_low + 1)
    before = tl.where(in_a_row, tl.cdiv(whole_low - low, form.ROWS), 0)
    whole = tl.where(in_a_row, tl.maximum((whole_high + 1 - low) // form.ROWS - before, 0), 0)
    at = _record(records, b, first, query_end, key_begin, key_end, query_offset, key_offset)
    total = tl.where(blind, 1, (high - low) // form.ROWS + 1)
    tl.store(at + EDGES, total - whole)
    tl.store(at + STEPS, total)
    tl.store(at + BLOCKS, low)
    tl.store(at + BLOCKS + 1, before)
    _lower(flags, heads)


@triton.jit(do_not_specialize=["segment", "batch", "queries"])
def bounds(
    result, batch, queries, work, segments, segment, spans, begins, ends, interval_strides, form: tl.constexpr
):  # fmt: skip
    """Begins and ends of the intervals of each query, ascending, ``(2 INTERVALS, B, queries)`` (grid: tiles, batch
    rows)."""
    row, first, query_end, key_begin, key_end, query_offset, key_offset, _ = program(work, segments, segment, form)
    b = tl.where(row < 0, tl.program_id(1), row)
    i = first + tl.arange(0, form.ROWS)
    exists = i < query_end
    seen_by = intervals(
        spans, begins, ends, interval_strides, b, i, i + query_offset, exists, key_begin, key_end, key_offset, form
    )
    seen_by = ordered(seen_by, form)
    INTERVALS: tl.constexpr = form.INTERVALS
    for k in tl.static_range(INTERVALS):
        begin, end = chosen(k, seen_by, form)
        tl.store(result + (2 * k * batch + b) * queries + i, begin, mask=exists)
        tl.store(result + ((2 * k + 1) * batch + b) * queries + i, end, mask=exists)
