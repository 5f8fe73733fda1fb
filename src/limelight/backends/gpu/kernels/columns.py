"""Sums of the weights over queries, of each key and of blocks: a program owns a tile of keys and goes over the queries.

The scores are computed again, and their weights follow from the final normalizers. Every sum stays in the registers of
one program, so results are the same bits always.
"""

import triton
import triton.language as tl

from .scores import load_rows, strides_of_text
from .second_pass import tile_weights
from .visibility import covers, intervals, segment_at, touches

SCANNED = tl.constexpr(256)  # queries whose intervals are compared with a tile of keys at a time


@triton.jit
def _queries_of(first, limits, b, interval_tables, const: tl.constexpr):
    """``(low, high, whole_low, whole_high)``: from ``low`` to before ``high`` lie all queries of a segment that see one
    of the tile's keys, from ``whole_low`` to before ``whole_high`` queries that see all of them."""
    query_begin, query_end, key_begin, key_end, query_offset, key_offset = limits
    spans, begins, ends, interval_strides = interval_tables
    lowest = tl.full((SCANNED,), 2147483647, tl.int32)
    highest = tl.full((SCANNED,), -1, tl.int32)
    whole_lowest, whole_highest = lowest, highest
    number = tl.full((SCANNED,), 0, tl.int32)
    for part in range(tl.cdiv(query_end - query_begin, SCANNED)):
        i = query_begin + part * SCANNED + tl.arange(0, SCANNED)
        seen_by = intervals(
            spans, begins, ends, interval_strides, b, i, i + query_offset, i < query_end, key_begin, key_end,
            key_offset, const,
        )  # fmt: skip
        some = touches(seen_by, first, first + const.BLOCK, const)
        lowest = tl.where(some, tl.minimum(lowest, i), lowest)
        highest = tl.where(some, i, highest)
        every = covers(seen_by, first, first + const.BLOCK, const)
        whole_lowest = tl.where(every, tl.minimum(whole_lowest, i), whole_lowest)
        whole_highest = tl.where(every, i, whole_highest)
        number += every.to(tl.int32)
    low, high = tl.min(lowest, 0), tl.max(highest, 0) + 1
    whole_low, whole_high = tl.min(whole_lowest, 0), tl.max(whole_highest, 0) + 1
    low = tl.minimum(low, high)
    connected = tl.sum(number, 0) == whole_high - whole_low
    return low, high, tl.where(connected, whole_low, low), tl.where(connected, whole_high, low)


@triton.jit(do_not_specialize=["segment", "heads", "queries", "keys", "count", "columns"])
def column_sums(
    query, key, normalizer, received, blocks, query_strides, key_strides, heads, group, queries, keys, segments,
    segment, count, spans, begins, ends, interval_strides, states, bits, map_strides, scale, factor, compare, operands,
    numbers, high, wide, columns, parts, const: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Weights summed over queries, and over blocks of ``high`` queries by ``wide`` keys (grid: tiles of keys, heads,
    batch rows).

    A tile holds ``COLUMNS`` columns of blocks, or is one of the ``parts`` of one column. ``received`` is
    ``(B, Hq, keys)``, ``blocks`` is ``(B, Hq, block rows, columns, parts)`` and zero before; either may be ``None``.
    """
    column = tl.program_id(0) // parts * COLUMNS
    part = tl.program_id(0) % parts
    h = tl.program_id(1)
    b = tl.program_id(2)
    first = column * wide + part * const.BLOCK
    j = first + tl.arange(0, const.BLOCK)
    last = tl.minimum((column + COLUMNS) * wide, keys)
    place = b.to(tl.int64) * heads + h
    interval_tables = (spans, begins, ends, interval_strides)
    tile_map = (states, bits, map_strides)
    scoring = (scale, factor, compare, operands, numbers)
    tensors = (query, key, normalizer)
    D: tl.constexpr = const.D
    WIDTH: tl.constexpr = const.WIDTH
    RECEIVED: tl.constexpr = received is not None
    BLOCKS: tl.constexpr = blocks is not None
    by_key = tl.full((const.ROWS // 16, 8, const.BLOCK), 0.0, tl.float32)
    by_row = tl.full((const.ROWS, COLUMNS), 0.0, tl.float32)
    tiles = tl.cdiv(high, const.ROWS)  # of queries in a block
    for number in range(count):
        row, query_begin, query_end, key_begin, key_end, query_offset, key_offset, document = segment_at(
            number, segments, segment, const
        )
        if ((row < 0) | (row == b)) & (key_begin < last) & (key_end > first):
            low, end, whole_low, whole_high = _queries_of(
                first, (query_begin, query_end, key_begin, key_end, query_offset, key_offset), b, interval_tables, const
            )
            in_tile = (j >= key_begin) & (j < tl.minimum(key_end, last))
            key_strides_here = strides_of_text(key_strides, document, key_begin, const)
            k = load_rows(key, key_strides_here, b, h // group, j, in_tile, D, WIDTH, True, const.PAGE)
            # Tiles of queries are counted from query 0: `tiles` for each row of blocks.
            first_tile = low // high * tiles + low % high // const.ROWS
            last_tile = (end - 1) // high * tiles + (end - 1) % high // const.ROWS + 1
            last_tile = tl.where(low < end, last_tile, first_tile)
            regular = (high % const.ROWS == 0) & (first + const.BLOCK <= last) & (const.MAP_ROWS == 0)
            whole_first = tl.minimum(tl.maximum(tl.cdiv(whole_low, const.ROWS), first_tile), last_tile)
            whole_last = tl.minimum(tl.maximum(whole_high // const.ROWS, whole_first), last_tile)
            whole_last = tl.where(regular, whole_last, whole_first)
            for section in tl.static_range(3):
                begin = first_tile if section == 0 else (whole_first if section == 1 else whole_last)
                stop = whole_first if section == 0 else (whole_last if section == 1 else last_tile)
                for step in tl.range(stop - begin, num_stages=None if section == 1 else 1):
                    tile = begin + step
                    block_row = tile // tiles
                    i = block_row * high + tile % tiles * const.ROWS + tl.arange(0, const.ROWS)
                    exists = (i >= query_begin) & (i < tl.minimum((block_row + 1) * high, query_end))
                    w = tile_weights(
                        i, exists, k, j, in_tile, b, h, group, (key_begin, key_end, query_offset, key_offset), heads,
                        queries, tensors, (query_strides, key_strides_here), interval_tables, tile_map, scoring, const,
                        section != 1,
                    )  # fmt: skip
                    if RECEIVED:
                        # Rows 8 apart lie in one thread, so this takes half the registers and no exchange.
                        by_key += tl.sum(tl.reshape(w, (const.ROWS // 16, 2, 8, const.BLOCK)), 1)
                    if BLOCKS:
                        by_row += tl.sum(tl.reshape(w, (const.ROWS, COLUMNS, const.BLOCK // COLUMNS)), 2)
                        if (tile % tiles == tiles - 1) | (tile == last_tile - 1):
                            of_column = column + tl.arange(0, COLUMNS)
                            at = ((place * tl.cdiv(queries, high) + block_row) * columns + of_column) * parts + part
                            found = tl.sum(by_row, 0)
                            if const.SEGMENT_TABLE:  # segments may share a block
                                found += tl.load(blocks + at, mask=of_column < columns, other=0.0)
                            tl.store(blocks + at, found, mask=of_column < columns)
                            by_row = tl.full((const.ROWS, COLUMNS), 0.0, tl.float32)
    if RECEIVED:
        tl.store(received + place * keys + j, tl.sum(tl.sum(by_key, 1), 0), mask=j < last)
