"""The root-mean-square norm in one pass over memory; PyTorch computes it in eight operations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..backends.native import library
from ..backends.native.addresses import SUM_OPTIONS
from ..backends.native.library import ELEMENTS
from ..backends.native.structures import NORM
from ..tensors.shape_spec import ShapeSpec
from ..tensors.torch_internals import is_any_autocast_enabled
from .capture import capturing
from .dispatch import check_memory, gradients_by_definition, is_gradient_served, is_served

_SHAPES = ShapeSpec(states="... n", weight="n")
_pack = NORM.packer(
    "element", "threads", "rows", "width", "states", "state_stride",
    "weight", "epsilon", "offset", "result", "inverse",
)  # fmt: skip


def rms_norm(states: Tensor, weight: Tensor, epsilon: float, offset: float = 0.0) -> Tensor:
    """``(offset + weight) * x / sqrt(mean(x ** 2) + epsilon)`` over the last dimension (arXiv:1910.07467).

    Args:
        states: ``(..., width)``. Half precision is squared, averaged and multiplied in float32, and rounded once.
        weight: ``(width,)``.
        epsilon: keeps a state of zeros finite.
        offset: added to the weight, in float32 or wider.

    Raises:
        ArgumentError: the shapes do not fit, or an argument is no dense tensor.
    """
    if not is_served(states, weight):
        if (capture := capturing(states, weight)) is not None:
            return capture.norm(states, weight, epsilon, offset)
        check_memory(states=states, weight=weight)
        return definition(states, weight, epsilon, offset)
    try:
        if not states.numel():
            _SHAPES.check(states, weight)
            return definition(states, weight, epsilon, offset)
        if is_any_autocast_enabled() and states.dtype in (torch.bfloat16, torch.float16):
            return definition(states, weight, epsilon, offset)  # autocast decides the dtype
        if torch.is_grad_enabled() and (states.requires_grad or weight.requires_grad):
            normed: Tensor = _Norm.apply(states, weight, epsilon, offset)  # type: ignore[no-untyped-call]
            return normed
        return _forward(states, weight, epsilon, offset, None)
    except RuntimeError:
        check_memory(states=states, weight=weight)  # a nested tensor has no sizes
        raise


def definition(states: Tensor, weight: Tensor, epsilon: float, offset: float = 0.0) -> Tensor:
    """`rms_norm` by PyTorch's own operations."""
    if not offset:
        return functional.rms_norm(states, weight.shape, weight, epsilon)
    # 1 + weight needs more digits than half precision has
    wide = torch.promote_types(states.dtype, torch.float32)
    weight = weight.to(wide) + offset
    return functional.rms_norm(states.to(wide), weight.shape, weight, epsilon).to(states.dtype)


def _forward(states: Tensor, weight: Tensor, epsilon: float, offset: float, inverse: Tensor | None) -> Tensor:
    states, weight = states.contiguous(), weight.contiguous()
    result = torch.empty_like(states)
    library.norm_forward(pack_norm(states, weight, epsilon, offset, result, inverse))
    return result


def pack_norm(
    states: Tensor, weight: Tensor, epsilon: float, offset: float, result: Tensor, inverse: Tensor | None
) -> bytes:
    """The bytes of an ``ll_norm`` over contiguous tensors."""
    if states.shape[-1:] != weight.shape:
        _SHAPES.check(states, weight)
    width = weight.shape[0]
    return _pack(
        ELEMENTS[states.dtype], torch.get_num_threads(), states.numel() // width, width, states.data_ptr(), width,
        weight.data_ptr(), epsilon, offset, result.data_ptr(), 0 if inverse is None else inverse.data_ptr(),
    )  # fmt: skip


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, epsilon: float, offset: float) -> Tensor:
        _SHAPES.check(states, weight)
        ctx.epsilon, ctx.offset = epsilon, offset
        inverse = torch.empty(states.numel() // weight.shape[0], **SUM_OPTIONS[states.dtype])
        ctx.save_for_backward(states, weight, inverse)
        return _forward(states, weight, epsilon, offset, inverse)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        states, weight, inverse = ctx.saved_tensors
        needs = ctx.needs_input_grad[:2]
        if not is_gradient_served(grad, states, weight):
            define = lambda states, weight: definition(states, weight, ctx.epsilon, ctx.offset)  # noqa: E731
            return *gradients_by_definition(define, (states, weight), needs, grad), None, None
        states, weight, grad = states.contiguous(), weight.contiguous(), grad.contiguous()
        width = weight.shape[0]
        of_states = torch.empty_like(states) if needs[0] else None
        of_weight = torch.empty_like(weight) if needs[1] else None
        packed = NORM.pack(
            element=ELEMENTS[states.dtype], threads=torch.get_num_threads(), rows=len(inverse), width=width,
            states=states.data_ptr(), state_stride=width, weight=weight.data_ptr(), epsilon=ctx.epsilon,
            offset=ctx.offset, inverse=inverse.data_ptr(), grad=grad.data_ptr(),
            grad_states=0 if of_states is None else of_states.data_ptr(),
            grad_weight=0 if of_weight is None else of_weight.data_ptr(),
        )  # fmt: skip
        library.norm_backward(packed)
        return of_states, of_weight, None, None
