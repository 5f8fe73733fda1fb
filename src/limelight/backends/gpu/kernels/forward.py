"""The FlashAttention 2 forward pass (Dao 2023): a program owns a tile of queries and walks over blocks of keys."""

import triton
import triton.language as tl

from .dropout import kept, seed_of
from .scores import (
    LARGE,
    LOG2_E,
    PRECISION,
    after_rules,
    compared,
    exponent_of_the_sum,
    load_rows,
    reference_point,
    with_a_sink,
)
from .visibility import anybody, blocks, chosen, in_tiles, intervals, program

# Arguments that travel together are tuples; `form` is all that the compiler knows (`limelight.backends.gpu.form`).
# rows    = (b, key_head, h, i, query_at, exists)             what the rows of a tile are, shaped to broadcast
# limits  = (key_begin, key_end, query_offset, key_offset)    of the segment
# keys    = (query, key, key_strides)
# values  = (value, value_strides)
# scoring = (scale, factor, compare, operands, numbers)
# tiles   = (states, bits, tile_strides)
# chance  = (threshold, seed, random_row)
# q, acc  = (main part, rest): a width that is no power of two may lie in two parts (`form.REST`, `form.VALUE_REST`)

# How a walk treats values that are not finite. FAST: as any other. CLEAN: as zeros. SPOILED: it adds up, instead of the
# output, what they make of it, in the code of `spoil`. FAST is right only for scores that are not `LARGE`, and its
# running maximum is one of scores times the factor; the other modes take any score, and theirs is one of scores.
FAST, CLEAN, SPOILED = (tl.constexpr(n) for n in range(3))
_UP, _DOWN, _NAN = (tl.constexpr(n) for n in (2.0**-9, 1.0, 256.0))


@triton.jit
def mixed(p, v, seen, acc, MODE: tl.constexpr):
    """``acc + p v`` in one of the three modes; ``seen`` says which of ``p`` stand for something."""
    if MODE == FAST:
        return tl.dot(p.to(v.dtype), v, acc, input_precision=PRECISION)
    finite = tl.abs(v.to(tl.float32)) < float("inf")
    if MODE == CLEAN:
        return tl.dot(p.to(v.dtype), tl.where(finite, v, 0.0).to(v.dtype), acc, input_precision=PRECISION)
    # Of at most 128 keys the counts of the three do not run into each other.
    code = tl.where(v != v, _NAN, tl.where(finite, 0.0, tl.where(v > 0.0, _UP, _DOWN))).to(v.dtype)
    acc = tl.dot(seen.to(v.dtype), code, acc, input_precision=PRECISION)
    # A weight of zero times infinity is NaN.
    code = tl.where(finite, 0.0, _NAN).to(v.dtype)
    return tl.dot((seen & (p == 0.0)).to(v.dtype), code, acc, input_precision=PRECISION)


@triton.jit
def spoil(acc, code):
    """What IEEE arithmetic makes of ``acc`` when values that are not finite are added: infinity, or NaN."""
    down = code - tl.floor(code / _NAN) * _NAN
    acc = tl.where(down > tl.floor(down), acc + float("inf"), acc)
    acc = tl.where(down >= _DOWN, acc - float("inf"), acc)
    return tl.where(code >= _NAN, float("nan"), acc)


@triton.jit
def unfit(acc, exists):
    """``(1,)``: 1 where some number of a row that exists is not finite, else 0.

    Both reductions are of two dimensions: that of a vector made from a product fails in Triton's passes for Blackwell.
    """
    finite = tl.min((tl.abs(acc) < float("inf")).to(tl.int32), 1, keep_dims=True)
    return 1 - tl.min(tl.where(exists[:, None], finite, 1), 0)


