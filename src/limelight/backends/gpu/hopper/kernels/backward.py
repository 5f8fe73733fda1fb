"""The backward pass for Hopper: tiles of queries are owned by one launch, tiles of keys by another. No atomics.

All launches are of this one kernel. Its program is one warp that copies and two warpgroups that compute, each 64 rows
of a tile of 128 that it *owns* (queries, or keys) and whose sums it keeps in registers; blocks of the other side *move*
through. A block gives ``x = Q K`` and ``y = dO V``, queries along the rows for the owner of queries, keys for that of
keys; so ``p`` and ``ds`` are in registers in the layout of the next products, and never in shared memory:

- the owner of queries adds ``ds K`` to dQ;
- the owner of keys adds ``p dO`` to dV and ``ds Q`` to dK, over the heads of its group; for widths above 128, whose two
  sums are more than the registers, one launch owns dK and another one dV, and both compute ``x``.

A warpgroup issues ``x_n`` and ``y_n``, with ``CARRY`` also ``ds_{n-1} K_{n-1}`` (or Q; ``ds`` packed), waits
for the first and computes weights from it while the others run; then the owner of dV issues ``p dO``, during which
``ds_n`` is computed. The arithmetic is that of `limelight.backends.gpu.kernels.backward`.
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
from .operands import ROWS, keep_alive, layout_of, matrix, pack_weights, unpack_weights
from .rows import buffers_of, count_here, here, operand_in_registers, ring_of, where_seen, within, write_rows
from .schedule import EDGES, RECORD, STEPS, item_number, query_step, step, tile_and_column

# Arguments that belong together, beside those of `forward`; "first" are queries and keys, "second" dO and values:
# copied     = descriptors (owned first, owned second, moving first, moving second, base, delta, bounds)
# buffers    = (owned first, owned second, and by stage: moving first, moving second; with KEYS base, delta, bounds)
#              Without OF_FIRST, owned second and delta have no buffers of their own and are not copied.
# bars       = (owned full, owned empty, first full, first empty, second full, second empty)
# statistics = (base, delta): base is subtracted from scores times the factor, and is NaN for a row whose scores are too
#              large for that (its tiles are computed again); delta is subtracted from dP
# target     = (of_first, its strides, of_second, its strides, flags)
# kind       = limelight.backends.gpu.hopper.constants.OwnerConstants


@gluon.jit
def _moving_block(record, t, edges, group, const: gl.constexpr, kind: gl.constexpr):
    """Step ``t``: the first row of the moving block, its head within the group, and the interval."""
    if kind.KEYS:
        g, at = query_step(record, t, group, const)
        k = 0
    else:
        n, k = step(record, t, edges, const)
        at = n * const.BLOCK
        g = 0
    return at, g, k


@gluon.jit
def _producer(
    copied, buffers, bars, plan, work, batch, queries, const: gl.constexpr, kind: gl.constexpr
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
    while item_number(index, program, count_here(programs, const)) < items:  # a count of items would take a register
        number = item_number(index, program, count_here(programs, const))
        tile, column = tile_and_column(number, tiles, columns, here(section, const))
        record = plan + (column // heads * tiles + tile) * RECORD
        b = gl.load(record)
        row = gl.load(record + 1)
        edges = gl.load(record + EDGES)
        steps = gl.load(record + STEPS)
        masked = edges
        h = column % heads
        if kind.KEYS:
            masked = edges * group
            steps = steps * group
        mbarrier.wait(own_empty, (index & 1) ^ 1)
        if kind.OF_FIRST:
            mbarrier.expect(own_full, 2 * own_first.nbytes_per_cta + 2 * own_second.nbytes_per_cta)
        else:
            mbarrier.expect(own_full, 2 * own_first.nbytes_per_cta)
        for half in range(2):
            copy_to_shared(own_first, [b, h, row + half * ROWS, 0], own_full, own_first_at.index(half))
            if kind.OF_FIRST:
                copy_to_shared(own_second, [b, h, row + half * ROWS, 0], own_full, own_second_at.index(half))
        for t in range(steps):
            at, g, _k = _moving_block(record, t, edges, group, const, kind)
            stage = count % kind.STAGES
            free = ((count // kind.STAGES) & 1) ^ 1
            full = first_full.index(stage)
            mbarrier.wait(first_empty.index(stage), free)
            if kind.KEYS:
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
            stage = count % kind.SECOND_STAGES
            full = second_full.index(stage)
            mbarrier.wait(second_empty.index(stage), ((count // kind.SECOND_STAGES) & 1) ^ 1)
            if kind.KEYS and kind.OF_FIRST:
                mbarrier.expect(full, second.nbytes_per_cta + delta.nbytes_per_cta)
                copy_to_shared(delta, [line], full, buffers[5].index(stage))
            else:
                mbarrier.expect(full, second.nbytes_per_cta)
            copy_to_shared(second, [b, head, at, 0], full, second_at.index(stage))
            count += 1
        index += 1


@gluon.jit
def _step(
    of_first, of_second, ds, count, t, steps, record, edges, own, seen_by, statistics, shift, scoring,
    buffers, bars, const: gl.constexpr, kind: gl.constexpr, WARPGROUP: gl.constexpr, FIRST: gl.constexpr,
    MASKED: gl.constexpr,
):  # fmt: skip
    """One moving block; with ``CARRY``, during the product of the block before it."""
    own_first_at, own_second_at, first_at, second_at = buffers[:4]
    _, _, first_full, first_empty, second_full, second_empty = bars
    b, h, rows, group = own
    MOVING: gl.constexpr = const.ROWS if kind.KEYS else const.BLOCK
    SCORES: gl.constexpr = layout_of(MOVING, False)
    at, g, k = _moving_block(record, t, edges, group, const, kind)
    stage = count % kind.STAGES
    second_stage = count % kind.SECOND_STAGES
    before = (count - 1) % kind.STAGES
    zeros = gl.full([ROWS, MOVING], 0.0, gl.float32, SCORES)
    if FIRST or not kind.CARRY:
        mbarrier.wait(first_full.index(stage), (count // kind.STAGES) & 1)
    mine = here(WARPGROUP, const)
    x = warpgroup_mma(
        matrix(own_first_at, mine), matrix(first_at, stage).permute((1, 0)), zeros, use_acc=False, is_async=True
    )
    mbarrier.wait(second_full.index(second_stage), (count // kind.SECOND_STAGES) & 1)
    if kind.OF_FIRST:
        moved = matrix(second_at, second_stage).permute((1, 0))
        y = warpgroup_mma(matrix(own_second_at, mine), moved, zeros, use_acc=False, is_async=True)
    if kind.CARRY and not FIRST:
        carried = unpack_weights(ds, first_at, layout_of(const.WIDTH, False), False)
        of_first = warpgroup_mma(carried, matrix(first_at, before), of_first, is_async=True)
        x = warpgroup_mma_wait(2, deps=(x,))
    else:
        x = warpgroup_mma_wait(1 if kind.OF_FIRST else 0, deps=(x,))

    # Weights, with queries along the rows or along the columns.
    moving = at + gl.arange(0, MOVING, layout=gl.SliceLayout(0, SCORES))
    if kind.KEYS:
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
        if kind.KEYS:
            p = where_seen(p, j, buffers[6], stage, SCORES, const)
        else:
            begin, end = interval_of(k, seen_by, const)
            p = within(p, j, begin[:, None], end[:, None])
    if kind.OF_SECOND:
        used = operand_in_registers(p, second_at, const.VALUE_WIDTH)
        of_second = warpgroup_mma(used, matrix(second_at, second_stage), of_second, is_async=True)

    if kind.OF_FIRST:
        strength = p * slope
        if kind.CARRY:
            # The assembler moves no exponential across this wait, so all are computed during the products.
            after = count + 1
            mbarrier.wait(first_full.index(after % kind.STAGES), (after // kind.STAGES) & 1, pred=t + 1 < steps)
        if kind.CARRY and not FIRST:
            y, of_first = warpgroup_mma_wait(1 if kind.OF_SECOND else 0, deps=(y, of_first))
            keep_alive(ds)
            mbarrier.arrive(first_empty.index(before))
        else:
            y = warpgroup_mma_wait(1 if kind.OF_SECOND else 0, deps=(y,))
        if kind.KEYS:
            row_delta = buffers[5].index(second_stage).load(gl.SliceLayout(0, SCORES))[None, :]
        else:
            row_delta = statistics[1][:, None]
        if not kind.OF_SECOND:
            mbarrier.arrive(second_empty.index(second_stage))
        ds = strength * (y - row_delta)
        if kind.CARRY:
            ds = pack_weights(ds, first_at, False)
        else:
            ds = operand_in_registers(ds, first_at, const.WIDTH)
            of_first = warpgroup_mma(ds, matrix(first_at, stage), of_first, is_async=True)
    if kind.OF_SECOND:
        of_second = warpgroup_mma_wait(1 if kind.OF_FIRST and not kind.CARRY else 0, deps=(of_second,))
        keep_alive(used)
        mbarrier.arrive(second_empty.index(second_stage))
    if not kind.CARRY:
        if kind.OF_FIRST:
            of_first = warpgroup_mma_wait(0, deps=(of_first,))
            keep_alive(ds)
        mbarrier.arrive(first_empty.index(stage))
    return of_first, of_second, ds


@gluon.jit
def _owner(
    buffers, bars, tables, statistics, scoring, target, work, queries,
    const: gl.constexpr, kind: gl.constexpr, WARPGROUP: gl.constexpr,
):  # fmt: skip
    """Gradients of 64 rows of each item."""
    items, tiles, columns, section, heads, group = work
    plan, spans, begins, ends, interval_strides = tables
    first_at = buffers[2]
    own_full, own_empty, _, first_empty, _, _ = bars
    of_first_to, first_strides, of_second_to, second_strides, flags = target
    MOVING: gl.constexpr = const.ROWS if kind.KEYS else const.BLOCK
    SCORES: gl.constexpr = layout_of(MOVING, False)
    program = gl.program_id(0)
    programs = gl.num_programs(0)  # here, where it takes no register
    count = 0
    index = 0
    while item_number(index, program, count_here(programs, const)) < items:  # a count of items would take a register
        number = item_number(index, program, count_here(programs, const))
        tile, column = tile_and_column(number, tiles, columns, here(section, const))
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
        if kind.KEYS:
            seen_by = None
            mine = None
            masked = edges * group
            if kind.CARRY:
                steps = steps * group
        else:
            exists = rows < query_end
            if spans is not None:
                spans = spans + here(0, const)
            seen_by = intervals(
                spans, begins, ends, interval_strides, b, rows, rows + query_offset, exists, key_begin, key_end,
                key_offset, const,
            )  # fmt: skip
            base, delta = statistics
            row = (b * heads + h).to(gl.int64) * here(queries, const) + rows
            mine = (gl.load(base + row, mask=exists, other=0.0), gl.load(delta + row, mask=exists, other=0.0))
        of_first = gl.full([ROWS, const.WIDTH], 0.0, gl.float32, layout_of(const.WIDTH, False))
        of_second = of_first
        if kind.OF_SECOND:
            of_second = gl.full([ROWS, const.VALUE_WIDTH], 0.0, gl.float32, layout_of(const.VALUE_WIDTH, False))
        mbarrier.wait(own_full, index & 1)
        of_first, of_second, ds = _step(
            of_first, of_second, None, count, 0, steps, record, edges, own, seen_by, mine, shift, scoring,
            buffers, bars, const, kind, WARPGROUP, True, True,
        )  # fmt: skip
        count += 1
        for t in range(1, masked):
            of_first, of_second, ds = _step(
                of_first, of_second, ds, count, t, steps, record, edges, own, seen_by, mine, shift, scoring,
                buffers, bars, const, kind, WARPGROUP, False, True,
            )  # fmt: skip
            count += 1
        if not kind.CARRY:
            steps = gl.load(record + STEPS)  # here, where it takes no register of the steps before
            if kind.KEYS:
                steps = steps * group
        for t in range(gl.maximum(masked, 1), steps):
            of_first, of_second, ds = _step(
                of_first, of_second, ds, count, t, steps, record, edges, own, seen_by, mine, shift, scoring,
                buffers, bars, const, kind, WARPGROUP, False, False,
            )  # fmt: skip
            count += 1
        if not kind.OF_SECOND:
            mbarrier.arrive(own_empty)
        if kind.CARRY:
            before = (count - 1) % kind.STAGES
            carried = unpack_weights(ds, first_at, layout_of(const.WIDTH, False), False)
            of_first = warpgroup_mma(carried, matrix(first_at, before), of_first, is_async=True)
            of_first = warpgroup_mma_wait(0, deps=(of_first,))
            keep_alive(ds)
            mbarrier.arrive(first_empty.index(before))

        # Loaded again, so that they take no registers in the loop.
        b = gl.load(record)
        first = gl.load(record + 1) + WARPGROUP * ROWS
        h = column % heads
        flag = flags + column * tiles + tile
        if kind.KEYS:
            begin = gl.load(record + 3)
            end = gl.load(record + 4)
        else:
            begin = first
            end = gl.load(record + 2)
        if kind.OF_SECOND:
            write_rows(
                of_second, of_second_to, second_strides, b, h, first, begin, end, flag, const.VALUE_WIDTH, const.VALUE_D
            )
            # Between the two stores: the assembler moves nothing across it, and so has enough registers.
            mbarrier.arrive(own_empty)
        if kind.OF_FIRST:
            of_first = of_first * scoring[0]
            first_strides = (
                here(first_strides[0], const), here(first_strides[1], const), here(first_strides[2], const)
            )  # fmt: skip
            write_rows(of_first, of_first_to, first_strides, b, h, first, begin, end, flag, const.WIDTH, const.D)
        index += 1


@gluon.jit(do_not_specialize=["items", "tiles", "columns", "section", "batch", "queries"])
def gradient(
    own_first, own_second, first, second, base_blocks, delta_blocks, bounds, base, delta,
    of_first, first_strides, of_second, second_strides, flags,
    items, tiles, columns, section, heads, group, batch, queries,
    plan, spans, begins, ends, interval_strides, scale, factor, compare, operands, numbers,
    const: gl.constexpr, kind: gl.constexpr, REGISTERS: gl.constexpr,
):  # fmt: skip
    """Gradients of all items (grid: as many programs as there are multiprocessors, or fewer): of queries, or with
    ``KEYS`` of keys (``OF_FIRST``), of values (``OF_SECOND``) or of both.

    Columns are heads of queries, or of keys. ``flags`` has an int32 for each item, 0 before; it is set where a gradient
    is not finite.
    """
    own_first_at = buffers_of(own_first, 2)
    own_second_at = buffers_of(own_second, 2) if kind.OF_FIRST else own_first_at
    first_at = buffers_of(first, kind.STAGES)
    second_at = buffers_of(second, kind.SECOND_STAGES)
    buffers = (own_first_at, own_second_at, first_at, second_at)
    if kind.KEYS:
        base_at = buffers_of(base_blocks, kind.STAGES)
        delta_at = buffers_of(delta_blocks, kind.SECOND_STAGES) if kind.OF_FIRST else base_at
        bounds_at = buffers_of(bounds, kind.STAGES * 2 * const.INTERVALS)
        buffers = (own_first_at, own_second_at, first_at, second_at, base_at, delta_at, bounds_at)
    own_full = mbarrier.allocate_mbarrier()
    own_empty = mbarrier.allocate_mbarrier()
    mbarrier.init(own_full, count=1)
    mbarrier.init(own_empty, count=2)
    first_full, first_empty = ring_of(kind.STAGES)
    second_full, second_empty = ring_of(kind.SECOND_STAGES)
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
            (_owner, (buffers, bars, tables, statistics, scoring, target, work, queries, const, kind, 0)),
            (_owner, (buffers, bars, tables, statistics, scoring, target, work, queries, const, kind, 1)),
            (_producer, (copied, buffers, bars, plan, work, batch, queries, const, kind)),
        ],
        [4, 1],
        [REGISTERS, 504 - 2 * REGISTERS],
    )
