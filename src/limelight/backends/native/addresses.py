"""Tensors as the library reads and writes them: an address, and strides in elements of which the last is 1.

A tensor is handed over as it lies in memory. Only one that cannot be read so is copied: lazily negated, of zeros
without memory, or with a last stride other than 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...tensors.shapes import check_tensor, extent
from .. import memory

#: Arrays beside query, key, value and output have the dtype of accumulation, on the CPU whatever torch's defaults are.
NUMBERS: dict[torch.dtype, Any] = {
    dtype: {"dtype": torch.float64 if dtype is torch.float64 else torch.float32, "device": "cpu"}
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16)
}

_SHORT_STRIDE = 2**14  # elements


def readable(name: str, tensor: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """A ``(B, H, L, D)`` tensor, or a copy that the library can read, and its `row`.

    A storage that was freed is always noticed. One that was shrunk to a part is noticed where a stride is 2^14 or more:
    to compute the extent of every tensor would add a twentieth to a short call.

    Raises:
        ArgumentError: it has no memory to be read.
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
        ArgumentError: it has no memory to be read.
    """
    check_tensor(name, tensor)
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu").copy_(tensor.detach())


def plain(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A small operand, contiguous, in the dtype of accumulation for a query of ``dtype``."""
    numbers, made = NUMBERS[dtype], tensor
    if tensor.requires_grad or tensor.dtype is not numbers["dtype"] or not tensor.is_cpu or not tensor.is_contiguous():
        made = tensor.detach().to(**numbers).contiguous()
    return made if made.data_ptr() and not made.is_neg() else copy_of(name, made)


def row(tensor: Tensor | None) -> tuple[int, ...]:
    """``ll_tensor``: the address and the strides, the last one 1 also where there is a single element."""
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

    In the query's order of dimensions where that has this shape: ``(B, L, H, D)`` underneath when heads were split
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
    """Memory for the gradient of a tensor, in its order of dimensions where features are adjacent there."""
    gradient = memory.empty_like(tensor)
    if gradient.stride(3) != 1 and tensor.shape[3] != 1:
        gradient = memory.empty(tensor.shape, tensor.dtype)
    return gradient.zero_() if cleared else gradient
