"""Rotary position embeddings in one pass over memory; PyTorch computes them in three operations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..backends.native import library
from ..backends.native.library import ELEMENTS
from ..backends.native.structures import ROTATION
from ..tensors.shape_spec import ShapeSpec
from ..tensors.shapes import wrong
from .capture import capturing
from .dispatch import check_memory, is_gradient_served, is_served

_SHAPES = ShapeSpec(heads="b h l d", own="rows 1 l rotated", partners="rows 1 l rotated")
_pack = ROTATION.packer(
    "element", "threads", "sizes", "states", "result",
    "own", "partners", "row_stride", "token_stride", "direction",
)  # fmt: skip


def rotate_halves(heads: Tensor, own: Tensor, partners: Tensor) -> Tensor:
    """Features ``i`` and ``rotated / 2 + i`` of each head times ``own``, plus the other of the two times ``partners``.

    With angles ``a``: ``(x cos a - y sin a, y cos a + x sin a)`` for each pair ``(x, y)`` (RoPE, arXiv:2104.09864).

    Args:
        heads: ``(B, H, L, D)``; features from ``rotated`` on are copied.
        own: ``(B | 1, 1, L, rotated)``: the cosine of every pair, twice.
        partners: the same shape: minus the sine of every pair, then the sine.

    Raises:
        ArgumentError: the shapes do not fit, or an argument is no dense tensor.
    """
    if not is_served(heads, own, partners) or own.requires_grad or partners.requires_grad:
        if (capture := capturing(heads, own, partners)) is not None:
            return capture.rotate_halves(heads, own, partners)
        check_memory(heads=heads, own=own, partners=partners)
        return definition(heads, own, partners)
    try:
        if not heads.numel():
            _check(heads, own, partners)
            return definition(heads, own, partners)
        if torch.is_grad_enabled() and heads.requires_grad:
            rotated: Tensor = _Rotate.apply(heads, own, partners)  # type: ignore[no-untyped-call]
            return rotated
        return _forward(heads, own, partners, 1.0)
    except (IndexError, RuntimeError):
        check_memory(heads=heads, own=own, partners=partners)  # a nested tensor has no sizes
        _SHAPES.check(heads, own, partners)
        raise


def _check(heads: Tensor, own: Tensor, partners: Tensor) -> None:
    _SHAPES.check(heads, own, partners)
    rows, _, _, rotated = own.shape
    if rows not in (1, heads.shape[0]) or rotated > heads.shape[3] or rotated % 2:
        got = f"it has {rows} rows and {rotated} features, and the shape of `heads` is {tuple(heads.shape)}"
        way_out = "Features are rotated in pairs; give one row for the whole batch or one for each row of it."
        raise wrong("own", "must have 1 or B rows and an even number of features up to D", got, way_out)


def definition(heads: Tensor, own: Tensor, partners: Tensor) -> Tensor:
    """`rotate_halves` by PyTorch's own operations."""
    rotated = own.shape[-1]
    rest = heads[..., rotated:]
    heads = heads[..., :rotated] if rest.shape[-1] else heads
    first, second = heads.chunk(2, dim=-1)
    heads = torch.addcmul(heads * own, torch.cat((second, first), dim=-1), partners)
    return torch.cat((heads, rest), dim=-1) if rest.shape[-1] else heads


def _forward(heads: Tensor, own: Tensor, partners: Tensor, direction: float) -> Tensor:
    if heads.dim() != 4:
        _check(heads, own, partners)
    heads = heads if heads.stride(3) == 1 else heads.contiguous()
    own = own.contiguous()
    partners = partners.contiguous()
    result = torch.empty_like(heads)
    if result.stride(3) != 1:  # a width of one feature is no pair; dimensions of size 1 may have any stride
        result = torch.empty(heads.shape, dtype=heads.dtype, device="cpu")
    library.rotation_forward(pack_rotation(heads, own, partners, direction, result))
    return result


def pack_rotation(heads: Tensor, own: Tensor, partners: Tensor, direction: float, result: Tensor) -> bytes:
    """``ll_rotation``; the last stride of ``heads`` and ``result`` is 1, ``own`` and ``partners`` are contiguous."""
    B, H, L, D = heads.shape
    form = own.shape
    rotated = form[-1]
    fits = form == (1, 1, L, rotated) or form == (B, 1, L, rotated)
    if not fits or form != partners.shape or rotated % 2 or rotated > D:
        _check(heads, own, partners)
    return _pack(
        ELEMENTS[heads.dtype], torch.get_num_threads(), (B, H, L, D, rotated),
        (heads.data_ptr(), *heads.stride()), (result.data_ptr(), *result.stride()),
        own.data_ptr(), partners.data_ptr(), 0 if form[0] == 1 else L * rotated, rotated, direction,
    )  # fmt: skip


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, heads: Tensor, own: Tensor, partners: Tensor) -> Tensor:
        ctx.save_for_backward(own, partners)
        return _forward(heads, own, partners, 1.0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        own, partners = ctx.saved_tensors  # the inverse rotates by the same angles
        if not is_gradient_served(grad, own, partners):
            return definition(grad, own, -partners), None, None
        return _forward(grad, own, partners, -1.0), None, None
