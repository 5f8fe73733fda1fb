"""Operands of Hopper's matrix products: layouts, buffers in shared memory, and weights packed into 32-bit words.

A weight that a loop carries from one step to the next as a 16-bit value costs an instruction to take it out of its
register and one to put it back. As words of 32 bits, from which the product reads, weights cost none.
"""

from ...compatibility import gl, gluon

ROWS = gl.constexpr(64)  # rows of a warpgroup

# The conversion of two or four float32 values to a word, the first in the lowest bits.
TO_BFLOAT16 = gl.constexpr("cvt.rn.bf16x2.f32 $0, $2, $1;")
TO_FLOAT16 = gl.constexpr("cvt.rn.f16x2.f32 $0, $2, $1;")
TO_FLOAT8 = gl.constexpr(
    "{ .reg .b16 low, high; cvt.rn.satfinite.e4m3x2.f32 low, $2, $1; cvt.rn.satfinite.e4m3x2.f32 high, $4, $3; "
    "mov.b32 $0, {low, high}; }"
)


@gluon.constexpr_function
def layout_of(columns, FLOAT8):
    """The register layout of a warpgroup's accumulator, 64 rows by ``columns``."""
    return gl.NVMMADistributedLayout([3, 0], [4, 1], [16, columns, 32 if FLOAT8 else 16])


@gluon.constexpr_function
def per_word(dtype):
    """The number of elements in a register of 32 bits."""
    return 4 // dtype.itemsize


@gluon.jit
def keep_alive(x):
    """A use of ``x`` that costs nothing, after the asynchronous product that reads it has ended, so that its registers
    are not reused before."""
    PACK: gl.constexpr = per_word(x.dtype)
    return gl.inline_asm_elementwise("", "=r,0", [x], dtype=x.dtype, is_pure=False, pack=PACK)


@gluon.jit
def matrix(buffers, stage):
    """One buffer of a ring, which bulk copies fill as ``(1, 1, rows, width)``, as a matrix."""
    buffer = buffers.index(stage)
    return buffer.reshape([buffer.shape[2], buffer.shape[3]])


@gluon.jit
def pack_weights(weights, values, FLOAT8: gl.constexpr):
    """Float32 weights in the layout of an accumulator, rounded to the dtype of ``values``: int32 words of two, or four.

    A word of four holds the float8 weights that a product reads from one register, if the values are permuted to match:
    `limelight.backends.gpu.hopper.quantise.key_order`.
    """
    N: gl.constexpr = weights.shape[1]
    if FLOAT8:
        fours = weights.reshape([ROWS, N // 32, 2, 2, 4, 2]).permute((0, 1, 2, 4, 3, 5)).reshape([ROWS, N // 4, 2, 2])
        even, odd = gl.split(fours)
        first, third = gl.split(even)
        second, fourth = gl.split(odd)
        return gl.inline_asm_elementwise(
            TO_FLOAT8, "=r,r,r,r,r", [first, second, third, fourth], dtype=gl.int32, is_pure=True, pack=1
        )
    else:  # noqa: RET505  what follows a return is compiled too
        first, second = gl.split(weights.reshape([ROWS, N // 2, 2]))
        TEXT: gl.constexpr = TO_BFLOAT16 if values.dtype == gl.bfloat16 else TO_FLOAT16
        return gl.inline_asm_elementwise(TEXT, "=r,r,r", [first, second], dtype=gl.int32, is_pure=True, pack=1)


@gluon.jit
def unpack_weights(words, values, output: gl.constexpr, FLOAT8: gl.constexpr):
    """The weights of `pack_weights` as an operand of a product with the buffers ``values``, in registers; ``output`` is
    the layout of its accumulator."""
    WORDS: gl.constexpr = words.shape[1]
    if FLOAT8:
        even = gl.join((words & 0xFF).to(gl.int8), ((words >> 16) & 0xFF).to(gl.int8))
        odd = gl.join(((words >> 8) & 0xFF).to(gl.int8), (words >> 24).to(gl.int8))
        weights = gl.cast(gl.join(even, odd), values.dtype, bitcast=True).reshape([ROWS, 4 * WORDS])
        return gl.convert_layout(weights, gl.DotOperandLayout(0, output, 4), assert_trivial=True)
    else:  # noqa: RET505
        both = gl.join((words & 0xFFFF).to(gl.int16), (words >> 16).to(gl.int16))
        weights = gl.cast(both, values.dtype, bitcast=True).reshape([ROWS, 2 * WORDS])
        return gl.convert_layout(weights, gl.DotOperandLayout(0, output, 2), assert_trivial=True)
