"""Observations: a second pass over the scores, with the final normalizers, so that every weight is exact.

Each sum is accumulated by one program in a fixed order.
"""

import triton
import triton.language as tl

from .scores import LOG2_E, after_rules, load_rows, raw_scores, strides_of_text
from .second_pass import block_scores, rows_and_visibility, rows_of
from .visibility import blocks, contains, interval_of, intervals, program, segment_at


@triton.jit
def _normalizer(normalizer, at, exists):
    """``(shift, rest)`` of some rows, as columns: the weight of a score ``s`` is ``2^((s - shift) factor - rest)``."""
    shift = tl.load(normalizer[0] + at, mask=exists, other=0.0)[:, None]
    return shift, tl.load(normalizer[1] + at, mask=exists, other=0.0)[:, None]


@triton.jit
def _weights(s, normalizer, scoring):
    """``(log2 of the weights, weights)`` of scores; the weight of a score of minus infinity is zero."""
    power = tl.fma(s - normalizer[0], scoring[1], -normalizer[1])
    return power, tl.where(s != -float("inf"), tl.exp2(power), 0.0)


@triton.jit
def _tile(
    b, h, group, i1, exists, j1, in_segment, limits, heads, queries, tensors, strides, interval_tables, tile_map,
    scoring, const: tl.constexpr,
):  # fmt: skip
    """Weights of queries ``i1`` by keys ``j1`` of one segment, zero where a pair is not visible."""
    D: tl.constexpr = const.D
    WIDTH: tl.constexpr = const.WIDTH
    query, key, normalizer = tensors
    query_strides, key_strides = strides
    _key_begin, _key_end, query_offset, key_offset = limits
    key_head = h // group
    rows, seen = rows_and_visibility(
        b, h, group, i1, exists, j1, in_segment, limits, query_strides, interval_tables, tile_map, const
    )
    j = j1[None, :]
    normalizer = _normalizer(normalizer, (b.to(tl.int64) * heads + h) * queries + i1, exists)
    q = load_rows(query, query_strides, b, h, i1, exists, D, WIDTH, True)
    k = load_rows(key, key_strides, b, key_head, j1, in_segment, D, WIDTH, True, const.PAGE)
    s = raw_scores(q, k, rows, j, in_segment[None, :], (query, key, key_strides), scoring, const)
    s, _ = after_rules(s, rows, j, in_segment[None, :], key_offset - query_offset, scoring, const, 0)
    _power, w = _weights(tl.where(seen, s, -float("inf")), normalizer, scoring)
    return w


