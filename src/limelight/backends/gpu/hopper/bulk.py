"""Tensors in memory as Hopper's bulk copies (TMA) require them."""

from __future__ import annotations

import torch
from torch import Tensor

from ..arguments import with_unit_stride
from .tuning import LINE


def bulk_copyable(tensor: Tensor) -> Tensor:
    """The tensor with contiguous rows that begin at multiples of 16 bytes, as bulk copies require.

    A tensor laid out otherwise is copied once, into rows padded to such a multiple.
    """
    tensor = with_unit_stride(tensor)
    step = 16 // tensor.itemsize
    fits = tensor.data_ptr() % 16 == 0 and all(
        stride % step == 0 and stride > 0
        for size, stride in zip(tensor.shape[:-1], tensor.stride()[:-1], strict=True)
        if size > 1
    )
    if fits or not tensor.numel():
        return tensor
    *sizes, wide = tensor.shape
    padded = tensor.new_empty((*sizes, -(-wide // step) * step))[..., :wide]
    return padded.copy_(tensor)


def padded_line(values: Tensor) -> Tensor:
    """``(B, Hq, Lq)`` 32-bit values, contiguous, padded with zeros so that each head begins at a multiple of 16 bytes;
    copied only where that is not so.
    """
    added = -values.shape[2] % LINE
    return torch.nn.functional.pad(values, (0, added)) if added else values.contiguous()
