"""The FlashAttention 3 forward pass (Shah et al. 2024) for Hopper.

A program is one warp that copies and two warpgroups that compute, each 64 queries of a tile of 128; it is persistent
and computes one item after another (`schedule`). Bulk copies bring keys and values into a ring of stages each.
A warpgroup issues ``Q K_n`` and ``P_{n-1} V_{n-1}``, waits for the first, computes weights from it while the second
runs, and only then rescales its output. The two take turns at issuing, so that the weights of one are computed during
the products of the other. The arithmetic is that of `limelight.backends.gpu.kernels.forward`.
"""

from ...compatibility import (
    copy_to_shared,
    fence_async_shared,
    gl,
    gluon,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from ...kernels.scores import LARGE, LOG2_E, after_rules, exponent_of_the_sum, with_a_sink
from ...kernels.visibility import interval_of, intervals
from .schedule import EDGES, RECORD, STEPS, item_count, item_number, step, tile_and_column

ROWS = gl.constexpr(64)  # queries of a warpgroup

# Arguments that belong together. A phase of a barrier *full* ends when its buffer was filled, of *empty* when it was
# read.
# work     = (items, programs, tiles, columns, section, heads, group)
# buffers  = (queries of both warpgroups, keys by stage, values by stage)
# bars     = (queries full, queries empty, keys full, keys empty, values full, values empty, turn of a warpgroup)
# tables   = (plan, spans, begins, ends, interval_strides)
# scoring  = (scale, factor, compare, operands, numbers)
# target   = (output, output_strides, logsumexp, flags, sink, queries)


@gluon.constexpr_function
def layout_of(columns, FLOAT8):
    """The register layout of a warpgroup's accumulator, 64 rows by ``columns``."""
    return gl.NVMMADistributedLayout([3, 0], [4, 1], [16, columns, 32 if FLOAT8 else 16])


@gluon.jit
def keep_alive(x, FLOAT8: gl.constexpr):
    """A use of ``x`` that costs nothing, after the asynchronous product that reads it has ended, so that its registers
    are not reused before."""
    return gl.inline_asm_elementwise("", "=r,0", [x], dtype=x.dtype, is_pure=False, pack=4 if FLOAT8 else 2)


@gluon.jit
def dot_operand(weights, share, dtype: gl.constexpr, const: gl.constexpr, FLOAT8: gl.constexpr):
    """Weights as an operand in registers. Float8 weights stay in their registers, and values are permuted to match:
    `limelight.backends.gpu.hopper.quantise.key_order`."""
    OUTPUT: gl.constexpr = layout_of(const.VALUE_WIDTH, FLOAT8)
    if FLOAT8:
        small = (weights * share).to(dtype).reshape([ROWS, const.BLOCK // 32, 2, 2, 4, 2])
        small = small.permute((0, 1, 2, 4, 3, 5)).reshape([ROWS, const.BLOCK])
        return gl.convert_layout(small, gl.DotOperandLayout(0, OUTPUT, 4), assert_trivial=True)
    else:  # noqa: RET505  what follows a return is compiled too
        return gl.convert_layout(weights.to(dtype), gl.DotOperandLayout(0, OUTPUT, 2))


@gluon.jit
def scales_of(scales, n, FLOAT8: gl.constexpr):
    """The factor of the scores of each row with block ``n``, and the block's scale of values over the head's."""
    if FLOAT8:
        of_rows, of_keys, shares, _ = scales
        return of_rows * gl.load(of_keys + n), gl.load(shares + n)
    else:  # noqa: RET505
        return 1.0, 1.0


@gluon.jit
def matrix(buffers, stage):
    """One buffer of a ring, which bulk copies fill as ``(1, 1, rows, width)``, as a matrix."""
    buffer = buffers.index(stage)
    return buffer.reshape([buffer.shape[2], buffer.shape[3]])


@gluon.jit
def as_values(buffers, stage, FLOAT8: gl.constexpr):
    """A block of values, keys by width; float8 values are stored transposed."""
    if FLOAT8:
        return matrix(buffers, stage).permute((1, 0))
    else:  # noqa: RET505
        return matrix(buffers, stage)


@gluon.jit
def _producer(
    query, key, value, buffers, bars, plan, work, const: gl.constexpr, FLOAT8: gl.constexpr, STAGES: gl.constexpr
):
    """Copy queries, and blocks of keys and values, into shared memory as soon as buffers are empty."""
    items, programs, tiles, columns, section, heads, group = work
    queries_at, keys_at, values_at = buffers
    queries_full, queries_empty, keys_full, keys_empty, values_full, values_empty, _ = bars
    program = gl.program_id(0)
    count = 0
    for index in range(item_count(program, programs, items)):
        tile, column = tile_and_column(item_number(index, program, programs), tiles, columns, section)
        record = plan + (column // heads * tiles + tile) * RECORD
        b = gl.load(record)
        first = gl.load(record + 1)
        edges = gl.load(record + EDGES)
        h = column % heads
        mbarrier.wait(queries_empty, (index & 1) ^ 1)
        mbarrier.expect(queries_full, 2 * query.nbytes_per_cta)
        copy_to_shared(query, [b, h, first, 0], queries_full, queries_at.index(0))
        copy_to_shared(query, [b, h, first + ROWS, 0], queries_full, queries_at.index(1))
        for t in range(gl.load(record + STEPS)):
            n, _k = step(record, t, edges, const)
            stage = count % STAGES
            free = ((count // STAGES) & 1) ^ 1
            mbarrier.wait(keys_empty.index(stage), free)
            mbarrier.expect(keys_full.index(stage), key.nbytes_per_cta)
            copy_to_shared(key, [b, h // group, n * const.BLOCK, 0], keys_full.index(stage), keys_at.index(stage))
            mbarrier.wait(values_empty.index(stage), free)
            mbarrier.expect(values_full.index(stage), value.nbytes_per_cta)
            of_keys = n * const.BLOCK
            copy_to_shared(
                value, [b, h // group, 0 if FLOAT8 else of_keys, of_keys if FLOAT8 else 0], values_full.index(stage),
                values_at.index(stage),
            )  # fmt: skip
            count += 1


@gluon.jit
def _weights(
    s, unit, m, n, begin, end, rows, shift, scoring, const: gl.constexpr, FLOAT8: gl.constexpr, MASKED: gl.constexpr
):
    """The running maximum, the factor of earlier sums, and weights, from scores of block ``n`` in units of ``unit``."""
    j = n * const.BLOCK + gl.arange(0, const.BLOCK, layout=gl.SliceLayout(0, layout_of(const.BLOCK, FLOAT8)))
    factor = scoring[1]
    if const.SCALE_FIRST:
        s = s * (unit * scoring[0])[:, None] if FLOAT8 else s * scoring[0]
    elif FLOAT8:
        factor = unit * factor
    s, _slope = after_rules(s, rows, j[None, :], None, shift, scoring, const, 0)
    if MASKED:
        s = gl.where((j[None, :] >= begin[:, None]) & (j[None, :] < end[:, None]), s, -float("inf"))
    m_new = gl.maximum(m, gl.max(s, 1) * factor)
    base = gl.where(m_new == -float("inf"), 0.0, m_new)
    if FLOAT8 and not const.SCALE_FIRST:
        p = gl.exp2(gl.fma(s, factor[:, None], -base[:, None]))
    else:
        p = gl.exp2(gl.fma(s, factor, -base[:, None]))
    return m_new, gl.exp2(m - base), p


@gluon.jit
def _step(
    m, total, acc, p, count, t, steps, record, edges, seen_by, rows, shift, scoring, scales, buffers, bars,
    const: gl.constexpr, FLOAT8: gl.constexpr, STAGES: gl.constexpr, WARPGROUP: gl.constexpr, MASKED: gl.constexpr,
):  # fmt: skip
    """One block of keys, while the products of the block before it with its values still run."""
    queries_at, keys_at, values_at = buffers
    _, _, keys_full, keys_empty, values_full, values_empty, turn = bars
    SCORES: gl.constexpr = layout_of(const.BLOCK, FLOAT8)
    OUTPUT: gl.constexpr = layout_of(const.VALUE_WIDTH, FLOAT8)
    n, k = step(record, t, edges, const)
    stage = count % STAGES
    before = (count - 1) % STAGES
    mbarrier.wait(turn.index(WARPGROUP), (count & 1) ^ (1 - WARPGROUP))
    zeros = gl.full([ROWS, const.BLOCK], 0.0, gl.float32, SCORES)
    s = warpgroup_mma(
        matrix(queries_at, WARPGROUP), matrix(keys_at, stage).permute((1, 0)), zeros, use_acc=False, is_async=True
    )
    mbarrier.wait(values_full.index(before), ((count - 1) // STAGES) & 1)
    acc = warpgroup_mma(p, as_values(values_at, before, FLOAT8), acc, is_async=True)
    mbarrier.arrive(turn.index(1 - WARPGROUP))
    s = warpgroup_mma_wait(1, deps=(s,))
    mbarrier.arrive(keys_empty.index(stage))
    begin, end = interval_of(k, seen_by, const)
    unit, share = scales_of(scales, n, FLOAT8)
    m, rescale, weights = _weights(s, unit, m, n, begin, end, rows, shift, scoring, const, FLOAT8, MASKED)
    total = total * rescale + gl.sum(weights, 1)
    after = count + 1
    mbarrier.wait(keys_full.index(after % STAGES), (after // STAGES) & 1, pred=t + 1 < steps)
    acc = warpgroup_mma_wait(0, deps=(acc,))
    keep_alive(p, FLOAT8)
    mbarrier.arrive(values_empty.index(before))
    acc = acc * gl.convert_layout(rescale, gl.SliceLayout(1, OUTPUT))[:, None]
    p = dot_operand(weights, share, values_at.dtype, const, FLOAT8)
    return m, total, acc, p


@gluon.jit
def _consumer(
    buffers, bars, tables, scoring, scales, target, work,
    const: gl.constexpr, FLOAT8: gl.constexpr, STAGES: gl.constexpr, WARPGROUP: gl.constexpr,
):  # fmt: skip
    """Output and logsumexp of 64 queries of each item."""
    items, programs, tiles, columns, section, heads, group = work
    plan, spans, begins, ends, interval_strides = tables
    queries_at, keys_at, values_at = buffers
    queries_full, queries_empty, keys_full, keys_empty, values_full, values_empty, turn = bars
    output, output_strides, logsumexp, flags, sink, queries = target
    SCORES: gl.constexpr = layout_of(const.BLOCK, FLOAT8)
    OUTPUT: gl.constexpr = layout_of(const.VALUE_WIDTH, FLOAT8)
    program = gl.program_id(0)
    count = 0
    for index in range(item_count(program, programs, items)):
        tile, column = tile_and_column(item_number(index, program, programs), tiles, columns, section)
        record = plan + (column // heads * tiles + tile) * RECORD
        b = gl.load(record)
        first = gl.load(record + 1) + WARPGROUP * ROWS
        query_end = gl.load(record + 2)
        key_begin = gl.load(record + 3)
        key_end = gl.load(record + 4)
        query_offset = gl.load(record + 5)
        key_offset = gl.load(record + 6)
        edges = gl.load(record + EDGES)
        steps = gl.load(record + STEPS)
        h = column % heads
        i = first + gl.arange(0, ROWS, layout=gl.SliceLayout(1, SCORES))
        exists = i < query_end
        seen_by = intervals(
            spans, begins, ends, interval_strides, b, i, i + query_offset, exists, key_begin, key_end, key_offset, const
        )
        rows = (b, h // group, h, i[:, None], None, exists[:, None])
        shift = key_offset - query_offset
        if FLOAT8:
            of_queries, of_keys, shares, of_values, query_blocks, key_blocks = scales
            of_rows = gl.load(of_queries + (b * heads + h) * query_blocks + i // ROWS, mask=exists, other=1.0)
            pair = b * (heads // group) + h // group
            scales_here = (of_rows, of_keys + pair * key_blocks, shares + pair * key_blocks, of_values + pair)
        else:
            scales_here = None
        m = gl.full([ROWS], -float("inf"), gl.float32, gl.SliceLayout(1, SCORES))
        acc = gl.full([ROWS, const.VALUE_WIDTH], 0.0, gl.float32, OUTPUT)
        zeros = gl.full([ROWS, const.BLOCK], 0.0, gl.float32, SCORES)

        # The first block has no product with values before it.
        n, k = step(record, 0, edges, const)
        stage = count % STAGES
        mbarrier.wait(queries_full, index & 1)
        mbarrier.wait(keys_full.index(stage), (count // STAGES) & 1)
        mbarrier.wait(turn.index(WARPGROUP), (count & 1) ^ (1 - WARPGROUP))
        s = warpgroup_mma(
            matrix(queries_at, WARPGROUP), matrix(keys_at, stage).permute((1, 0)), zeros, use_acc=False, is_async=True
        )
        mbarrier.arrive(turn.index(1 - WARPGROUP))
        s = warpgroup_mma_wait(0, deps=(s,))
        mbarrier.arrive(keys_empty.index(stage))
        begin, end = interval_of(k, seen_by, const)
        unit, share = scales_of(scales_here, n, FLOAT8)
        m, _rescale, weights = _weights(s, unit, m, n, begin, end, rows, shift, scoring, const, FLOAT8, True)
        total = gl.sum(weights, 1)
        after = count + 1
        mbarrier.wait(keys_full.index(after % STAGES), (after // STAGES) & 1, pred=steps > 1)
        p = dot_operand(weights, share, values_at.dtype, const, FLOAT8)
        count += 1
        for t in range(1, edges):
            m, total, acc, p = _step(
                m, total, acc, p, count, t, steps, record, edges, seen_by, rows, shift, scoring, scales_here,
                buffers, bars, const, FLOAT8, STAGES, WARPGROUP, True,
            )  # fmt: skip
            count += 1
        for t in range(gl.maximum(edges, 1), steps):
            m, total, acc, p = _step(
                m, total, acc, p, count, t, steps, record, edges, seen_by, rows, shift, scoring, scales_here,
                buffers, bars, const, FLOAT8, STAGES, WARPGROUP, False,
            )  # fmt: skip
            count += 1
        mbarrier.arrive(queries_empty)
        before = (count - 1) % STAGES
        mbarrier.wait(values_full.index(before), ((count - 1) // STAGES) & 1)
        acc = warpgroup_mma(p, as_values(values_at, before, FLOAT8), acc, is_async=True)
        acc = warpgroup_mma_wait(0, deps=(acc,))
        keep_alive(p, FLOAT8)
        mbarrier.arrive(values_empty.index(before))

        # Loaded again, so that they take no registers in the loop.
        b = gl.load(record)
        first = gl.load(record + 1) + WARPGROUP * ROWS
        query_end = gl.load(record + 2)
        h = column % heads
        i = first + gl.arange(0, ROWS, layout=gl.SliceLayout(1, SCORES))
        exists = i < query_end
        empty = total == 0.0
        settled = (gl.abs(m) < LARGE) & (total < float("inf"))
        no_shift = gl.full([ROWS], 0.0, gl.float32, gl.SliceLayout(1, SCORES))
        log_scale, more = exponent_of_the_sum(no_shift, gl.where(m == -float("inf"), 0.0, m), 1.0)
        lse = gl.where(empty, -float("inf"), log_scale + (gl.log2(total) + more) / LOG2_E)
        rescale = gl.full([ROWS], 1.0, gl.float32, gl.SliceLayout(1, SCORES))
        if const.SINK:
            logit = gl.load(sink + h).to(gl.float32)
            total, rescale, with_sink = with_a_sink(logit, gl.where(empty, logit, log_scale), more, total)
            lse = gl.where(empty, logit, with_sink)
        share = gl.where(empty, 1.0, total)
        if FLOAT8:
            rescale = rescale * gl.load(scales_here[3])
        across: gl.constexpr = gl.SliceLayout(1, OUTPUT)
        # Rows with scores so large that their weights are wrong, and rows that see no key, which have the same maximum
        # and sum, are computed again like non-finite ones.
        rescale = gl.where(settled, rescale / share, float("nan"))
        out = acc * gl.convert_layout(rescale, across)[:, None]
        row_of_head = (b * heads + h).to(gl.int64) * queries
        gl.store(logsumexp + row_of_head + i, lse, mask=exists)
        i = first + gl.arange(0, ROWS, layout=across)
        # A non-finite value was multiplied, perhaps by the zero weight of a key that a row does not see.
        nonfinite = gl.max((gl.abs(out) < float("inf")).to(gl.int32) ^ 1, 1)
        gl.store(flags + column * tiles + tile + i * 0, 1, mask=(i < query_end) & (nonfinite > 0))
        d = gl.arange(0, const.VALUE_WIDTH, layout=gl.SliceLayout(0, OUTPUT))
        at = (
            b.to(gl.int64) * output_strides[0] + h.to(gl.int64) * output_strides[1] + i.to(gl.int64) * output_strides[2]
        )
        gl.store(
            output + at[:, None] + d[None, :],
            out.to(output.dtype.element_ty),
            mask=(i < query_end)[:, None] & (d[None, :] < const.VALUE_D),
        )


@gluon.jit(do_not_specialize=["items", "tiles", "columns", "section", "queries"])
def forward(
    query, key, value, scales, output, logsumexp, flags, sink, output_strides,
    items, tiles, columns, section, heads, group, queries,
    plan, spans, begins, ends, interval_strides, scale, factor, compare, operands, numbers,
    const: gl.constexpr, FLOAT8: gl.constexpr, STAGES: gl.constexpr, REGISTERS: gl.constexpr,
):  # fmt: skip
    """Output and logsumexp of all items (grid: as many programs as there are multiprocessors, or fewer).

    ``flags`` has an int32 for each item, 0 before; it is set where an output is not finite or scores are too large.
    """
    queries_at = gl.allocate_shared_memory(query.dtype, [2, 1, 1, ROWS, const.WIDTH], query.layout)
    keys_at = gl.allocate_shared_memory(key.dtype, [STAGES, 1, 1, const.BLOCK, const.WIDTH], key.layout)
    if FLOAT8:
        values_at = gl.allocate_shared_memory(value.dtype, [STAGES, 1, 1, const.VALUE_WIDTH, const.BLOCK], value.layout)
    else:
        values_at = gl.allocate_shared_memory(value.dtype, [STAGES, 1, 1, const.BLOCK, const.VALUE_WIDTH], value.layout)
    queries_full = mbarrier.allocate_mbarrier()
    queries_empty = mbarrier.allocate_mbarrier()
    keys_full = mbarrier.allocate_mbarrier(batch=STAGES)
    keys_empty = mbarrier.allocate_mbarrier(batch=STAGES)
    values_full = mbarrier.allocate_mbarrier(batch=STAGES)
    values_empty = mbarrier.allocate_mbarrier(batch=STAGES)
    turn = mbarrier.allocate_mbarrier(batch=2)
    mbarrier.init(queries_full, count=1)
    mbarrier.init(queries_empty, count=2)
    for stage in gl.static_range(STAGES):
        mbarrier.init(keys_full.index(stage), count=1)
        mbarrier.init(keys_empty.index(stage), count=2)
        mbarrier.init(values_full.index(stage), count=1)
        mbarrier.init(values_empty.index(stage), count=2)
    mbarrier.init(turn.index(0), count=1)
    mbarrier.init(turn.index(1), count=1)
    fence_async_shared()
    work = (items, gl.num_programs(0), tiles, columns, section, heads, group)
    bars = (queries_full, queries_empty, keys_full, keys_empty, values_full, values_empty, turn)
    buffers = (queries_at, keys_at, values_at)
    tables = (plan, spans, begins, ends, interval_strides)
    scoring = (scale, factor, compare, operands, numbers)
    target = (output, output_strides, logsumexp, flags, sink, queries)
    gl.warp_specialize(
        [
            (_consumer, (buffers, bars, tables, scoring, scales, target, work, const, FLOAT8, STAGES, 0)),
            (_consumer, (buffers, bars, tables, scoring, scales, target, work, const, FLOAT8, STAGES, 1)),
            (_producer, (query, key, value, buffers, bars, plan, work, const, FLOAT8, STAGES)),
        ],
        [4, 1],
        [REGISTERS, 24],
    )
