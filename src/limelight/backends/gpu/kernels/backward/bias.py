"""Gradients of `Bias` tensors and `RelativeBias` tables: a program owns a tile of the bias, or a block of distances."""

import triton
import triton.language as tl

from ..dropout import seed_of
from ..normalizers import normalizer_at
from ..visibility import contains, in_tiles, intervals, segment_at
from .tiles import product, scores, side, weights_and_gradients


@triton.jit
def _score_gradient(
    b, h, group, i1, exists, j1, some, limits, random, heads, queries, tensors, strides, sight, tiles, scoring,
    form: tl.constexpr, AFTER: tl.constexpr,
):  # fmt: skip
    """Gradients after rule ``AFTER`` of the scores of queries ``i1`` by keys ``j1`` of one segment, zeros elsewhere."""
    D: tl.constexpr = form.D
    WIDTH: tl.constexpr = form.WIDTH
    VALUE_D: tl.constexpr = form.VALUE_D
    VALUE_WIDTH: tl.constexpr = form.VALUE_WIDTH
    query, key, value, grad_output, normalizers, delta = tensors
    query_strides, key_strides, value_strides, grad_strides = strides
    spans, begins, ends, interval_strides = sight
    key_begin, key_end, query_offset, key_offset = limits
    threshold, keep_scale, seed, documents, document = random
    key_head = h // group
    seen_by = intervals(
        spans, begins, ends, interval_strides, b, i1, i1 + query_offset, exists, key_begin, key_end, key_offset, form
    )
    j = j1[None, :]
    seen = contains(seen_by, j, form)
    seen = seen & some[None, :]
    query_at = b.to(tl.int64) * query_strides[0] + h.to(tl.int64) * query_strides[1]
    query_at = query_at + i1.to(tl.int64) * query_strides[2]
    rows = (b, key_head, (h + i1 * 0)[:, None], i1[:, None], query_at[:, None], exists[:, None])
    if form.TILE_ROWS > 0:
        inside = (b, key_head, rows[2], rows[3], rows[4], seen)
        seen = seen & in_tiles(tiles, inside, j, j, form)
    at = (b.to(tl.int64) * heads + h) * queries + i1
    normalizer = normalizer_at(normalizers, at[:, None], exists[:, None], True)
    less = tl.load(delta + at, mask=exists, other=0.0)[:, None]
    q = side(query, query_strides, b, h, i1, exists, D, WIDTH)
    k = side(key, key_strides, b, key_head, j1, some, D, WIDTH)
    s = scores(q, k, rows, j, some[None, :], (query, key, key_strides), scoring, form)
    grad = side(grad_output, grad_strides, b, h, i1, exists, VALUE_D, VALUE_WIDTH)
    v = side(value, value_strides, b, key_head, j1, some, VALUE_D, VALUE_WIDTH)
    dp = product(grad, v, VALUE_D, VALUE_WIDTH)
    chance = (threshold, keep_scale, seed, b * documents + document)
    _, ds, _ = weights_and_gradients(
        s, dp, seen, normalizer, less, rows, j, some[None, :], limits, scoring, chance, form, AFTER, True
    )
    return ds


