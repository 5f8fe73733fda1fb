"""The first FlashAttention (Dao et al. 2022): keys outside, queries inside, output and statistics in memory."""

import triton
import triton.language as tl

from .forward import CLEAN, FAST, SPOILED, mixed, spoil
from .scores import LOG2_E, PRECISION, load_rows
from .visibility import contains, intervals


@triton.jit(do_not_specialize=["segment", "heads", "queries"])
def first_forward(
    query, key, value, output, maxima, sums, query_strides, key_strides, value_strides, heads, group, queries,
    segment, spans, begins, ends, interval_strides, scale, form: tl.constexpr,
):  # fmt: skip
    """All queries of one head of one batch row (grid: heads, batch rows): each block of keys is read once.

    ``output`` ``(B, Hq, Lq, Dv)``, ``maxima`` and ``sums`` ``(B, Hq, Lq)`` are float32 and hold, from one block of keys
    to the next, the attention to the blocks so far; they come as zeros, minus infinity and zeros.
    """
    query_begin, query_end, key_begin, key_end, query_offset, key_offset = segment
    h = tl.program_id(0)
    b = tl.program_id(1)
    D: tl.constexpr = form.D
    WIDTH: tl.constexpr = form.WIDTH
    VALUE_D: tl.constexpr = form.VALUE_D
    VALUE_WIDTH: tl.constexpr = form.VALUE_WIDTH
    place = (b.to(tl.int64) * heads + h) * queries
    d = tl.arange(0, form.VALUE_WIDTH)[None, :]
    for n in range(tl.cdiv(key_end - key_begin, form.BLOCK)):
        j = key_begin + n * form.BLOCK + tl.arange(0, form.BLOCK)
        columns = j < key_end
        k = load_rows(key, key_strides, b, h // group, j, columns, D, WIDTH, True)
        v = load_rows(value, value_strides, b, h // group, j, columns, VALUE_D, VALUE_WIDTH, True)
        finite = tl.min(tl.min((tl.abs(v.to(tl.float32)) < float("inf")).to(tl.int32), 1), 0) > 0
        for t in range(tl.cdiv(query_end - query_begin, form.ROWS)):
            i = query_begin + t * form.ROWS + tl.arange(0, form.ROWS)
            exists = i < query_end
            seen_by = intervals(
                spans, begins, ends, interval_strides, b, i, i + query_offset, exists, key_begin, key_end, key_offset,
                form,
            )  # fmt: skip
            seen = contains(seen_by, j[None, :], form) & columns[None, :]
            if tl.max(tl.max(seen.to(tl.int32), 1), 0) > 0:
                at = place + i
                q = load_rows(query, query_strides, b, h, i, exists, D, WIDTH, True)
                m = tl.load(maxima + at, mask=exists, other=0.0)
                total = tl.load(sums + at, mask=exists, other=0.0)
                s = tl.where(seen, tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale, -float("inf"))
                most = tl.maximum(m, tl.max(s, 1))
                base = tl.where(most == -float("inf"), 0.0, most)
                p = tl.exp2((s - base[:, None]) * LOG2_E)
                before = total * tl.exp2((m - base) * LOG2_E)
                total = before + tl.sum(p, 1)
                share = tl.where(total == 0.0, 1.0, total)
                fresh = tl.full((form.ROWS, form.VALUE_WIDTH), 0.0, tl.float32)
                if finite:
                    fresh = mixed(p, v, seen, fresh, FAST)
                else:
                    there = s != -float("inf")
                    code = mixed(p, v, there, fresh, SPOILED)
                    fresh = spoil(mixed(p, v, there, fresh, CLEAN), code)
                where = output + at[:, None] * form.VALUE_D + d
                inside = exists[:, None] & (d < form.VALUE_D)
                out = tl.load(where, mask=inside, other=0.0)
                # Kept divided by its sum, as in the first algorithm; the second divides once, at the end.
                out = out * (before / share)[:, None] + fresh / share[:, None]
                tl.store(where, out, mask=inside)
                tl.store(maxima + at, most, mask=exists)
                tl.store(sums + at, total, mask=exists)
                tl.debug_barrier()  # what one thread has written another may read at the next block of keys


@triton.jit
def finish(maxima, sums, size, ROWS: tl.constexpr):
    """``maxima`` becomes the logsumexp."""
    at = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    total = tl.load(sums + at, mask=at < size, other=0.0)
    m = tl.load(maxima + at, mask=at < size, other=0.0)
    tl.store(maxima + at, tl.where(total == 0.0, -float("inf"), m + tl.log2(total) / LOG2_E), mask=at < size)
