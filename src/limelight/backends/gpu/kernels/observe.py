"""Observations: a second pass over the scores, with the final normalizers, so that every weight is exact.

Each sum is accumulated by one program in a fixed order.
"""

import triton
import triton.language as tl

from .scores import LOG2_E, load_rows, strides_of_text
from .second_pass import block_scores, normalizer_of, rows_of_tile, tile_of_queries, tile_weights, weights_from
from .visibility import blocks, interval_of, segment_at


@triton.jit(do_not_specialize=["segment", "heads", "queries"])
def row_statistics(
    query, key, normalizer, statistics, distance, features, of_features, query_strides, key_strides, heads, group,
    queries, work, segments, segment, spans, begins, ends, interval_strides, states, bits, map_strides, scale, factor,
    compare, operands, numbers, first_feature, width, const: tl.constexpr, FEATURES: tl.constexpr,
):  # fmt: skip
    """Statistics of the weights of each query of a tile (grid: tiles, heads, batch rows).

    ``statistics`` are the largest score, the largest weight and the entropy, where a forward kernel has not found them;
    it, ``distance`` and ``features`` may be ``None``.
    """
    tile = tile_of_queries(work, segments, segment, const)
    b, h, i, exists, limits, _document = tile
    interval_tables = (spans, begins, ends, interval_strides)
    q, rows, seen_by, keys = rows_of_tile(tile, query, key, query_strides, key_strides, group, interval_tables, const)
    scoring = (scale, factor, compare, operands, numbers)
    tile_map = (states, bits, map_strides)
    at = (b.to(tl.int64) * heads + h) * queries + i
    normalizer = normalizer_of(normalizer, at, exists)

    STATISTICS: tl.constexpr = statistics is not None
    DISTANCE: tl.constexpr = distance is not None
    score_max = tl.full((const.ROWS,), -float("inf"), tl.float32)
    nonfinite = tl.full((const.ROWS,), 0.0, tl.float32)
    weight_max = tl.full((const.ROWS,), 0.0, tl.float32)
    entropy_sum = tl.full((const.ROWS,), 0.0, tl.float32)
    distance_sum = tl.full((const.ROWS,), 0.0, tl.float32)
    by_feature = tl.full((const.ROWS, FEATURES), 0.0, tl.float32)
    f = first_feature + tl.arange(0, FEATURES)
    for interval in range(const.INTERVALS):
        begin, end = interval_of(interval, seen_by, const)
        first_block, _whole_first, _whole_last, last_block = blocks(begin, end, exists, const)
        for step in range(last_block - first_block):
            j1, in_segment, s = block_scores(
                q, first_block + step, begin, end, rows, limits, keys, scoring, tile_map, const
            )
            power, w = weights_from(s, normalizer, factor)
            if STATISTICS:
                nonfinite += tl.sum(tl.where(s != s, 1.0, 0.0), 1)
                score_max = tl.maximum(score_max, tl.max(s, 1))
                weight_max = tl.maximum(weight_max, tl.max(w, 1))
                entropy_sum -= tl.sum(tl.where(w == 0.0, 0.0, w * power), 1)
            if DISTANCE:
                far = tl.abs(j1[None, :] - i[:, None] + limits[3] - limits[2]).to(tl.float32)
                distance_sum += tl.sum(w * far, 1)
            if FEATURES > 1:
                inside = in_segment[:, None] & (f < width)[None, :]
                x = tl.load(features + j1.to(tl.int64)[:, None] * width + f[None, :], mask=inside, other=0.0)
                by_feature = tl.dot(w, x, by_feature, input_precision="ieee")
    if STATISTICS:
        # A row with a NaN score has NaN statistics; reductions on a GPU would ignore the NaN.
        score_max = tl.where(nonfinite > 0.0, float("nan"), score_max * (1.0 if const.SCALE_FIRST else scale))
        tl.store(statistics[0] + at, score_max, mask=exists)
        tl.store(statistics[1] + at, tl.where(entropy_sum != entropy_sum, float("nan"), weight_max), mask=exists)
        tl.store(statistics[2] + at, tl.where(entropy_sum < 0.0, 0.0, entropy_sum / LOG2_E), mask=exists)
    if DISTANCE:
        tl.store(distance + at, distance_sum, mask=exists)
    if FEATURES > 1:
        inside = exists[:, None] & (f < width)[None, :]
        tl.store(of_features + at[:, None] * width + f[None, :], by_feature, mask=inside)


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
    D: tl.constexpr = const.D
    WIDTH: tl.constexpr = const.WIDTH
    acc = tl.full((const.ROWS, const.BLOCK), 0.0, tl.float32)
    for number in range(count):
        row, query_begin, query_end, key_begin, key_end, query_offset, key_offset, document = segment_at(
            number, segments, segment, const
        )
        exists = (i >= query_begin) & (i < query_end)
        in_segment = (j >= key_begin) & (j < key_end)
        if ((row < 0) | (row == b)) & (tl.max(exists.to(tl.int32), 0) * tl.max(in_segment.to(tl.int32), 0) > 0):
            strides = (query_strides, strides_of_text(key_strides, document, key_begin, const))
            k = load_rows(key, strides[1], b, h // group, j, in_segment, D, WIDTH, True, const.PAGE)
            acc += tile_weights(
                i, exists, k, j, in_segment, b, h, group, (key_begin, key_end, query_offset, key_offset), heads,
                queries, tensors, strides, interval_tables, tile_map, scoring, const, True,
            )  # fmt: skip
    place = (b.to(tl.int64) * heads + h) * number_of_rows + r
    inside = (r < number_of_rows)[:, None] & (j < keys)[None, :]
    tl.store(result + place[:, None] * keys + j[None, :], acc, mask=inside)
