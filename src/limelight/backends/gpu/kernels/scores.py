"""How a score is made and changed: comparisons, score rules, and the functions that they need."""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
# A product ``peak log2(e)`` from here on is off by more than half a power of two, so it is no measure of other scores.
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


# Rows and keys come shaped so that they broadcast to the tile, whichever of the two lies along its first axis.


@triton.jit
def additive(rows, j, columns, keys, vector, form: tl.constexpr):
    """Bahdanau's comparison: ``sum_d v_d tanh(q_d + k_d)`` for rows by keys."""
    total = (rows[3] * 0 + j * 0).to(tl.float32)
    for d in range(form.D):
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
def apply_rule(s, rows, j, columns, shift, operand, number, form: tl.constexpr, R: tl.constexpr):
    """The score rule ``R``, on natural scores of rows by keys ``j``; ``distance = j - i + shift``."""
    KIND: tl.constexpr = form.KINDS[R]
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
def load_rows(tensor, strides, b, head, j, columns, D: tl.constexpr, WIDTH: tl.constexpr, MASKED: tl.constexpr):
    """``(rows, WIDTH)``: rows ``j`` of a head; those of no column are zeros, without looking at them if ``MASKED``."""
    d = tl.arange(0, WIDTH)
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
def after_rules(s, rows, j, columns, shift, scoring, form: tl.constexpr, AFTER: tl.constexpr):
    """Scores after the rules, and the derivative of the last by what goes into the rules after number ``AFTER``."""
    _, _, _, operands, numbers = scoring
    slope = 1.0
    COUNT: tl.constexpr = form.COUNT
    for r in tl.static_range(COUNT):
        s = apply_rule(s, rows, j, columns, shift, operands[r], numbers[r], form, r)
        if form.KINDS[r] == SOFTCAP and r > AFTER:
            bent = s / numbers[r][0]
            slope = slope * (1.0 - bent * bent)
    return s, slope


# The weight of a score, before it is divided by the sum of its row, is ``2^((score - shift) factor - rest)``. The shift
# of most rows is 0 and the rest their largest score times the factor, rounded: one fused operation makes the exponent,
# and all weights of the row are off by one power of two between -1/2 and 1/2, as their sum is. Where that product is
# `LARGE`, the power could be any, and the product infinite: there the largest score is the shift.


@triton.jit
def reference_point(peak, factor):
    """``(shift, rest)`` of rows by their largest score; of rows without a score zeros."""
    scaled = tl.where(peak == -float("inf"), 0.0, peak * factor)
    large = tl.abs(scaled) >= LARGE
    return tl.where(large, peak, 0.0), tl.where(large, 0.0, scaled)


@triton.jit
def exponent_of_the_sum(shift, rest, unit):
    """``(natural, more)``: weights and their sums stand for themselves times ``e^natural 2^more``, where more is small.
    A score times ``unit`` is a natural one."""
    natural = shift * unit + rest / LOG2_E
    return natural, tl.where(shift == 0.0, tl.fma(natural, -LOG2_E, rest), 0.0)


@triton.jit
def with_a_sink(logit, natural, more, total):
    """A row's sum with its sink, what its weights are multiplied by beside that sum, and the logsumexp."""
    most = tl.maximum(natural, logit)
    share = tl.exp2(tl.fma(natural - most, LOG2_E, more))
    total = total * share + tl.exp2((logit - most) * LOG2_E)
    return total, share, most + tl.log2(total) / LOG2_E


@triton.jit
def compared(q, k, rows, j, columns, keys, scoring, form: tl.constexpr):
    """Scores of a tile of queries (or keys) ``q`` by keys (or queries) ``k`` before the rules."""
    scale, _, vector, _, _ = scoring
    if form.ADDITIVE:
        s = additive(rows, j, columns, keys, vector, form)
    else:
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        if form.NATURAL:
            s = s * scale
    return s
