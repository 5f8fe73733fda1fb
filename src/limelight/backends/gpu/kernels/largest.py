"""The largest weights of each query: a program owns a tile of queries and keeps their largest scores in registers.

Only scores are compared; the exponential is taken of those that are kept. A block of keys in which no row has a score
above the smallest one that the row keeps costs a product and one comparison of the rows' maxima.
"""

import triton
import triton.language as tl

from .second_pass import block_scores, normalizer_of, rows_of_tile, tile_of_queries
from .visibility import blocks, interval_of

ZERO = tl.constexpr(-151.0)  # the exponent of a weight that is 0 in float32
LOWEST = tl.constexpr(-3.4028234663852886e38)
NO_KEY_LEFT = tl.constexpr(2**31 - 1)


@triton.jit
def _largest(s, shift, rest, factor):
    """The largest score of each row as scores are compared: those whose weights are 0 or NaN are equal, since of equal
    weights the lowest key comes first. Minus infinity, which is not seen, stays."""
    value = tl.max(s, 1)
    positive = (tl.fma(value - shift, factor, -rest) > ZERO) | (value == -float("inf"))
    return tl.where(positive, value, LOWEST)


@triton.jit
def _insert(s, j, kept, best, best_keys, shift, rest, factor):
    """``(kept, best, best_keys)`` after a block with the keys ``j``: while a row has a score above ``kept``, the
    smallest that it keeps, its largest one takes the place of that one."""
    # Maxima ignore NaN, which only a row with NaN weights has.
    s = tl.where((rest != rest)[:, None] & (s != -float("inf")), LOWEST, s)
    value = _largest(s, shift, rest, factor)
    moves = value > kept
    while tl.max(moves.to(tl.int32), 0) > 0:
        # Below a score of a weight of 0 are only others.
        key = tl.min(tl.where(s >= value[:, None], j, NO_KEY_LEFT), 1)
        s = tl.where(j == key[:, None], -float("inf"), s)
        # Of equal scores, the one with the highest key makes room. Keys of free places are distinct.
        smallest = best == kept[:, None]
        latest = tl.max(tl.where(smallest, best_keys, -NO_KEY_LEFT), 1)
        replaced = smallest & (best_keys == latest[:, None]) & moves[:, None]
        best = tl.where(replaced, value[:, None], best)
        best_keys = tl.where(replaced, key[:, None], best_keys)
        kept = tl.min(best, 1)
        value = _largest(s, shift, rest, factor)
        moves = value > kept
    return kept, best, best_keys


@triton.jit(do_not_specialize=["segment", "heads", "queries", "top"])
def largest_weights(
    query, key, normalizer, top_weights, top_keys, query_strides, key_strides, heads, group, queries, work, segments,
    segment, spans, begins, ends, interval_strides, states, bits, map_strides, scale, factor, compare, operands,
    numbers, top, const: tl.constexpr, TOP: tl.constexpr,
):  # fmt: skip
    """The ``top`` largest weights of each query of a tile, and their keys (grid: tiles, heads, batch rows); ``TOP`` is
    ``top`` as a power of two."""
    tile = tile_of_queries(work, segments, segment, const)
    b, h, i, exists, limits, _document = tile
    interval_tables = (spans, begins, ends, interval_strides)
    q, rows, seen_by, keys = rows_of_tile(tile, query, key, query_strides, key_strides, group, interval_tables, const)
    scoring = (scale, factor, compare, operands, numbers)
    tile_map = (states, bits, map_strides)
    at = (b.to(tl.int64) * heads + h) * queries + i
    shift, rest = normalizer_of(normalizer, at, exists)
    undefined = tl.max((rest != rest).to(tl.int32), 0) > 0  # some row has NaN weights
    place = tl.arange(0, TOP)[None, :]
    free = place < top
    best = tl.where(free & (i >= 0)[:, None], -float("inf"), float("inf"))
    best_keys = -1 - place + (i * 0)[:, None]
    kept = tl.min(best, 1)
    for interval in range(const.INTERVALS):
        begin, end = interval_of(interval, seen_by, const)
        first_block, whole_first, whole_last, last_block = blocks(begin, end, exists, const)
        if const.MAP_ROWS > 0:
            whole_first, whole_last = last_block, last_block
        for section in tl.static_range(1 if const.MAP_ROWS > 0 else 3):
            start = first_block if section == 0 else (whole_first if section == 1 else whole_last)
            stop = whole_first if section == 0 else (whole_last if section == 1 else last_block)
            for step in tl.range(stop - start, num_stages=None if section == 1 else 1):
                j1, _in_segment, s = block_scores(
                    q, start + step, begin, end, rows, limits, keys, scoring, tile_map, const, section != 1
                )
                above = _largest(s, shift, rest, factor) > kept
                if (tl.max(above.to(tl.int32), 0) > 0) | undefined:
                    kept, best, best_keys = _insert(s, j1[None, :], kept, best, best_keys, shift, rest, factor)
    best = tl.where(free, best, -float("inf"))
    best_keys = tl.where(free, best_keys, NO_KEY_LEFT)
    for t in range(top):
        value = tl.max(best, 1)
        chosen = tl.min(tl.where(best == value[:, None], best_keys, NO_KEY_LEFT), 1)
        taken = best_keys == chosen[:, None]
        best = tl.where(taken, -float("inf"), best)
        best_keys = tl.where(taken, NO_KEY_LEFT, best_keys)
        weight = tl.where(chosen < 0, 0.0, tl.exp2(tl.fma(value - shift, factor, -rest)))
        tl.store(top_weights + at * top + t, weight, mask=exists)
        tl.store(top_keys + at * top + t, tl.maximum(chosen, -1).to(tl.int64), mask=exists)
