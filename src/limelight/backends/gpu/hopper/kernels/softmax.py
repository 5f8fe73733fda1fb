"""What `flash3`'s forward pass computes in registers: weights from a block of scores, and the results of a tile."""

from ...compatibility import gl, gluon
from ...kernels.scores import (
    LARGE,
    LOG2_E,
    add_to_entropy,
    after_rules,
    exponent_of_the_sum,
    statistics_of_rows,
    with_a_sink,
)
from .operands import ROWS, layout_of

# A score where its place in the interval is below the length, as numbers without a sign, else minus infinity: one
# comparison for two. Written in PTX, since the compiler collects such predicates of many scores in words first.
BELOW = gl.constexpr("{ .reg .pred p; setp.lt.u32 p, $2, $3; selp.f32 $0, $1, 0fFF800000, p; }")


# Weights of 8 bits, and their sums, are computed 2^8 times as large: so those of 2^-17 and more do not become zero.
LIFT = gl.constexpr(8.0)
LIFTED = gl.constexpr(2.0**8)


@gluon.jit
def scales_of(scales, n, FLOAT8: gl.constexpr):
    """The factor of the scores of each row with block ``n``, and the exponent of two of the block's values."""
    if FLOAT8:
        of_rows, of_keys, of_values = scales
        return of_rows * gl.load(of_keys + n), gl.load(of_values + n)
    else:  # noqa: RET505  what follows a return is compiled too
        return 1.0, None


@gluon.jit
def scales_of_item(scales, b, h, heads, group, i, exists):
    """Of a tile and a head: the scales of its rows, and the addresses of those of blocks of keys and values."""
    of_queries, of_keys, of_values, query_blocks, key_blocks = scales
    of_rows = gl.load(of_queries + (b * heads + h) * query_blocks + i // ROWS, mask=exists, other=1.0)
    blocks = (b * (heads // group) + h // group) * key_blocks
    return of_rows, of_keys + blocks, of_values + blocks


@gluon.jit
def no_output(const: gl.constexpr, FLOAT8: gl.constexpr):
    """An output of zeros in one part or two."""
    main = gl.full([ROWS, const.VALUE_WIDTH], 0.0, gl.float32, layout_of(const.VALUE_WIDTH, FLOAT8))
    if const.VALUE_REST > 0:
        return main, gl.full([ROWS, const.VALUE_REST], 0.0, gl.float32, layout_of(const.VALUE_REST, False))
    else:  # noqa: RET505  what follows a return is compiled too
        return main, None


@gluon.jit
def no_moments(const: gl.constexpr, FLOAT8: gl.constexpr):
    """Of rows that have seen no key, for ``const.STATISTICS``: the largest score, and the sum of ``p x``."""
    across: gl.constexpr = gl.SliceLayout(1, layout_of(const.BLOCK, FLOAT8))
    if const.STATISTICS > 1:
        return gl.full([ROWS], -float("inf"), gl.float32, across), gl.full([ROWS], 0.0, gl.float32, across)
    elif const.STATISTICS > 0:  # noqa: RET505  what follows a return is compiled too
        return gl.full([ROWS], -float("inf"), gl.float32, across), None
    else:
        return None, None


@gluon.jit
def weights_of(
    s, unit, m, total, moments, n, begin, end, rows, shift, scoring,
    const: gl.constexpr, FLOAT8: gl.constexpr, MASKED: gl.constexpr,
):  # fmt: skip
    """From the scores of block ``n`` in units of ``unit``: the running maximum, the factor of earlier sums, weights (of
    8 bits, times 2^`LIFT`), the sum of all weights, and moments (`no_moments`)."""
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
    top = gl.max(s, 1)
    m_new = gl.maximum(m, top * factor)
    base = gl.where(m_new == -float("inf"), 0.0, m_new)
    moved_to = LIFT - base if FLOAT8 else -base
    if FLOAT8 and not const.SCALE_FIRST:
        power = gl.fma(s, factor[:, None], moved_to[:, None])
    else:
        power = gl.fma(s, factor, moved_to[:, None])
    p = gl.exp2(power)
    moved = m - base
    rescale = gl.exp2(moved)
    if const.STATISTICS > 1:
        before = gl.where(m == -float("inf"), 0.0, moved)
        moments = gl.maximum(moments[0], top), add_to_entropy(moments[1], total, before, rescale, power, p)
    elif const.STATISTICS > 0:
        moments = gl.maximum(moments[0], top), None
    return m_new, rescale, p, total * rescale + gl.sum(p, 1), moments


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
    m, total, moments, acc, exponent, record, tile, column, heads, target, scoring,
    const: gl.constexpr, FLOAT8: gl.constexpr, WARPGROUP: gl.constexpr,
):  # fmt: skip
    """Write output (in 8 bits, in units of 2 to the ``exponent``), logsumexp and statistics of 64 queries, and the flag
    of their item."""
    output, output_strides, logsumexp, statistics, flags, sink, queries, tiles = target
    rows_layout: gl.constexpr = gl.SliceLayout(1, layout_of(const.BLOCK, FLOAT8))
    # Loaded again, so that they take no registers in the loop.
    b = gl.load(record)
    first = gl.load(record + 1) + WARPGROUP * ROWS
    query_end = gl.load(record + 2)
    h = column % heads
    if FLOAT8:
        total = total / LIFTED
    empty, of_keys = total == 0.0, total
    settled = (gl.abs(m) < LARGE) & (total < float("inf"))
    no_shift = gl.full([ROWS], 0.0, gl.float32, rows_layout)
    rest = gl.where(m == -float("inf"), 0.0, m)
    log_scale, more = exponent_of_the_sum(no_shift, rest, 1.0)
    lse = gl.where(empty, -float("inf"), log_scale + (gl.log2(total) + more) / LOG2_E)
    rescale = gl.full([ROWS], 1.0, gl.float32, rows_layout)
    if const.SINK:
        logit = gl.load(sink + h).to(gl.float32)
        total, rescale, with_sink = with_a_sink(logit, gl.where(empty, logit, log_scale), more, total)
        lse = gl.where(empty, logit, with_sink)
    share = gl.where(empty, 1.0, total)
    if FLOAT8:
        # Divided by itself, since the GPU's power of two is zero below 2^-126.
        rescale = rescale * gl.exp2(exponent) / LIFTED
    # Rows with scores so large that their weights are wrong, and rows that see no key, which have the same maximum and
    # sum, are computed again like non-finite ones.
    acc = rescaled(acc, gl.where(settled, rescale / share, float("nan")), FLOAT8)
    row_of_head = (b * heads + h).to(gl.int64) * queries
    i = first + gl.arange(0, ROWS, layout=rows_layout)
    gl.store(logsumexp + row_of_head + i, lse, mask=i < query_end)
    if const.STATISTICS > 0:
        peak = moments[0]
        weighted = moments[1] if const.STATISTICS > 1 else no_shift
        largest, entropy = statistics_of_rows(peak, weighted, of_keys, rescale / share, no_shift, rest, scoring[1])
        unit = 1.0 if const.SCALE_FIRST else scoring[0]
        gl.store(statistics[0] + row_of_head + i, peak * unit, mask=i < query_end)
        gl.store(statistics[1] + row_of_head + i, largest, mask=i < query_end)
        if const.STATISTICS > 1:
            gl.store(statistics[2] + row_of_head + i, entropy, mask=i < query_end)
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
