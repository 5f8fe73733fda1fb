"""What makes a score a weight, once the logsumexp of its row is known: for the gradients and the observations."""

import triton
import triton.language as tl

from .scores import LOG2_E, after_rules, compared, load_rows
from .visibility import blocks, chosen, in_tiles, intervals, program

# A float32 logsumexp from here on lacks more than a few thousandths of what its many keys have added to the largest
# score, and from 1e9 on says nothing of their number.
LARGE_SUM = tl.constexpr(4096.0)


@triton.jit
def normalizer_at(normalizers, at, exists, CAREFUL: tl.constexpr):
    """``(shift, rest)`` of some rows: the weight of a score ``s`` is ``2^((s - shift) factor - rest)``. Unless
    ``CAREFUL``, the shift is 0 and the rest of rows that need another is NaN."""
    fast, shift, rest = normalizers
    if CAREFUL:
        return tl.load(shift + at, mask=exists, other=0.0), tl.load(rest + at, mask=exists, other=0.0)
    else:  # noqa: RET505  what follows a return is compiled too
        return 0.0, tl.load(fast + at, mask=exists, other=0.0)


@triton.jit
def weights_of(s, normalizer, factor, CAREFUL: tl.constexpr):
    """Weights of scores after the rules, seen or not."""
    if CAREFUL:
        s = s - normalizer[0]
    return tl.exp2(tl.fma(s, factor, -normalizer[1]))


@triton.jit(do_not_specialize=["segment", "heads", "queries"])
def normalizers(
    query, key, logsumexp, sink, fast, shift, rest, query_strides, key_strides, heads, group, queries,
    work, segments, segment, spans, begins, ends, interval_strides, states, bits, tile_strides,
    scale, factor, compare, operands, numbers, form: tl.constexpr,
):  # fmt: skip
    """The normalizers of a tile of queries (grid: tiles, heads, batch rows), each float32 ``(B, Hq, Lq)``. Where the
    logsumexp says enough they are made of it; other rows look at their scores again."""
    row, first, query_end, key_begin, key_end, query_offset, key_offset, _document = program(
        work, segments, segment, form
    )
    b = tl.where(row < 0, tl.program_id(2), row)
    h1 = tl.program_id(1)
    i = first + tl.arange(0, form.ROWS)
    exists = i < query_end
    at = (b.to(tl.int64) * heads + h1) * queries + i
    lse = tl.load(logsumexp + at, mask=exists, other=0.0)
    nobody = lse == -float("inf")
    large = exists & (tl.abs(lse) >= LARGE_SUM) & (nobody ^ True)
    shifted = tl.full((form.ROWS,), 0.0, tl.float32)
    left = tl.where(nobody, 0.0, lse * LOG2_E)
    tl.store(fast + at, tl.where(large, float("nan"), left), mask=exists)
    if tl.max(large.to(tl.int32), 0) > 0:
        seen_by = intervals(
            spans, begins, ends, interval_strides, b, i, i + query_offset, exists, key_begin, key_end, key_offset, form
        )
        query_at = b.to(tl.int64) * query_strides[0] + h1.to(tl.int64) * query_strides[1]
        query_at = query_at + i.to(tl.int64) * query_strides[2]
        rows = (b, h1 // group, (h1 + i * 0)[:, None], i[:, None], query_at[:, None], exists[:, None])
        keys = (query, key, key_strides)
        scoring = (scale, factor, compare, operands, numbers)
        D: tl.constexpr = form.D
        WIDTH: tl.constexpr = form.WIDTH
        q = load_rows(query, query_strides, b, h1, i, exists, D, WIDTH, True)
        m = tl.full((form.ROWS,), -float("inf"), tl.float32)
        total = tl.full((form.ROWS,), 0.0, tl.float32)
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
                    seen = seen & in_tiles((states, bits, tile_strides), rows, n * form.BLOCK, j, form)
                k = load_rows(key, key_strides, b, h1 // group, j1, some, D, WIDTH, True)
                s = compared(q, k, rows, j, some[None, :], keys, scoring, form)
                s, _slope = after_rules(s, rows, j, some[None, :], key_offset - query_offset, scoring, form, 0)
                s = tl.where(seen, s, -float("inf"))
                most = tl.maximum(m, tl.max(s, 1))
                base = tl.where(most == -float("inf"), 0.0, most)
                before = tl.where(m == -float("inf"), 0.0, total * tl.exp2((m - base) * factor))
                total = before + tl.sum(tl.exp2((s - base[:, None]) * factor), 1)
                m = most
        peak = tl.where(m == -float("inf"), 0.0, m)
        of_keys = tl.log2(total)
        if form.SINK:
            # Beyond any difference that a weight can show, so that none is infinite.
            logit = tl.load(sink + h1).to(tl.float32)
            above = tl.minimum((logit - peak * (1.0 if form.NATURAL else scale)) * LOG2_E, 1e30)
            top = tl.maximum(above, 0.0)
            of_keys = top + tl.log2(total * tl.exp2(-top) + tl.exp2(above - top))
        shifted = tl.where(large, peak, shifted)
        left = tl.where(large, of_keys, left)
    tl.store(shift + at, shifted, mask=exists)
    tl.store(rest + at, left, mask=exists)
