"""What the backward kernels share: products of a tile, its weights, and the gradients of its scores."""

import triton
import triton.language as tl

from ..dropout import kept
from ..forward import FAST, FINITE
from ..normalizers import weights_of
from ..scores import PRECISION, additive, after_rules


@triton.jit
def weights_and_gradients(
    s, dp, seen, normalizer, delta, rows, j, columns, limits, scoring, dropout,
    const: tl.constexpr, AFTER: tl.constexpr, SHIFTED: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """From scores before the rules: weights after dropout, gradients of scores after rule ``AFTER``, and visible pairs.

    If ``MASKED``, pairs that are not visible have zeros, even where the normalizer, ``dp`` or ``delta`` is not finite;
    otherwise all pairs are visible, and a score of minus infinity may give NaN, which is found at the end.
    """
    _, _, query_offset, key_offset = limits
    threshold, keep_scale, seed, random_row = dropout
    s, slope = after_rules(s, rows, j, columns, key_offset - query_offset, scoring, const, AFTER)
    p = weights_of(s, normalizer, scoring[1], SHIFTED)
    if MASKED:
        seen = seen & (s != -float("inf"))
        p = tl.where(seen, p, 0.0)
    used = p
    if const.DROPOUT:
        keep = kept(threshold, seed, random_row, rows[2], rows[3] + query_offset, j + key_offset)
        used = tl.where(keep, p * keep_scale, 0.0)
        dp = tl.where(keep, dp * keep_scale, 0.0)
    ds = p * (dp - delta) * slope
    if MASKED:
        ds = tl.where(seen, ds, 0.0)
    return used, ds, seen


@triton.jit
def add_gradient(ds, x, seen, acc, MODE: tl.constexpr):
    """``acc + ds x`` in the modes of `add_product`; a visible non-finite row of ``x`` has NaN scores, so gives NaN."""
    if MODE == FAST:
        return tl.dot(ds.to(x.dtype), x, acc, input_precision=PRECISION)
    finite = tl.abs(x.to(tl.float32)) < float("inf")
    if MODE == FINITE:
        return tl.dot(ds.to(x.dtype), tl.where(finite, x, 0.0).to(x.dtype), acc, input_precision=PRECISION)
    return tl.dot(seen.to(x.dtype), tl.where(finite, 0.0, 256.0).to(x.dtype), acc, input_precision=PRECISION)


# Wider operands of a product are multiplied a part at a time, so that neither is in registers as a whole.
_WHOLE, _PART = tl.constexpr(256), tl.constexpr(64)


@triton.jit
def side(tensor, strides, b, head, j, there, D: tl.constexpr, WIDTH: tl.constexpr, MASKED: tl.constexpr = True):
    """Rows ``j`` of a head as an operand of `product`: the rows, their tensor, their offsets, which of them exist; all
    unless ``MASKED``."""
    at = b.to(tl.int64) * strides[0] + head.to(tl.int64) * strides[1] + j.to(tl.int64) * strides[2]
    return side_at(tensor, at[:, None], there[:, None], D, WIDTH, MASKED)


@triton.jit
def side_at(tensor, at, there, D: tl.constexpr, WIDTH: tl.constexpr, MASKED: tl.constexpr = True):
    """The operand of `product` whose rows begin at the offsets ``at``. For a product in parts the compiler drops the
    unused load of whole rows."""
    return _part(tensor, at, there, 0, D, WIDTH, MASKED), tensor, at, there


@triton.jit
def _part(tensor, at, there, first, D: tl.constexpr, WIDTH: tl.constexpr, MASKED: tl.constexpr = True):
    d = first + tl.arange(0, WIDTH)[None, :]
    if MASKED:
        found = tl.load(tensor + at + d, mask=there & (d < D), other=0.0)
    elif D < WIDTH:
        found = tl.load(tensor + at + d, mask=d < D, other=0.0)
    else:
        found = tl.load(tensor + at + d)
    return found


@triton.jit
def product(x, y, D: tl.constexpr, WIDTH: tl.constexpr):
    """``x y'`` of two operands from `side`."""
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
def scores(q, k, rows, j, columns, keys, scoring, const: tl.constexpr):
    """Scores of two operands from `side` before the rules, as `raw_scores` computes them."""
    if const.ADDITIVE:
        s = additive(rows, j, columns, keys, scoring[2], const)
    else:
        D: tl.constexpr = const.D
        WIDTH: tl.constexpr = const.WIDTH
        s = product(q, k, D, WIDTH)
        if const.SCALE_FIRST:
            s = s * scoring[0]
    return s
