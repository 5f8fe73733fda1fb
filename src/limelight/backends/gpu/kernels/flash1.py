"""The first FlashAttention (Dao et al. 2022): keys outside, queries inside, output and statistics in memory."""

import triton
import triton.language as tl

from .forward import FAST, FINITE, NONFINITE, add_nonfinite, add_product
from .scores import LOG2_E, PRECISION, load_rows
from .visibility import contains, intervals


@triton.jit(do_not_specialize=["segment", "heads", "queries"])
def first_forward(
    query, key, value, output, maxima, sums, query_strides, key_strides, value_strides, heads, group, queries,
    segment, spans, begins, ends, interval_strides, scale, const: tl.constexpr,
):  # fmt: skip
    """All queries of one head of one batch row (grid: heads, batch rows): each block of keys is read once.

    ``output`` ``(B, Hq, Lq, Dv)``, ``maxima`` and ``sums`` ``(B, Hq, Lq)`` are float32 and hold, from one block of keys
    to the next, the attention to the blocks so far; initially zeros, minus infinity and zeros.
    """
    query_begin, query_end, key_begin, key_end, query_offset, key_offset = segment
    h = tl.program_id(0)
    b = tl.program_id(1)
    D: tl.constexpr = const.D
    WIDTH: tl.constexpr = const.WIDTH
    VALUE_D: tl.constexpr = const.VALUE_D
    VALUE_WIDTH: tl.constexpr = const.VALUE_WIDTH
    place = (b.to(tl.int64) * heads + h) * queries
    d = tl.arange(0, const.VALUE_WIDTH)[None, :]
    for n in range(tl.cdiv(key_end - key_begin, const.BLOCK)):
        j = key_begin + n * const.BLOCK + tl.arange(0, const.BLOCK)
        columns = j < key_end
        k = load_rows(key, key_strides, b, h // group, j, columns, D, WIDTH, True)
        v = load_rows(value, value_strides, b, h // group, j, columns, VALUE_D, VALUE_WIDTH, True)
        finite = tl.min(tl.min((tl.abs(v.to(tl.float32)) < float("inf")).to(tl.int32), 1), 0) > 0
        for t in range(tl.cdiv(query_end - query_begin, const.ROWS)):
            i = query_begin + t * const.ROWS + tl.arange(0, const.ROWS)
            exists = i < query_end
            seen_by = intervals(
                spans, begins, ends, interval_strides, b, i, i + query_offset, exists, key_begin, key_end, key_offset,
                const,
            )  # fmt: skip
            seen = contains(seen_by, j[None, :], const) & columns[None, :]
            if tl.max(tl.max(seen.to(tl.int32), 1), 0) > 0:
                at = place + i
                q = load_rows(query, query_strides, b, h, i, exists, D, WIDTH, True)
                m = tl.load(maxima + at, mask=exists, other=0.0)
                total = tl.load(sums + at, mask=exists, other=0.0)
                s = tl.where(seen, tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale, -float("inf"))
                m_new = tl.maximum(m, tl.max(s, 1))
                base = tl.where(m_new == -float("inf"), 0.0, m_new)
                p = tl.exp2((s - base[:, None]) * LOG2_E)
                before = total * tl.exp2((m - base) * LOG2_E)
                total = before + tl.sum(p, 1)
                share = tl.where(total == 0.0, 1.0, total)
                fresh = tl.full((const.ROWS, const.VALUE_WIDTH), 0.0, tl.float32)
                if finite:
                    fresh = add_product(p, v, seen, fresh, FAST)
                else:
                    there = s != -float("inf")
                    code = add_product(p, v, there, fresh, NONFINITE)
                    fresh = add_nonfinite(add_product(p, v, there, fresh, FINITE), code)
                where = output + at[:, None] * const.VALUE_D + d
                inside = exists[:, None] & (d < const.VALUE_D)
                out = tl.load(where, mask=inside, other=0.0)
                # FlashAttention 1 divides by the sum at every block; FlashAttention 2 divides once, at the end.
                out = out * (before / share)[:, None] + fresh / share[:, None]
                tl.store(where, out, mask=inside)
                tl.store(maxima + at, m_new, mask=exists)
                tl.store(sums + at, total, mask=exists)
                tl.debug_barrier()  # other threads read these rows


@triton.jit
def finish(maxima, sums, size, ROWS: tl.constexpr):
    """Replace ``maxima`` by the logsumexp of each row, made of its maximum and its sum."""
    at = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    total = tl.load(sums + at, mask=at < size, other=0.0)
    m = tl.load(maxima + at, mask=at < size, other=0.0)
    tl.store(maxima + at, tl.where(total == 0.0, -float("inf"), m + tl.log2(total) / LOG2_E), mask=at < size)
