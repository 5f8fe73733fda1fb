"""What `flash3`'s forward pass computes in registers: weights from a block of scores, and the results of a tile."""

from ...compatibility import gl, gluon
from ...kernels.scores import LARGE, LOG2_E, after_rules, exponent_of_the_sum, with_a_sink
from .operands import ROWS, layout_of

# A score where its place in the interval is below the length, as numbers without a sign, else minus infinity: one
# comparison for two. Written in PTX, since the compiler collects such predicates of many scores in words first.
BELOW = gl.constexpr("{ .reg .pred p; setp.lt.u32 p, $2, $3; selp.f32 $0, $1, 0fFF800000, p; }")


@gluon.jit
def scales_of(scales, n, FLOAT8: gl.constexpr):
    """The factor of the scores of each row with block ``n``, and the block's scale of values over the head's."""
    if FLOAT8:
        of_rows, of_keys, shares, _ = scales
        return of_rows * gl.load(of_keys + n), gl.load(shares + n)
    else:  # noqa: RET505  what follows a return is compiled too
        return 1.0, 1.0


@gluon.jit
def scales_of_item(scales, b, h, heads, group, i, exists):
    """Of a tile and a head: the scales of its rows, and the addresses of those of blocks of keys and values."""
    of_queries, of_keys, shares, of_values, query_blocks, key_blocks = scales
    of_rows = gl.load(of_queries + (b * heads + h) * query_blocks + i // ROWS, mask=exists, other=1.0)
    pair = b * (heads // group) + h // group
    return of_rows, of_keys + pair * key_blocks, shares + pair * key_blocks, of_values + pair


@gluon.jit
def weights_of(
    s, unit, m, n, begin, end, rows, shift, scoring, const: gl.constexpr, FLOAT8: gl.constexpr, MASKED: gl.constexpr
):
    """The running maximum, the factor of earlier sums, and weights, from scores of block ``n`` in units of ``unit``."""
    of_block = gl.arange(0, const.BLOCK, layout=gl.SliceLayout(0, layout_of(const.BLOCK, FLOAT8)))
    j = n * const.BLOCK + of_block
    factor = scoring[1]
    if const.SCALE_FIRST:
        s = s * (unit * scoring[0])[:, None] if FLOAT8 else s * scoring[0]
    elif FLOAT8:
        factor = unit * factor
    s, _slope = after_rules(s, rows, j[None, :], None, shift, scoring, const, 0)
    if MASKED:
        place, length = of_block[None, :] + (n * const.BLOCK - begin)[:, None], gl.maximum(end - begin, 0)[:, None]
        s = gl.inline_asm_elementwise(BELOW, "=r,r,r,r", [s, place, length], dtype=gl.float32, is_pure=True, pack=1)
    m_new = gl.maximum(m, gl.max(s, 1) * factor)
    base = gl.where(m_new == -float("inf"), 0.0, m_new)
    if FLOAT8 and not const.SCALE_FIRST:
        p = gl.exp2(gl.fma(s, factor[:, None], -base[:, None]))
    else:
        p = gl.exp2(gl.fma(s, factor, -base[:, None]))
    return m_new, gl.exp2(m - base), p


@gluon.jit
def rescaled(acc, factor, FLOAT8: gl.constexpr):
    """Both parts of an output times a factor of each row."""
    main, rest = acc
    main = main * gl.convert_layout(factor, gl.SliceLayout(1, layout_of(main.shape[1], FLOAT8)))[:, None]
    if rest is not None:
        rest = rest * gl.convert_layout(factor, gl.SliceLayout(1, layout_of(rest.shape[1], FLOAT8)))[:, None]
    return main, rest


@gluon.jit
def finish(
    m, total, acc, record, tile, column, heads, target, scales,
    const: gl.constexpr, FLOAT8: gl.constexpr, WARPGROUP: gl.constexpr,
):  # fmt: skip
    """Write output and logsumexp of 64 queries, and the flag of their item."""
    output, output_strides, logsumexp, flags, sink, queries, tiles = target
    rows_layout: gl.constexpr = gl.SliceLayout(1, layout_of(const.BLOCK, FLOAT8))
    # Loaded again, so that they take no registers in the loop.
    b = gl.load(record)
    first = gl.load(record + 1) + WARPGROUP * ROWS
    query_end = gl.load(record + 2)
    h = column % heads
    empty = total == 0.0
    settled = (gl.abs(m) < LARGE) & (total < float("inf"))
    no_shift = gl.full([ROWS], 0.0, gl.float32, rows_layout)
    log_scale, more = exponent_of_the_sum(no_shift, gl.where(m == -float("inf"), 0.0, m), 1.0)
    lse = gl.where(empty, -float("inf"), log_scale + (gl.log2(total) + more) / LOG2_E)
    rescale = gl.full([ROWS], 1.0, gl.float32, rows_layout)
    if const.SINK:
        logit = gl.load(sink + h).to(gl.float32)
        total, rescale, with_sink = with_a_sink(logit, gl.where(empty, logit, log_scale), more, total)
        lse = gl.where(empty, logit, with_sink)
    share = gl.where(empty, 1.0, total)
    if FLOAT8:
        rescale = rescale * gl.load(scales[3])
    # Rows with scores so large that their weights are wrong, and rows that see no key, which have the same maximum and
    # sum, are computed again like non-finite ones.
    acc = rescaled(acc, gl.where(settled, rescale / share, float("nan")), FLOAT8)
    row_of_head = (b * heads + h).to(gl.int64) * queries
    i = first + gl.arange(0, ROWS, layout=rows_layout)
    gl.store(logsumexp + row_of_head + i, lse, mask=i < query_end)
    base = b.to(gl.int64) * output_strides[0] + h.to(gl.int64) * output_strides[1]
    flag = flags + column * tiles + tile
    store_part(acc[0], output + base, output_strides[2], flag, first, query_end, 0, const.VALUE_D, FLOAT8)
    if acc[1] is not None:
        store_part(
            acc[1], output + base, output_strides[2], flag, first, query_end, const.VALUE_WIDTH, const.VALUE_D, FLOAT8
        )


@gluon.jit
def store_part(
    out, output, stride, flag, first, query_end, BEGIN: gl.constexpr, END: gl.constexpr, FLOAT8: gl.constexpr
):
    """Write a part of an output, the columns from ``BEGIN``, and the flag where one of its values is not finite."""
    WIDTH: gl.constexpr = out.shape[1]
    OUTPUT: gl.constexpr = layout_of(WIDTH, FLOAT8)
    i = first + gl.arange(0, ROWS, layout=gl.SliceLayout(1, OUTPUT))
    # NaN where a non-finite value was multiplied, perhaps by the zero weight of a key that a row does not see.
    zero = gl.sum(out * 0.0, 1)
    gl.store(flag + i * 0, 1, mask=(i < query_end) & (zero != zero))
    d = BEGIN + gl.arange(0, WIDTH, layout=gl.SliceLayout(0, OUTPUT))
    at = output + (i.to(gl.int64) * stride)[:, None] + d[None, :]
    mask = (i < query_end)[:, None]
    if BEGIN + WIDTH > END:
        mask = mask & (d[None, :] < END)
    gl.store(at, out.to(output.dtype.element_ty), mask=mask)
