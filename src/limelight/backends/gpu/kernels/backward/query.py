"""Gradients of queries, of ALiBi slopes and of the vector of `Additive`: a program owns a tile of queries."""

import triton
import triton.language as tl

from ..dropout import seed_of
from ..forward import FAST, FINITE, NONFINITE, nonfinite_flag
from ..normalizers import normalizer_at
from ..scores import additive_part
from ..visibility import blocks, in_tiles, interval_of, intervals, program, random_row
from .tiles import add_gradient, product, scores, side, side_at, weights_and_gradients


@triton.jit
def _query_block(
    acc, of_slopes, of_vector, n, q, grad, normalizer, delta, begin, end, rows, limits, keys, values, scoring,
    tile_map, dropout, const: tl.constexpr, MODE: tl.constexpr, SLOPES: tl.constexpr, VECTOR: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """One block of keys."""
    D: tl.constexpr = const.D
    WIDTH: tl.constexpr = const.WIDTH
    VALUE_D: tl.constexpr = const.VALUE_D
    VALUE_WIDTH: tl.constexpr = const.VALUE_WIDTH
    b, key_head, _, i, _, _ = rows
    key_begin, key_end, query_offset, key_offset = limits
    j1 = n * const.BLOCK + tl.arange(0, const.BLOCK)
    in_segment = (j1 >= key_begin) & (j1 < key_end)
    j = j1[None, :]
    columns = in_segment[None, :]
    seen = (j >= begin[:, None]) & (j < end[:, None])
    if const.MAP_ROWS > 0:
        seen = seen & in_tiles(tile_map, rows, n * const.BLOCK, j, const)
    k = side(keys[1], keys[2], b, key_head, j1, in_segment, D, WIDTH, MASKED)
    v = side(values[0], values[1], b, key_head, j1, in_segment, VALUE_D, VALUE_WIDTH, MASKED)
    s = scores(q, k, rows, j, columns, keys, scoring, const)
    dp = product(grad, v, VALUE_D, VALUE_WIDTH)
    _used, ds, visible = weights_and_gradients(
        s, dp, seen, normalizer, delta, rows, j, columns, limits, scoring, dropout, const, -1, MODE != FAST, MASKED
    )
    if const.ADDITIVE:
        column = tl.arange(0, const.WIDTH)[None, :]
        for d in range(const.D):
            t, v_d = additive_part(rows, j, columns, keys, scoring[2], d)
            acc += tl.where(column == d, tl.sum(tl.where(visible, ds * v_d * (1.0 - t * t), 0.0), 1)[:, None], 0.0)
            if VECTOR:
                of_vector += tl.where(column == d, tl.sum(tl.where(visible, ds * t, 0.0), 1)[:, None], 0.0)
    else:
        acc = add_gradient(ds, k[0], visible, acc, MODE)
    if SLOPES >= 0:
        _used, ds, visible = weights_and_gradients(
            s, dp, visible, normalizer, delta, rows, j, columns, limits, scoring, dropout, const, SLOPES,
            MODE != FAST, MASKED,
        )  # fmt: skip
        distance = tl.abs(j - i + key_offset - query_offset).to(tl.float32)
        of_slopes -= tl.sum(ds * distance, 1)
    return acc, of_slopes, of_vector


@triton.jit
def _query_walk(
    q, grad, normalizer, delta, seen_by, rows, limits, keys, values, scoring, tile_map, dropout,
    const: tl.constexpr, MODE: tl.constexpr, SLOPES: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """Gradients of a tile of queries, and, by row, of the slopes of rule ``SLOPES`` and of the comparison's vector.

    Blocks that an edge cuts come first, then the whole ones, which are not masked; every mode takes the same order.
    """
    acc = tl.full((const.ROWS, const.WIDTH), 0.0, tl.float32)
    of_slopes = tl.full((const.ROWS,), 0.0, tl.float32)
    of_vector = tl.full((const.ROWS, const.WIDTH if VECTOR else 1), 0.0, tl.float32)
    ALL_MASKED: tl.constexpr = MODE != FAST or const.MAP_ROWS > 0 or const.ADDITIVE
    for interval in range(const.INTERVALS):
        begin, end = interval_of(interval, seen_by, const)
        first, whole_first, whole_last, last = blocks(begin, end, seen_by[8], const)
        left = whole_first - first
        edges = left + last - whole_last
        for at in range(last - first if ALL_MASKED else edges):
            n = tl.where(at < left, first + at, tl.where(at < edges, whole_last - left, whole_first - edges) + at)
            acc, of_slopes, of_vector = _query_block(
                acc, of_slopes, of_vector, n, q, grad, normalizer, delta, begin, end, rows, limits, keys, values,
                scoring, tile_map, dropout, const, MODE, SLOPES, VECTOR, True,
            )  # fmt: skip
        if not ALL_MASKED:
            for at in range(whole_last - whole_first):
                acc, of_slopes, of_vector = _query_block(
                    acc, of_slopes, of_vector, whole_first + at, q, grad, normalizer, delta, begin, end, rows, limits,
                    keys, values, scoring, tile_map, dropout, const, MODE, SLOPES, VECTOR, False,
                )  # fmt: skip
    return acc, of_slopes, of_vector


@triton.jit(do_not_specialize=["segment", "batch", "heads", "queries", "documents", "threshold", "seed"])
def query_gradient(
    query, key, value, grad_output, normalizers, delta, grad_query, slopes, vectors, flags,
    query_strides, key_strides, value_strides, grad_strides, grad_query_strides,
    batch, heads, group, queries, work, segments, segment, spans, begins, ends, interval_strides, states, bits,
    map_strides, scale, factor, compare, operands, numbers, threshold, keep_scale, seed, documents,
    const: tl.constexpr, RESCUE: tl.constexpr, SLOPES: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """Gradients of one tile of queries (grid: tiles, head packs, batch rows).

    ``flags`` is one int32 for each program, set where a gradient is not finite; with ``RESCUE`` only those tiles are
    computed again.
    """
    number = (tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)) * tl.num_programs(0) + tl.program_id(0)
    if RESCUE and tl.load(flags + number) == 0:
        return
    row, first, query_end, key_begin, key_end, query_offset, key_offset, document = program(
        work, segments, segment, const
    )
    b = tl.where(row < 0, tl.program_id(2), row)
    r = tl.arange(0, const.ROWS)
    i = first + r // const.PACK
    h = tl.program_id(1) * const.PACK + r % const.PACK
    exists = (i < query_end) & (r < const.ROWS // const.PACK * const.PACK)
    seen_by = intervals(
        spans, begins, ends, interval_strides, b, i, i + query_offset, exists, key_begin, key_end, key_offset, const
    )
    query_at = b.to(tl.int64) * query_strides[0] + h.to(tl.int64) * query_strides[1] + i.to(tl.int64) * query_strides[2]
    grad_at = b.to(tl.int64) * grad_strides[0] + h.to(tl.int64) * grad_strides[1] + i.to(tl.int64) * grad_strides[2]
    d = tl.arange(0, const.WIDTH)[None, :]
    D: tl.constexpr = const.D
    WIDTH: tl.constexpr = const.WIDTH
    VALUE_D: tl.constexpr = const.VALUE_D
    VALUE_WIDTH: tl.constexpr = const.VALUE_WIDTH
    q = side_at(query, query_at[:, None], exists[:, None], D, WIDTH)
    grad = side_at(grad_output, grad_at[:, None], exists[:, None], VALUE_D, VALUE_WIDTH)
    at = (b.to(tl.int64) * heads + h) * queries + i
    normalizer = normalizer_at(normalizers, at[:, None], exists[:, None], RESCUE)
    row_delta = tl.load(delta + at, mask=exists, other=0.0)[:, None]

    rows = (b, tl.program_id(1) * const.PACK // group, h[:, None], i[:, None], query_at[:, None], exists[:, None])
    limits = (key_begin, key_end, query_offset, key_offset)
    keys = (query, key, key_strides)
    values = (value, value_strides)
    scoring = (scale, factor, compare, operands, numbers)
    tile_map = (states, bits, map_strides)
    dropout = (threshold, keep_scale, seed_of(seed), random_row(b, documents, row, document))
    if RESCUE:
        acc, of_slopes, of_vector = _query_walk(
            q, grad, normalizer, row_delta, seen_by, rows, limits, keys, values, scoring, tile_map, dropout,
            const, FINITE, SLOPES, VECTOR,
        )  # fmt: skip
        code, _, _ = _query_walk(
            q, grad, normalizer, row_delta, seen_by, rows, limits, keys, values, scoring, tile_map, dropout,
            const, NONFINITE, -1, False,
        )  # fmt: skip
        acc = tl.where(code > 0.0, float("nan"), acc)
    else:
        acc, of_slopes, of_vector = _query_walk(
            q, grad, normalizer, row_delta, seen_by, rows, limits, keys, values, scoring, tile_map, dropout,
            const, FAST, SLOPES, VECTOR,
        )  # fmt: skip
        tl.store(flags + number + tl.arange(0, 1), nonfinite_flag(acc, exists))
    if not const.ADDITIVE:
        acc = acc * scale
    place = b.to(tl.int64) * grad_query_strides[0] + h.to(tl.int64) * grad_query_strides[1]
    place = (place + i.to(tl.int64) * grad_query_strides[2])[:, None] + d
    tl.store(grad_query + place, acc.to(grad_query.dtype.element_ty), mask=exists[:, None] & (d < const.D))
    if SLOPES >= 0:
        tl.store(slopes + at, of_slopes, mask=exists)
    if VECTOR:
        tl.store(vectors + at[:, None] * const.D + d, of_vector, mask=exists[:, None] & (d < const.D))
