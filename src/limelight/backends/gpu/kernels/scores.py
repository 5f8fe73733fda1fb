"""Scores: dot products and additive comparisons, score rules, and the exponents of weights."""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
# From here on a product ``peak log2(e)`` has a rounding error above 1/2, so no weight can be computed from it.
LARGE = tl.constexpr(2.0**24)
PRECISION = tl.constexpr("ieee")  # of float32 products: no TF32
BIAS, ALIBI, DISTANCE_TABLE, SOFTCAP = (tl.constexpr(n) for n in range(4))


@triton.jit
def tanh(x):
    """tanh in float32: an odd polynomial near zero (Cephes), ``1 - 2 / (e^2|x| + 1)`` elsewhere."""
    size = tl.abs(x)
    square = x * x
    y = tl.fma(square, -5.70498872745e-3, 2.06390887954e-2)
    y = tl.fma(y, square, -5.37397155531e-2)
    y = tl.fma(y, square, 1.33314422036e-1)
    y = tl.fma(y, square, -3.33332819422e-1)
    near = tl.fma(y * square, x, x)
    far = 1.0 - 2.0 / (tl.exp2(tl.where(size > 10.0, 10.0, size) * (2.0 * LOG2_E)) + 1.0)
    return tl.where(size < 0.625, near, tl.where(x < 0.0, -far, far))


# Rows and keys are shaped so that they broadcast to the tile, whose first axis is either of the two.


@triton.jit
def additive(rows, j, columns, keys, vector, const: tl.constexpr):
    """Bahdanau's comparison: ``sum_d v_d tanh(q_d + k_d)`` for rows by keys."""
    total = (rows[3] * 0 + j * 0).to(tl.float32)
    for d in range(const.D):
        t, v = additive_part(rows, j, columns, keys, vector, d)
        total += v * t
    return total


@triton.jit
def additive_part(rows, j, columns, keys, vector, d):
    """``tanh(q_d + k_d)`` and ``v_d``."""
    b, key_head, h, _, query_at, exists = rows
    query, key, strides = keys
    at = key + b.to(tl.int64) * strides[0] + key_head.to(tl.int64) * strides[1] + j.to(tl.int64) * strides[2] + d
    q = tl.load(query + query_at + d, mask=exists, other=0.0).to(tl.float32)
    k = tl.load(at, mask=columns, other=0.0).to(tl.float32)
    v = tl.load(vector[0] + h * vector[1][0] + d * vector[1][1]).to(tl.float32)
    return tanh(q + k), v


@triton.jit
def apply_rule(s, rows, j, columns, shift, operand, number, const: tl.constexpr, R: tl.constexpr):
    """Scaled scores of rows by keys ``j`` after the score rule ``R``; the distance of a pair is ``j - i + shift``."""
    KIND: tl.constexpr = const.RULE_KINDS[R]
    b, _, h, i, _, exists = rows
    if KIND == SOFTCAP:
        s = number[0] * tanh(s / number[0])
    elif KIND == BIAS:
        row = b.to(tl.int64) * number[0] + h.to(tl.int64) * number[1] + i.to(tl.int64) * number[2]
        at = operand + row + j.to(tl.int64) * number[3]
        s = s + tl.load(at, mask=exists & columns, other=0.0).to(tl.float32)
    elif KIND == ALIBI:
        slope = tl.load(operand + b * number[0] + h * number[1]).to(tl.float32)
        s = s - slope * tl.abs(j - i + shift).to(tl.float32)
    else:
        at = operand + h * number[0] + (j - i + shift - number[1])
        s = s + tl.load(at, mask=exists & columns, other=0.0).to(tl.float32)
    return s


@triton.jit
def strides_of_text(strides, document, key_begin, const: tl.constexpr):
    """Strides of keys or values for `load_rows`; of pages, with the document's row of the page table and the first of
    its keys in the place of the whole table and its number of columns."""
    if const.PAGE > 0:
        page, head, slot, table, columns = strides
        found = (page, head, slot, table + document * columns, key_begin)
    else:
        found = strides
    return found


