"""Shared memory and its barriers, and bulk copies of queries and of blocks of keys and values into it.

A tensor is one block wide, or two where its width is not a power of two: (main part, rest or ``None``).
"""

from ...compatibility import copy_to_shared, gl, gluon, mbarrier
from .operands import ROWS


@gluon.jit
def buffers_of(descriptors, count: gl.constexpr):
    """Shared memory for ``count`` blocks, in one part or two."""
    main, rest = descriptors
    at = gl.allocate_shared_memory(main.dtype, [count, 1, 1, main.block_shape[2], main.block_shape[3]], main.layout)
    if rest is None:
        return at, None
    else:  # noqa: RET505
        return at, gl.allocate_shared_memory(
            rest.dtype, [count, 1, 1, rest.block_shape[2], rest.block_shape[3]], rest.layout
        )


@gluon.jit
def barriers(count: gl.constexpr, arrivals: gl.constexpr):
    """``count`` barriers, each of which waits for so many arrivals."""
    bars = mbarrier.allocate_mbarrier(batch=count)
    for n in gl.static_range(count):
        mbarrier.init(bars.index(n), count=arrivals)
    return bars


@gluon.jit
def _expect(descriptors, full, COPIES: gl.constexpr, pred):
    """Let a barrier expect the bytes of copies of both parts."""
    main, rest = descriptors
    if rest is None:
        mbarrier.expect(full, COPIES * main.nbytes_per_cta, pred=pred)
    else:
        mbarrier.expect(full, COPIES * (main.nbytes_per_cta + rest.nbytes_per_cta), pred=pred)


@gluon.jit
def _copy_parts(descriptors, buffers, stage, full, b, h, first, pred, TRANSPOSED: gl.constexpr):
    """Copy the rows of a head from ``first`` on; ``TRANSPOSED``: its columns."""
    main, rest = descriptors
    place = buffers[0].index(stage)
    copy_to_shared(main, [b, h, 0 if TRANSPOSED else first, first if TRANSPOSED else 0], full, place, pred=pred)
    if rest is not None:
        copy_to_shared(rest, [b, h, first, place.shape[3]], full, buffers[1].index(stage), pred=pred)


@gluon.jit
def copy_block(descriptors, buffers, stage, full, b, h, first, pred, TRANSPOSED: gl.constexpr):
    """Copy a block of keys or values; the phase of the barrier ``full`` ends when it is there."""
    _expect(descriptors, full.index(stage), 1, pred)
    _copy_parts(descriptors, buffers, stage, full.index(stage), b, h, first, pred, TRANSPOSED)


@gluon.jit
def copy_queries(descriptors, buffers, full, b, h, first, WARPGROUPS: gl.constexpr):
    """Copy the queries of each warpgroup."""
    _expect(descriptors, full, WARPGROUPS, True)
    for warpgroup in gl.static_range(WARPGROUPS):
        _copy_parts(descriptors, buffers, warpgroup, full, b, h, first + warpgroup * ROWS, True, False)
