"""Observations: a second pass over the scores, with the final normalizers, so that every weight is exact.

Whatever is summed has one owner, which adds in a fixed order.
"""

import triton
import triton.language as tl

from .scores import LOG2_E, after_rules, compared, load_rows
from .visibility import blocks, chosen, contains, in_tiles, intervals, program, segment_at


@triton.jit
def _normalizer(normalizer, at, exists):
    """``(shift, rest)`` of some rows, as columns; see `limelight.backends.gpu.kernels.normalizers`."""
    shift = tl.load(normalizer[0] + at, mask=exists, other=0.0)[:, None]
    return shift, tl.load(normalizer[1] + at, mask=exists, other=0.0)[:, None]


@triton.jit
def _weights(s, seen, normalizer, scoring):
    """Scores, the logarithms of weights in base 2, and weights of what is seen; minus infinity and zero elsewhere."""
    s = tl.where(seen, s, -float("inf"))
    power = tl.fma(s - normalizer[0], scoring[1], -normalizer[1])
    return s, power, tl.where(s != -float("inf"), tl.exp2(power), 0.0)


@triton.jit
def _tile(
    b, h, group, i1, exists, j1, some, limits, heads, queries, tensors, strides, sight, tiles, scoring,
    form: tl.constexpr,
):  # fmt: skip
    """Weights of queries ``i1`` by keys ``j1`` of one segment, zeros elsewhere."""
    D: tl.constexpr = form.D
    WIDTH: tl.constexpr = form.WIDTH
    query, key, normalizer = tensors
    query_strides, key_strides = strides
    spans, begins, ends, interval_strides = sight
    key_begin, key_end, query_offset, key_offset = limits
    key_head = h // group
    seen_by = intervals(
        spans, begins, ends, interval_strides, b, i1, i1 + query_offset, exists, key_begin, key_end, key_offset, form
    )
    j = j1[None, :]
    seen = contains(seen_by, j, form) & some[None, :]
    query_at = b.to(tl.int64) * query_strides[0] + h.to(tl.int64) * query_strides[1]
    query_at = query_at + i1.to(tl.int64) * query_strides[2]
    rows = (b, key_head, (h + i1 * 0)[:, None], i1[:, None], query_at[:, None], exists[:, None])
    if form.TILE_ROWS > 0:
        inside = (b, key_head, rows[2], rows[3], rows[4], seen)
        seen = seen & in_tiles(tiles, inside, j, j, form)
    normalizer = _normalizer(normalizer, (b.to(tl.int64) * heads + h) * queries + i1, exists)
    q = load_rows(query, query_strides, b, h, i1, exists, D, WIDTH, True)
    k = load_rows(key, key_strides, b, key_head, j1, some, D, WIDTH, True)
    s = compared(q, k, rows, j, some[None, :], (query, key, key_strides), scoring, form)
    s, _ = after_rules(s, rows, j, some[None, :], key_offset - query_offset, scoring, form, 0)
    _, _, w = _weights(s, seen, normalizer, scoring)
    return w


