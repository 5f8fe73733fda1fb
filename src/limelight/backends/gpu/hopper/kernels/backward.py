"""The backward pass for Hopper: one kernel owns tiles of queries, one owns tiles of keys. No atomics.

Both are this one kernel. Its program is one warp that copies and two warpgroups that compute, each 64 rows of a tile of
128 that it *owns* (queries, or keys) and whose sums it keeps in registers; blocks of the other side *move* through. A
block gives ``x = Q K`` and ``y = dO V``, queries along the rows for the owner of queries, keys for that of keys; so
``p`` and ``ds`` are in registers in the layout of the next products, and never in shared memory:

- the owner of queries adds ``ds K`` to dQ;
- the owner of keys adds ``p dO`` to dV and ``ds Q`` to dK, over the heads of its group.

A warpgroup issues ``x_n``, ``y_n`` and ``ds_{n-1}`` times what moved before, waits for the first and computes weights
from it while the others run; then, for the owner of keys, ``p dO``, during which it computes ``ds_n``. The arithmetic
is that of `limelight.backends.gpu.kernels.backward`.
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
from ...kernels.scores import after_rules
from ...kernels.visibility import interval_of, intervals
from .operands import ROWS, keep_alive, layout_of, matrix
from .schedule import EDGES, RECORD, STEPS, item_number, query_step, step, tile_and_column

# Arguments that belong together, beside those of `forward`; "first" are queries and keys, "second" dO and values:
# copied     = descriptors (owned first, owned second, moving first, moving second, base, delta, bounds)
# buffers    = (owned first, owned second, and by stage: moving first, moving second; with KEYS base, delta, bounds)
# bars       = (owned full, owned empty, first full, first empty, second full, second empty)
# statistics = (base, delta): base is subtracted from scores times the factor, and is NaN for a row whose scores are too
#              large for that (its tiles are computed again); delta is subtracted from dP
# target     = (of_first, its strides, of_second, its strides, flags)


@gluon.jit
def _moving_block(record, t, edges, group, const: gl.constexpr, KEYS: gl.constexpr):
    """Step ``t``: the first row of the moving block, its head within the group, and the interval."""
    if KEYS:
        g, at = query_step(record, t, group, const)
        k = 0
    else:
        n, k = step(record, t, edges, const)
        at = n * const.BLOCK
        g = 0
    return at, g, k


@gluon.jit
def _producer(
    copied, buffers, bars, plan, work, batch, queries, const: gl.constexpr, KEYS: gl.constexpr, STAGES: gl.constexpr
):  # fmt: skip
    """Copy owned tiles and moving blocks into shared memory as soon as buffers are empty."""
    items, tiles, columns, section, heads, group = work
    own_first, own_second, first, second, base, delta, bounds = copied
    own_first_at, own_second_at, first_at, second_at = buffers[:4]
    own_full, own_empty, first_full, first_empty, second_full, second_empty = bars
    BOUNDS: gl.constexpr = 2 * const.INTERVALS
    program = gl.program_id(0)
    programs = gl.num_programs(0)  # here, where it takes no register
    count = 0
    index = 0
    while item_number(index, program, programs) < items:  # a count of items would take a register
        tile, column = tile_and_column(item_number(index, program, programs), tiles, columns, section)
        record = plan + (column // heads * tiles + tile) * RECORD
        b = gl.load(record)
        row = gl.load(record + 1)
        edges = gl.load(record + EDGES)
        steps = gl.load(record + STEPS)
        masked = edges
        h = column % heads
        if KEYS:
            masked = edges * group
            steps = steps * group
        mbarrier.wait(own_empty, (index & 1) ^ 1)
        mbarrier.expect(own_full, 2 * own_first.nbytes_per_cta + 2 * own_second.nbytes_per_cta)
        copy_to_shared(own_first, [b, h, row, 0], own_full, own_first_at.index(0))
        copy_to_shared(own_first, [b, h, row + ROWS, 0], own_full, own_first_at.index(1))
        copy_to_shared(own_second, [b, h, row, 0], own_full, own_second_at.index(0))
        copy_to_shared(own_second, [b, h, row + ROWS, 0], own_full, own_second_at.index(1))
        for t in range(steps):
            at, g, _k = _moving_block(record, t, edges, group, const, KEYS)
            stage = count % STAGES
            free = ((count // STAGES) & 1) ^ 1
            full = first_full.index(stage)
            mbarrier.wait(first_empty.index(stage), free)
            if KEYS:
                head = h * group + g
                line = (b * heads * group + head) * queries + at
                cut = t < gl.maximum(masked, 1)
                always: gl.constexpr = first.nbytes_per_cta + base.nbytes_per_cta
                mbarrier.expect(full, always + BOUNDS * bounds.nbytes_per_cta, pred=cut)
                mbarrier.expect(full, always, pred=cut ^ True)
                copy_to_shared(base, [line], full, buffers[4].index(stage))
                for n in gl.static_range(BOUNDS):
                    copy_to_shared(
                        bounds, [(n * batch + b) * queries + at], full, buffers[6].index(stage * BOUNDS + n), pred=cut
                    )
            else:
                head = h // group
                mbarrier.expect(full, first.nbytes_per_cta)
            copy_to_shared(first, [b, head, at, 0], full, first_at.index(stage))
            full = second_full.index(stage)
            mbarrier.wait(second_empty.index(stage), free)
            if KEYS:
                mbarrier.expect(full, second.nbytes_per_cta + delta.nbytes_per_cta)
                copy_to_shared(delta, [line], full, buffers[5].index(stage))
            else:
                mbarrier.expect(full, second.nbytes_per_cta)
            copy_to_shared(second, [b, head, at, 0], full, second_at.index(stage))
            count += 1
        index += 1


@gluon.jit
def _dot_operand(x, like, width: gl.constexpr):
    """``x`` as an operand in registers, in the dtype of ``like``."""
    return gl.convert_layout(x.to(like.dtype), gl.DotOperandLayout(0, layout_of(width, False), 2))


@gluon.jit
def _seen(p, j, bounds, stage, SCORES: gl.constexpr, const: gl.constexpr):
    """Weights of keys by queries, zeros where a query does not see. Its intervals ascend, so a key that is not
    visible is before the first, between two, or after the last, and at most two bounds take registers at a time."""
    LAST: gl.constexpr = 2 * const.INTERVALS - 1
    at = stage * (2 * const.INTERVALS)
    begin = bounds.index(at).load(gl.SliceLayout(0, SCORES))
    p = gl.where(j >= begin[None, :], p, 0.0)
    for k in gl.static_range(1, LAST, 2):
        end = bounds.index(at + k).load(gl.SliceLayout(0, SCORES))
        begin = bounds.index(at + k + 1).load(gl.SliceLayout(0, SCORES))
        p = gl.where((j < end[None, :]) | (j >= begin[None, :]), p, 0.0)
    end = bounds.index(at + LAST).load(gl.SliceLayout(0, SCORES))
    return gl.where(j < end[None, :], p, 0.0)


@gluon.jit
def _step(
    of_first, of_second, ds, count, t, steps, record, edges, own, seen_by, statistics, shift, scoring,
    buffers, bars, const: gl.constexpr, KEYS: gl.constexpr, STAGES: gl.constexpr, WARPGROUP: gl.constexpr,
    FIRST: gl.constexpr, MASKED: gl.constexpr,
):  # fmt: skip
    """One moving block, during the product of the block before it."""
    own_first_at, own_second_at, first_at, second_at = buffers[:4]
    _, _, first_full, first_empty, second_full, second_empty = bars
    b, h, rows, group = own
    MOVING: gl.constexpr = const.ROWS if KEYS else const.BLOCK
    SCORES: gl.constexpr = layout_of(MOVING, False)
    at, g, k = _moving_block(record, t, edges, group, const, KEYS)
    stage = count % STAGES
    before = (count - 1) % STAGES
    phase = (count // STAGES) & 1
    zeros = gl.full([ROWS, MOVING], 0.0, gl.float32, SCORES)
    if FIRST or KEYS:
        mbarrier.wait(first_full.index(stage), phase)
    x = warpgroup_mma(
        matrix(own_first_at, WARPGROUP), matrix(first_at, stage).permute((1, 0)), zeros, use_acc=False, is_async=True
    )
    mbarrier.wait(second_full.index(stage), phase)
    y = warpgroup_mma(
        matrix(own_second_at, WARPGROUP), matrix(second_at, stage).permute((1, 0)), zeros, use_acc=False, is_async=True
    )
    if FIRST or KEYS:
        x = warpgroup_mma_wait(1, deps=(x,))
    else:
        of_first = warpgroup_mma(ds, matrix(first_at, before), of_first, is_async=True)
        x = warpgroup_mma_wait(2, deps=(x,))

    # Weights, with queries along the rows or along the columns.
    moving = at + gl.arange(0, MOVING, layout=gl.SliceLayout(0, SCORES))
    if KEYS:
        i = moving[None, :]
        j = rows[:, None]
        head = h * group + g
        base = buffers[4].index(stage).load(gl.SliceLayout(0, SCORES))[None, :]
        places = (b, h, head, i, None, None)
    else:
        i = rows[:, None]
        j = moving[None, :]
        base = statistics[0][:, None]
        places = (b, h // group, h, i, None, None)
    if const.SCALE_FIRST:
        x = x * scoring[0]
    s, slope = after_rules(x, places, j, None, shift, scoring, const, -1)
    p = gl.exp2(gl.fma(s, scoring[1], -base))
    if MASKED:
        if KEYS:
            p = _seen(p, j, buffers[6], stage, SCORES, const)
        else:
            begin, end = interval_of(k, seen_by, const)
            p = gl.where((j >= begin[:, None]) & (j < end[:, None]), p, 0.0)
    if KEYS:
        used = _dot_operand(p, second_at, const.VALUE_WIDTH)
    strength = p * slope

    if KEYS:
        of_second = warpgroup_mma(used, matrix(second_at, stage), of_second, is_async=True)
        y = warpgroup_mma_wait(1, deps=(y,))
        row_delta = buffers[5].index(stage).load(gl.SliceLayout(0, SCORES))[None, :]
    else:
        # The assembler moves no exponential across this wait, so all are computed during the products.
        after = count + 1
        mbarrier.wait(first_full.index(after % STAGES), (after // STAGES) & 1, pred=t + 1 < steps)
        if FIRST:
            y = warpgroup_mma_wait(0, deps=(y,))
        else:
            y, of_first = warpgroup_mma_wait(0, deps=(y, of_first))
            keep_alive(ds)
            mbarrier.arrive(first_empty.index(before))
        mbarrier.arrive(second_empty.index(stage))
        row_delta = statistics[1][:, None]
    ds = _dot_operand(strength * (y - row_delta), first_at, const.WIDTH)
    if KEYS:
        of_first = warpgroup_mma(ds, matrix(first_at, stage), of_first, is_async=True)
        of_second = warpgroup_mma_wait(1, deps=(of_second,))
        keep_alive(used)
        mbarrier.arrive(second_empty.index(stage))
        of_first = warpgroup_mma_wait(0, deps=(of_first,))
        keep_alive(ds)
        mbarrier.arrive(first_empty.index(stage))
    return of_first, of_second, ds


@gluon.jit
def _write(acc, target, strides, b, h, first, begin, end, flag, WIDTH: gl.constexpr, D: gl.constexpr):
    """Rows of a gradient, from ``begin`` to ``end``; and the flag of a tile with a non-finite element."""
    LAYOUT: gl.constexpr = layout_of(WIDTH, False)
    row = first + gl.arange(0, ROWS, layout=gl.SliceLayout(1, LAYOUT))
    mine = (row >= begin) & (row < end)
    nonfinite = gl.max((gl.abs(acc) < float("inf")).to(gl.int32) ^ 1, 1)
    gl.store(flag + row * 0, 1, mask=mine & (nonfinite > 0))
    d = gl.arange(0, WIDTH, layout=gl.SliceLayout(0, LAYOUT))
    at = b.to(gl.int64) * strides[0] + h.to(gl.int64) * strides[1] + row.to(gl.int64) * strides[2]
    gl.store(target + at[:, None] + d[None, :], acc.to(target.dtype.element_ty), mask=mine[:, None] & (d[None, :] < D))


@gluon.jit
def _owner(
    buffers, bars, tables, statistics, scoring, target, work, queries,
    const: gl.constexpr, KEYS: gl.constexpr, STAGES: gl.constexpr, WARPGROUP: gl.constexpr,
):  # fmt: skip
    """Gradients of 64 rows of each item."""
    items, tiles, columns, section, heads, group = work
    plan, spans, begins, ends, interval_strides = tables
    first_at = buffers[2]
    own_full, own_empty, _, first_empty, _, _ = bars
    of_first_to, first_strides, of_second_to, second_strides, flags = target
    MOVING: gl.constexpr = const.ROWS if KEYS else const.BLOCK
    SCORES: gl.constexpr = layout_of(MOVING, False)
    program = gl.program_id(0)
    programs = gl.num_programs(0)  # here, where it takes no register
    count = 0
    index = 0
    while item_number(index, program, programs) < items:  # a count of items would take a register
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
        h = column % heads
        rows = first + gl.arange(0, ROWS, layout=gl.SliceLayout(1, SCORES))
        steps = gl.load(record + STEPS)
        shift = key_offset - query_offset
        own = (b, h, rows, group)
        masked = edges
        if KEYS:
            seen_by = None
            mine = None
            masked = edges * group
        else:
            exists = rows < query_end
            seen_by = intervals(
                spans, begins, ends, interval_strides, b, rows, rows + query_offset, exists, key_begin, key_end,
                key_offset, const,
            )  # fmt: skip
            base, delta = statistics
            row = (b * heads + h).to(gl.int64) * queries + rows
            mine = (gl.load(base + row, mask=exists, other=0.0), gl.load(delta + row, mask=exists, other=0.0))
        of_first = gl.full([ROWS, const.WIDTH], 0.0, gl.float32, layout_of(const.WIDTH, False))
        if KEYS:
            of_second = gl.full([ROWS, const.VALUE_WIDTH], 0.0, gl.float32, layout_of(const.VALUE_WIDTH, False))
        else:
            of_second = of_first
        mbarrier.wait(own_full, index & 1)
        of_first, of_second, ds = _step(
            of_first, of_second, None, count, 0, steps, record, edges, own, seen_by, mine, shift, scoring,
            buffers, bars, const, KEYS, STAGES, WARPGROUP, True, True,
        )  # fmt: skip
        count += 1
        for t in range(1, masked):
            of_first, of_second, ds = _step(
                of_first, of_second, ds, count, t, steps, record, edges, own, seen_by, mine, shift, scoring,
                buffers, bars, const, KEYS, STAGES, WARPGROUP, False, True,
            )  # fmt: skip
            count += 1
        if KEYS:
            steps = gl.load(record + STEPS) * group  # here, where it takes no register of the steps before
        for t in range(gl.maximum(masked, 1), steps):
            of_first, of_second, ds = _step(
                of_first, of_second, ds, count, t, steps, record, edges, own, seen_by, mine, shift, scoring,
                buffers, bars, const, KEYS, STAGES, WARPGROUP, False, False,
            )  # fmt: skip
            count += 1
        if not KEYS:
            mbarrier.arrive(own_empty)
            before = (count - 1) % STAGES
            of_first = warpgroup_mma(ds, matrix(first_at, before), of_first, is_async=True)
            of_first = warpgroup_mma_wait(0, deps=(of_first,))
            keep_alive(ds)
            mbarrier.arrive(first_empty.index(before))

        # Loaded again, so that they take no registers in the loop.
        b = gl.load(record)
        first = gl.load(record + 1) + WARPGROUP * ROWS
        h = column % heads
        flag = flags + column * tiles + tile
        if KEYS:
            begin = gl.load(record + 3)
            end = gl.load(record + 4)
            _write(
                of_second, of_second_to, second_strides, b, h, first, begin, end, flag, const.VALUE_WIDTH, const.VALUE_D
            )
            # Between the two stores: the assembler moves nothing across it, and so has enough registers.
            mbarrier.arrive(own_empty)
        else:
            begin = first
            end = gl.load(record + 2)
        _write(of_first * scoring[0], of_first_to, first_strides, b, h, first, begin, end, flag, const.WIDTH, const.D)
        index += 1


@gluon.jit(do_not_specialize=["items", "tiles", "columns", "section", "batch", "queries"])
def gradient(
    own_first, own_second, first, second, base_blocks, delta_blocks, bounds, base, delta,
    of_first, first_strides, of_second, second_strides, flags,
    items, tiles, columns, section, heads, group, batch, queries,
    plan, spans, begins, ends, interval_strides, scale, factor, compare, operands, numbers,
    const: gl.constexpr, KEYS: gl.constexpr, STAGES: gl.constexpr, REGISTERS: gl.constexpr,
):  # fmt: skip
    """Gradients of all items (grid: as many programs as there are multiprocessors, or fewer): of queries, or with
    ``KEYS`` of keys and values.

    Columns are heads of queries, or of keys. ``flags`` has an int32 for each item, 0 before; it is set where a gradient
    is not finite.
    """
    MOVING: gl.constexpr = const.ROWS if KEYS else const.BLOCK
    own_first_at = gl.allocate_shared_memory(own_first.dtype, [2, 1, 1, ROWS, const.WIDTH], own_first.layout)
    own_second_at = gl.allocate_shared_memory(own_second.dtype, [2, 1, 1, ROWS, const.VALUE_WIDTH], own_second.layout)
    first_at = gl.allocate_shared_memory(first.dtype, [STAGES, 1, 1, MOVING, const.WIDTH], first.layout)
    second_at = gl.allocate_shared_memory(second.dtype, [STAGES, 1, 1, MOVING, const.VALUE_WIDTH], second.layout)
    buffers = (own_first_at, own_second_at, first_at, second_at)
    if KEYS:
        base_at = gl.allocate_shared_memory(gl.float32, [STAGES, MOVING], base_blocks.layout)
        delta_at = gl.allocate_shared_memory(gl.float32, [STAGES, MOVING], delta_blocks.layout)
        bounds_at = gl.allocate_shared_memory(gl.int32, [STAGES * 2 * const.INTERVALS, MOVING], bounds.layout)
        buffers = (own_first_at, own_second_at, first_at, second_at, base_at, delta_at, bounds_at)
    own_full = mbarrier.allocate_mbarrier()
    own_empty = mbarrier.allocate_mbarrier()
    first_full = mbarrier.allocate_mbarrier(batch=STAGES)
    first_empty = mbarrier.allocate_mbarrier(batch=STAGES)
    second_full = mbarrier.allocate_mbarrier(batch=STAGES)
    second_empty = mbarrier.allocate_mbarrier(batch=STAGES)
    mbarrier.init(own_full, count=1)
    mbarrier.init(own_empty, count=2)
    for stage in gl.static_range(STAGES):
        mbarrier.init(first_full.index(stage), count=1)
        mbarrier.init(first_empty.index(stage), count=2)
        mbarrier.init(second_full.index(stage), count=1)
        mbarrier.init(second_empty.index(stage), count=2)
    fence_async_shared()
    work = (items, tiles, columns, section, heads, group)
    copied = (own_first, own_second, first, second, base_blocks, delta_blocks, bounds)
    bars = (own_full, own_empty, first_full, first_empty, second_full, second_empty)
    tables = (plan, spans, begins, ends, interval_strides)
    statistics = (base, delta)
    scoring = (scale, factor, compare, operands, numbers)
    target = (of_first, first_strides, of_second, second_strides, flags)
    gl.warp_specialize(
        [
            (_owner, (buffers, bars, tables, statistics, scoring, target, work, queries, const, KEYS, STAGES, 0)),
            (_owner, (buffers, bars, tables, statistics, scoring, target, work, queries, const, KEYS, STAGES, 1)),
            (_producer, (copied, buffers, bars, plan, work, batch, queries, const, KEYS, STAGES)),
        ],
        [4, 1],
        [REGISTERS, 504 - 2 * REGISTERS],
    )
