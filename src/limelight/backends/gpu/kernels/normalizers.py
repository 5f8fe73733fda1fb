"""Normalizers, which turn scores into weights once the logsumexp of their row is known: for gradients, observations."""

import triton
import triton.language as tl

from .scores import LOG2_E
from .second_pass import block_scores, rows_of_tile, tile_of_queries
from .visibility import blocks, interval_of

# From here on a float32 logsumexp rounds away more than a few thousandths of what many keys add to the largest score,
# and from 1e9 on all of it.
LARGE_SUM = tl.constexpr(4096.0)


@triton.jit
def normalizer_at(normalizers, at, exists, SHIFTED: tl.constexpr):
    """``(shift, rest)`` of some rows: the weight of a score ``s`` is ``2^((s - shift) factor - rest)``. Unless
    ``SHIFTED``, the shift is 0, and the rest is NaN in rows that need another shift."""
    fast, shift, rest = normalizers
    if SHIFTED:
        return tl.load(shift + at, mask=exists, other=0.0), tl.load(rest + at, mask=exists, other=0.0)
    else:  # noqa: RET505  what follows a return is compiled too
        return 0.0, tl.load(fast + at, mask=exists, other=0.0)


@triton.jit
def weights_of(s, normalizer, factor, SHIFTED: tl.constexpr):
    """Weights of scores after the rules, of visible pairs and others alike."""
    if SHIFTED:
        s = s - normalizer[0]
    return tl.exp2(tl.fma(s, factor, -normalizer[1]))


@triton.jit(do_not_specialize=["segment", "heads", "queries"])
def normalizers(
    query, key, logsumexp, sink, fast, shift, rest, query_strides, key_strides, heads, group, queries,
    work, segments, segment, spans, begins, ends, interval_strides, states, bits, map_strides,
    scale, factor, compare, operands, numbers, const: tl.constexpr,
):  # fmt: skip
    """The normalizers of a tile of queries (grid: tiles, heads, batch rows), each float32 ``(B, Hq, Lq)``. They follow
    from the logsumexp where it is precise enough; for other rows the scores are computed again."""
    tile = tile_of_queries(work, segments, segment, const)
    b, h, i, exists, limits, _document = tile
    at = (b.to(tl.int64) * heads + h) * queries + i
    lse = tl.load(logsumexp + at, mask=exists, other=0.0)
    empty = lse == -float("inf")
    large = exists & (tl.abs(lse) >= LARGE_SUM) & (empty ^ True)
    shifted = tl.full((const.ROWS,), 0.0, tl.float32)
    left = tl.where(empty, 0.0, lse * LOG2_E)
    tl.store(fast + at, tl.where(large, float("nan"), left), mask=exists)
    if tl.max(large.to(tl.int32), 0) > 0:
        tables = (spans, begins, ends, interval_strides)
        q, rows, seen_by, keys = rows_of_tile(tile, query, key, query_strides, key_strides, group, tables, const)
        scoring = (scale, factor, compare, operands, numbers)
        m = tl.full((const.ROWS,), -float("inf"), tl.float32)
        total = tl.full((const.ROWS,), 0.0, tl.float32)
        for interval in range(const.INTERVALS):
            begin, end = interval_of(interval, seen_by, const)
            first_block, _whole_first, _whole_last, last_block = blocks(begin, end, exists, const)
            for step in range(last_block - first_block):
                _j, _in_segment, s = block_scores(
                    q, first_block + step, begin, end, rows, limits, keys, scoring, (states, bits, map_strides), const
                )
                m_new = tl.maximum(m, tl.max(s, 1))
                base = tl.where(m_new == -float("inf"), 0.0, m_new)
                before = tl.where(m == -float("inf"), 0.0, total * tl.exp2((m - base) * factor))
                total = before + tl.sum(tl.exp2((s - base[:, None]) * factor), 1)
                m = m_new
        peak = tl.where(m == -float("inf"), 0.0, m)
        log2_total = tl.log2(total)
        if const.SINK:
            # 1e30 is beyond any difference that a weight can show, and keeps the difference finite.
            logit = tl.load(sink + h).to(tl.float32)
            log2_sink = tl.minimum((logit - peak * (1.0 if const.SCALE_FIRST else scale)) * LOG2_E, 1e30)
            top = tl.maximum(log2_sink, 0.0)
            log2_total = top + tl.log2(total * tl.exp2(-top) + tl.exp2(log2_sink - top))
        shifted = tl.where(large, peak, shifted)
        left = tl.where(large, log2_total, left)
    tl.store(shift + at, shifted, mask=exists)
    tl.store(rest + at, left, mask=exists)
