"""The FlashAttention 2 forward pass (Dao 2023): a program owns a tile of queries and walks over blocks of keys."""

import triton
import triton.language as tl

from .dropout import kept, seed_of
from .scores import (
    LARGE,
    LOG2_E,
    PRECISION,
    add_to_entropy,
    after_rules,
    exponent_of_the_sum,
    load_rows,
    raw_scores,
    reference_point,
    statistics_of_rows,
    strides_of_text,
    with_a_sink,
)
from .visibility import any_visible, blocks, in_tiles, interval_of, intervals, program, random_row

# Arguments that belong together are tuples; `const` holds the constants (`limelight.backends.gpu.constants`).
# rows     = (b, key_head, h, i, query_at, exists)            of each row of a tile, shaped to broadcast
# limits   = (key_begin, key_end, query_offset, key_offset)   of the segment
# keys     = (query, key, key_strides)
# values   = (value, value_strides)
# scoring  = (scale, factor, compare, operands, numbers)      the last two by score rule: tensor; strides or scalars
# tile_map = (states, bits, map_strides)
# dropout  = (threshold, seed, random_row)
# q, acc   = (main part, rest): a width that is no power of two may lie in two parts (`const.REST`, `VALUE_REST`)
# moments  = (largest score, sum of p x)                      of each row, for `const.STATISTICS` (`add_to_entropy`)

# How a loop over keys treats non-finite values. FAST: as any other. FINITE: as zeros. NONFINITE: instead of the output
# it sums their effect, in the code of `add_nonfinite`. FAST is correct only for scores that are not `LARGE`, and its
# running maximum is one of scores times the factor; the other modes take any score, and theirs is one of scores.
FAST, FINITE, NONFINITE = (tl.constexpr(n) for n in range(3))
_UP, _DOWN, _NAN = (tl.constexpr(n) for n in (2.0**-9, 1.0, 256.0))


@triton.jit
def add_product(p, v, seen, acc, MODE: tl.constexpr):
    """``acc + p v`` in one of the three modes; ``seen``: which pairs are visible."""
    if MODE == FAST:
        return tl.dot(p.to(v.dtype), v, acc, input_precision=PRECISION)
    finite = tl.abs(v.to(tl.float32)) < float("inf")
    if MODE == FINITE:
        return tl.dot(p.to(v.dtype), tl.where(finite, v, 0.0).to(v.dtype), acc, input_precision=PRECISION)
    # For at most 128 keys the three counts do not overflow into each other.
    code = tl.where(v != v, _NAN, tl.where(finite, 0.0, tl.where(v > 0.0, _UP, _DOWN))).to(v.dtype)
    acc = tl.dot(seen.to(v.dtype), code, acc, input_precision=PRECISION)
    # A weight of zero times infinity is NaN.
    code = tl.where(finite, 0.0, _NAN).to(v.dtype)
    return tl.dot((seen & (p == 0.0)).to(v.dtype), code, acc, input_precision=PRECISION)


@triton.jit
def add_nonfinite(acc, code):
    """``acc`` plus the non-finite terms that ``code`` counts, in IEEE arithmetic: infinity, or NaN."""
    down = code - tl.floor(code / _NAN) * _NAN
    acc = tl.where(down > tl.floor(down), acc + float("inf"), acc)
    acc = tl.where(down >= _DOWN, acc - float("inf"), acc)
    return tl.where(code >= _NAN, float("nan"), acc)


@triton.jit
def nonfinite_flag(acc, exists):
    """``(1,)`` int32: 1 where some element of a row that exists is not finite, else 0.

    Both reductions are of matrices: that of a vector which comes from a product fails in Triton's passes for Blackwell.
    """
    finite = tl.min((tl.abs(acc) < float("inf")).to(tl.int32), 1, keep_dims=True)
    return 1 - tl.min(tl.where(exists[:, None], finite, 1), 0)


@triton.jit
def _add_moments(moments, s, top, m, total, moved, rescale, power, p, const: tl.constexpr, MODE: tl.constexpr):
    """The largest score and the sum of ``p x`` of each row after a block of keys, whose largest scores are ``top``."""
    peak, weighted = moments
    peak = tl.maximum(peak, top, propagate_nan=tl.PropagateNan.ALL)
    if MODE == FINITE:  # the maximum of a block ignores NaN
        peak = tl.where(tl.max((s != s).to(tl.int32), 1) > 0, float("nan"), peak)
    if const.STATISTICS > 1:
        moved = tl.where(m == -float("inf"), 0.0, moved)
        weighted = add_to_entropy(weighted, total, moved, rescale, power, p)
    return peak, weighted


