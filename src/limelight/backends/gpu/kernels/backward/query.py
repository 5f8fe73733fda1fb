"""Gradients of queries, of ALiBi slopes and of the vector of `Additive`: a program owns a tile of queries."""

import triton
import triton.language as tl

from ..dropout import seed_of
from ..forward import CLEAN, FAST, SPOILED, unfit
from ..normalizers import normalizer_at
from ..scores import additive_part
from ..visibility import blocks, chosen, in_tiles, intervals, program
from .tiles import product, scores, side, side_at, signed, weights_and_gradients


@triton.jit
def _query_walk(
    q, grad, normalizer, delta, seen_by, rows, limits, keys, values, scoring, tiles, chance,
    form: tl.constexpr, MODE: tl.constexpr, SLOPES: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """Gradients of a tile of queries, and, by row, of the slopes of rule ``SLOPES`` and of the comparison's vector."""
    D: tl.constexpr = form.D
    WIDTH: tl.constexpr = form.WIDTH
    VALUE_D: tl.constexpr = form.VALUE_D
    VALUE_WIDTH: tl.constexpr = form.VALUE_WIDTH
    b, key_head, _, i, _, _ = rows
    key_begin, key_end, query_offset, key_offset = limits
    acc = tl.full((form.ROWS, form.WIDTH), 0.0, tl.float32)
    of_slopes = tl.full((form.ROWS,), 0.0, tl.float32)
    of_vector = tl.full((form.ROWS, form.WIDTH if VECTOR else 1), 0.0, tl.float32)
    column = tl.arange(0, form.WIDTH)[None, :]
    for interval in range(form.INTERVALS):
        begin, end = chosen(interval, seen_by, form)
        first, _whole_first, _whole_last, last = blocks(begin, end, seen_by[8], form)
        for at in range(last - first):
            n = first + at
            j1 = n * form.BLOCK + tl.arange(0, form.BLOCK)
            some = (j1 >= key_begin) & (j1 < key_end)
            j = j1[None, :]
            columns = some[None, :]
            seen = (j >= begin[:, None]) & (j < end[:, None])
            if form.TILE_ROWS > 0:
                seen = seen & in_tiles(tiles, rows, n * form.BLOCK, j, form)
            k = side(keys[1], keys[2], b, key_head, j1, some, D, WIDTH)
            v = side(values[0], values[1], b, key_head, j1, some, VALUE_D, VALUE_WIDTH)
            s = scores(q, k, rows, j, columns, keys, scoring, form)
            dp = product(grad, v, VALUE_D, VALUE_WIDTH)
            _used, ds, seen = weights_and_gradients(
                s, dp, seen, normalizer, delta, rows, j, columns, limits, scoring, chance, form, -1, MODE != FAST
            )
            if form.ADDITIVE:
                for d in range(form.D):
                    t, v_d = additive_part(rows, j, columns, keys, scoring[2], d)
                    acc += tl.where(column == d, tl.sum(tl.where(seen, ds * v_d * (1.0 - t * t), 0.0), 1)[:, None], 0.0)
                    if VECTOR:
                        of_vector += tl.where(column == d, tl.sum(tl.where(seen, ds * t, 0.0), 1)[:, None], 0.0)
            else:
                acc = signed(ds, k[0], seen, acc, MODE)
            if SLOPES >= 0:
                _used, ds, seen = weights_and_gradients(
                    s, dp, seen, normalizer, delta, rows, j, columns, limits, scoring, chance, form, SLOPES,
                    MODE != FAST,
                )  # fmt: skip
                distance = tl.abs(j - i + key_offset - query_offset).to(tl.float32)
                of_slopes -= tl.sum(ds * distance, 1)
    return acc, of_slopes, of_vector


@triton.jit(do_not_specialize=["segment", "batch", "heads", "queries", "documents", "threshold", "seed"])
def query_gradient(
    query, key, value, grad_output, normalizers, delta, grad_query, slopes, vectors, flags,
    query_strides, key_strides, value_strides, grad_strides, grad_query_strides,
    batch, heads, group, queries, work, segments, segment, spans, begins, ends, interval_strides, states, bits,
    tile_strides, scale, factor, compare, operands, numbers, threshold, keep_scale, seed, documents,
    form: tl.constexpr, RESCUE: tl.constexpr, SLOPES: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """Gradients of one tile of queries (grid: tiles, head packs, batch rows); see `forward` for ``flags``."""
    number = (tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)) * tl.num_programs(0) + tl.program_id(0)
    if RESCUE and tl.load(flags + number) == 0:
        return
    row, first, query_end, key_begin, key_end, query_offset, key_offset, document = program(
        work, segments, segment, form
    )
    b = tl.where(row < 0, tl.program_id(2), row)
    r = tl.arange(0, form.ROWS)
    i = first + r // form.PACK
    h = tl.program_id(1) * form.PACK + r % form.PACK
    exists = (i < query_end) & (r < form.ROWS // form.PACK * form.PACK)
    seen_by = intervals(
        spans, begins, ends, interval_strides, b, i, i + query_offset, exists, key_begin, key_end, key_offset, form
    )
    query_at = b.to(tl.int64) * query_strides[0] + h.to(tl.int64) * query_strides[1] + i.to(tl.int64) * query_strides[2]
    grad_at = b.to(tl.int64) * grad_strides[0] + h.to(tl.int64) * grad_strides[1] + i.to(tl.int64) * grad_strides[2]
    d = tl.arange(0, form.WIDTH)[None, :]
    D: tl.constexpr = form.D
    WIDTH: tl.constexpr = form.WIDTH
    VALUE_D: tl.constexpr = form.VALUE_D
    VALUE_WIDTH: tl.constexpr = form.VALUE_WIDTH
    q = side_at(query, query_at[:, None], exists[:, None], D, WIDTH)
    grad = side_at(grad_output, grad_at[:, None], exists[:, None], VALUE_D, VALUE_WIDTH)
    at = (b.to(tl.int64) * heads + h) * queries + i
    normalizer = normalizer_at(normalizers, at[:, None], exists[:, None], RESCUE)
    less = tl.load(delta + at, mask=exists, other=0.0)[:, None]

    rows = (b, tl.program_id(1) * form.PACK // group, h[:, None], i[:, None], query_at[:, None], exists[:, None])
    limits = (key_begin, key_end, query_offset, key_offset)
    keys = (query, key, key_strides)
    values = (value, value_strides)
    scoring = (scale, factor, compare, operands, numbers)
    tiles = (states, bits, tile_strides)
    chance = (threshold, keep_scale, seed_of(seed), b * documents + document)
    if RESCUE:
        acc, of_slopes, of_vector = _query_walk(
            q, grad, normalizer, less, seen_by, rows, limits, keys, values, scoring, tiles, chance,
            form, CLEAN, SLOPES, VECTOR,
        )  # fmt: skip
        code, _, _ = _query_walk(
            q, grad, normalizer, less, seen_by, rows, limits, keys, values, scoring, tiles, chance,
            form, SPOILED, -1, False,
        )  # fmt: skip
        acc = tl.where(code > 0.0, float("nan"), acc)
    else:
        acc, of_slopes, of_vector = _query_walk(
            q, grad, normalizer, less, seen_by, rows, limits, keys, values, scoring, tiles, chance,
            form, FAST, SLOPES, VECTOR,
        )  # fmt: skip
        tl.store(flags + number + tl.arange(0, 1), unfit(acc, exists))
    if not form.ADDITIVE:
        acc = acc * scale
    place = b.to(tl.int64) * grad_query_strides[0] + h.to(tl.int64) * grad_query_strides[1]
    place = (place + i.to(tl.int64) * grad_query_strides[2])[:, None] + d
    tl.store(grad_query + place, acc.to(grad_query.dtype.element_ty), mask=exists[:, None] & (d < form.D))
    if SLOPES >= 0:
        tl.store(slopes + at, of_slopes, mask=exists)
    if VECTOR:
        tl.store(vectors + at[:, None] * form.D + d, of_vector, mask=exists[:, None] & (d < form.D))