@triton.jit(do_not_specialize=["segment", "heads", "queries"])
def row_statistics(
    query, key, normalizer, max_score, max_weight, entropy, distance, top_weights, top_keys, features, of_features,
    query_strides, key_strides, heads, group, queries, work, segments, segment, spans, begins, ends, interval_strides,
    states, bits, tile_strides, scale, factor, compare, operands, numbers, first_feature, width, top,
    form: tl.constexpr, TOP: tl.constexpr, FEATURES: tl.constexpr,
):  # fmt: skip
    """What is seen of the weights of each query of a tile (grid: tiles, heads, batch rows)."""
    row, first, query_end, key_begin, key_end, query_offset, key_offset, _document = program(
        work, segments, segment, form
    )
    b = tl.where(row < 0, tl.program_id(2), row)
    h1 = tl.program_id(1)
    i = first + tl.arange(0, form.ROWS)
    exists = i < query_end
    seen_by = intervals(
        spans, begins, ends, interval_strides, b, i, i + query_offset, exists, key_begin, key_end, key_offset, form
    )
    query_at = b.to(tl.int64) * query_strides[0] + h1.to(tl.int64) * query_strides[1]
    query_at = query_at + i.to(tl.int64) * query_strides[2]
    rows = (b, h1 // group, (h1 + i * 0)[:, None], i[:, None], query_at[:, None], exists[:, None])
    keys = (query, key, key_strides)
    scoring = (scale, factor, compare, operands, numbers)
    tiles = (states, bits, tile_strides)
    D: tl.constexpr = form.D
    WIDTH: tl.constexpr = form.WIDTH
    q = load_rows(query, query_strides, b, h1, i, exists, D, WIDTH, True)
    at = (b.to(tl.int64) * heads + h1) * queries + i
    normalizer = _normalizer(normalizer, at, exists)

    most = tl.full((form.ROWS,), -float("inf"), tl.float32)
    spoiled = tl.full((form.ROWS,), 0.0, tl.float32)
    largest = tl.full((form.ROWS,), 0.0, tl.float32)
    surprise = tl.full((form.ROWS,), 0.0, tl.float32)
    far = tl.full((form.ROWS,), 0.0, tl.float32)
    best = tl.full((form.ROWS, TOP), -1.0, tl.float32)
    best_keys = tl.full((form.ROWS, TOP), -1, tl.int32)
    by_feature = tl.full((form.ROWS, FEATURES), 0.0, tl.float32)
    place = tl.arange(0, TOP)[None, :]
    f = first_feature + tl.arange(0, FEATURES)
    for interval in range(form.INTERVALS):
        begin, end = chosen(interval, seen_by, form)
        first_block, _whole_first, _whole_last, last_block = blocks(begin, end, exists, form)
        for step in range(last_block - first_block):
            n = first_block + step
            j1 = n * form.BLOCK + tl.arange(0, form.BLOCK)
            some = (j1 >= key_begin) & (j1 < key_end)
            j = j1[None, :]
            seen = (j >= begin[:, None]) & (j < end[:, None])
            if form.TILE_ROWS > 0:
                seen = seen & in_tiles(tiles, rows, n * form.BLOCK, j, form)
            k = load_rows(key, key_strides, b, h1 // group, j1, some, D, WIDTH, True)
            s = compared(q, k, rows, j, some[None, :], keys, scoring, form)
            s, _slope = after_rules(s, rows, j, some[None, :], key_offset - query_offset, scoring, form, 0)
            s, power, w = _weights(s, seen, normalizer, scoring)
            spoiled += tl.sum(tl.where(s != s, 1.0, 0.0), 1)
            most = tl.maximum(most, tl.max(s, 1))
            largest = tl.maximum(largest, tl.max(w, 1))
            there = s != -float("inf")
            surprise -= tl.sum(tl.where(w == 0.0, 0.0, w * power), 1)
            far += tl.sum(w * tl.abs(j - i[:, None] + key_offset - query_offset).to(tl.float32), 1)
            if TOP > 1:
                # Of the weights kept and those of this block the largest again, of equals the lowest key.
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
                inside = some[:, None] & (f < width)[None, :]
                x = tl.load(features + j1.to(tl.int64)[:, None] * width + f[None, :], mask=inside, other=0.0)
                by_feature = tl.dot(w, x, by_feature, input_precision="ieee")
    # A NaN among the scores is the largest, and the weights are NaN: reductions on a GPU would pass over it.
    nan = spoiled > 0.0
    tl.store(max_score + at, tl.where(nan, float("nan"), most * (1.0 if form.NATURAL else scale)), mask=exists)
    tl.store(max_weight + at, tl.where(surprise != surprise, float("nan"), largest), mask=exists)
    tl.store(entropy + at, surprise / LOG2_E, mask=exists)
    tl.store(distance + at, far, mask=exists)
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
    spans, begins, ends, interval_strides, states, bits, tile_strides, scale, factor, compare, operands, numbers,
    high, wide, columns, BY_KEY: tl.constexpr, form: tl.constexpr,
):  # fmt: skip
    """Weights summed over blocks of ``high`` queries by ``wide`` keys (grid: blocks, heads, batch rows).

    ``result`` is ``(B, Hq, block rows, columns)``; ``BY_KEY`` keeps the keys of a block apart, ``(B, Hq, 1, keys)``.
    """
    block_i = tl.program_id(0) // columns
    block_j = tl.program_id(0) % columns
    h = tl.program_id(1)
    b = tl.program_id(2)
    tensors = (query, key, normalizer)
    strides = (query_strides, key_strides)
    sight = (spans, begins, ends, interval_strides)
    tiles = (states, bits, tile_strides)
    scoring = (scale, factor, compare, operands, numbers)
    acc = tl.full((form.ROWS, form.BLOCK), 0.0, tl.float32)
    tiles_i = tl.cdiv(high, form.ROWS)
    tiles_j = tl.cdiv(wide, form.BLOCK)
    for number in range(count):
        row, query_begin, query_end, key_begin, key_end, query_offset, key_offset, _document = segment_at(
            number, segments, segment, form
        )
        i_end = tl.minimum(tl.minimum((block_i + 1) * high, queries), query_end)
        j_end = tl.minimum(tl.minimum((block_j + 1) * wide, keys), key_end)
        turns = tl.where((row < 0) | (row == b), tiles_i * tiles_j, 0)
        for step in range(turns):
            i = block_i * high + step // tiles_j * form.ROWS + tl.arange(0, form.ROWS)
            j = block_j * wide + step % tiles_j * form.BLOCK + tl.arange(0, form.BLOCK)
            exists = (i >= query_begin) & (i < i_end)
            some = (j >= key_begin) & (j < j_end)
            seen_by = intervals(
                spans, begins, ends, interval_strides, b, i, i + query_offset, exists, key_begin, key_end, key_offset,
                form,
            )  # fmt: skip
            seen = contains(seen_by, j[None, :], form) & some[None, :]
            if tl.max(tl.max(seen.to(tl.int32), 1), 0) > 0:
                acc += _tile(
                    b, h, group, i, exists, j, some, (key_begin, key_end, query_offset, key_offset), heads, queries,
                    tensors, strides, sight, tiles, scoring, form,
                )  # fmt: skip
    place = b.to(tl.int64) * heads + h
    if BY_KEY:
        j = block_j * wide + tl.arange(0, form.BLOCK)
        tl.store(result + place * keys + j, tl.sum(acc, 0), mask=j < keys)
    else:
        tl.store(result + place * tl.num_programs(0) + tl.program_id(0), tl.sum(tl.sum(acc, 1), 0))


@triton.jit(do_not_specialize=["segment", "heads", "queries", "keys", "count", "number_of_rows"])
def whole_rows(
    query, key, normalizer, result, chosen_rows, number_of_rows, query_strides, key_strides, heads, group, queries,
    keys, segments, segment, count, spans, begins, ends, interval_strides, states, bits, tile_strides,
    scale, factor, compare, operands, numbers, form: tl.constexpr,
):  # fmt: skip
    """All weights of chosen queries, ``(B, Hq, R, Lk)`` (grid: tiles of rows by blocks of keys, heads, batch rows)."""
    across = tl.cdiv(keys, form.BLOCK)
    r = tl.program_id(0) // across * form.ROWS + tl.arange(0, form.ROWS)
    j = tl.program_id(0) % across * form.BLOCK + tl.arange(0, form.BLOCK)
    h = tl.program_id(1)
    b = tl.program_id(2)
    i = tl.load(chosen_rows + r, mask=r < number_of_rows, other=-1).to(tl.int32)
    tensors = (query, key, normalizer)
    strides = (query_strides, key_strides)
    sight = (spans, begins, ends, interval_strides)
    tiles = (states, bits, tile_strides)
    scoring = (scale, factor, compare, operands, numbers)
    acc = tl.full((form.ROWS, form.BLOCK), 0.0, tl.float32)
    for number in range(count):
        row, query_begin, query_end, key_begin, key_end, query_offset, key_offset, _document = segment_at(
            number, segments, segment, form
        )
        exists = (i >= query_begin) & (i < query_end)
        some = (j >= key_begin) & (j < key_end)
        if ((row < 0) | (row == b)) & (tl.max(exists.to(tl.int32), 0) * tl.max(some.to(tl.int32), 0) > 0):
            acc += _tile(
                b, h, group, i, exists, j, some, (key_begin, key_end, query_offset, key_offset), heads, queries,
                tensors, strides, sight, tiles, scoring, form,
            )  # fmt: skip
    place = (b.to(tl.int64) * heads + h) * number_of_rows + r
    inside = (r < number_of_rows)[:, None] & (j < keys)[None, :]
    tl.store(result + place[:, None] * keys + j[None, :], acc, mask=inside)
