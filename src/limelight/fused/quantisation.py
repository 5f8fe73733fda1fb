"""Rounding of heads to 8 bits in one pass over memory; PyTorch takes ten operations, and one more for each rotation."""

from __future__ import annotations

import torch
from torch import Tensor

from ..backends.native import library
from ..backends.native.call import EIGHT_BITS
from ..backends.native.library import ELEMENTS
from ..backends.native.structures import QUANTIZATION
from ..forms.quantized import Quantized
from .dispatch import can_fuse, different_shapes

_pack = QUANTIZATION.packer("element", "threads", "form", "quantized", "rotated", "states", "data", "scale")


def quantise(heads: Tensor, dtype: torch.dtype, rotate: bool) -> Quantized:
    """`limelight.Quantized.of`, by the native library where it can: the same bits.

    Args:
        heads: ``(B, H, L, D)``.
        dtype: int8, float8_e4m3fn or float8_e5m2.
        rotate: whether rows are rotated before.
    """
    if heads.dtype is torch.float64 or heads.dim() != 4 or not heads.numel() or not can_fuse(heads):
        return Quantized.of(heads.detach(), dtype, rotate=rotate)
    heads = heads if heads.stride(3) == 1 else heads.contiguous()
    result = empty_quantized(heads, dtype, rotate)
    library.quantization_forward(pack_quantisation(heads, result))
    return result


def empty_quantized(like: Tensor, dtype: torch.dtype, rotated: bool) -> Quantized:
    """Memory for the heads ``like`` ``(B, H, L, D)`` in 8 bits."""
    data = torch.empty(like.shape, dtype=dtype, device=like.device)
    number = torch.float64 if like.dtype is torch.float64 else torch.float32
    return Quantized.trusted(data, torch.empty((*like.shape[:3], 1), dtype=number, device=like.device), rotated)


def pack_quantisation(heads: Tensor, result: Quantized) -> bytes:
    """``ll_quantization``; the last stride of ``heads`` and of the data of ``result`` is 1."""
    data, scale = result.data, result.scale
    if data.shape != heads.shape:
        raise different_shapes("result", "heads", data, heads)
    return _pack(
        ELEMENTS[heads.dtype], torch.get_num_threads(), heads.shape, EIGHT_BITS[data.dtype], int(result.rotated),
        (heads.data_ptr(), *heads.stride()), (data.data_ptr(), *data.stride()[:3], 1),
        (scale.data_ptr(), *scale.stride()[:3], 1),
    )  # fmt: skip
