"""The FlashAttention 3 forward pass (Shah et al. 2024) for Hopper.

A program is one warp that copies and two warpgroups that compute, each 64 queries of a tile of 128; it is persistent
and computes one item after another (`schedule`). Bulk copies bring keys and values into a ring of stages each.
A warpgroup issues ``Q K_n`` and ``P_{n-1} V_{n-1}``, waits for the first, computes weights from it while the second
runs, and only then rescales its output. The two take turns at issuing, so that the weights of one are computed during
the products of the other. The arithmetic is that of `limelight.backends.gpu.kernels.forward`.

With ``variant.ALONE`` a program is a single warpgroup with a tile of 64 queries, which copies for itself: it refills a
buffer as soon as its own product has read it. Three such programs share a multiprocessor and overlap without turns.
"""

from ...compatibility import fence_async_shared, gl, gluon, mbarrier, warpgroup_mma, warpgroup_mma_wait
from ...kernels.visibility import interval_of, intervals
from .copies import barriers, buffers_of, copy_block, copy_queries
from .operands import ROWS, keep_alive, layout_of, matrix, pack_weights, unpack_weights
from .schedule import (
    EDGES,
    RECORD,
    STEPS,
    block_of_one,
    blocks_of_one,
    item_count,
    item_number,
    step,
    tile_and_column,
)
from .softmax import finish, no_moments, no_output, rescaled, scales_of, scales_of_item, weights_of

# Arguments that belong together. A phase of a barrier *full* ends when its buffer was filled, of *empty* when it was
# read. Queries, keys and values have two parts each (`copies`), and so has an output.
# work     = (items, programs, tiles, columns, section, heads, group)
# copied   = descriptors of (queries, keys, values)
# buffers  = (queries of each warpgroup, keys by stage, values by stage)
# bars     = (queries full, queries empty, keys full, keys empty, values full, values empty, turn of a warpgroup)
# tables   = (plan, spans, begins, ends, interval_strides)
# scoring  = (scale, factor, compare, operands, numbers)
# item     = (row, head of keys, record of the tile, edges, steps, blocks of its first interval)
# seen     = (intervals of each row, rows as score rules take them, shift of distances, scales of 8 bits)
# target   = (output, output_strides, logsumexp, statistics, flags, sink, queries, tiles)
# moments  = what statistics of rows are computed from, or None (`softmax`)


