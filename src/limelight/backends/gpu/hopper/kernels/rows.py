"""What the backward kernel for Hopper does with rows and buffers, beside its steps."""

from ...compatibility import gl, gluon, mbarrier
from .operands import ROWS, layout_of

# A weight where its place is in the interval, else zero; in PTX, since the compiler collects such predicates in words.
WITHIN = gl.constexpr(
    "{ .reg .pred p; setp.ge.s32 p, $2, $3; setp.lt.and.s32 p, $2, $4, p; selp.f32 $0, $1, 0f00000000, p; }"
)


@gluon.jit
def within(p, place, begin, end):
    """Weights ``p`` where ``begin <= place < end``, else zeros."""
    return gl.inline_asm_elementwise(
        WITHIN, "=r,r,r,r,r", [p, place, begin, end], dtype=gl.float32, is_pure=True, pack=1
    )  # fmt: skip


@gluon.jit
def here(x, const: gl.constexpr):
    """``x`` such that what is computed from it is computed where it is used: in the kernels of wide heads, which have
    no registers for what the compiler would compute once before its loops."""
    if const.WIDTH > 128:
        x = gl.inline_asm_elementwise("", "=r,0", [x], dtype=gl.int32, is_pure=False, pack=1)
    return x


@gluon.jit
def count_here(programs, const: gl.constexpr):
    """The number of programs; for wide heads read where it is used, like `here`."""
    if const.WIDTH > 128:
        programs = gl.inline_asm_elementwise(
            "mov.u32 $0, %nctaid.x;", "=r", [], dtype=gl.int32, is_pure=False, pack=1
        )  # fmt: skip
    return programs


@gluon.jit
def operand_in_registers(x, like, width: gl.constexpr):
    """``x`` as an operand in registers, in the dtype of ``like``."""
    return gl.convert_layout(x.to(like.dtype), gl.DotOperandLayout(0, layout_of(width, False), 2))


@gluon.jit
def where_seen(p, j, bounds, stage, SCORES: gl.constexpr, const: gl.constexpr):
    """Weights of keys by queries, zeros where a query does not see. Its intervals ascend, so a key that is not
    visible is before the first, between two, or after the last, and at most two bounds take registers at a time."""
    LAST: gl.constexpr = 2 * const.INTERVALS - 1
    at = stage * (2 * const.INTERVALS)
    begin = bounds.index(at).load(gl.SliceLayout(0, SCORES))
    if LAST == 1:
        end = bounds.index(at + LAST).load(gl.SliceLayout(0, SCORES))
        return within(p, j, begin[None, :], end[None, :])
    p = gl.where(j >= begin[None, :], p, 0.0)
    for k in gl.static_range(1, LAST, 2):
        end = bounds.index(at + k).load(gl.SliceLayout(0, SCORES))
        begin = bounds.index(at + k + 1).load(gl.SliceLayout(0, SCORES))
        p = gl.where((j < end[None, :]) | (j >= begin[None, :]), p, 0.0)
    end = bounds.index(at + LAST).load(gl.SliceLayout(0, SCORES))
    return gl.where(j < end[None, :], p, 0.0)


@gluon.jit
def write_rows(acc, target, strides, b, h, first, begin, end, flag, WIDTH: gl.constexpr, D: gl.constexpr):
    """Rows of a gradient, from ``begin`` to ``end``; and the flag of a tile with a non-finite element."""
    LAYOUT: gl.constexpr = layout_of(WIDTH, False)
    row = first + gl.arange(0, ROWS, layout=gl.SliceLayout(1, LAYOUT))
    mine = (row >= begin) & (row < end)
    if WIDTH > 128:  # fewer registers: infinity and NaN times zero are NaN
        zero = gl.sum(acc * 0.0, 1)
        nonfinite = (zero != zero).to(gl.int32)
    else:
        nonfinite = gl.max((gl.abs(acc) < float("inf")).to(gl.int32) ^ 1, 1)
    gl.store(flag + row * 0, 1, mask=mine & (nonfinite > 0))
    d = gl.arange(0, WIDTH, layout=gl.SliceLayout(0, LAYOUT))
    at = b.to(gl.int64) * strides[0] + h.to(gl.int64) * strides[1] + row.to(gl.int64) * strides[2]
    gl.store(target + at[:, None] + d[None, :], acc.to(target.dtype.element_ty), mask=mine[:, None] & (d[None, :] < D))


@gluon.jit
def buffers_of(copied, COUNT: gl.constexpr):
    """Shared memory for as many blocks of a descriptor."""
    return gl.allocate_shared_memory(copied.dtype, [COUNT] + copied.block_shape, copied.layout)  # noqa: RUF005


@gluon.jit
def ring_of(STAGES: gl.constexpr):
    """The barriers *full* and *empty* of as many blocks."""
    full = mbarrier.allocate_mbarrier(batch=STAGES)
    empty = mbarrier.allocate_mbarrier(batch=STAGES)
    for stage in gl.static_range(STAGES):
        mbarrier.init(full.index(stage), count=1)
        mbarrier.init(empty.index(stage), count=2)
    return full, empty
