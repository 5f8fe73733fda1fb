"""Gradients of `Bias` tensors and `RelativeBias` tables: a program owns a tile of the bias, or a block of distances."""

import triton
import triton.language as tl

from ..dropout import seed_of
from ..normalizers import normalizer_at
from ..second_pass import rows_and_visibility
from ..visibility import random_row, segment_at
from .tiles import product, scores, side, weights_and_gradients


@triton.jit
def _score_gradient(
    b, h, group, i1, exists, j1, in_segment, limits, dropout, heads, queries, tensors, strides,
    interval_tables, tile_map, scoring, const: tl.constexpr, AFTER: tl.constexpr,
):  # fmt: skip
    """Gradients of scores after rule ``AFTER``: queries ``i1`` by keys ``j1`` of a segment, zero where not visible."""
    D: tl.constexpr = const.D
    WIDTH: tl.constexpr = const.WIDTH
    VALUE_D: tl.constexpr = const.VALUE_D
    VALUE_WIDTH: tl.constexpr = const.VALUE_WIDTH
    query, key, value, grad_output, normalizers, delta = tensors
    query_strides, key_strides, value_strides, grad_strides = strides
    key_head = h // group
    rows, seen = rows_and_visibility(
        b, h, group, i1, exists, j1, in_segment, limits, query_strides, interval_tables, tile_map, const
    )
    j = j1[None, :]
    at = (b.to(tl.int64) * heads + h) * queries + i1
    normalizer = normalizer_at(normalizers, at[:, None], exists[:, None], True)
    row_delta = tl.load(delta + at, mask=exists, other=0.0)[:, None]
    q = side(query, query_strides, b, h, i1, exists, D, WIDTH)
    k = side(key, key_strides, b, key_head, j1, in_segment, D, WIDTH)
    s = scores(q, k, rows, j, in_segment[None, :], (query, key, key_strides), scoring, const)
    grad = side(grad_output, grad_strides, b, h, i1, exists, VALUE_D, VALUE_WIDTH)
    v = side(value, value_strides, b, key_head, j1, in_segment, VALUE_D, VALUE_WIDTH)
    dp = product(grad, v, VALUE_D, VALUE_WIDTH)
    _, ds, _ = weights_and_gradients(
        s, dp, seen, normalizer, row_delta, rows, j, in_segment[None, :], limits, scoring, dropout, const, AFTER, True,
        True,
    )  # fmt: skip
    return ds


