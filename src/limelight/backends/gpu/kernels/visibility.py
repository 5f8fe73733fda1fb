"""Which keys the queries of a tile see: intervals of each query, ranges of blocks of the tile, the tile map.

The rows of a tile are queries, or queries by the heads of a group (row ``r`` is query ``first + r // PACK`` and head
``r % PACK`` of its pack), so that a few queries fill a tile together with the heads that share their keys.
"""

import triton
import triton.language as tl

SIDE = tl.constexpr(64)  # keys (and queries) of a tile of the tile map
NO_KEY = tl.constexpr(2**31 - 1)  # begin and end of an interval that holds no key, and sorts last
FIELDS = tl.constexpr(11)  # of a segment


@triton.jit
def load_segment(segments, number):
    """The first eight fields of a segment (`limelight.forms.segments`), of which ``document`` is the number of its
    document: in the batch row for a segment of every batch row, in the whole call for any other."""
    at = segments + number * FIELDS
    row = tl.load(at).to(tl.int32)
    query_begin = tl.load(at + 1).to(tl.int32)
    query_end = tl.load(at + 2).to(tl.int32)
    key_begin = tl.load(at + 3).to(tl.int32)
    key_end = tl.load(at + 4).to(tl.int32)
    query_offset = tl.load(at + 5).to(tl.int32)
    key_offset = tl.load(at + 6).to(tl.int32)
    document = tl.load(at + 7).to(tl.int32)
    return row, query_begin, query_end, key_begin, key_end, query_offset, key_offset, document


@triton.jit
def random_row(b, documents, row, document):
    """What dropout's random numbers of a segment are a function of: the number of its document in the whole call, which
    has so many ``documents`` in each batch row."""
    return tl.where(row < 0, b * documents, 0) + document


@triton.jit
def segment_at(number, segments, segment, const: tl.constexpr):
    """Segment ``number`` of the table, or the one of the call."""
    if const.SEGMENT_TABLE:
        row, query_begin, query_end, key_begin, key_end, query_offset, key_offset, document = load_segment(
            segments, number
        )
    else:
        row = -1
        document = 0
        query_begin, query_end, key_begin, key_end, query_offset, key_offset = segment
    return row, query_begin, query_end, key_begin, key_end, query_offset, key_offset, document