@triton.jit(do_not_specialize=["segment", "heads", "queries"])
def row_statistics(
    query, key, normalizer, max_score, max_weight, entropy, distance, top_weights, top_keys, features, of_features,
    query_strides, key_strides, heads, group, queries, work, segments, segment, spans, begins, ends, interval_strides,
    states, bits, map_strides, scale, factor, compare, operands, numbers, first_feature, width, top,
    const: tl.constexpr, TOP: tl.constexpr, FEATURES: tl.constexpr,
):  # fmt: skip
    """Statistics of the weights of each query of a tile (grid: tiles, heads, batch rows)."""
    row, first, query_end, key_begin, key_end, query_offset, key_offset, document = program(
        work, segments, segment, const
    )
    b = tl.where(row < 0, tl.program_id(2), row)
    h1 = tl.program_id(1)
    i = first + tl.arange(0, const.ROWS)
    exists = i < query_end
    seen_by = intervals(
        spans, begins, ends, interval_strides, b, i, i + query_offset, exists, key_begin, key_end, key_offset, const
    )
    rows = rows_of(b, h1, i, exists, group, query_strides)
    limits = (key_begin, key_end, query_offset, key_offset)
    keys = (query, key, strides_of_text(key_strides, document, key_begin, const))
    scoring = (scale, factor, compare, operands, numbers)
    tile_map = (states, bits, map_strides)
    D: tl.constexpr = const.D
    WIDTH: tl.constexpr = const.WIDTH
    q = load_rows(query, query_strides, b, h1, i, exists, D, WIDTH, True)
    at = (b.to(tl.int64) * heads + h1) * queries + i
    normalizer = _normalizer(normalizer, at, exists)

    score_max = tl.full((const.ROWS,), -float("inf"), tl.float32)
    nonfinite = tl.full((const.ROWS,), 0.0, tl.float32)
    weight_max = tl.full((const.ROWS,), 0.0, tl.float32)
    entropy_sum = tl.full((const.ROWS,), 0.0, tl.float32)
    distance_sum = tl.full((const.ROWS,), 0.0, tl.float32)
    best = tl.full((const.ROWS, TOP), -1.0, tl.float32)
    best_keys = tl.full((const.ROWS, TOP), -1, tl.int32)
    by_feature = tl.full((const.ROWS, FEATURES), 0.0, tl.float32)
    place = tl.arange(0, TOP)[None, :]
    f = first_feature + tl.arange(0, FEATURES)
    for interval in range(const.INTERVALS):
        begin, end = interval_of(interval, seen_by, const)
        first_block, _whole_first, _whole_last, last_block = blocks(begin, end, exists, const)
        for step in range(last_block - first_block):
            j1, in_segment, s = block_scores(
                q, first_block + step, begin, end, rows, limits, keys, scoring, tile_map, const
            )
            j = j1[None, :]
            power, w = _weights(s, normalizer, scoring)
            nonfinite += tl.sum(tl.where(s != s, 1.0, 0.0), 1)
            score_max = tl.maximum(score_max, tl.max(s, 1))
            weight_max = tl.maximum(weight_max, tl.max(w, 1))
            there = s != -float("inf")
            entropy_sum -= tl.sum(tl.where(w == 0.0, 0.0, w * power), 1)
            distance_sum += tl.sum(w * tl.abs(j - i[:, None] + key_offset - query_offset).to(tl.float32), 1)
            if TOP > 1:
                # The largest of the weights kept so far and those of this block; of equal ones, the lowest key first.
                fresh = tl.where(there, w, -1.0)
                kept, kept_keys = best, best_keys
                for t in range(top):
                    value = tl.maximum(tl.max(fresh, 1), tl.max(kept, 1))[:, None]
                    low = tl.min(tl.where(fresh == value, j, 2147483647), 1)
                    low = tl.minimum(low, tl.min(tl.where(kept == value, kept_keys, 2147483647), 1))[:, None]
                    best = tl.where(place == t, value, best)
                    best_keys = tl.where(place == t, tl.where(value >= 0.0, low, -1), best_keys)
                    fresh = tl.where((fresh == value) & (j == low), -1.0, fresh)
                    kept = tl.where((kept == value) & (kept_keys == low), -1.0, kept)
            if FEATURES > 1:
                inside = in_segment[:, None] & (f < width)[None, :]
                x = tl.load(features + j1.to(tl.int64)[:, None] * width + f[None, :], mask=inside, other=0.0)
                by_feature = tl.dot(w, x, by_feature, input_precision="ieee")
    # A row with a NaN score has NaN statistics; reductions on a GPU would ignore the NaN.
    nan = nonfinite > 0.0
    tl.store(
        max_score + at, tl.where(nan, float("nan"), score_max * (1.0 if const.SCALE_FIRST else scale)), mask=exists
    )
    tl.store(max_weight + at, tl.where(entropy_sum != entropy_sum, float("nan"), weight_max), mask=exists)
    tl.store(entropy + at, entropy_sum / LOG2_E, mask=exists)
    tl.store(distance + at, distance_sum, mask=exists)
    if TOP > 1:
        inside = exists[:, None] & (place < top)
        tl.store(top_weights + at[:, None] * top + place, tl.maximum(best, 0.0), mask=inside)
        tl.store(top_keys + at[:, None] * top + place, best_keys.to(tl.int64), mask=inside)
    if FEATURES > 1:
        inside = exists[:, None] & (f < width)[None, :]
        tl.store(of_features + at[:, None] * width + f[None, :], by_feature, mask=inside)


