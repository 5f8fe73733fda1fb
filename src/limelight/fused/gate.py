"""Gated activations, SwiGLU and its relatives, in one pass over memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..backends.native import library
from ..backends.native.library import ELEMENTS
from ..backends.native.structures import GATE
from .capture import capturing
from .dispatch import check_memory, gradients_by_definition, is_gradient_served, is_served

_pack = GATE.packer("element", "threads", "count", "linear", "cubic", "gate", "up", "result")


def gelu_tanh(x: Tensor) -> Tensor:
    """``x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2``: GELU as GPT-2 computes it (arXiv:1606.08415)."""
    check_memory(x=x)
    return functional.gelu(x, approximate="tanh")


# By function: those of a module are the same object in every copy of a layer; a partial, a lambda or a method is not.
# activation(x) = x * sigmoid(a x + b x^3); of the GELU with tanh z that is x (1 + tanh z) / 2 = x sigmoid(2 z).
SIGMOID_FORMS: dict[Callable[[Tensor], Tensor], tuple[float, float]] = {
    functional.silu: (1.0, 0.0),
    gelu_tanh: ((8 / math.pi) ** 0.5, 0.044715 * (8 / math.pi) ** 0.5),
}


def gated(activation: Callable[[Tensor], Tensor], gate: Tensor, up: Tensor) -> Tensor:
    """``activation(gate) * up``, element by element (Shazeer 2020, arXiv:2002.05202).

    The library computes the activations of `SIGMOID_FORMS`, PyTorch the others.

    Raises:
        ArgumentError: an argument is no dense tensor.
    """
    if activation not in SIGMOID_FORMS or not is_served(gate, up):
        if activation in SIGMOID_FORMS and (capture := capturing(gate, up)) is not None:
            return capture.gated(activation, gate, up)
        check_memory(gate=gate, up=up)
        return activation(gate) * up
    try:
        if gate.shape != up.shape or not gate.numel():
            check_memory(gate=gate, up=up)
            return activation(gate) * up
        if torch.is_grad_enabled() and (gate.requires_grad or up.requires_grad):
            found: Tensor = _Gate.apply(gate, up, activation)  # type: ignore[no-untyped-call]
            return found
        return _forward(gate, up, activation)
    except RuntimeError:
        check_memory(gate=gate, up=up)  # a nested tensor has no sizes
        raise


def _forward(gate: Tensor, up: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
    gate, up = gate.contiguous(), up.contiguous()
    result = torch.empty_like(gate)
    library.gate_forward(pack_gate(gate, up, activation, result))
    return result


def pack_gate(gate: Tensor, up: Tensor, activation: Callable[[Tensor], Tensor], result: Tensor) -> bytes:
    """``ll_gate`` of contiguous tensors of one shape."""
    linear, cubic = SIGMOID_FORMS[activation]
    return _pack(
        ELEMENTS[gate.dtype], torch.get_num_threads(), gate.numel(), linear, cubic,
        gate.data_ptr(), up.data_ptr(), result.data_ptr(),
    )  # fmt: skip


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.activation = activation
        return _forward(gate, up, activation)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        if not is_gradient_served(grad, gate, up):
            define = lambda gate, up: ctx.activation(gate) * up  # noqa: E731
            return *gradients_by_definition(define, (gate, up), ctx.needs_input_grad[:2], grad), None
        gate, up, grad = gate.contiguous(), up.contiguous(), grad.contiguous()
        of_gate, of_up = torch.empty_like(gate), torch.empty_like(up)
        linear, cubic = SIGMOID_FORMS[ctx.activation]
        packed = GATE.pack(
            element=ELEMENTS[gate.dtype], threads=torch.get_num_threads(), count=gate.numel(),
            linear=linear, cubic=cubic, gate=gate.data_ptr(), up=up.data_ptr(),
            grad=grad.data_ptr(), grad_gate=of_gate.data_ptr(), grad_up=of_up.data_ptr(),
        )  # fmt: skip
        library.gate_backward(packed)
        return of_gate, of_up, None