@triton.jit
def program(work, segments, segment, const: tl.constexpr):
    """This program's tile of queries: of the one segment of the call, or of the list ``work``.

    ``(row, first query, query end, key begin, key end, query offset, key offset, document)``; the last tiles come
    first, since those of a causal pattern are the longest.
    """
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    if const.SEGMENT_TABLE:
        first = tl.load(work + tile * 2 + 1)
        row, _, query_end, key_begin, key_end, query_offset, key_offset, document = load_segment(
            segments, tl.load(work + tile * 2)
        )
    else:
        document = 0
        row = -1
        first = segment[0] + tile * (const.ROWS // const.PACK)
        query_end = segment[1]
        key_begin = segment[2]
        key_end = segment[3]
        query_offset = segment[4]
        key_offset = segment[5]
    return row, first, query_end, key_begin, key_end, query_offset, key_offset, document


@triton.jit
def program_of_keys(work, segments, segment, const: tl.constexpr):
    """This program's tile of keys, and the queries of its segment.

    ``(row, first key, query begin, query end, key begin, key end, query offset, key offset, document)``; the first
    tiles come first, since those of a causal pattern are the longest.
    """
    tile = tl.program_id(0)
    if const.SEGMENT_TABLE:
        first = tl.load(work + tile * 2 + 1)
        row, query_begin, query_end, key_begin, key_end, query_offset, key_offset, document = load_segment(
            segments, tl.load(work + tile * 2)
        )
    else:
        document = 0
        row = -1
        query_begin, query_end, key_begin, key_end, query_offset, key_offset = segment
        first = (key_begin // const.BLOCK + tile) * const.BLOCK
    return row, first, query_begin, query_end, key_begin, key_end, query_offset, key_offset, document


@triton.jit
def _span_interval(spans, k, position, exists, key_begin, key_end, key_offset):
    """The interval of keys, by index, that span ``k`` gives the queries at some positions."""
    at = spans + k * 10
    p = position.to(tl.int64)
    begin = tl.maximum(tl.load(at + 2), p + tl.load(at + 3))
    end = tl.minimum(tl.load(at + 6), p + tl.load(at + 7))
    chunk = tl.load(at + 4)
    if chunk > 0:
        rest = p % chunk
        rest = tl.where(rest < 0, rest + chunk, rest)
        begin = tl.maximum(begin, p - rest + tl.load(at + 5))
        end = tl.minimum(end, p - rest + tl.load(at + 8))
    begin = tl.maximum(begin - key_offset, key_begin)
    end = tl.minimum(end - key_offset, key_end)
    nonempty = exists & (p >= tl.load(at)) & (p < tl.load(at + 1)) & (begin < end)
    return tl.where(nonempty, begin, NO_KEY).to(tl.int32), tl.where(nonempty, end, NO_KEY).to(tl.int32)


@triton.jit
def _array_interval(begins, ends, strides, k, b, i, exists, key_begin, key_end):
    """The interval ``k`` of queries ``i``, from the interval arrays of a lowering."""
    at = k * strides[0] + b.to(tl.int64) * strides[1] + i
    begin = tl.maximum(tl.load(begins + at, mask=exists, other=0), key_begin)
    end = tl.minimum(tl.load(ends + at, mask=exists, other=0), key_end)
    nonempty = exists & (begin < end)
    return tl.where(nonempty, begin, NO_KEY), tl.where(nonempty, end, NO_KEY)


@triton.jit
def _sorted(begin_a, end_a, begin_b, end_b):
    swap = begin_b < begin_a
    return (
        tl.where(swap, begin_b, begin_a),
        tl.where(swap, end_b, end_a),
        tl.where(swap, begin_a, begin_b),
        tl.where(swap, end_a, end_b),
    )


@triton.jit
def ordered(seen_by, const: tl.constexpr):
    """The intervals of each row in ascending order of their begins."""
    a0, e0, a1, e1, a2, e2, a3, e3, exists = seen_by
    if const.INTERVALS > 1:
        a0, e0, a1, e1 = _sorted(a0, e0, a1, e1)
    if const.INTERVALS > 2:
        a2, e2, a3, e3 = _sorted(a2, e2, a3, e3)
        a0, e0, a2, e2 = _sorted(a0, e0, a2, e2)
        a1, e1, a3, e3 = _sorted(a1, e1, a3, e3)
        a1, e1, a2, e2 = _sorted(a1, e1, a2, e2)
    return a0, e0, a1, e1, a2, e2, a3, e3, exists


@triton.jit
def intervals(
    spans, begins, ends, strides, b, i, position, exists, key_begin, key_end, key_offset, const: tl.constexpr
):  # fmt: skip
    """Four disjoint intervals of keys for each row, ascending, of which ``const.INTERVALS`` may hold a
    key; and which rows exist."""
    if const.INTERVAL_ARRAYS:
        a0, e0 = _array_interval(begins, ends, strides, 0, b, i, exists, key_begin, key_end)
    else:
        a0, e0 = _span_interval(spans, 0, position, exists, key_begin, key_end, key_offset)
    a1, e1, a2, e2, a3, e3 = a0, e0, a0, e0, a0, e0
    if const.INTERVALS > 1:
        none = a0 * 0 + NO_KEY
        a2, e2, a3, e3 = none, none, none, none
        if const.INTERVAL_ARRAYS:  # the lowering has merged and sorted them
            a1, e1 = _array_interval(begins, ends, strides, 1, b, i, exists, key_begin, key_end)
            if const.INTERVALS > 2:
                a2, e2 = _array_interval(begins, ends, strides, 2, b, i, exists, key_begin, key_end)
            if const.INTERVALS > 3:
                a3, e3 = _array_interval(begins, ends, strides, 3, b, i, exists, key_begin, key_end)
        else:
            a1, e1 = _span_interval(spans, 1, position, exists, key_begin, key_end, key_offset)
            if const.INTERVALS > 2:
                a2, e2 = _span_interval(spans, 2, position, exists, key_begin, key_end, key_offset)
            if const.INTERVALS > 3:
                a3, e3 = _span_interval(spans, 3, position, exists, key_begin, key_end, key_offset)
            a0, e0, a1, e1, a2, e2, a3, e3, _ = ordered((a0, e0, a1, e1, a2, e2, a3, e3, exists), const)
            # Keys of an earlier interval are removed from the later ones.
            a1 = tl.maximum(a1, e0)
            e1 = tl.maximum(e1, a1)
            a2 = tl.maximum(a2, e1)
            e2 = tl.maximum(e2, a2)
            a3 = tl.maximum(a3, e2)
            e3 = tl.maximum(e3, a3)
            # An interval that holds no key has NO_KEY as its begin and end; so has one that is now empty.
            a0, e0 = _or_no_key(a0, e0)
            a1, e1 = _or_no_key(a1, e1)
            a2, e2 = _or_no_key(a2, e2)
            a3, e3 = _or_no_key(a3, e3)
    return a0, e0, a1, e1, a2, e2, a3, e3, exists


@triton.jit
def _or_no_key(begin, end):
    return tl.where(begin < end, begin, NO_KEY), tl.where(begin < end, end, NO_KEY)


@triton.jit
def interval_of(k, seen_by, const: tl.constexpr):
    """Interval ``k`` of each row."""
    a0, e0, a1, e1, a2, e2, a3, e3, _ = seen_by
    if const.INTERVALS == 1:
        return a0, e0
    begin = tl.where(k == 0, a0, tl.where(k == 1, a1, tl.where(k == 2, a2, a3)))
    end = tl.where(k == 0, e0, tl.where(k == 1, e1, tl.where(k == 2, e2, e3)))
    return begin, end


@triton.jit
def contains(seen_by, j, const: tl.constexpr):
    """``(rows, keys)``: whether the keys ``j``, shaped as a row, lie in an interval of each row."""
    a0, e0, a1, e1, a2, e2, a3, e3, _ = seen_by
    seen = (j >= a0[:, None]) & (j < e0[:, None])
    if const.INTERVALS > 1:
        seen = seen | ((j >= a1[:, None]) & (j < e1[:, None]))
    if const.INTERVALS > 2:
        seen = seen | ((j >= a2[:, None]) & (j < e2[:, None])) | ((j >= a3[:, None]) & (j < e3[:, None]))
    return seen


@triton.jit
def contains_by_key(seen_by, j, const: tl.constexpr):
    """``(keys, rows)``: whether the keys ``j``, shaped as a column, lie in an interval of each row."""
    a0, e0, a1, e1, a2, e2, a3, e3, _ = seen_by
    seen = (j >= a0[None, :]) & (j < e0[None, :])
    if const.INTERVALS > 1:
        seen = seen | ((j >= a1[None, :]) & (j < e1[None, :]))
    if const.INTERVALS > 2:
        seen = seen | ((j >= a2[None, :]) & (j < e2[None, :]))
        seen = seen | ((j >= a3[None, :]) & (j < e3[None, :]))
    return seen


@triton.jit
def touches(seen_by, low, high, const: tl.constexpr):
    """Which rows see some of the keys from ``low`` to ``high``."""
    a0, e0, a1, e1, a2, e2, a3, e3, _ = seen_by
    found = (a0 < high) & (e0 > low) & (a0 < e0)
    if const.INTERVALS > 1:
        found = found | ((a1 < high) & (e1 > low) & (a1 < e1))
    if const.INTERVALS > 2:
        found = found | ((a2 < high) & (e2 > low) & (a2 < e2))
        found = found | ((a3 < high) & (e3 > low) & (a3 < e3))
    return found


@triton.jit
def covers(seen_by, low, high, const: tl.constexpr):
    """Which rows see all keys from ``low`` to ``high`` in one interval."""
    a0, e0, a1, e1, a2, e2, a3, e3, exists = seen_by
    found = (a0 <= low) & (e0 >= high)
    if const.INTERVALS > 1:
        found = found | ((a1 <= low) & (e1 >= high))
    if const.INTERVALS > 2:
        found = found | ((a2 <= low) & (e2 >= high)) | ((a3 <= low) & (e3 >= high))
    return found & exists


@triton.jit
def queries_of(
    spans, begins, ends, strides, b, first, query_begin, query_end, key_begin, key_end, query_offset, key_offset,
    const: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """``(low, high, whole_low, whole_high)`` of a tile of keys that begins at ``first``: the first and the last query
    that see one of its keys, and of those that see all of them, as long as these are contiguous; ``high < low`` where
    there are none. ``PART`` queries are looked at together."""
    low = query_end
    high = query_begin - 1
    whole_low = query_end
    whole_high = query_begin - 1
    whole_count = 0
    for part in range(tl.cdiv(query_end - query_begin, PART)):
        i = query_begin + part * PART + tl.arange(0, PART)
        seen_by = intervals(
            spans, begins, ends, strides, b, i, i + query_offset, i < query_end, key_begin, key_end, key_offset, const
        )
        found = touches(seen_by, first, first + const.BLOCK, const)
        low = tl.minimum(low, tl.min(tl.where(found, i, query_end), 0))
        high = tl.maximum(high, tl.max(tl.where(found, i, query_begin - 1), 0))
        found = covers(seen_by, first, first + const.BLOCK, const)
        whole_low = tl.minimum(whole_low, tl.min(tl.where(found, i, query_end), 0))
        whole_high = tl.maximum(whole_high, tl.max(tl.where(found, i, query_begin - 1), 0))
        whole_count += tl.sum(found.to(tl.int32), 0)
    in_a_row = (whole_count > 0) & (whole_count == whole_high - whole_low + 1)
    return low, high, tl.where(in_a_row, whole_low, query_end), tl.where(in_a_row, whole_high, query_begin - 1)


@triton.jit
def query_blocks(low, high, whole_low, whole_high, const: tl.constexpr):
    """``(count, before, whole)``: blocks of queries from ``low`` to ``high``, those before the first whole one, and the
    whole ones, all of whose queries see all keys of the tile; from `queries_of`."""
    found = whole_high >= whole_low
    before = tl.where(found, tl.cdiv(whole_low - low, const.ROWS), 0)
    whole = tl.where(found, tl.maximum((whole_high + 1 - low) // const.ROWS - before, 0), 0)
    return tl.where(high < low, 0, (high - low) // const.ROWS + 1), before, whole


@triton.jit
def blocks(begin, end, exists, const: tl.constexpr):
    """``(first, whole_first, whole_last, last)``: blocks of keys that some row sees, and those that every row sees.

    Blocks start at multiples of ``const.BLOCK``. Those that every row sees are between the partly visible ones.
    """
    low = tl.min(begin, 0)
    high = tl.max(tl.where(begin < end, end, 0), 0)
    nonempty = low < high
    first = tl.where(nonempty, low // const.BLOCK, 0)
    last = tl.where(nonempty, tl.cdiv(high, const.BLOCK), 0)
    latest = tl.max(tl.where(exists, begin, 0), 0)
    earliest = tl.min(tl.where(exists, end, NO_KEY), 0)
    whole_first = tl.where(latest < NO_KEY, tl.cdiv(tl.minimum(latest, high), const.BLOCK), last)
    whole_first = tl.minimum(tl.maximum(whole_first, first), last)
    whole_last = tl.minimum(tl.maximum(tl.minimum(earliest, high) // const.BLOCK, whole_first), last)
    return first, whole_first, whole_last, last


@triton.jit
def _states(tile_map, rows, key, const: tl.constexpr):
    """The state of the tile of each row and ``key``: -1 no pair visible, -2 every pair, else the index of its bits."""
    states, _, strides = tile_map
    b, _, h, i, _, exists = rows
    line = i // SIDE if const.MAP_ROWS > 1 else i * 0
    at = b.to(tl.int64) * strides[0] + h * strides[1] + line * strides[2] + key // SIDE
    return tl.load(states + at, mask=exists, other=-1)


@triton.jit
def any_visible(tile_map, rows, key, const: tl.constexpr):
    """Whether the tile map has a visible pair for some row in the column of tiles that holds ``key``."""
    return tl.max((_states(tile_map, rows, key, const) != -1).to(tl.int32)) > 0


@triton.jit
def in_tiles(tile_map, rows, key, j, const: tl.constexpr):
    """Whether each row sees the keys ``j``, all in the column of tiles that holds ``key``."""
    _, bits, _ = tile_map
    _, _, _, i, _, _ = rows
    state = _states(tile_map, rows, key, const)
    within = i % SIDE if const.MAP_ROWS > 1 else i * 0
    word = tl.load(bits + state.to(tl.int64) * const.MAP_ROWS + within, mask=state >= 0, other=0)
    word = tl.where(state == -2, -1, word)
    return ((word >> (j % SIDE).to(tl.int64)) & 1) != 0
