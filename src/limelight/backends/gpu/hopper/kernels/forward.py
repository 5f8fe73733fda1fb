"""The FlashAttention 3 forward pass (Shah et al. 2024) for Hopper.

A program is one warp that copies and two warpgroups that compute, each 64 queries of a tile of 128; it stays and takes
one item after another (`schedule`). Blocks of keys and of values come in bulk copies, into a ring of stages each.
A warpgroup issues ``Q K_n`` and ``P_{n-1} V_{n-1}``, waits for the first, makes weights of it while the second runs,
and only then rescales its output. The two take turns at issuing, so that the weights of one are made under the products
of the other. The arithmetic is that of `limelight.backends.gpu.kernels.forward`.
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
from ...kernels.visibility import chosen, intervals
from .schedule import EDGES, RECORD, STEPS, item, place, step, turns

ROWS = gl.constexpr(64)  # queries of a warpgroup

# Arguments that travel together:
# work     = (items, programs, tiles, columns, section, heads, group)
# buffers  = (queries of both warpgroups, keys by stage, values by stage)
# bars     = (queries there, queries read, keys there, keys read, values there, values read, turns)
# sight    = (plan, spans, begins, ends, interval_strides)
# scoring  = (scale, factor, compare, operands, numbers)
# target   = (output, output_strides, logsumexp, flags, sink, queries)


@gluon.constexpr_function
def layout_of(columns, FLOAT8):
    """How a warpgroup holds the sums of a product, 64 rows by ``columns``."""
    return gl.NVMMADistributedLayout([3, 0], [4, 1], [16, columns, 32 if FLOAT8 else 16])


@gluon.jit
def keep(x, FLOAT8: gl.constexpr):
    """A use of ``x`` that costs nothing: a product that reads it while it is computed has ended by now, so its
    registers were not given away before."""
    return gl.inline_asm_elementwise("", "=r,0", [x], dtype=x.dtype, is_pure=False, pack=4 if FLOAT8 else 2)


@gluon.jit
def factors(weights, share, dtype: gl.constexpr, form: gl.constexpr, FLOAT8: gl.constexpr):
    """Weights as a product takes them from registers. Those of 8 bits stay where they are and mean other places: see
    `limelight.backends.gpu.hopper.quantise.order`."""
    OUTPUT: gl.constexpr = layout_of(form.VALUE_WIDTH, FLOAT8)
    if FLOAT8:
        small = (weights * share).to(dtype).reshape([ROWS, form.BLOCK // 32, 2, 2, 4, 2])
        small = small.permute((0, 1, 2, 4, 3, 5)).reshape([ROWS, form.BLOCK])
        return gl.convert_layout(small, gl.DotOperandLayout(0, OUTPUT, 4), assert_trivial=True)
    else:  # noqa: RET505  what follows a return is compiled too
        return gl.convert_layout(weights.to(dtype), gl.DotOperandLayout(0, OUTPUT, 2))


@gluon.jit
def scales_of(scales, n, FLOAT8: gl.constexpr):
    """What the scores of each row with block ``n`` stand for, and the share of the block in the scale of the values."""
    if FLOAT8:
        of_rows, of_keys, shares, _ = scales
        return of_rows * gl.load(of_keys + n), gl.load(shares + n)
    else:  # noqa: RET505
        return 1.0, 1.0


@gluon.jit
def matrix(buffers, stage):
    """One of several buffers, which bulk copies fill as ``(1, 1, rows, width)``, as a matrix."""
    buffer = buffers.index(stage)
    return buffer.reshape([buffer.shape[2], buffer.shape[3]])


@gluon.jit
def as_values(buffers, stage, FLOAT8: gl.constexpr):
    """A block of values, keys by width; those of 8 bits lie with their keys along the rows."""
    if FLOAT8:
        return matrix(buffers, stage).permute((1, 0))
    else:  # noqa: RET505
        return matrix(buffers, stage)


@gluon.jit
def _producer(
    query, key, value, buffers, bars, plan, work, form: gl.constexpr, FLOAT8: gl.constexpr, STAGES: gl.constexpr
):
    """Copies queries, and blocks of keys and values, into shared memory as soon as there is room."""
    items, programs, tiles, columns, section, heads, group = work
    queries_at, keys_at, values_at = buffers
    queries_there, queries_read, keys_there, keys_read, values_there, values_read, _ = bars
    program = gl.program_id(0)
    count = 0
    for turn in range(turns(program, programs, items)):
        tile, column = place(item(turn, program, programs), tiles, columns, section)
        record = plan + (column // heads * tiles + tile) * RECORD
        b = gl.load(record)
        first = gl.load(record + 1)
        edges = gl.load(record + EDGES)
        h = column % heads
        mbarrier.wait(queries_read, (turn & 1) ^ 1)
        mbarrier.expect(queries_there, 2 * query.nbytes_per_cta)
        copy_to_shared(query, [b, h, first, 0], queries_there, queries_at.index(0))
        copy_to_shared(query, [b, h, first + ROWS, 0], queries_there, queries_at.index(1))
        for t in range(gl.load(record + STEPS)):
            n, _k = step(record, t, edges, form)
            stage = count % STAGES
            free = ((count // STAGES) & 1) ^ 1
            mbarrier.wait(keys_read.index(stage), free)
            mbarrier.expect(keys_there.index(stage), key.nbytes_per_cta)
            copy_to_shared(key, [b, h // group, n * form.BLOCK, 0], keys_there.index(stage), keys_at.index(stage))
            mbarrier.wait(values_read.index(stage), free)
            mbarrier.expect(values_there.index(stage), value.nbytes_per_cta)
            of_keys = n * form.BLOCK
            copy_to_shared(
                value, [b, h // group, 0 if FLOAT8 else of_keys, of_keys if FLOAT8 else 0], values_there.index(stage),
                values_at.index(stage),
            )  # fmt: skip
            count += 1


@gluon.jit
def _weights(
    s, unit, m, n, begin, end, rows, shift, scoring, form: gl.constexpr, FLOAT8: gl.constexpr, MASKED: gl.constexpr
):
    """Of the scores of block ``n``, in a ``unit`` of each row: the running maximum, the factor of what was summed
    before, and the weights."""
    j = n * form.BLOCK + gl.arange(0, form.BLOCK, layout=gl.SliceLayout(0, layout_of(form.BLOCK, FLOAT8)))
    factor = scoring[1]
    if form.NATURAL:
        s = s * (unit * scoring[0])[:, None] if FLOAT8 else s * scoring[0]
    elif FLOAT8:
        factor = unit * factor
    s, _slope = after_rules(s, rows, j[None, :], None, shift, scoring, form, 0)
    if MASKED:
        s = gl.where((j[None, :] >= begin[:, None]) & (j[None, :] < end[:, None]), s, -float("inf"))
    most = gl.maximum(m, gl.max(s, 1) * factor)
    base = gl.where(most == -float("inf"), 0.0, most)
    if FLOAT8 and not form.NATURAL:
        p = gl.exp2(gl.fma(s, factor[:, None], -base[:, None]))
    else:
        p = gl.exp2(gl.fma(s, factor, -base[:, None]))
    return most, gl.exp2(m - base), p


@gluon.jit
def _step(
    m, total, acc, p, count, t, steps, record, edges, seen_by, rows, shift, scoring, scales, buffers, bars,
    form: gl.constexpr, FLOAT8: gl.constexpr, STAGES: gl.constexpr, WHICH: gl.constexpr, MASKED: gl.constexpr,
):  # fmt: skip
    """One block of keys, while the products of the block before it with its values still run."""
    queries_at, keys_at, values_at = buffers
    _, _, keys_there, keys_read, values_there, values_read, turn = bars
    SCORES: gl.constexpr = layout_of(form.BLOCK, FLOAT8)
    OUTPUT: gl.constexpr = layout_of(form.VALUE_WIDTH, FLOAT8)
    n, k = step(record, t, edges, form)
    stage = count % STAGES
    before = (count - 1) % STAGES
    mbarrier.wait(turn.index(WHICH), (count & 1) ^ (1 - WHICH))
    nothing = gl.full([ROWS, form.BLOCK], 0.0, gl.float32, SCORES)
    s = warpgroup_mma(
        matrix(queries_at, WHICH), matrix(keys_at, stage).permute((1, 0)), nothing, use_acc=False, is_async=True
    )
    mbarrier.wait(values_there.index(before), ((count - 1) // STAGES) & 1)
    acc = warpgroup_mma(p, as_values(values_at, before, FLOAT8), acc, is_async=True)
    mbarrier.arrive(turn.index(1 - WHICH))
    s = warpgroup_mma_wait(1, deps=(s,))
    mbarrier.arrive(keys_read.index(stage))
    begin, end = chosen(k, seen_by, form)
    unit, share = scales_of(scales, n, FLOAT8)
    m, rescale, weights = _weights(s, unit, m, n, begin, end, rows, shift, scoring, form, FLOAT8, MASKED)
    total = total * rescale + gl.sum(weights, 1)
    after = count + 1
    mbarrier.wait(keys_there.index(after % STAGES), (after // STAGES) & 1, pred=t + 1 < steps)
    acc = warpgroup_mma_wait(0, deps=(acc,))
    keep(p, FLOAT8)
    mbarrier.arrive(values_read.index(before))
    acc = acc * gl.convert_layout(rescale, gl.SliceLayout(1, OUTPUT))[:, None]
    p = factors(weights, share, values_at.dtype, form, FLOAT8)
    return m, total, acc, p


@gluon.jit
def _consumer(
    buffers, bars, sight, scoring, scales, target, work,
    form: gl.constexpr, FLOAT8: gl.constexpr, STAGES: gl.constexpr, WHICH: gl.constexpr,
):  # fmt: skip
    """Output and logsumexp of 64 queries of each item."""
    items, programs, tiles, columns, section, heads, group = work
    plan, spans, begins, ends, interval_strides = sight
    queries_at, keys_at, values_at = buffers
    queries_there, queries_read, keys_there, keys_read, values_there, values_read, turn_of = bars
    output, output_strides, logsumexp, flags, sink, queries = target
    SCORES: gl.constexpr = layout_of(form.BLOCK, FLOAT8)
    OUTPUT: gl.constexpr = layout_of(form.VALUE_WIDTH, FLOAT8)
    program = gl.program_id(0)
    count = 0
    for turn in range(turns(program, programs, items)):
        tile, column = place(item(turn, program, programs), tiles, columns, section)
        record = plan + (column // heads * tiles + tile) * RECORD
        b = gl.load(record)
        first = gl.load(record + 1) + WHICH * ROWS
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
            spans, begins, ends, interval_strides, b, i, i + query_offset, exists, key_begin, key_end, key_offset, form
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
        acc = gl.full([ROWS, form.VALUE_WIDTH], 0.0, gl.float32, OUTPUT)
        nothing = gl.full([ROWS, form.BLOCK], 0.0, gl.float32, SCORES)

        # The first block has no values to wait for.
        n, k = step(record, 0, edges, form)
        stage = count % STAGES
        mbarrier.wait(queries_there, turn & 1)
        mbarrier.wait(keys_there.index(stage), (count // STAGES) & 1)
        mbarrier.wait(turn_of.index(WHICH), (count & 1) ^ (1 - WHICH))
        s = warpgroup_mma(
            matrix(queries_at, WHICH), matrix(keys_at, stage).permute((1, 0)), nothing, use_acc=False, is_async=True
        )
        mbarrier.arrive(turn_of.index(1 - WHICH))
        s = warpgroup_mma_wait(0, deps=(s,))
        mbarrier.arrive(keys_read.index(stage))
        begin, end = chosen(k, seen_by, form)
        unit, share = scales_of(scales_here, n, FLOAT8)
        m, _rescale, weights = _weights(s, unit, m, n, begin, end, rows, shift, scoring, form, FLOAT8, True)
        total = gl.sum(weights, 1)
        after = count + 1
        mbarrier.wait(keys_there.index(after % STAGES), (after // STAGES) & 1, pred=steps > 1)
        p = factors(weights, share, values_at.dtype, form, FLOAT8)
        count += 1
        for t in range(1, edges):
            m, total, acc, p = _step(
                m, total, acc, p, count, t, steps, record, edges, seen_by, rows, shift, scoring, scales_here,
                buffers, bars, form, FLOAT8, STAGES, WHICH, True,
            )  # fmt: skip
            count += 1
        for t in range(gl.maximum(edges, 1), steps):
            m, total, acc, p = _step(
                m, total, acc, p, count, t, steps, record, edges, seen_by, rows, shift, scoring, scales_here,
                buffers, bars, form, FLOAT8, STAGES, WHICH, False,
            )  # fmt: skip
            count += 1
        mbarrier.arrive(queries_read)
        before = (count - 1) % STAGES
        mbarrier.wait(values_there.index(before), ((count - 1) // STAGES) & 1)
        acc = warpgroup_mma(p, as_values(values_at, before, FLOAT8), acc, is_async=True)
        acc = warpgroup_mma_wait(0, deps=(acc,))
        keep(p, FLOAT8)
        mbarrier.arrive(values_read.index(before))

        # Read once more, so that they take no registers in between.
        b = gl.load(record)
        first = gl.load(record + 1) + WHICH * ROWS
        query_end = gl.load(record + 2)
        h = column % heads
        i = first + gl.arange(0, ROWS, layout=gl.SliceLayout(1, SCORES))
        exists = i < query_end
        nobody = total == 0.0
        settled = (gl.abs(m) < LARGE) & (total < float("inf"))
        nothing_off = gl.full([ROWS], 0.0, gl.float32, gl.SliceLayout(1, SCORES))
        natural, more = exponent_of_the_sum(nothing_off, gl.where(m == -float("inf"), 0.0, m), 1.0)
        lse = gl.where(nobody, -float("inf"), natural + (gl.log2(total) + more) / LOG2_E)
        rescale = gl.full([ROWS], 1.0, gl.float32, gl.SliceLayout(1, SCORES))
        if form.SINK:
            logit = gl.load(sink + h).to(gl.float32)
            total, rescale, with_sink = with_a_sink(logit, gl.where(nobody, logit, natural), more, total)
            lse = gl.where(nobody, logit, with_sink)
        share = gl.where(nobody, 1.0, total)
        if FLOAT8:
            rescale = rescale * gl.load(scales_here[3])
        across: gl.constexpr = gl.SliceLayout(1, OUTPUT)
        # Scores so large that their weights are not right, and rows that see nothing, which look alike, are computed
        # again, as what is not finite.
        rescale = gl.where(settled, rescale / share, float("nan"))
        out = acc * gl.convert_layout(rescale, across)[:, None]
        place_of_row = (b * heads + h).to(gl.int64) * queries
        gl.store(logsumexp + place_of_row + i, lse, mask=exists)
        i = first + gl.arange(0, ROWS, layout=across)
        # A value that is not finite was multiplied, perhaps by the zero of a key that a row does not see.
        spoiled = gl.max((gl.abs(out) < float("inf")).to(gl.int32) ^ 1, 1)
        gl.store(flags + column * tiles + tile + i * 0, 1, mask=(i < query_end) & (spoiled > 0))
        d = gl.arange(0, form.VALUE_WIDTH, layout=gl.SliceLayout(0, OUTPUT))
        at = (
            b.to(gl.int64) * output_strides[0] + h.to(gl.int64) * output_strides[1] + i.to(gl.int64) * output_strides[2]
        )
        gl.store(
            output + at[:, None] + d[None, :],
            out.to(output.dtype.element_ty),
            mask=(i < query_end)[:, None] & (d[None, :] < form.VALUE_D),
        )


@gluon.jit(do_not_specialize=["items", "tiles", "columns", "section", "queries"])
def forward(
    query, key, value, scales, output, logsumexp, flags, sink, output_strides,
    items, tiles, columns, section, heads, group, queries,
    plan, spans, begins, ends, interval_strides, scale, factor, compare, operands, numbers,
    form: gl.constexpr, FLOAT8: gl.constexpr, STAGES: gl.constexpr, REGISTERS: gl.constexpr,
):  # fmt: skip
    """Output and logsumexp of all items (grid: as many programs as there are multiprocessors, or fewer).

    ``flags`` has an int32 for each item, 0 before; it is set where an output is not finite or scores are too large.
    """
    queries_at = gl.allocate_shared_memory(query.dtype, [2, 1, 1, ROWS, form.WIDTH], query.layout)
    keys_at = gl.allocate_shared_memory(key.dtype, [STAGES, 1, 1, form.BLOCK, form.WIDTH], key.layout)
    if FLOAT8:
        values_at = gl.allocate_shared_memory(value.dtype, [STAGES, 1, 1, form.VALUE_WIDTH, form.BLOCK], value.layout)
    else:
        values_at = gl.allocate_shared_memory(value.dtype, [STAGES, 1, 1, form.BLOCK, form.VALUE_WIDTH], value.layout)
    queries_there = mbarrier.allocate_mbarrier()
    queries_read = mbarrier.allocate_mbarrier()
    keys_there = mbarrier.allocate_mbarrier(batch=STAGES)
    keys_read = mbarrier.allocate_mbarrier(batch=STAGES)
    values_there = mbarrier.allocate_mbarrier(batch=STAGES)
    values_read = mbarrier.allocate_mbarrier(batch=STAGES)
    turn = mbarrier.allocate_mbarrier(batch=2)
    mbarrier.init(queries_there, count=1)
    mbarrier.init(queries_read, count=2)
    for stage in gl.static_range(STAGES):
        mbarrier.init(keys_there.index(stage), count=1)
        mbarrier.init(keys_read.index(stage), count=2)
        mbarrier.init(values_there.index(stage), count=1)
        mbarrier.init(values_read.index(stage), count=2)
    mbarrier.init(turn.index(0), count=1)
    mbarrier.init(turn.index(1), count=1)
    fence_async_shared()
    work = (items, gl.num_programs(0), tiles, columns, section, heads, group)
    bars = (queries_there, queries_read, keys_there, keys_read, values_there, values_read, turn)
    buffers = (queries_at, keys_at, values_at)
    sight = (plan, spans, begins, ends, interval_strides)
    scoring = (scale, factor, compare, operands, numbers)
    target = (output, output_strides, logsumexp, flags, sink, queries)
    gl.warp_specialize(
        [
            (_consumer, (buffers, bars, sight, scoring, scales, target, work, form, FLOAT8, STAGES, 0)),
            (_consumer, (buffers, bars, sight, scoring, scales, target, work, form, FLOAT8, STAGES, 1)),
            (_producer, (query, key, value, buffers, bars, plan, work, form, FLOAT8, STAGES)),
        ],
        [4, 1],
        [REGISTERS, 24],
    )