@gluon.jit
def _producer(copied, buffers, bars, plan, work, const: gl.constexpr, variant: gl.constexpr):
    """Copy queries, and blocks of keys and values, into shared memory as soon as buffers are empty."""
    items, programs, tiles, columns, section, heads, group = work
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
        copy_queries(copied[0], buffers[0], queries_full, b, h, first, 2)
        for t in range(gl.load(record + STEPS)):
            n, _k = step(record, t, edges, const)
            stage = count % variant.STAGES
            free = ((count // variant.STAGES) & 1) ^ 1
            mbarrier.wait(keys_empty.index(stage), free)
            copy_block(copied[1], buffers[1], stage, keys_full, b, h // group, n * const.BLOCK, True, False)
            mbarrier.wait(values_empty.index(stage), free)
            copy_block(copied[2], buffers[2], stage, values_full, b, h // group, n * const.BLOCK, True, variant.FLOAT8)
            count += 1


@gluon.jit
def _copy_step(which: gl.constexpr, t, count, item, copied, buffers, full, const: gl.constexpr, variant: gl.constexpr):
    """Copy the keys (``which`` is 1) or values (2) of step ``t`` of an item, if it has so many."""
    b, key_head, record, edges, steps, blocks = item
    if const.INTERVALS == 1:
        n = block_of_one(blocks, t, edges)
    else:
        n, _k = step(record, t, edges, const)
    stage = count % variant.STAGES
    copy_block(copied[which], buffers[which], stage, full, b, key_head, n * const.BLOCK, t < steps, False)


@gluon.jit
def _start(index, count, first, h, item, copied, buffers, bars, const: gl.constexpr, variant: gl.constexpr):
    """Copy the queries of an item and fill all buffers of keys and values, where the program copies for itself."""
    queries_full, _, keys_full, _, values_full, _, _ = bars
    copy_queries(copied[0], buffers[0], queries_full, item[0], h, first, 1)
    STAGES: gl.constexpr = variant.STAGES
    for t in gl.static_range(STAGES):
        _copy_step(1, t, count + t, item, copied, buffers, keys_full, const, variant)
        _copy_step(2, t, count + t, item, copied, buffers, values_full, const, variant)


@gluon.jit
def _read(which: gl.constexpr, t, count, item, copied, buffers, bars, const: gl.constexpr, variant: gl.constexpr):
    """Give a buffer back that held the keys (``which`` is 1) or values (2) of step ``t``, or refill it."""
    full, empty = bars[2 * which], bars[2 * which + 1]
    if variant.ALONE:
        gl.barrier()  # all four warps have read it
        _copy_step(which, t + variant.STAGES, count, item, copied, buffers, full, const, variant)
    else:
        mbarrier.arrive(empty.index(count % variant.STAGES))


@gluon.jit
def _begin_turn(count, bars, variant: gl.constexpr, WARPGROUP: gl.constexpr):
    """Wait until the other warpgroup has issued its products."""
    if not variant.ALONE:
        mbarrier.wait(bars[6].index(WARPGROUP), (count & 1) ^ (1 - WARPGROUP))


@gluon.jit
def _end_turn(bars, variant: gl.constexpr, WARPGROUP: gl.constexpr):
    """Let the other warpgroup issue its products."""
    if not variant.ALONE:
        mbarrier.arrive(bars[6].index(1 - WARPGROUP))


@gluon.jit
def _wait_for_keys(count, exists, bars, variant: gl.constexpr):
    """Wait for a block of keys, where it exists. The assembler does not move exponentials across this wait."""
    mbarrier.wait(bars[2].index(count % variant.STAGES), (count // variant.STAGES) & 1, pred=exists)


@gluon.jit
def _wait_for_values(count, bars, variant: gl.constexpr):
    """Wait for a block of values."""
    mbarrier.wait(bars[4].index(count % variant.STAGES), (count // variant.STAGES) & 1)


@gluon.jit
def _issue_scores(buffers, stage, const: gl.constexpr, variant: gl.constexpr, WARPGROUP: gl.constexpr):
    """The product of the warpgroup's queries with a block of keys, which runs on."""
    queries, keys = buffers[0], buffers[1]
    s = gl.full([ROWS, const.BLOCK], 0.0, gl.float32, layout_of(const.BLOCK, variant.FLOAT8))
    s = warpgroup_mma(
        matrix(queries[0], WARPGROUP), matrix(keys[0], stage).permute((1, 0)), s, use_acc=False, is_async=True
    )
    if keys[1] is not None:
        s = warpgroup_mma(matrix(queries[1], WARPGROUP), matrix(keys[1], stage).permute((1, 0)), s, is_async=True)
    return s


@gluon.jit
def _issue_output(acc, p, buffers, stage, const: gl.constexpr, variant: gl.constexpr):
    """The output plus the product of packed weights with a block of values, which runs on."""
    main, rest = acc
    values = buffers[2]
    block = matrix(values[0], stage)
    if variant.FLOAT8:  # stored transposed
        block = block.permute((1, 0))
    OUTPUT: gl.constexpr = layout_of(const.VALUE_WIDTH, variant.FLOAT8)
    main = warpgroup_mma(unpack_weights(p, values[0], OUTPUT, variant.FLOAT8), block, main, is_async=True)
    if rest is not None:
        REST: gl.constexpr = layout_of(const.VALUE_REST, False)
        rest = warpgroup_mma(unpack_weights(p, values[1], REST, False), matrix(values[1], stage), rest, is_async=True)
    return main, rest


@gluon.jit
def _wait_for_output(acc, p):
    """The output, when all products have ended."""
    main, rest = acc
    if rest is None:
        main = warpgroup_mma_wait(0, deps=(main,))
    else:
        main, rest = warpgroup_mma_wait(0, deps=(main, rest))
    keep_alive(p)
    return main, rest


@gluon.jit
def _step(
    m, total, moments, acc, p, count, t, item, seen, scoring, copied, buffers, bars,
    const: gl.constexpr, variant: gl.constexpr, WARPGROUP: gl.constexpr, MASKED: gl.constexpr,
):  # fmt: skip
    """One block of keys, while the products of the block before it with its values still run.

    ``p`` are the packed weights of the block before and, in 8 bits, the exponent of its values, in whose units the
    output is summed; a new exponent is one more factor of the output, which costs nothing for each weight.
    """
    words, before_exponent = p
    _, _, record, edges, steps, _ = item
    seen_by, rows, shift, scales = seen
    n, k = step(record, t, edges, const)
    unit, exponent = scales_of(scales, n, variant.FLOAT8)
    _begin_turn(count, bars, variant, WARPGROUP)
    s = _issue_scores(buffers, count % variant.STAGES, const, variant, WARPGROUP)
    before = count - 1
    _wait_for_values(before, bars, variant)
    acc = _issue_output(acc, words, buffers, before % variant.STAGES, const, variant)
    _end_turn(bars, variant, WARPGROUP)
    s = warpgroup_mma_wait(1 if const.VALUE_REST == 0 else 2, deps=(s,))
    _read(1, t, count, item, copied, buffers, bars, const, variant)
    begin, end = interval_of(k, seen_by, const)
    m, rescale, weights, total, moments = weights_of(
        s, unit, m, total, moments, n, begin, end, rows, shift, scoring, const, variant.FLOAT8, MASKED
    )
    _wait_for_keys(count + 1, t + 1 < steps, bars, variant)
    acc = _wait_for_output(acc, words)
    _read(2, t - 1, before, item, copied, buffers, bars, const, variant)
    if variant.FLOAT8:
        rescale = rescale * gl.exp2(before_exponent - exponent)
    acc = rescaled(acc, rescale, variant.FLOAT8)
    return m, total, moments, acc, (pack_weights(weights, buffers[2][0], variant.FLOAT8), exponent)


@gluon.jit
def _consumer(
    copied, buffers, bars, tables, scoring, scales, target, work,
    const: gl.constexpr, variant: gl.constexpr, WARPGROUP: gl.constexpr,
):  # fmt: skip
    """Output and logsumexp of 64 queries of each item."""
    items, programs, tiles, columns, section, heads, group = work
    plan, spans, begins, ends, interval_strides = tables
    queries_full, queries_empty = bars[:2]
    SCORES: gl.constexpr = layout_of(const.BLOCK, variant.FLOAT8)
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
        item = (b, h // group, record, edges, steps, blocks_of_one(record))
        if variant.ALONE:
            _start(index, count, first, h, item, copied, buffers, bars, const, variant)
        # The first block has no product with values before it.
        n, k = step(record, 0, edges, const)
        mbarrier.wait(queries_full, index & 1)
        _wait_for_keys(count, True, bars, variant)
        _begin_turn(count, bars, variant, WARPGROUP)
        s = _issue_scores(buffers, count % variant.STAGES, const, variant, WARPGROUP)
        _end_turn(bars, variant, WARPGROUP)
        i = first + gl.arange(0, ROWS, layout=gl.SliceLayout(1, SCORES))
        exists = i < query_end
        seen_by = intervals(
            spans, begins, ends, interval_strides, b, i, i + query_offset, exists, key_begin, key_end, key_offset, const
        )
        rows = (b, h // group, h, i[:, None], None, exists[:, None])
        if variant.FLOAT8:
            seen = (seen_by, rows, key_offset - query_offset, scales_of_item(scales, b, h, heads, group, i, exists))
        else:
            seen = (seen_by, rows, key_offset - query_offset, None)
        unit, exponent = scales_of(seen[3], n, variant.FLOAT8)
        begin, end = interval_of(k, seen_by, const)
        m = gl.full([ROWS], -float("inf"), gl.float32, gl.SliceLayout(1, SCORES))
        s = warpgroup_mma_wait(0, deps=(s,))
        _read(1, 0, count, item, copied, buffers, bars, const, variant)
        total = gl.full([ROWS], 0.0, gl.float32, gl.SliceLayout(1, SCORES))
        m, _rescale, weights, total, moments = weights_of(
            s, unit, m, total, no_moments(const, variant.FLOAT8), n, begin, end, rows, seen[2], scoring, const,
            variant.FLOAT8, True,
        )  # fmt: skip
        _wait_for_keys(count + 1, steps > 1, bars, variant)
        p = pack_weights(weights, buffers[2][0], variant.FLOAT8), exponent
        acc = no_output(const, variant.FLOAT8)
        count += 1
        for t in range(1, edges):
            m, total, moments, acc, p = _step(
                m, total, moments, acc, p, count, t, item, seen, scoring, copied, buffers, bars,
                const, variant, WARPGROUP, True,
            )  # fmt: skip
            count += 1
        for t in range(gl.maximum(edges, 1), steps):
            m, total, moments, acc, p = _step(
                m, total, moments, acc, p, count, t, item, seen, scoring, copied, buffers, bars,
                const, variant, WARPGROUP, False,
            )  # fmt: skip
            count += 1
        if not variant.ALONE:
            mbarrier.arrive(queries_empty)
        before = count - 1
        _wait_for_values(before, bars, variant)
        acc = _issue_output(acc, p[0], buffers, before % variant.STAGES, const, variant)
        acc = _wait_for_output(acc, p[0])
        _read(2, steps - 1, before, item, copied, buffers, bars, const, variant)
        finish(
            m, total, moments, acc, p[1], record, tile, column, heads, target, scoring,
            const, variant.FLOAT8, WARPGROUP,
        )  # fmt: skip


@gluon.jit(do_not_specialize=["items", "tiles", "columns", "section", "queries"])
def forward(
    query, key, value, more_query, more_key, more_value, scales, output, logsumexp, statistics, flags, sink,
    output_strides,
    items, tiles, columns, section, heads, group, queries,
    plan, spans, begins, ends, interval_strides, scale, factor, compare, operands, numbers,
    const: gl.constexpr, variant: gl.constexpr,
):  # fmt: skip
    """Output and logsumexp of all items (grid: as many programs as fit on all multiprocessors, or fewer).

    ``statistics``, for ``const.STATISTICS``, are the largest score, the largest weight and the entropy of each row.
    ``flags`` has an int32 for each item, 0 before; it is set where an output is not finite or scores are too large.
    """
    STAGES: gl.constexpr = variant.STAGES
    copied = ((query, more_query), (key, more_key), (value, more_value))
    buffers = (
        buffers_of(copied[0], 1 if variant.ALONE else 2), buffers_of(copied[1], STAGES), buffers_of(copied[2], STAGES)
    )  # fmt: skip
    work = (items, gl.num_programs(0), tiles, columns, section, heads, group)
    tables = (plan, spans, begins, ends, interval_strides)
    scoring = (scale, factor, compare, operands, numbers)
    target = (output, output_strides, logsumexp, statistics, flags, sink, queries, tiles)
    queries_full = mbarrier.allocate_mbarrier()
    mbarrier.init(queries_full, count=1)
    keys_full = barriers(STAGES, 1)
    values_full = barriers(STAGES, 1)
    if variant.ALONE:
        fence_async_shared()
        gl.barrier()
        bars = (queries_full, None, keys_full, None, values_full, None, None)
        _consumer(copied, buffers, bars, tables, scoring, scales, target, work, const, variant, 0)
    else:
        queries_empty = mbarrier.allocate_mbarrier()
        mbarrier.init(queries_empty, count=2)
        keys_empty = barriers(STAGES, 2)
        values_empty = barriers(STAGES, 2)
        turn = barriers(2, 1)
        fence_async_shared()
        bars = (queries_full, queries_empty, keys_full, keys_empty, values_full, values_empty, turn)
        gl.warp_specialize(
            [
                (_consumer, (copied, buffers, bars, tables, scoring, scales, target, work, const, variant, 0)),
                (_consumer, (copied, buffers, bars, tables, scoring, scales, target, work, const, variant, 1)),
                (_producer, (copied, buffers, bars, plan, work, const, variant)),
            ],
            [4, 1],
            [variant.REGISTERS, 24],
        )