@triton.jit(
    do_not_specialize=["segment", "heads", "queries", "keys", "documents", "threshold", "seed", "count", "over"]
)
def bias_gradient(
    query, key, value, grad_output, normalizers, delta, result,
    query_strides, key_strides, value_strides, grad_strides,
    heads, group, queries, keys, segments, segment, count, spans, begins, ends, interval_strides, states, bits,
    tile_strides, scale, factor, compare, operands, numbers, threshold, keep_scale, seed, documents, over,
    form: tl.constexpr, RULE: tl.constexpr, SHARED_QUERIES: tl.constexpr, SHARED_KEYS: tl.constexpr,
):  # fmt: skip
    """One tile of the gradient of a bias, summed over whatever shares it (grid: tiles, its heads, its batch rows).

    ``over`` are the numbers of batch rows, heads, tiles of queries and of keys that share an entry; ``result`` is
    float32, contiguous, with as many queries and keys as the bias.
    """
    rows_b, rows_h, rows_i, rows_j = over
    wide = tl.cdiv(keys, form.BLOCK) if not SHARED_KEYS else 1
    tile_i = tl.program_id(0) // wide
    tile_j = tl.program_id(0) % wide
    acc = tl.full((form.ROWS, form.BLOCK), 0.0, tl.float32)
    tensors = (query, key, value, grad_output, normalizers, delta)
    strides = (query_strides, key_strides, value_strides, grad_strides)
    sight = (spans, begins, ends, interval_strides)
    tiles = (states, bits, tile_strides)
    scoring = (scale, factor, compare, operands, numbers)
    for step in range(rows_b * rows_h * rows_i * rows_j):
        j = (tile_j + step % rows_j) * form.BLOCK + tl.arange(0, form.BLOCK)
        i = (tile_i + step // rows_j % rows_i) * form.ROWS + tl.arange(0, form.ROWS)
        h = tl.program_id(1) + step // rows_j // rows_i % rows_h
        b = tl.program_id(2) + step // rows_j // rows_i // rows_h
        for number in range(count):
            row, query_begin, query_end, key_begin, key_end, query_offset, key_offset, document = segment_at(
                number, segments, segment, form
            )
            exists = (i >= query_begin) & (i < query_end)
            some = (j >= key_begin) & (j < key_end)
            if ((row < 0) | (row == b)) & (tl.max(exists.to(tl.int32), 0) * tl.max(some.to(tl.int32), 0) > 0):
                acc += _score_gradient(
                    b, h, group, i, exists, j, some, (key_begin, key_end, query_offset, key_offset),
                    (threshold, keep_scale, seed_of(seed), documents, document), heads, queries, tensors, strides,
                    sight, tiles, scoring, form, RULE,
                )  # fmt: skip
    place = tl.program_id(2).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    i = tile_i * form.ROWS + tl.arange(0, form.ROWS)
    j = tile_j * form.BLOCK + tl.arange(0, form.BLOCK)
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
    tile_strides, scale, factor, compare, operands, numbers, threshold, keep_scale, seed, documents,
    rows_b, rows_h, low, distances,
    form: tl.constexpr, RULE: tl.constexpr,
):  # fmt: skip
    """The gradient of the bias at some distances (grid: blocks of distances from ``low`` on, heads of the table).

    Queries ``i`` and distances ``d`` meet at keys ``i + d``: a parallelogram, cut out of two square tiles.
    """
    acc = tl.full((form.BLOCK,), 0.0, tl.float32)
    d0 = low + tl.program_id(0) * form.BLOCK
    r = tl.arange(0, form.ROWS)
    c = tl.arange(0, form.BLOCK)
    tensors = (query, key, value, grad_output, normalizers, delta)
    strides = (query_strides, key_strides, value_strides, grad_strides)
    sight = (spans, begins, ends, interval_strides)
    tiles = (states, bits, tile_strides)
    scoring = (scale, factor, compare, operands, numbers)
    for step in range(rows_b * rows_h):
        h = tl.program_id(1) + step % rows_h
        b = step // rows_h
        for number in range(count):
            row, query_begin, query_end, key_begin, key_end, query_offset, key_offset, document = segment_at(
                number, segments, segment, form
            )
            tiles_i = tl.where((row < 0) | (row == b), tl.cdiv(query_end - query_begin, form.ROWS), 0)
            for part in range(tiles_i * 2):
                i0 = query_begin + part // 2 * form.ROWS
                half = part % 2
                i = i0 + r
                j0 = i0 + query_offset - key_offset + d0 + half * form.BLOCK
                j = j0 + c
                if (j0 < key_end) & (j0 + form.BLOCK > key_begin):
                    ds = _score_gradient(
                        b, h, group, i, i < query_end, j, (j >= key_begin) & (j < key_end),
                        (key_begin, key_end, query_offset, key_offset),
                        (threshold, keep_scale, seed_of(seed), documents, document), heads, queries, tensors, strides,
                        sight, tiles, scoring, form, RULE,
                    )  # fmt: skip
                    at = r[:, None] + c[None, :] - half * form.BLOCK
                    inside = (at >= 0) & (at < form.BLOCK)
                    turned = tl.gather(ds, tl.where(inside, at, 0), 1)
                    acc += tl.sum(tl.where(inside, turned, 0.0), 0)
    d = tl.program_id(0) * form.BLOCK + c
    tl.store(result + tl.program_id(1) * distances + d, acc, mask=d < distances)
