"""Descriptors of tensors for Hopper's bulk copies (TMA). The module needs Triton, so only launches import it."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..compatibility import TensorDescriptor, gl

_TYPES = {torch.bfloat16: gl.bfloat16, torch.float16: gl.float16, torch.float8_e4m3fn: gl.float8e4nv}


def describe(tensor: Tensor, rows: int, width: int) -> Any:
    """The descriptor of a ``(B, H, L, W)`` tensor that is copied in blocks of ``(rows, width)`` of one head.

    Reads outside the tensor return zeros.
    """
    block = [1, 1, rows, width]
    layout = _layout(rows, width, tensor.dtype)
    step = 16 // tensor.itemsize
    # The stride of a dimension of size one is never used, but must be a multiple of 16 bytes too.
    strides = [s if n > 1 else step for n, s in zip(tensor.shape[:-1], tensor.stride()[:-1], strict=True)]
    return TensorDescriptor(tensor, list(tensor.shape), [*strides, 1], block, layout)


def describe_line(tensor: Tensor, count: int) -> Any:
    """The descriptor of a contiguous tensor as one vector, copied ``count`` values at a time."""
    return TensorDescriptor(tensor.view(-1), [tensor.numel()], [1], [count], _line_layout(tensor.itemsize))


@cache
def _layout(rows: int, width: int, dtype: torch.dtype) -> Any:
    return gl.NVMMASharedLayout.get_default_for([1, 1, rows, width], _TYPES[dtype])


@cache
def _line_layout(itemsize: int) -> Any:
    return gl.NVMMASharedLayout(swizzle_byte_width=0, element_bitwidth=8 * itemsize, rank=1)
