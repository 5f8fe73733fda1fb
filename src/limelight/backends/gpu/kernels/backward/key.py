"""Gradients of keys and values: a program owns a tile of keys."""

import triton
import triton.language as tl

from ..dropout import seed_of
from ..forward import FAST, FINITE, NONFINITE, add_nonfinite, add_product, nonfinite_flag
from ..normalizers import normalizer_at
from ..scores import additive_part
from ..visibility import contains_by_key, in_tiles, intervals, program_of_keys, queries_of, query_blocks, random_row
from .tiles import add_gradient, product, scores, side, weights_and_gradients


@triton.jit
def _key_block(
    of_key, of_value, h, first_query, k, v, j1, high, queries, heads, normalizers, delta, interval_tables, in_segment,
    b, key_head, limits, keys, query_strides, grad_output, grad_strides, scoring, tile_map, dropout,
    const: tl.constexpr, QUERIES: tl.constexpr, MODE: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """A block of ``QUERIES`` queries of a head."""
    D: tl.constexpr = const.D
    WIDTH: tl.constexpr = const.WIDTH
    VALUE_D: tl.constexpr = const.VALUE_D
    VALUE_WIDTH: tl.constexpr = const.VALUE_WIDTH
    key_begin, key_end, query_offset, key_offset = limits
    spans, begins, ends, interval_strides = interval_tables
    j = j1[:, None]
    columns = in_segment[:, None]
    i = first_query + tl.arange(0, QUERIES)
    exists = i <= high
    query_at = b.to(tl.int64) * query_strides[0] + h.to(tl.int64) * query_strides[1]
    query_at = query_at + i.to(tl.int64) * query_strides[2]
    rows = (b, key_head, (h + i * 0)[None, :], i[None, :], query_at[None, :], exists[None, :])
    seen = columns & exists[None, :]
    if MASKED:
        seen_by = intervals(
            spans, begins, ends, interval_strides, b, i, i + query_offset, exists, key_begin, key_end, key_offset, const
        )
        seen = contains_by_key(seen_by, j, const) & columns
        if const.MAP_ROWS > 0:
            seen = seen & in_tiles(tile_map, rows, tl.min(j1, 0), j, const)
    first_row = (b.to(tl.int64) * heads + h) * queries  # added to pointers, so that vectors of addresses have 32 bits
    fast, shift, rest = normalizers
    of_head = (fast + first_row, shift + first_row, rest + first_row)
    normalizer = normalizer_at(of_head, i[None, :], exists[None, :], MODE != FAST)
    q = side(keys[0], query_strides, b, h, i, exists, D, WIDTH, MASKED)
    grad = side(grad_output, grad_strides, b, h, i, exists, VALUE_D, VALUE_WIDTH, MASKED)
    s = scores(k, q, rows, j, columns, keys, scoring, const)
    dp = product(v, grad, VALUE_D, VALUE_WIDTH)
    row_delta = tl.load(delta + first_row + i, mask=exists, other=0.0)[None, :]  # here, to take registers late
    used, ds, seen = weights_and_gradients(
        s, dp, seen, normalizer, row_delta, rows, j, columns, limits, scoring, dropout, const, -1, MODE != FAST, MASKED
    )
    of_value = add_product(used, grad[0], seen, of_value, MODE)
    if const.ADDITIVE:
        column = tl.arange(0, const.WIDTH)[None, :]
        for d in range(const.D):
            t, v_d = additive_part(rows, j, columns, keys, scoring[2], d)
            part = tl.sum(tl.where(seen, ds * v_d * (1.0 - t * t), 0.0), 1)[:, None]
            of_key += tl.where(column == d, part, 0.0)
    else:
        of_key = add_gradient(ds, q[0], seen, of_key, MODE)
    return of_key, of_value


@triton.jit
def _key_walk(
    k, v, j1, low, found, high, group, queries, heads, normalizers, delta, interval_tables, in_segment, b, key_head,
    limits, keys, query_strides, grad_output, grad_strides, scoring, tile_map, dropout,
    const: tl.constexpr, EDGE: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """Gradients of a tile of keys and values: sums over the heads of its group and the blocks ``found`` of queries.

    Of all heads the blocks that an edge cuts come first, in parts of ``EDGE`` queries, whose bounds take registers;
    then the whole ones, which are not masked. Every mode takes the same order.
    """
    of_key = tl.full((const.BLOCK, const.WIDTH), 0.0, tl.float32)
    of_value = tl.full((const.BLOCK, const.VALUE_WIDTH), 0.0, tl.float32)
    ALL_MASKED: tl.constexpr = MODE != FAST or const.MAP_ROWS > 0 or const.ADDITIVE
    PARTS: tl.constexpr = const.ROWS // EDGE
    count, before, whole = found
    edges = (count - whole) * PARTS
    for step in range(group * edges):
        n = step % edges // PARTS
        first = low + tl.where(n < before, n, n + whole) * const.ROWS + step % PARTS * EDGE
        of_key, of_value = _key_block(
            of_key, of_value, key_head * group + step // edges, first, k, v, j1, high, queries, heads, normalizers,
            delta, interval_tables, in_segment, b, key_head, limits, keys, query_strides, grad_output, grad_strides,
            scoring, tile_map, dropout, const, EDGE, MODE, True,
        )  # fmt: skip
    for step in range(group * whole):
        of_key, of_value = _key_block(
            of_key, of_value, key_head * group + step // whole, low + (before + step % whole) * const.ROWS, k, v, j1,
            high, queries, heads, normalizers, delta, interval_tables, in_segment, b, key_head, limits, keys,
            query_strides, grad_output, grad_strides, scoring, tile_map, dropout, const, const.ROWS, MODE, ALL_MASKED,
        )  # fmt: skip
    return of_key, of_value


@triton.jit(do_not_specialize=["segment", "batch", "heads", "queries", "documents", "threshold", "seed"])
def key_gradient(
    query, key, value, grad_output, normalizers, delta, grad_key, grad_value, flags,
    query_strides, key_strides, value_strides, grad_strides, grad_key_strides, grad_value_strides,
    batch, heads, group, queries, work, segments, segment, spans, begins, ends, interval_strides, states, bits,
    map_strides, scale, factor, compare, operands, numbers, threshold, keep_scale, seed, documents,
    const: tl.constexpr, EDGE: tl.constexpr, RESCUE: tl.constexpr,
):  # fmt: skip
    """Gradients of one tile of keys and values (grid: tiles of keys, key-value heads, batch rows).

    ``flags`` is one int32 for each program, set where a gradient is not finite; with ``RESCUE`` only those tiles are
    computed again.
    """
    number = (tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)) * tl.num_programs(0) + tl.program_id(0)
    if RESCUE and tl.load(flags + number) == 0:
        return
    row, first, query_begin, query_end, key_begin, key_end, query_offset, key_offset, document = program_of_keys(
        work, segments, segment, const
    )
    b = tl.where(row < 0, tl.program_id(2), row)
    key_head = tl.program_id(1)
    j = first + tl.arange(0, const.BLOCK)
    in_segment = (j >= key_begin) & (j < key_end)

    low, high, whole_low, whole_high = queries_of(
        spans, begins, ends, interval_strides, b, first, query_begin, query_end, key_begin, key_end, query_offset,
        key_offset, const, 4 * const.ROWS,
    )  # fmt: skip
    found = query_blocks(low, high, whole_low, whole_high, const)

    D: tl.constexpr = const.D
    WIDTH: tl.constexpr = const.WIDTH
    VALUE_D: tl.constexpr = const.VALUE_D
    VALUE_WIDTH: tl.constexpr = const.VALUE_WIDTH
    k = side(key, key_strides, b, key_head, j, in_segment, D, WIDTH)
    v = side(value, value_strides, b, key_head, j, in_segment, VALUE_D, VALUE_WIDTH)
    interval_tables = (spans, begins, ends, interval_strides)
    limits = (key_begin, key_end, query_offset, key_offset)
    keys = (query, key, key_strides)
    scoring = (scale, factor, compare, operands, numbers)
    tile_map = (states, bits, map_strides)
    dropout = (threshold, keep_scale, seed_of(seed), random_row(b, documents, row, document))
    if RESCUE:
        of_key, of_value = _key_walk(
            k, v, j, low, found, high, group, queries, heads, normalizers, delta, interval_tables, in_segment, b,
            key_head, limits, keys, query_strides, grad_output, grad_strides, scoring, tile_map, dropout,
            const, EDGE, FINITE,
        )  # fmt: skip
        key_code, value_code = _key_walk(
            k, v, j, low, found, high, group, queries, heads, normalizers, delta, interval_tables, in_segment, b,
            key_head, limits, keys, query_strides, grad_output, grad_strides, scoring, tile_map, dropout,
            const, EDGE, NONFINITE,
        )  # fmt: skip
        of_key = tl.where(key_code > 0.0, float("nan"), of_key)
        of_value = add_nonfinite(of_value, value_code)
    else:
        of_key, of_value = _key_walk(
            k, v, j, low, found, high, group, queries, heads, normalizers, delta, interval_tables, in_segment, b,
            key_head, limits, keys, query_strides, grad_output, grad_strides, scoring, tile_map, dropout,
            const, EDGE, FAST,
        )  # fmt: skip
    # Computed again (the smaller one is always `first`), so that they take no registers in the loops.
    j = tl.minimum(first, key_end) + tl.arange(0, const.BLOCK)
    in_segment = (j >= key_begin) & (j < key_end)
    if not RESCUE:
        tl.store(
            flags + number + tl.arange(0, 1),
            tl.maximum(nonfinite_flag(of_key, in_segment), nonfinite_flag(of_value, in_segment)),
        )
    if not const.ADDITIVE:
        of_key = of_key * scale
    d = tl.arange(0, const.WIDTH)[None, :]
    e = tl.arange(0, const.VALUE_WIDTH)[None, :]
    at = b.to(tl.int64) * grad_key_strides[0] + key_head.to(tl.int64) * grad_key_strides[1]
    at = (at + j.to(tl.int64) * grad_key_strides[2])[:, None] + d
    tl.store(grad_key + at, of_key.to(grad_key.dtype.element_ty), mask=in_segment[:, None] & (d < const.D))
    at = b.to(tl.int64) * grad_value_strides[0] + key_head.to(tl.int64) * grad_value_strides[1]
    at = (at + j.to(tl.int64) * grad_value_strides[2])[:, None] + e
    tl.store(grad_value + at, of_value.to(grad_value.dtype.element_ty), mask=in_segment[:, None] & (e < const.VALUE_D))