@triton.jit(do_not_specialize=["segment", "heads", "queries", "keys", "count"])
def block_sums(
    query, key, normalizer, result, query_strides, key_strides, heads, group, queries, keys, segments, segment, count,
    spans, begins, ends, interval_strides, states, bits, map_strides, scale, factor, compare, operands, numbers,
    high, wide, columns, BY_KEY: tl.constexpr, const: tl.constexpr,
):  # fmt: skip
    """Weights summed over blocks of ``high`` queries by ``wide`` keys (grid: blocks, heads, batch rows).

    ``result`` is ``(B, Hq, block rows, columns)``; ``BY_KEY`` keeps the keys of a block apart, ``(B, Hq, 1, keys)``.
    """
    block_i = tl.program_id(0) // columns
    block_j = tl.program_id(0) % columns
    h = tl.program_id(1)
    b = tl.program_id(2)
    tensors = (query, key, normalizer)
    interval_tables = (spans, begins, ends, interval_strides)
    tile_map = (states, bits, map_strides)
    scoring = (scale, factor, compare, operands, numbers)
    acc = tl.full((const.ROWS, const.BLOCK), 0.0, tl.float32)
    tiles_i = tl.cdiv(high, const.ROWS)
    tiles_j = tl.cdiv(wide, const.BLOCK)
    for number in range(count):
        row, query_begin, query_end, key_begin, key_end, query_offset, key_offset, document = segment_at(
            number, segments, segment, const
        )
        i_end = tl.minimum(tl.minimum((block_i + 1) * high, queries), query_end)
        j_end = tl.minimum(tl.minimum((block_j + 1) * wide, keys), key_end)
        steps = tl.where((row < 0) | (row == b), tiles_i * tiles_j, 0)
        for step in range(steps):
            i = block_i * high + step // tiles_j * const.ROWS + tl.arange(0, const.ROWS)
            j = block_j * wide + step % tiles_j * const.BLOCK + tl.arange(0, const.BLOCK)
            exists = (i >= query_begin) & (i < i_end)
            in_segment = (j >= key_begin) & (j < j_end)
            seen_by = intervals(
                spans, begins, ends, interval_strides, b, i, i + query_offset, exists, key_begin, key_end, key_offset,
                const,
            )  # fmt: skip
            seen = contains(seen_by, j[None, :], const) & in_segment[None, :]
            if tl.max(tl.max(seen.to(tl.int32), 1), 0) > 0:
                strides = (query_strides, strides_of_text(key_strides, document, key_begin, const))
                acc += _tile(
                    b, h, group, i, exists, j, in_segment, (key_begin, key_end, query_offset, key_offset), heads,
                    queries, tensors, strides, interval_tables, tile_map, scoring, const,
                )  # fmt: skip
    place = b.to(tl.int64) * heads + h
    if BY_KEY:
        j = block_j * wide + tl.arange(0, const.BLOCK)
        tl.store(result + place * keys + j, tl.sum(acc, 0), mask=j < keys)
    else:
        tl.store(result + place * tl.num_programs(0) + tl.program_id(0), tl.sum(tl.sum(acc, 1), 0))


@triton.jit(do_not_specialize=["segment", "heads", "queries", "keys", "count", "number_of_rows"])
def whole_rows(
    query, key, normalizer, result, chosen_rows, number_of_rows, query_strides, key_strides, heads, group, queries,
    keys, segments, segment, count, spans, begins, ends, interval_strides, states, bits, map_strides,
    scale, factor, compare, operands, numbers, const: tl.constexpr,
):  # fmt: skip
    """All weights of some queries, ``(B, Hq, R, Lk)`` (grid: tiles of rows by blocks of keys, heads, batch rows)."""
    across = tl.cdiv(keys, const.BLOCK)
    r = tl.program_id(0) // across * const.ROWS + tl.arange(0, const.ROWS)
    j = tl.program_id(0) % across * const.BLOCK + tl.arange(0, const.BLOCK)
    h = tl.program_id(1)
    b = tl.program_id(2)
    i = tl.load(chosen_rows + r, mask=r < number_of_rows, other=-1).to(tl.int32)
    tensors = (query, key, normalizer)
    interval_tables = (spans, begins, ends, interval_strides)
    tile_map = (states, bits, map_strides)
    scoring = (scale, factor, compare, operands, numbers)
    acc = tl.full((const.ROWS, const.BLOCK), 0.0, tl.float32)
    for number in range(count):
        row, query_begin, query_end, key_begin, key_end, query_offset, key_offset, document = segment_at(
            number, segments, segment, const
        )
        exists = (i >= query_begin) & (i < query_end)
        in_segment = (j >= key_begin) & (j < key_end)
        if ((row < 0) | (row == b)) & (tl.max(exists.to(tl.int32), 0) * tl.max(in_segment.to(tl.int32), 0) > 0):
            strides = (query_strides, strides_of_text(key_strides, document, key_begin, const))
            acc += _tile(
                b, h, group, i, exists, j, in_segment, (key_begin, key_end, query_offset, key_offset), heads, queries,
                tensors, strides, interval_tables, tile_map, scoring, const,
            )  # fmt: skip
    place = (b.to(tl.int64) * heads + h) * number_of_rows + r
    inside = (r < number_of_rows)[:, None] & (j < keys)[None, :]
    tl.store(result + place[:, None] * keys + j[None, :], acc, mask=inside)