@triton.jit
def _block(
    m, total, acc, moments, q, n, begin, end, rows, limits, keys, values, scoring, tile_map, dropout,
    const: tl.constexpr, MASKED: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """One block of keys: scores, the running maximum and sum, and the output rescaled and added to."""
    key_begin, key_end, query_offset, key_offset = limits
    main, rest = acc
    j = n * const.BLOCK + tl.arange(0, const.BLOCK)
    columns = (j >= key_begin) & (j < key_end)
    D: tl.constexpr = const.D
    WIDTH: tl.constexpr = const.WIDTH
    b, key_head, h, i, _, _ = rows
    k = load_rows(keys[1], keys[2], b, key_head, j, columns, D, WIDTH, MASKED, const.PAGE)
    if const.REST > 0:
        REST: tl.constexpr = const.REST
        more = load_rows(keys[1] + WIDTH, keys[2], b, key_head, j, columns, D - WIDTH, REST, MASKED, const.PAGE)
        s = tl.dot(q[0], tl.trans(k), input_precision=PRECISION)
        s = tl.dot(q[1], tl.trans(more), s, input_precision=PRECISION)
        if const.SCALE_FIRST:
            s = s * scoring[0]
    else:
        s = raw_scores(q[0], k, rows, j[None, :], columns[None, :], keys, scoring, const)
    s, _ = after_rules(s, rows, j[None, :], columns[None, :], key_offset - query_offset, scoring, const, 0)
    if MASKED:
        seen = (j[None, :] >= begin[:, None]) & (j[None, :] < end[:, None])
        if const.MAP_ROWS > 0:
            seen = seen & in_tiles(tile_map, rows, n * const.BLOCK, j[None, :], const)
        s = tl.where(seen, s, -float("inf"))
    factor = scoring[1]
    top = tl.max(s, 1)
    if MODE == FAST:
        m_new = tl.maximum(m, top * factor)
        base = tl.where(m_new == -float("inf"), 0.0, m_new)
        power = tl.fma(s, factor, -base[:, None])
        moved = m - base
        rescale = tl.exp2(moved)
    else:
        m_new = tl.maximum(m, top) if MODE == FINITE else m
        shift, rest_term = reference_point(m_new, factor)
        power = tl.fma(s - shift[:, None], factor, -rest_term[:, None])
        shift_before, rest_before = reference_point(m, factor)
        moved = tl.fma(shift_before - shift, factor, rest_before - rest_term)
        rescale = tl.where(m == -float("inf"), 0.0, tl.exp2(moved))
    p = tl.exp2(power)
    if const.STATISTICS > 0 and MODE != NONFINITE:
        moments = _add_moments(moments, s, top, m, total, moved, rescale, power, p, const, MODE)
    if MODE != NONFINITE:
        total = total * rescale + tl.sum(p, 1)
        main = main * rescale[:, None]
        if const.VALUE_REST > 0:
            rest = rest * rescale[:, None]
    if const.DROPOUT:
        threshold, seed, random_row = dropout
        p = tl.where(kept(threshold, seed, random_row, h, i + query_offset, j[None, :] + key_offset), p, 0.0)
    VALUE_D: tl.constexpr = const.VALUE_D
    VALUE_WIDTH: tl.constexpr = const.VALUE_WIDTH
    v = load_rows(values[0], values[1], b, key_head, j, columns, VALUE_D, VALUE_WIDTH, MASKED, const.PAGE)
    # A score of minus infinity counts as unseen.
    main = add_product(p, v, s != -float("inf"), main, MODE)
    if const.VALUE_REST > 0:
        VALUE_REST: tl.constexpr = const.VALUE_REST
        behind = values[0] + VALUE_WIDTH
        v = load_rows(behind, values[1], b, key_head, j, columns, VALUE_D - VALUE_WIDTH, VALUE_REST, MASKED, const.PAGE)
        rest = add_product(p, v, s != -float("inf"), rest, MODE)
    return m_new, total, (main, rest), moments


@triton.jit
def _walk(
    m, q, seen_by, split, rows, limits, keys, values, scoring, tile_map, dropout,
    const: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """All blocks of keys that some row of the tile sees. Only blocks that an edge cuts are masked.

    ``m`` is the running maximum to start from: minus infinity, or the final one in the mode NONFINITE.
    """
    total = tl.full((const.ROWS,), 0.0, tl.float32)
    main = tl.full((const.ROWS, const.VALUE_WIDTH), 0.0, tl.float32)
    acc = (main, tl.full((const.ROWS, const.VALUE_REST if const.VALUE_REST > 0 else 1), 0.0, tl.float32))
    moments = (tl.full((const.ROWS,), -float("inf"), tl.float32), tl.full((const.ROWS,), 0.0, tl.float32))
    mapped: tl.constexpr = const.MAP_ROWS > 0
    for k in range(const.INTERVALS):
        begin, end = interval_of(k, seen_by, const)
        first, whole_first, whole_last, last = blocks(begin, end, seen_by[8], const)
        if const.SPLITS > 1:
            share = tl.cdiv(last - first, const.SPLITS)
            first = tl.minimum(first + split * share, last)
            last = tl.minimum(first + share, last)
            whole_first = tl.minimum(tl.maximum(whole_first, first), last)
            whole_last = tl.minimum(tl.maximum(whole_last, whole_first), last)
        # Edges first, then the whole blocks; every mode takes the same order, so that rows keep their bits.
        # Loops start at 0: with a computed lower bound, the compiler loses the alignment of the addresses.
        left = whole_first - first
        edges = left + last - whole_last
        steps = last - first if MODE != FAST or mapped else edges
        for at in range(steps):
            n = tl.where(at < left, first + at, tl.where(at < edges, whole_last - left, whole_first - edges) + at)
            if mapped:
                if any_visible(tile_map, rows, n * const.BLOCK, const):
                    m, total, acc, moments = _block(
                        m, total, acc, moments, q, n, begin, end, rows, limits, keys, values, scoring, tile_map,
                        dropout, const, True, MODE,
                    )  # fmt: skip
            else:
                m, total, acc, moments = _block(
                    m, total, acc, moments, q, n, begin, end, rows, limits, keys, values, scoring, tile_map, dropout,
                    const, True, MODE,
                )  # fmt: skip
        if MODE == FAST and not mapped:
            for at in range(whole_last - whole_first):
                m, total, acc, moments = _block(
                    m, total, acc, moments, q, whole_first + at, begin, end, rows, limits, keys, values, scoring,
                    tile_map, dropout, const, False, MODE,
                )  # fmt: skip
    return m, total, acc, moments


@triton.jit(do_not_specialize=["segment", "batch", "heads", "queries", "documents", "threshold", "seed"])
def forward(
    query, key, value, output, logsumexp, statistics, flags, sink, query_strides, key_strides, value_strides,
    output_strides, batch, heads, group, queries, work, segments, segment, spans, begins, ends, interval_strides,
    states, bits, map_strides, scale, factor, compare, operands, numbers, threshold, keep_scale, seed, documents,
    const: tl.constexpr, RESCUE: tl.constexpr,
):  # fmt: skip
    """Output and logsumexp of one tile of queries (grid: tiles, head packs, batch rows x splits of the keys).

    ``flags`` is one int32 for each program, set where an output is not finite or a row's largest score is `LARGE`. With
    ``RESCUE`` only those are computed again, so that a value that a row does not see never affects it, and scores of
    any size are exact: a kernel of its own, since it needs registers that this one does not have.
    With ``SPLITS > 1`` the output is a part in float32, ``(splits, B, Hq, Lq, Dv)``, without the sink, to be merged;
    ``logsumexp`` is then the sum of two values of each row, ``(2, splits, B, Hq, Lq)``: the second
    holds the small terms that a large first one would round away. ``statistics``, for ``const.STATISTICS``, is the
    largest score, the largest weight and the entropy of each row, each with the shape of the (first) logsumexp.
    """
    number = (tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)) * tl.num_programs(0) + tl.program_id(0)
    if RESCUE and tl.load(flags + number) == 0:
        return
    row, first, query_end, key_begin, key_end, query_offset, key_offset, document = program(
        work, segments, segment, const
    )
    split = tl.program_id(2) % const.SPLITS
    b = tl.where(row < 0, tl.program_id(2) // const.SPLITS, row)
    r = tl.arange(0, const.ROWS)
    i = first + r // const.PACK
    h = tl.program_id(1) * const.PACK + r % const.PACK
    exists = (i < query_end) & (r < const.ROWS // const.PACK * const.PACK)
    seen_by = intervals(
        spans, begins, ends, interval_strides, b, i, i + query_offset, exists, key_begin, key_end, key_offset,
        const,
    )  # fmt: skip
    query_at = b.to(tl.int64) * query_strides[0] + h.to(tl.int64) * query_strides[1] + i.to(tl.int64) * query_strides[2]
    d = tl.arange(0, const.WIDTH)
    q = tl.load(query + query_at[:, None] + d[None, :], mask=exists[:, None] & (d[None, :] < const.D), other=0.0)
    q = (q, q)
    if const.REST > 0:
        d = const.WIDTH + tl.arange(0, const.REST)
        more = tl.load(query + query_at[:, None] + d[None, :], mask=exists[:, None] & (d[None, :] < const.D), other=0.0)
        q = (q[0], more)

    key_head = tl.program_id(1) * const.PACK // group
    rows = (b, key_head, h[:, None], i[:, None], query_at[:, None], exists[:, None])
    limits = (key_begin, key_end, query_offset, key_offset)
    keys = (query, key, strides_of_text(key_strides, document, key_begin, const))
    values = (value, strides_of_text(value_strides, document, key_begin, const))
    scoring = (scale, factor, compare, operands, numbers)
    tile_map = (states, bits, map_strides)
    dropout = (threshold, seed_of(seed), random_row(b, documents, row, document))
    lowest = tl.full((const.ROWS,), -float("inf"), tl.float32)
    if RESCUE:
        m, total, acc, moments = _walk(
            lowest, q, seen_by, split, rows, limits, keys, values, scoring, tile_map, dropout, const, FINITE,
        )  # fmt: skip
        _, _, code, _ = _walk(
            m, q, seen_by, split, rows, limits, keys, values, scoring, tile_map, dropout, const, NONFINITE,
        )  # fmt: skip
        main = add_nonfinite(acc[0], code[0])
        rest = add_nonfinite(acc[1], code[1]) if const.VALUE_REST > 0 else acc[1]
        shift, rest_term = reference_point(m, factor)
    else:
        m, total, acc, moments = _walk(
            lowest, q, seen_by, split, rows, limits, keys, values, scoring, tile_map, dropout, const, FAST,
        )  # fmt: skip
        main, rest = acc
        # A non-finite value was multiplied, perhaps by the zero weight of a key that a row does not see. Or scores are
        # so large that their weights are wrong; a row that sees no key has the same maximum and sum.
        settled = (tl.abs(m) < LARGE) & (total < float("inf"))
        nonfinite = nonfinite_flag(tl.where(settled[:, None], main, float("inf")), exists)
        if const.VALUE_REST > 0:
            nonfinite = tl.maximum(nonfinite, nonfinite_flag(rest, exists))
        tl.store(flags + number + tl.arange(0, 1), nonfinite)
        shift, rest_term = tl.full((const.ROWS,), 0.0, tl.float32), tl.where(m == -float("inf"), 0.0, m)
    empty = total == 0.0
    log_scale, log2_rest = exponent_of_the_sum(shift, rest_term, 1.0 if const.SCALE_FIRST else scale)
    low = tl.where(empty, 0.0, (tl.log2(total) + log2_rest) / LOG2_E)
    lse = tl.where(empty, -float("inf"), log_scale if const.SPLITS > 1 else log_scale + low)
    rescale, seen = 1.0, total
    if const.SINK:
        logit = tl.load(sink + h).to(tl.float32)
        total, rescale, with_sink = with_a_sink(logit, tl.where(empty, logit, log_scale), log2_rest, total)
        lse = tl.where(empty, logit, with_sink)
    share = tl.where(empty, 1.0, total)
    place = (split * batch + b).to(tl.int64)
    row = (place * heads + h) * queries + i
    tl.store(logsumexp + row, lse, mask=exists)
    if const.STATISTICS > 0:
        largest, entropy = statistics_of_rows(moments[0], moments[1], seen, rescale / share, shift, rest_term, factor)
        tl.store(statistics[0] + row, moments[0] * (1.0 if const.SCALE_FIRST else scale), mask=exists)
        tl.store(statistics[1] + row, largest, mask=exists)
        if const.STATISTICS > 1:
            tl.store(statistics[2] + row, entropy, mask=exists)
    if const.SINK:
        rescale = rescale[:, None]
    if const.SPLITS > 1:
        tl.store(logsumexp + const.SPLITS * batch.to(tl.int64) * heads * queries + row, low, mask=exists)
    at = place * output_strides[0] + h.to(tl.int64) * output_strides[1] + i.to(tl.int64) * output_strides[2]
    for part in tl.static_range(2 if const.VALUE_REST > 0 else 1):
        acc = main if part == 0 else rest
        d = tl.arange(0, const.VALUE_WIDTH) if part == 0 else const.VALUE_WIDTH + tl.arange(0, const.VALUE_REST)
        out = tl.where(empty[:, None], 0.0, acc * rescale / share[:, None])
        if const.DROPOUT:
            out = out * keep_scale
        where = output + at[:, None] + d[None, :]
        tl.store(where, out.to(output.dtype.element_ty), mask=exists[:, None] & (d[None, :] < const.VALUE_D))


@triton.jit(do_not_specialize=["heads", "queries", "size"])
def merge(
    parts, logsumexps, of_parts, output, logsumexp, statistics, sink, output_strides, heads, queries, size,
    SPLITS: tl.constexpr, SINK: tl.constexpr, STATISTICS: tl.constexpr, VALUE_D: tl.constexpr,
    VALUE_WIDTH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Merge ``SPLITS`` outputs over disjoint parts of the keys, by logsumexps of two values, and the statistics
    ``of_parts``; ``size``: ``B Hq Lq``."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)  # split calls have few rows
    exists = row < size
    i, h, b = row % queries, row // queries % heads, row // queries // heads  # divided as 32-bit integers
    row, i, h, b = row.to(tl.int64), i.to(tl.int64), h.to(tl.int64), b.to(tl.int64)
    m_new = tl.full((ROWS,), -float("inf"), tl.float32)
    nonempty = tl.zeros((ROWS,), tl.int32)
    for n in range(SPLITS):
        part = tl.load(logsumexps + n * size + row, mask=exists, other=0.0)
        m_new = tl.maximum(m_new, part)
        nonempty |= (part != -float("inf")).to(tl.int32)
    empty = nonempty == 0
    logit = tl.full((ROWS,), -float("inf"), tl.float32)
    if SINK:
        logit = tl.load(sink + h, mask=exists, other=0.0).to(tl.float32)
        m_new = tl.maximum(m_new, logit)
    base = tl.where(m_new == -float("inf"), 0.0, m_new)
    total = tl.exp2((logit - base) * LOG2_E)
    lows = logsumexps + SPLITS * size
    d = tl.arange(0, VALUE_WIDTH)
    out = tl.zeros((ROWS, VALUE_WIDTH), tl.float32)
    peak = tl.full((ROWS,), -float("inf"), tl.float32)
    largest = tl.zeros((ROWS,), tl.float32)
    entropy = tl.zeros((ROWS,), tl.float32)
    covered = tl.zeros((ROWS,), tl.float32)
    for n in range(SPLITS):
        part = tl.load(logsumexps + n * size + row, mask=exists, other=0.0)
        low = tl.load(lows + n * size + row, mask=exists, other=0.0)
        weight = tl.exp2((part - base + low) * LOG2_E)
        total += weight
        where = parts + (n * size + row)[:, None] * VALUE_D + d[None, :]
        value = tl.load(where, mask=exists[:, None] & (d[None, :] < VALUE_D), other=0.0)
        out += tl.where(part[:, None] == -float("inf"), 0.0, weight[:, None] * value)
        if STATISTICS > 0:
            score = tl.load(of_parts[0] + n * size + row, mask=exists, other=0.0)
            peak = tl.maximum(peak, score, propagate_nan=tl.PropagateNan.ALL)
            largest = tl.maximum(largest, weight * tl.load(of_parts[1] + n * size + row, mask=exists, other=0.0))
        if STATISTICS > 1:
            inner = tl.load(of_parts[2] + n * size + row, mask=exists, other=0.0)
            log_weight = tl.maximum(part - base + low, -1e30)
            entropy += tl.where(part == -float("inf"), 0.0, weight * (inner - log_weight))
            covered += tl.where(part == -float("inf"), 0.0, weight)
    share = tl.where(empty, 1.0, total)
    out = tl.where(empty[:, None], 0.0, out / share[:, None])
    tl.store(logsumexp + row, tl.where(empty, logit, base + tl.log2(share) / LOG2_E), mask=exists)
    if STATISTICS > 0:
        tl.store(statistics[0] + row, peak, mask=exists)
        tl.store(statistics[1] + row, largest / share, mask=exists)
    if STATISTICS > 1:
        entropy = entropy / share + tl.log2(share) / LOG2_E * (covered / share)
        tl.store(statistics[2] + row, tl.where(entropy < 0.0, 0.0, entropy), mask=exists)
    where = output + (b * output_strides[0] + h * output_strides[1] + i * output_strides[2])[:, None] + d[None, :]
    tl.store(where, out.to(output.dtype.element_ty), mask=exists[:, None] & (d[None, :] < VALUE_D))