@triton.jit
def load_rows(
    tensor, strides, b, head, j, columns, D: tl.constexpr, WIDTH: tl.constexpr, MASKED: tl.constexpr,
    PAGE: tl.constexpr = 0,
):  # fmt: skip
    """``(rows, WIDTH)``: rows ``j`` of a head; ``MASKED`` reads only those in ``columns``; others are zeros. With
    ``PAGE``, they lie in pages of as many keys, and ``strides`` are those of `strides_of_text`."""
    d = tl.arange(0, WIDTH)
    if PAGE > 0:
        key = j - strides[4]
        page = tl.load(strides[3] + key // PAGE, mask=columns, other=0).to(tl.int64)
        place = page * strides[0] + head.to(tl.int64) * strides[1] + (key % PAGE).to(tl.int64) * strides[2]
        where = tensor + place[:, None] + d[None, :]
    else:
        base = tensor + b.to(tl.int64) * strides[0] + head.to(tl.int64) * strides[1]
        where = base + j.to(tl.int64)[:, None] * strides[2] + d[None, :]
    if MASKED:
        found = tl.load(where, mask=columns[:, None] & (d[None, :] < D), other=0.0)
    elif D < WIDTH:
        found = tl.load(where, mask=d[None, :] < D, other=0.0)
    else:
        found = tl.load(where)
    return found


@triton.jit
def after_rules(s, rows, j, columns, shift, scoring, const: tl.constexpr, AFTER: tl.constexpr):
    """Scores after the rules, and their derivative by the scores that rule ``AFTER`` returns (-1: before all rules)."""
    _, _, _, operands, numbers = scoring
    slope = 1.0
    COUNT: tl.constexpr = const.RULE_COUNT
    for r in tl.static_range(COUNT):
        s = apply_rule(s, rows, j, columns, shift, operands[r], numbers[r], const, r)
        if const.RULE_KINDS[r] == SOFTCAP and r > AFTER:
            bent = s / numbers[r][0]
            slope = slope * (1.0 - bent * bent)
    return s, slope


# The weight of a score, before it is divided by the sum of its row, is ``2^((score - shift) factor - rest)``. The shift
# of most rows is 0 and the rest is their largest score times the factor, rounded: one fused operation gives the
# exponent, and all weights of the row, and their sum, are scaled by one power of two between -1/2 and 1/2. Where that
# product is `LARGE`, the exponent of the scale is unbounded, and the product may be infinite: there the largest score
# is the shift.


@triton.jit
def reference_point(peak, factor):
    """``(shift, rest)`` of rows by their largest score; of rows without a score zeros."""
    scaled = tl.where(peak == -float("inf"), 0.0, peak * factor)
    large = tl.abs(scaled) >= LARGE
    return tl.where(large, peak, 0.0), tl.where(large, 0.0, scaled)


@triton.jit
def exponent_of_the_sum(shift, rest, unit):
    """``(log_scale, log2_rest)``: the true sum of a row is the computed one times ``e^log_scale 2^log2_rest``, of which
    the second corrects a rounding error. A score times ``unit`` is a scaled one."""
    log_scale = shift * unit + rest / LOG2_E
    return log_scale, tl.where(shift == 0.0, tl.fma(log_scale, -LOG2_E, rest), 0.0)


@triton.jit
def with_a_sink(logit, log_scale, log2_rest, total):
    """A row's sum with its sink, the factor that brings its weights to the scale of that sum, and the logsumexp."""
    largest = tl.maximum(log_scale, logit)
    share = tl.exp2(tl.fma(log_scale - largest, LOG2_E, log2_rest))
    total = total * share + tl.exp2((logit - largest) * LOG2_E)
    return total, share, largest + tl.log2(total) / LOG2_E


# Statistics of a row are computed beside its sum: the largest score, and for the entropy the sum of ``p x``, where
# ``x`` is the exponent of a weight ``p = 2^x`` before it is divided by the sum.


@triton.jit
def add_to_entropy(weighted, total, moved, rescale, power, p):
    """The sum of ``p x`` of rows after a block of keys with the exponents ``power``, for which the exponents of earlier
    keys, whose ``p`` have the sum ``total``, change by ``moved``. Below -1000 an exponent belongs to a weight of 0."""
    weighted = (weighted + tl.maximum(moved, -1000.0) * total) * rescale
    return weighted + tl.sum(p * tl.maximum(power, -1000.0), 1)


@triton.jit
def statistics_of_rows(peak, weighted, total, share, shift, rest, factor):
    """``(largest weight, entropy)`` of rows from their largest score, the sum of ``p x`` and the sum of ``p`` without
    the sink; a weight is ``p`` times ``share``."""
    empty = total == 0.0
    largest = tl.exp2(tl.fma(peak - shift, factor, -rest)) * share
    entropy = (weighted + tl.maximum(tl.log2(share), -1e30) * total) * -share / LOG2_E
    return tl.where(empty, 0.0, largest), tl.where(empty | (entropy < 0.0), 0.0, entropy)


@triton.jit
def raw_scores(q, k, rows, j, columns, keys, scoring, const: tl.constexpr):
    """Scores of a tile of queries (or keys) ``q`` by keys (or queries) ``k`` before the rules."""
    scale, _, vector, _, _ = scoring
    if const.ADDITIVE:
        s = additive(rows, j, columns, keys, vector, const)
    else:
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        if const.SCALE_FIRST:
            s = s * scale
    return s
