"""Scores of a tile, computed a second time by kernels that need weights: normalizers, observations, bias gradients."""

import triton
import triton.language as tl

from .scores import after_rules, load_rows, raw_scores, strides_of_text
from .visibility import contains, in_tiles, intervals, program


@triton.jit
def tile_of_queries(work, segments, segment, const: tl.constexpr):
    """``(b, h, i, exists, limits, document)`` of this program's tile (grid: tiles, heads, batch rows): the queries
    ``i``, those among them that there are, and the limits of their segment."""
    row, first, query_end, key_begin, key_end, query_offset, key_offset, document = program(
        work, segments, segment, const
    )
    b = tl.where(row < 0, tl.program_id(2), row)
    h = tl.program_id(1)
    i = first + tl.arange(0, const.ROWS)
    return b, h, i, i < query_end, (key_begin, key_end, query_offset, key_offset), document


@triton.jit
def rows_of_tile(
    tile, query, key, query_strides, key_strides, group, interval_tables, const: tl.constexpr
):  # fmt: skip
    """``(q, rows, seen_by, keys)`` of a `tile_of_queries`: its queries, them as `rows_of` has them, what they see, and
    the tensors for `block_scores`."""
    b, h, i, exists, limits, document = tile
    key_begin, key_end, query_offset, key_offset = limits
    spans, begins, ends, interval_strides = interval_tables
    seen_by = intervals(
        spans, begins, ends, interval_strides, b, i, i + query_offset, exists, key_begin, key_end, key_offset, const
    )
    D: tl.constexpr = const.D
    WIDTH: tl.constexpr = const.WIDTH
    q = load_rows(query, query_strides, b, h, i, exists, D, WIDTH, True)
    keys = (query, key, strides_of_text(key_strides, document, key_begin, const))
    return q, rows_of(b, h, i, exists, group, query_strides), seen_by, keys


@triton.jit
def rows_of(b, h, i, exists, group, query_strides):
    """The tuple ``rows`` (`limelight.backends.gpu.kernels.forward`) of the queries ``i`` of head ``h``."""
    query_at = b.to(tl.int64) * query_strides[0] + h.to(tl.int64) * query_strides[1]
    query_at = query_at + i.to(tl.int64) * query_strides[2]
    return b, h // group, (h + i * 0)[:, None], i[:, None], query_at[:, None], exists[:, None]


@triton.jit
def rows_and_visibility(
    b, h, group, i, exists, j, in_segment, limits, query_strides, interval_tables, tile_map, const: tl.constexpr
):  # fmt: skip
    """``rows`` of any queries ``i`` of a segment, and which of its keys ``j`` each sees, ``(queries, keys)``."""
    spans, begins, ends, interval_strides = interval_tables
    key_begin, key_end, query_offset, key_offset = limits
    seen_by = intervals(
        spans, begins, ends, interval_strides, b, i, i + query_offset, exists, key_begin, key_end, key_offset, const
    )
    seen = contains(seen_by, j[None, :], const) & in_segment[None, :]
    rows = rows_of(b, h, i, exists, group, query_strides)
    if const.MAP_ROWS > 0:
        inside = (b, rows[1], rows[2], rows[3], rows[4], seen)
        seen = seen & in_tiles(tile_map, inside, j[None, :], j[None, :], const)
    return rows, seen


@triton.jit
def block_scores(
    q, n, begin, end, rows, limits, keys, scoring, tile_map, const: tl.constexpr, MASKED: tl.constexpr = True
):  # fmt: skip
    """``(j, in_segment, s)`` of block ``n`` of keys: the keys, which of them the segment holds, and the scores after
    the rules, minus infinity where a row does not see a key in its interval from ``begin`` to ``end``. Without
    ``MASKED``, every row sees all keys of the block."""
    key_begin, key_end, query_offset, key_offset = limits
    D: tl.constexpr = const.D
    WIDTH: tl.constexpr = const.WIDTH
    j1 = n * const.BLOCK + tl.arange(0, const.BLOCK)
    in_segment = (j1 >= key_begin) & (j1 < key_end)
    j = j1[None, :]
    k = load_rows(keys[1], keys[2], rows[0], rows[1], j1, in_segment, D, WIDTH, MASKED, const.PAGE)
    s = raw_scores(q, k, rows, j, in_segment[None, :], keys, scoring, const)
    s, _slope = after_rules(s, rows, j, in_segment[None, :], key_offset - query_offset, scoring, const, 0)
    if MASKED:
        seen = (j >= begin[:, None]) & (j < end[:, None])
        if const.MAP_ROWS > 0:
            seen = seen & in_tiles(tile_map, rows, n * const.BLOCK, j, const)
        s = tl.where(seen, s, -float("inf"))
    return j1, in_segment, s


@triton.jit
def normalizer_of(normalizer, at, exists):
    """``(shift, rest)`` of some rows: the weight of a score ``s`` is ``2^((s - shift) factor - rest)``."""
    return tl.load(normalizer[0] + at, mask=exists, other=0.0), tl.load(normalizer[1] + at, mask=exists, other=0.0)


@triton.jit
def weights_from(s, normalizer, factor):
    """``(log2 of the weights, weights)`` of scores, rows first; the weight of a score of minus infinity is zero."""
    power = tl.fma(s - normalizer[0][:, None], factor, -normalizer[1][:, None])
    return power, tl.where(s != -float("inf"), tl.exp2(power), 0.0)


@triton.jit
def tile_weights(
    i, exists, k, j1, columns, b, h, group, limits, heads, queries, tensors, strides, interval_tables, tile_map,
    scoring, const: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Weights of queries ``i`` by keys ``j1`` of a segment, whose rows are ``k``; zero where a pair is not visible.
    Without ``MASKED``, every query sees all of these keys."""
    D: tl.constexpr = const.D
    WIDTH: tl.constexpr = const.WIDTH
    query, key, normalizer = tensors
    query_strides, key_strides = strides
    _key_begin, _key_end, query_offset, key_offset = limits
    normalizer = normalizer_of(normalizer, (b.to(tl.int64) * heads + h) * queries + i, exists)
    q = load_rows(query, query_strides, b, h, i, exists, D, WIDTH, MASKED)
    j = j1[None, :]
    if MASKED:
        rows, seen = rows_and_visibility(
            b, h, group, i, exists, j1, columns, limits, query_strides, interval_tables, tile_map, const
        )
    else:
        rows = rows_of(b, h, i, exists, group, query_strides)
    s = raw_scores(q, k, rows, j, columns[None, :], (query, key, key_strides), scoring, const)
    s, _slope = after_rules(s, rows, j, columns[None, :], key_offset - query_offset, scoring, const, 0)
    if MASKED:
        s = tl.where(seen, s, -float("inf"))
    _power, w = weights_from(s, normalizer, scoring[1])
    return w
