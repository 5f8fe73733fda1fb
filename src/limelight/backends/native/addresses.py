"""Tensors as the library reads and writes them: an address, and strides in elements of which the last is 1.

Tensors are passed without a copy, except those that the library cannot read in place: lazily negated ones, zeros
without memory, and those with a last stride other than 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...tensors.shapes import check_tensor, extent
from .. import memory

#: Dtype and device of all arrays except query, key, value and output: the dtype of accumulation, on the CPU even if
#: PyTorch's default device is another.
SUM_OPTIONS: dict[torch.dtype, Any] = {
    dtype: {"dtype": torch.float64 if dtype is torch.float64 else torch.float32, "device": "cpu"}
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16)
}

_SHORT_STRIDE = 2**14  # elements


def readable(name: str, tensor: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """A ``(B, H, L, D)`` tensor, or a copy that the library can read, and its `row`.

    A freed storage is always detected. A storage that was shrunk is detected if a stride is 2^14 or more: computing the
    extent of every tensor would make a short call a twentieth slower.

    Raises:
        ArgumentError: the tensor has no memory.
    """
    try:
        batch, head, token, step = tensor.stride()
        address = tensor.data_ptr()
    except RuntimeError:  # it has no memory of its own
        return _copied_rows(name, tensor)
    if step != 1 or not address or tensor.is_neg():
        return _copied_rows(name, tensor)
    short = batch < _SHORT_STRIDE and head < _SHORT_STRIDE and token < _SHORT_STRIDE
    if not short and extent(tensor) > tensor.untyped_storage().nbytes():
        return _copied_rows(name, tensor)
    return tensor, (address, batch, head, token, 1)


def _copied_rows(name: str, tensor: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    copied = copy_of(name, tensor)
    _, H, L, D = copied.shape
    return copied, (copied.data_ptr(), H * L * D, L * D, D, 1)


def copy_of(name: str, tensor: Tensor) -> Tensor:
    """A contiguous copy by PyTorch, which reads lazy negations and tensors without memory.

    Raises:
        ArgumentError: the tensor has no memory.
    """
    check_tensor(name, tensor)
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu").copy_(tensor.detach())


def plain(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A small operand, contiguous, in the dtype of accumulation for a query of ``dtype``."""
    numbers, made = SUM_OPTIONS[dtype], tensor
    if tensor.requires_grad or tensor.dtype is not numbers["dtype"] or not tensor.is_cpu or not tensor.is_contiguous():
        made = tensor.detach().to(**numbers).contiguous()
    return made if made.data_ptr() and not made.is_neg() else copy_of(name, made)


def row(tensor: Tensor | None) -> tuple[int, ...]:
    """``ll_tensor``: the address and the strides, of which the last is 1 even for a single element."""
    return (0,) * 5 if tensor is None else (tensor.data_ptr(), *tensor.stride()[:3], 1)


def summed(tensor: Tensor | None) -> tuple[int, ...]:
    """``ll_tensor`` of a gradient in which a dimension of size 1 has stride 0, so that it is summed over."""
    if tensor is None:
        return (0,) * 5
    strides = (0 if size == 1 else step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    return (tensor.data_ptr(), *strides)


def pointer(tensor: Tensor | None) -> int:
    """The address; 0 for ``None``, and for a tensor without elements."""
    return 0 if tensor is None else tensor.data_ptr()


def address_or_zero(tensor: Tensor) -> int:
    """The address; 0 where a tensor has no elements, or no memory."""
    try:
        return tensor.data_ptr()
    except RuntimeError:
        return 0


def empty_output(query: Tensor, shape: Sequence[int]) -> tuple[Tensor, tuple[int, ...]]:
    """Memory for an output ``(B, H, L, D)``, and its `row`.

    If the query has this shape, the output has its order of dimensions in memory: ``(B, L, H, D)`` if heads were split
    without a copy.
    """
    if query.shape[3] == shape[3]:
        output = memory.empty_like(query)
        batch, head, token, step = output.stride()
        if step == 1:
            return output, (output.data_ptr(), batch, head, token, 1)
    output = memory.empty(shape, query.dtype)
    return output, (output.data_ptr(), *output.stride()[:3], 1)


def empty_gradient(tensor: Tensor, cleared: bool) -> Tensor:
    """Memory for the gradient of a tensor, in the tensor's order of dimensions if its features are adjacent."""
    gradient = memory.empty_like(tensor)
    if gradient.stride(3) != 1 and tensor.shape[3] != 1:
        gradient = memory.empty(tensor.shape, tensor.dtype)
    return gradient.zero_() if cleared else gradient
