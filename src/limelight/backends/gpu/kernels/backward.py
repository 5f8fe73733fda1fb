"""The backward pass: one kernel owns tiles of queries, one owns tiles of keys. No atomics, so always the same bits.

With ``p`` the weights and ``dp_ij = grad_i . v_j``: ``ds = p (dp - delta)``, where ``delta_i = grad_i . out_i`` less
the gradient of the logsumexp; ``dq_i = scale sum_j ds_ij k_j``, ``dk_j = scale sum_i ds_ij q_i``,
``dv_j = sum_i p_ij grad_i``.
"""

import triton
import triton.language as tl

from .dropout import kept, seed_of
from .forward import CLEAN, FAST, SPOILED, mixed, spoil, unfit
from .normalizers import normalizer_at, weights_of
from .scores import PRECISION, additive, additive_part, after_rules
from .visibility import (
    blocks,
    chosen,
    contains,
    in_tiles,
    intervals,
    program,
    program_of_keys,
    sees,
    segment_at,
    touches,
)


@triton.jit(do_not_specialize=["heads", "queries"])
def deltas(
    grad_output, output, grad_logsumexp, delta,
    grad_strides, output_strides, grad_logsumexp_strides, heads, queries,
    VALUE_D: tl.constexpr, VALUE_WIDTH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """``delta`` of some rows (grid: blocks of rows, heads, batch rows)."""
    b = tl.program_id(2).to(tl.int64)
    h = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    exists = i < queries
    d = tl.arange(0, VALUE_WIDTH)
    inside = exists[:, None] & (d[None, :] < VALUE_D)
    at = b * grad_strides[0] + h * grad_strides[1] + i.to(tl.int64) * grad_strides[2]
    grad = tl.load(grad_output + at[:, None] + d[None, :], mask=inside, other=0.0).to(tl.float32)
    at = b * output_strides[0] + h * output_strides[1] + i.to(tl.int64) * output_strides[2]
    out = tl.load(output + at[:, None] + d[None, :], mask=inside, other=0.0).to(tl.float32)
    less = tl.sum(grad * out, 1)
    if grad_logsumexp is not None:
        at = b * grad_logsumexp_strides[0] + h * grad_logsumexp_strides[1] + i.to(tl.int64) * grad_logsumexp_strides[2]
        less -= tl.load(grad_logsumexp + at, mask=exists, other=0.0).to(tl.float32)
    tl.store(delta + (b * heads + h) * queries + i, less, mask=exists)


@triton.jit
def weights_and_gradients(
    s, dp, seen, normalizer, delta, rows, j, columns, limits, scoring, chance,
    form: tl.constexpr, AFTER: tl.constexpr, CAREFUL: tl.constexpr,
):  # fmt: skip
    """From scores before the rules: weights as they meet the values, gradients after rule ``AFTER``, and who is seen.

    What is not seen is selected away, whatever the normalizer, ``dp`` and ``delta`` hold.
    """
    _, _, query_offset, key_offset = limits
    threshold, keep_scale, seed, random_row = chance
    s, slope = after_rules(s, rows, j, columns, key_offset - query_offset, scoring, form, AFTER)
    seen = seen & (s != -float("inf"))
    p = tl.where(seen, weights_of(s, normalizer, scoring[1], CAREFUL), 0.0)
    used = p
    if form.DROPOUT:
        keep = kept(threshold, seed, random_row, rows[2], rows[3] + query_offset, j + key_offset)
        used = tl.where(keep, p * keep_scale, 0.0)
        dp = tl.where(keep, dp * keep_scale, 0.0)
    ds = tl.where(seen, p * (dp - delta) * slope, 0.0)
    return used, ds, seen


@triton.jit
def signed(ds, x, seen, acc, MODE: tl.constexpr):
    """``acc + ds x`` in the modes of `mixed`. A seen row of ``x`` that is not finite gives NaN: its scores are NaN."""
    if MODE == FAST:
        return tl.dot(ds.to(x.dtype), x, acc, input_precision=PRECISION)
    finite = tl.abs(x.to(tl.float32)) < float("inf")
    if MODE == CLEAN:
        return tl.dot(ds.to(x.dtype), tl.where(finite, x, 0.0).to(x.dtype), acc, input_precision=PRECISION)
    return tl.dot(seen.to(x.dtype), tl.where(finite, 0.0, 256.0).to(x.dtype), acc, input_precision=PRECISION)


# Widths above this one are multiplied a part at a time, so that of two sides of a product neither is held whole.
_WHOLE, _PART = tl.constexpr(256), tl.constexpr(64)


@triton.jit
def side(tensor, strides, b, head, j, there, D: tl.constexpr, WIDTH: tl.constexpr):
    """Rows ``j`` of a head as `product` takes them: the rows, their tensor, where they begin, which are there."""
    at = b.to(tl.int64) * strides[0] + head.to(tl.int64) * strides[1] + j.to(tl.int64) * strides[2]
    return side_at(tensor, at[:, None], there[:, None], D, WIDTH)


@triton.jit
def side_at(tensor, at, there, D: tl.constexpr, WIDTH: tl.constexpr):
    """The same where it is known where the rows begin. Rows that only a product in parts asks for are not read here:
    the compiler drops what nobody uses."""
    return _part(tensor, at, there, 0, D, WIDTH), tensor, at, there


@triton.jit
def _part(tensor, at, there, first, D: tl.constexpr, WIDTH: tl.constexpr):
    d = first + tl.arange(0, WIDTH)[None, :]
    return tl.load(tensor + at + d, mask=there & (d < D), other=0.0)


@triton.jit
def product(x, y, D: tl.constexpr, WIDTH: tl.constexpr):
    """``x y'`` of two sides."""
    if WIDTH <= _WHOLE:
        return tl.dot(x[0], tl.trans(y[0]), input_precision=PRECISION)
    else:  # noqa: RET505  what follows a return is compiled too
        acc = tl.full((x[0].shape[0], y[0].shape[0]), 0.0, tl.float32)
        for part in range(WIDTH // _PART):
            a = _part(x[1], x[2], x[3], part * _PART, D, _PART)
            b = _part(y[1], y[2], y[3], part * _PART, D, _PART)
            acc = tl.dot(a, tl.trans(b), acc, input_precision=PRECISION)
        return acc


@triton.jit
def scores(q, k, rows, j, columns, keys, scoring, form: tl.constexpr):
    """Scores of one side by the other before the rules, as `compared` gives them."""
    if form.ADDITIVE:
        s = additive(rows, j, columns, keys, scoring[2], form)
    else:
        D: tl.constexpr = form.D
        WIDTH: tl.constexpr = form.WIDTH
        s = product(q, k, D, WIDTH)
        if form.NATURAL:
            s = s * scoring[0]
    return s


# --- A tile of queries ------------------------------------------------------------------------------------------------


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


# --- A tile of keys ---------------------------------------------------------------------------------------------------


@triton.jit
def _key_walk(
    k, v, j1, low, count, high, group, queries, heads, normalizers, delta, sight, some, b, key_head, limits,
    keys, values, query_strides, grad_output, grad_strides, scoring, tiles, chance,
    form: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """Gradients of a tile of keys and values: over the heads of its group, and the ``count`` tiles of queries."""
    D: tl.constexpr = form.D
    WIDTH: tl.constexpr = form.WIDTH
    VALUE_D: tl.constexpr = form.VALUE_D
    VALUE_WIDTH: tl.constexpr = form.VALUE_WIDTH
    key_begin, key_end, query_offset, key_offset = limits
    spans, begins, ends, interval_strides = sight
    of_key = tl.full((form.BLOCK, form.WIDTH), 0.0, tl.float32)
    of_value = tl.full((form.BLOCK, form.VALUE_WIDTH), 0.0, tl.float32)
    column = tl.arange(0, form.WIDTH)[None, :]
    j = j1[:, None]
    columns = some[:, None]
    for step in range(group * count):
        h = key_head * group + step // count
        i = low + step % count * form.ROWS + tl.arange(0, form.ROWS)
        exists = i <= high
        seen_by = intervals(
            spans, begins, ends, interval_strides, b, i, i + query_offset, exists, key_begin, key_end, key_offset, form
        )
        seen = sees(seen_by, j, form) & columns
        query_at = b.to(tl.int64) * query_strides[0] + h.to(tl.int64) * query_strides[1]
        query_at = query_at + i.to(tl.int64) * query_strides[2]
        rows = (b, key_head, (h + i * 0)[None, :], i[None, :], query_at[None, :], exists[None, :])
        if form.TILE_ROWS > 0:
            seen = seen & in_tiles(tiles, rows, tl.min(j1, 0), j, form)
        at = (b.to(tl.int64) * heads + h) * queries + i
        normalizer = normalizer_at(normalizers, at[None, :], exists[None, :], MODE != FAST)
        less = tl.load(delta + at, mask=exists, other=0.0)[None, :]
        q = side(keys[0], query_strides, b, h, i, exists, D, WIDTH)
        grad = side(grad_output, grad_strides, b, h, i, exists, VALUE_D, VALUE_WIDTH)
        s = scores(k, q, rows, j, columns, keys, scoring, form)
        dp = product(v, grad, VALUE_D, VALUE_WIDTH)
        used, ds, seen = weights_and_gradients(
            s, dp, seen, normalizer, less, rows, j, columns, limits, scoring, chance, form, -1, MODE != FAST
        )
        of_value = mixed(used, grad[0], seen, of_value, MODE)
        if form.ADDITIVE:
            for d in range(form.D):
                t, v_d = additive_part(rows, j, columns, keys, scoring[2], d)
                part = tl.sum(tl.where(seen, ds * v_d * (1.0 - t * t), 0.0), 1)[:, None]
                of_key += tl.where(column == d, part, 0.0)
        else:
            of_key = signed(ds, q[0], seen, of_key, MODE)
    return of_key, of_value


@triton.jit(do_not_specialize=["segment", "batch", "heads", "queries", "documents", "threshold", "seed"])
def key_gradient(
    query, key, value, grad_output, normalizers, delta, grad_key, grad_value, flags,
    query_strides, key_strides, value_strides, grad_strides, grad_key_strides, grad_value_strides,
    batch, heads, group, queries, work, segments, segment, spans, begins, ends, interval_strides, states, bits,
    tile_strides, scale, factor, compare, operands, numbers, threshold, keep_scale, seed, documents,
    form: tl.constexpr, RESCUE: tl.constexpr,
):  # fmt: skip
    """Gradients of one tile of keys and values (grid: tiles of keys, key-value heads, batch rows)."""
    number = (tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)) * tl.num_programs(0) + tl.program_id(0)
    if RESCUE and tl.load(flags + number) == 0:
        return
    row, first, query_begin, query_end, key_begin, key_end, query_offset, key_offset, document = program_of_keys(
        work, segments, segment, form
    )
    b = tl.where(row < 0, tl.program_id(2), row)
    key_head = tl.program_id(1)
    j = first + tl.arange(0, form.BLOCK)
    some = (j >= key_begin) & (j < key_end)

    # The queries that see something of the tile lie between `low` and `high`.
    low = query_end
    high = query_begin - 1
    for part in range(tl.cdiv(query_end - query_begin, 4 * form.ROWS)):
        i = query_begin + part * (4 * form.ROWS) + tl.arange(0, 4 * form.ROWS)
        seen_by = intervals(
            spans, begins, ends, interval_strides, b, i, i + query_offset, i < query_end, key_begin, key_end,
            key_offset, form,
        )  # fmt: skip
        found = touches(seen_by, first, first + form.BLOCK, form)
        low = tl.minimum(low, tl.min(tl.where(found, i, query_end), 0))
        high = tl.maximum(high, tl.max(tl.where(found, i, query_begin - 1), 0))
    count = tl.where(high < low, 0, (high - low) // form.ROWS + 1)

    D: tl.constexpr = form.D
    WIDTH: tl.constexpr = form.WIDTH
    VALUE_D: tl.constexpr = form.VALUE_D
    VALUE_WIDTH: tl.constexpr = form.VALUE_WIDTH
    k = side(key, key_strides, b, key_head, j, some, D, WIDTH)
    v = side(value, value_strides, b, key_head, j, some, VALUE_D, VALUE_WIDTH)
    sight = (spans, begins, ends, interval_strides)
    limits = (key_begin, key_end, query_offset, key_offset)
    keys = (query, key, key_strides)
    values = (value, value_strides)
    scoring = (scale, factor, compare, operands, numbers)
    tiles = (states, bits, tile_strides)
    chance = (threshold, keep_scale, seed_of(seed), b * documents + document)
    if RESCUE:
        of_key, of_value = _key_walk(
            k, v, j, low, count, high, group, queries, heads, normalizers, delta, sight, some, b, key_head, limits,
            keys, values, query_strides, grad_output, grad_strides, scoring, tiles, chance, form, CLEAN,
        )  # fmt: skip
        key_code, value_code = _key_walk(
            k, v, j, low, count, high, group, queries, heads, normalizers, delta, sight, some, b, key_head, limits,
            keys, values, query_strides, grad_output, grad_strides, scoring, tiles, chance, form, SPOILED,
        )  # fmt: skip
        of_key = tl.where(key_code > 0.0, float("nan"), of_key)
        of_value = spoil(of_value, value_code)
    else:
        of_key, of_value = _key_walk(
            k, v, j, low, count, high, group, queries, heads, normalizers, delta, sight, some, b, key_head, limits,
            keys, values, query_strides, grad_output, grad_strides, scoring, tiles, chance, form, FAST,
        )  # fmt: skip
        tl.store(flags + number + tl.arange(0, 1), tl.maximum(unfit(of_key, some), unfit(of_value, some)))
    if not form.ADDITIVE:
        of_key = of_key * scale
    d = tl.arange(0, form.WIDTH)[None, :]
    e = tl.arange(0, form.VALUE_WIDTH)[None, :]
    at = b.to(tl.int64) * grad_key_strides[0] + key_head.to(tl.int64) * grad_key_strides[1]
    at = (at + j.to(tl.int64) * grad_key_strides[2])[:, None] + d
    tl.store(grad_key + at, of_key.to(grad_key.dtype.element_ty), mask=some[:, None] & (d < form.D))
    at = b.to(tl.int64) * grad_value_strides[0] + key_head.to(tl.int64) * grad_value_strides[1]
    at = (at + j.to(tl.int64) * grad_value_strides[2])[:, None] + e
    tl.store(grad_value + at, of_value.to(grad_value.dtype.element_ty), mask=some[:, None] & (e < form.VALUE_D))


# --- Biases -----------------------------------------------------------------------------------------------------------


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