@triton.jit
def _block(
    m, total, acc, q, n, begin, end, rows, limits, keys, values, scoring, tiles, chance,
    form: tl.constexpr, MASKED: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """One block of keys: scores, the running maximum and sum, and the output rescaled and added to."""
    key_begin, key_end, query_offset, key_offset = limits
    main, rest = acc
    j = n * form.BLOCK + tl.arange(0, form.BLOCK)
    columns = (j >= key_begin) & (j < key_end)
    D: tl.constexpr = form.D
    WIDTH: tl.constexpr = form.WIDTH
    b, key_head, h, i, _, _ = rows
    k = load_rows(keys[1], keys[2], b, key_head, j, columns, D, WIDTH, MASKED)
    if form.REST > 0:
        REST: tl.constexpr = form.REST
        more = load_rows(keys[1] + WIDTH, keys[2], b, key_head, j, columns, D - WIDTH, REST, MASKED)
        s = tl.dot(q[0], tl.trans(k), input_precision=PRECISION)
        s = tl.dot(q[1], tl.trans(more), s, input_precision=PRECISION)
        if form.NATURAL:
            s = s * scoring[0]
    else:
        s = compared(q[0], k, rows, j[None, :], columns[None, :], keys, scoring, form)
    s, _ = after_rules(s, rows, j[None, :], columns[None, :], key_offset - query_offset, scoring, form, 0)
    if MASKED:
        seen = (j[None, :] >= begin[:, None]) & (j[None, :] < end[:, None])
        if form.TILE_ROWS > 0:
            seen = seen & in_tiles(tiles, rows, n * form.BLOCK, j[None, :], form)
        s = tl.where(seen, s, -float("inf"))
    factor = scoring[1]
    if MODE == FAST:
        most = tl.maximum(m, tl.max(s, 1) * factor)
        base = tl.where(most == -float("inf"), 0.0, most)
        p = tl.exp2(tl.fma(s, factor, -base[:, None]))
        rescale = tl.exp2(m - base)
    else:
        most = tl.maximum(m, tl.max(s, 1)) if MODE == CLEAN else m
        shift, rest_of_it = reference_point(most, factor)
        p = tl.exp2(tl.fma(s - shift[:, None], factor, -rest_of_it[:, None]))
        shift_before, rest_before = reference_point(m, factor)
        moved = tl.fma(shift_before - shift, factor, rest_before - rest_of_it)
        rescale = tl.where(m == -float("inf"), 0.0, tl.exp2(moved))
    if MODE != SPOILED:
        total = total * rescale + tl.sum(p, 1)
        main = main * rescale[:, None]
        if form.VALUE_REST > 0:
            rest = rest * rescale[:, None]
    if form.DROPOUT:
        threshold, seed, random_row = chance
        p = tl.where(kept(threshold, seed, random_row, h, i + query_offset, j[None, :] + key_offset), p, 0.0)
    VALUE_D: tl.constexpr = form.VALUE_D
    VALUE_WIDTH: tl.constexpr = form.VALUE_WIDTH
    v = load_rows(values[0], values[1], b, key_head, j, columns, VALUE_D, VALUE_WIDTH, MASKED)
    # A score of minus infinity counts as unseen.
    main = mixed(p, v, s != -float("inf"), main, MODE)
    if form.VALUE_REST > 0:
        VALUE_REST: tl.constexpr = form.VALUE_REST
        behind = values[0] + VALUE_WIDTH
        v = load_rows(behind, values[1], b, key_head, j, columns, VALUE_D - VALUE_WIDTH, VALUE_REST, MASKED)
        rest = mixed(p, v, s != -float("inf"), rest, MODE)
    return most, total, (main, rest)


@triton.jit
def _walk(
    m, q, seen_by, split, rows, limits, keys, values, scoring, tiles, chance, form: tl.constexpr, MODE: tl.constexpr
):  # fmt: skip
    """All blocks of keys that some row of the tile sees. Only those that an edge cuts pay for it.

    ``m`` is the running maximum to start from: minus infinity, or the final one in the mode SPOILED.
    """
    total = tl.full((form.ROWS,), 0.0, tl.float32)
    main = tl.full((form.ROWS, form.VALUE_WIDTH), 0.0, tl.float32)
    acc = (main, tl.full((form.ROWS, form.VALUE_REST if form.VALUE_REST > 0 else 1), 0.0, tl.float32))
    mapped: tl.constexpr = form.TILE_ROWS > 0
    for k in range(form.INTERVALS):
        begin, end = chosen(k, seen_by, form)
        first, whole_first, whole_last, last = blocks(begin, end, seen_by[8], form)
        if form.SPLITS > 1:
            share = tl.cdiv(last - first, form.SPLITS)
            first = tl.minimum(first + split * share, last)
            last = tl.minimum(first + share, last)
            whole_first = tl.minimum(tl.maximum(whole_first, first), last)
            whole_last = tl.minimum(tl.maximum(whole_last, whole_first), last)
        # Edges first, then the whole blocks; every mode takes the same order, so that rows keep their bits.
        # Loops start at 0: from a computed bound, the compiler loses the alignment of what they read.
        left = whole_first - first
        edges = left + last - whole_last
        steps = last - first if MODE != FAST or mapped else edges
        for at in range(steps):
            n = tl.where(at < left, first + at, tl.where(at < edges, whole_last - left, whole_first - edges) + at)
            if mapped:
                if anybody(tiles, rows, n * form.BLOCK, form):
                    m, total, acc = _block(
                        m, total, acc, q, n, begin, end, rows, limits, keys, values, scoring, tiles, chance,
                        form, True, MODE,
                    )  # fmt: skip
            else:
                m, total, acc = _block(
                    m, total, acc, q, n, begin, end, rows, limits, keys, values, scoring, tiles, chance,
                    form, True, MODE,
                )  # fmt: skip
        if MODE == FAST and not mapped:
            for at in range(whole_last - whole_first):
                m, total, acc = _block(
                    m, total, acc, q, whole_first + at, begin, end, rows, limits, keys, values, scoring, tiles, chance,
                    form, False, MODE,
                )  # fmt: skip
    return m, total, acc


@triton.jit(do_not_specialize=["segment", "batch", "heads", "queries", "documents", "threshold", "seed"])
def forward(
    query, key, value, output, logsumexp, flags, sink, query_strides, key_strides, value_strides, output_strides,
    batch, heads, group, queries, work, segments, segment, spans, begins, ends, interval_strides, states, bits,
    tile_strides, scale, factor, compare, operands, numbers, threshold, keep_scale, seed, documents,
    form: tl.constexpr, RESCUE: tl.constexpr,
):  # fmt: skip
    """Output and logsumexp of one tile of queries (grid: tiles, head packs, batch rows x splits of the keys).

    ``flags`` is one int32 for each program, set where an output is not finite or a row's largest score is `LARGE`. With
    ``RESCUE`` only those are computed again, so that what a row does not see leaves it untouched, and any score gives
    its weight: a kernel of its own, for the registers of this one.
    With ``SPLITS > 1`` the output is a part in float32, ``(splits, B, Hq, Lq, Dv)``, without the sink, to be merged;
    ``logsumexp`` has two numbers of each row whose sum it is, ``(2, splits, B, Hq, Lq)``: of many keys with one large
    score the second says how many.
    """
    number = (tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)) * tl.num_programs(0) + tl.program_id(0)
    if RESCUE and tl.load(flags + number) == 0:
        return
    row, first, query_end, key_begin, key_end, query_offset, key_offset, document = program(
        work, segments, segment, form
    )
    split = tl.program_id(2) % form.SPLITS
    b = tl.where(row < 0, tl.program_id(2) // form.SPLITS, row)
    r = tl.arange(0, form.ROWS)
    i = first + r // form.PACK
    h = tl.program_id(1) * form.PACK + r % form.PACK
    exists = (i < query_end) & (r < form.ROWS // form.PACK * form.PACK)
    seen_by = intervals(
        spans, begins, ends, interval_strides, b, i, i + query_offset, exists, key_begin, key_end, key_offset,
        form,
    )  # fmt: skip
    query_at = b.to(tl.int64) * query_strides[0] + h.to(tl.int64) * query_strides[1] + i.to(tl.int64) * query_strides[2]
    d = tl.arange(0, form.WIDTH)
    q = tl.load(query + query_at[:, None] + d[None, :], mask=exists[:, None] & (d[None, :] < form.D), other=0.0)
    q = (q, q)
    if form.REST > 0:
        d = form.WIDTH + tl.arange(0, form.REST)
        more = tl.load(query + query_at[:, None] + d[None, :], mask=exists[:, None] & (d[None, :] < form.D), other=0.0)
        q = (q[0], more)

    key_head = tl.program_id(1) * form.PACK // group
    rows = (b, key_head, h[:, None], i[:, None], query_at[:, None], exists[:, None])
    limits = (key_begin, key_end, query_offset, key_offset)
    keys = (query, key, key_strides)
    values = (value, value_strides)
    scoring = (scale, factor, compare, operands, numbers)
    tiles = (states, bits, tile_strides)
    chance = (threshold, seed_of(seed), b * documents + document)
    lowest = tl.full((form.ROWS,), -float("inf"), tl.float32)
    if RESCUE:
        m, total, acc = _walk(
            lowest, q, seen_by, split, rows, limits, keys, values, scoring, tiles, chance, form, CLEAN,
        )  # fmt: skip
        _, _, code = _walk(
            m, q, seen_by, split, rows, limits, keys, values, scoring, tiles, chance, form, SPOILED,
        )  # fmt: skip
        main = spoil(acc[0], code[0])
        rest = spoil(acc[1], code[1]) if form.VALUE_REST > 0 else acc[1]
        shift, rest_of_it = reference_point(m, factor)
    else:
        m, total, acc = _walk(
            lowest, q, seen_by, split, rows, limits, keys, values, scoring, tiles, chance, form, FAST,
        )  # fmt: skip
        main, rest = acc
        # A value that is not finite was multiplied, perhaps by the zero of a key that a row does not see. Or scores are
        # so large that their weights are not right; a row that sees nothing looks alike.
        settled = (tl.abs(m) < LARGE) & (total < float("inf"))
        spoiled = unfit(tl.where(settled[:, None], main, float("inf")), exists)
        if form.VALUE_REST > 0:
            spoiled = tl.maximum(spoiled, unfit(rest, exists))
        tl.store(flags + number + tl.arange(0, 1), spoiled)
        shift, rest_of_it = tl.full((form.ROWS,), 0.0, tl.float32), tl.where(m == -float("inf"), 0.0, m)
    nobody = total == 0.0
    natural, more = exponent_of_the_sum(shift, rest_of_it, 1.0 if form.NATURAL else scale)
    low = tl.where(nobody, 0.0, (tl.log2(total) + more) / LOG2_E)
    lse = tl.where(nobody, -float("inf"), natural if form.SPLITS > 1 else natural + low)
    rescale = 1.0
    if form.SINK:
        logit = tl.load(sink + h).to(tl.float32)
        total, rescale, with_sink = with_a_sink(logit, tl.where(nobody, logit, natural), more, total)
        lse = tl.where(nobody, logit, with_sink)
        rescale = rescale[:, None]
    share = tl.where(nobody, 1.0, total)
    place = (split * batch + b).to(tl.int64)
    row = (place * heads + h) * queries + i
    tl.store(logsumexp + row, lse, mask=exists)
    if form.SPLITS > 1:
        tl.store(logsumexp + form.SPLITS * batch.to(tl.int64) * heads * queries + row, low, mask=exists)
    at = place * output_strides[0] + h.to(tl.int64) * output_strides[1] + i.to(tl.int64) * output_strides[2]
    for part in tl.static_range(2 if form.VALUE_REST > 0 else 1):
        acc = main if part == 0 else rest
        d = tl.arange(0, form.VALUE_WIDTH) if part == 0 else form.VALUE_WIDTH + tl.arange(0, form.VALUE_REST)
        out = tl.where(nobody[:, None], 0.0, acc * rescale / share[:, None])
        if form.DROPOUT:
            out = out * keep_scale
        where = output + at[:, None] + d[None, :]
        tl.store(where, out.to(output.dtype.element_ty), mask=exists[:, None] & (d[None, :] < form.VALUE_D))


@triton.jit(do_not_specialize=["heads", "queries", "size"])
def merge(
    parts, logsumexps, output, logsumexp, sink, output_strides, heads, queries, size,
    SPLITS: tl.constexpr, SINK: tl.constexpr, VALUE_D: tl.constexpr, VALUE_WIDTH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """The union of ``SPLITS`` disjoint parts of the keys, by logsumexps in two numbers; ``size`` is ``B Hq Lq``."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)  # few, or their keys would not lie in parts
    exists = row < size
    i, h, b = row % queries, row // queries % heads, row // queries // heads  # divided while they are narrow
    row, i, h, b = row.to(tl.int64), i.to(tl.int64), h.to(tl.int64), b.to(tl.int64)
    most = tl.full((ROWS,), -float("inf"), tl.float32)
    somebody = tl.zeros((ROWS,), tl.int32)
    for n in range(SPLITS):
        part = tl.load(logsumexps + n * size + row, mask=exists, other=0.0)
        most = tl.maximum(most, part)
        somebody |= (part != -float("inf")).to(tl.int32)
    nobody = somebody == 0
    logit = tl.full((ROWS,), -float("inf"), tl.float32)
    if SINK:
        logit = tl.load(sink + h, mask=exists, other=0.0).to(tl.float32)
        most = tl.maximum(most, logit)
    base = tl.where(most == -float("inf"), 0.0, most)
    total = tl.exp2((logit - base) * LOG2_E)
    lows = logsumexps + SPLITS * size
    d = tl.arange(0, VALUE_WIDTH)
    out = tl.zeros((ROWS, VALUE_WIDTH), tl.float32)
    for n in range(SPLITS):
        part = tl.load(logsumexps + n * size + row, mask=exists, other=0.0)
        low = tl.load(lows + n * size + row, mask=exists, other=0.0)
        weight = tl.exp2((part - base + low) * LOG2_E)
        total += weight
        where = parts + (n * size + row)[:, None] * VALUE_D + d[None, :]
        value = tl.load(where, mask=exists[:, None] & (d[None, :] < VALUE_D), other=0.0)
        out += tl.where(part[:, None] == -float("inf"), 0.0, weight[:, None] * value)
    share = tl.where(nobody, 1.0, total)
    out = tl.where(nobody[:, None], 0.0, out / share[:, None])
    tl.store(logsumexp + row, tl.where(nobody, logit, base + tl.log2(share) / LOG2_E), mask=exists)
    where = output + (b * output_strides[0] + h * output_strides[1] + i * output_strides[2])[:, None] + d[None, :]
    tl.store(where, out.to(output.dtype.element_ty), mask=exists[:, None] & (d[None, :] < VALUE_D))
