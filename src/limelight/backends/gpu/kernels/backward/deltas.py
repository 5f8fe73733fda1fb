"""``delta`` of the backward pass: ``sum_e grad_ie out_ie`` minus the gradient of the logsumexp."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["heads", "queries"])
def deltas(
    grad_output, output, grad_logsumexp, delta,
    grad_strides, output_strides, grad_logsumexp_strides, heads, queries,
    VALUE_D: tl.constexpr, VALUE_WIDTH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """``delta`` of some rows (grid: blocks of rows, heads, batch rows)."""
    b = tl.program_id(2).to(tl.int64)
    h = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    exists = i < queries
    d = tl.arange(0, VALUE_WIDTH)
    inside = exists[:, None] & (d[None, :] < VALUE_D)
    at = b * grad_strides[0] + h * grad_strides[1] + i.to(tl.int64) * grad_strides[2]
    grad = tl.load(grad_output + at[:, None] + d[None, :], mask=inside, other=0.0).to(tl.float32)
    at = b * output_strides[0] + h * output_strides[1] + i.to(tl.int64) * output_strides[2]
    out = tl.load(output + at[:, None] + d[None, :], mask=inside, other=0.0).to(tl.float32)
    less = tl.sum(grad * out, 1)
    if grad_logsumexp is not None:
        at = b * grad_logsumexp_strides[0] + h * grad_logsumexp_strides[1] + i.to(tl.int64) * grad_logsumexp_strides[2]
        less -= tl.load(grad_logsumexp + at, mask=exists, other=0.0).to(tl.float32)
    tl.store(delta + (b * heads + h) * queries + i, less, mask=exists)