@triton.jit(
    do_not_specialize=["segment", "heads", "queries", "keys", "documents", "threshold", "seed", "count", "over"]
)
def bias_gradient(
    query, key, value, grad_output, normalizers, delta, result,
    query_strides, key_strides, value_strides, grad_strides,
    heads, group, queries, keys, segments, segment, count, spans, begins, ends, interval_strides, states, bits,
    map_strides, scale, factor, compare, operands, numbers, threshold, keep_scale, seed, documents, over,
    const: tl.constexpr, RULE: tl.constexpr, SHARED_QUERIES: tl.constexpr, SHARED_KEYS: tl.constexpr,
):  # fmt: skip
    """One tile of the gradient of a bias (grid: tiles of the bias, its heads, its batch rows).

    ``over``: how many batch rows, heads, tiles of queries and of keys are summed, since they share an entry.
    ``result`` is float32, contiguous, with as many queries and keys as the bias.
    """
    rows_b, rows_h, rows_i, rows_j = over
    wide = tl.cdiv(keys, const.BLOCK) if not SHARED_KEYS else 1
    tile_i = tl.program_id(0) // wide
    tile_j = tl.program_id(0) % wide
    acc = tl.full((const.ROWS, const.BLOCK), 0.0, tl.float32)
    tensors = (query, key, value, grad_output, normalizers, delta)
    strides = (query_strides, key_strides, value_strides, grad_strides)
    interval_tables = (spans, begins, ends, interval_strides)
    tile_map = (states, bits, map_strides)
    scoring = (scale, factor, compare, operands, numbers)
    for step in range(rows_b * rows_h * rows_i * rows_j):
        j = (tile_j + step % rows_j) * const.BLOCK + tl.arange(0, const.BLOCK)
        i = (tile_i + step // rows_j % rows_i) * const.ROWS + tl.arange(0, const.ROWS)
        h = tl.program_id(1) + step // rows_j // rows_i % rows_h
        b = tl.program_id(2) + step // rows_j // rows_i // rows_h
        for number in range(count):
            row, query_begin, query_end, key_begin, key_end, query_offset, key_offset, document = segment_at(
                number, segments, segment, const
            )
            exists = (i >= query_begin) & (i < query_end)
            in_segment = (j >= key_begin) & (j < key_end)
            if ((row < 0) | (row == b)) & (tl.max(exists.to(tl.int32), 0) * tl.max(in_segment.to(tl.int32), 0) > 0):
                acc += _score_gradient(
                    b, h, group, i, exists, j, in_segment, (key_begin, key_end, query_offset, key_offset),
                    (threshold, keep_scale, seed_of(seed), random_row(b, documents, row, document)), heads, queries,
                    tensors, strides, interval_tables, tile_map, scoring, const, RULE,
                )  # fmt: skip
    place = tl.program_id(2).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    i = tile_i * const.ROWS + tl.arange(0, const.ROWS)
    j = tile_j * const.BLOCK + tl.arange(0, const.BLOCK)
    if SHARED_QUERIES and SHARED_KEYS:
        tl.store(result + place, tl.sum(tl.sum(acc, 1), 0))
    elif SHARED_QUERIES:
        tl.store(result + place * keys + j, tl.sum(acc, 0), mask=j < keys)
    elif SHARED_KEYS:
        tl.store(result + place * queries + i, tl.sum(acc, 1), mask=i < queries)
    else:
        at = (place * queries + i)[:, None] * keys + j[None, :]
        tl.store(result + at, acc, mask=(i < queries)[:, None] & (j < keys)[None, :])


@triton.jit(
    do_not_specialize=["segment", "heads", "queries", "documents", "threshold", "seed", "count", "rows_b", "low"]
)
def distance_gradient(
    query, key, value, grad_output, normalizers, delta, result,
    query_strides, key_strides, value_strides, grad_strides,
    heads, group, queries, segments, segment, count, spans, begins, ends, interval_strides, states, bits,
    map_strides, scale, factor, compare, operands, numbers, threshold, keep_scale, seed, documents,
    rows_b, rows_h, low, distances,
    const: tl.constexpr, RULE: tl.constexpr,
):  # fmt: skip
    """The gradient of the bias at some distances (grid: blocks of distances from ``low`` on, heads of the table).

    A query ``i`` has the distance ``d`` to key ``i + d``: a parallelogram of pairs, cut out of two square tiles.
    """
    acc = tl.full((const.BLOCK,), 0.0, tl.float32)
    d0 = low + tl.program_id(0) * const.BLOCK
    r = tl.arange(0, const.ROWS)
    c = tl.arange(0, const.BLOCK)
    tensors = (query, key, value, grad_output, normalizers, delta)
    strides = (query_strides, key_strides, value_strides, grad_strides)
    interval_tables = (spans, begins, ends, interval_strides)
    tile_map = (states, bits, map_strides)
    scoring = (scale, factor, compare, operands, numbers)
    for step in range(rows_b * rows_h):
        h = tl.program_id(1) + step % rows_h
        b = step // rows_h
        for number in range(count):
            row, query_begin, query_end, key_begin, key_end, query_offset, key_offset, document = segment_at(
                number, segments, segment, const
            )
            tiles_i = tl.where((row < 0) | (row == b), tl.cdiv(query_end - query_begin, const.ROWS), 0)
            for half_tile in range(tiles_i * 2):
                i0 = query_begin + half_tile // 2 * const.ROWS
                half = half_tile % 2
                i = i0 + r
                j0 = i0 + query_offset - key_offset + d0 + half * const.BLOCK
                j = j0 + c
                if (j0 < key_end) & (j0 + const.BLOCK > key_begin):
                    ds = _score_gradient(
                        b, h, group, i, i < query_end, j, (j >= key_begin) & (j < key_end),
                        (key_begin, key_end, query_offset, key_offset),
                        (threshold, keep_scale, seed_of(seed), random_row(b, documents, row, document)), heads, queries,
                        tensors, strides, interval_tables, tile_map, scoring, const, RULE,
                    )  # fmt: skip
                    at = r[:, None] + c[None, :] - half * const.BLOCK
                    inside = (at >= 0) & (at < const.BLOCK)
                    shifted = tl.gather(ds, tl.where(inside, at, 0), 1)
                    acc += tl.sum(tl.where(inside, shifted, 0.0), 0)
    d = tl.program_id(0) * const.BLOCK + c
    tl.store(result + tl.program_id(1) * distances + d, acc, mask=d < distances)
