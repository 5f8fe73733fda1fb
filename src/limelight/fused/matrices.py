"""Products of a layer's matrices with few vectors, and of two matrices.

A bfloat16 matrix that meets one vector is read by PyTorch at half of the memory's speed; the library reads it at the
memory's speed, for up to `MAX_ROWS` vectors at once and several matrices in one call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..backends.native import instruction_set, library
from ..backends.native.library import ELEMENTS
from ..backends.native.structures import MATMUL, MATRIX, MAX_MATRICES, PRODUCT
from ..tensors import tracing
from ..tensors.shape_spec import ShapeSpec
from ..tensors.shapes import ArgumentError, check_tensor, wrong
from ..tensors.torch_internals import is_any_autocast_enabled
from .capture import capturing
from .dispatch import check_memory, gradients_by_definition, is_gradient_served, is_served

MAX_ROWS = 16  # vectors up to which a product's time is that of reading its matrix

PRODUCT_SHAPES = ShapeSpec(states="... n", weight="m n", bias="m")
_MATMUL_SHAPES = ShapeSpec(left="m k", right="k n", out="m n")

# PyTorch's matrix products on CPUs are MKL's, which has code for AVX-512 only where Intel made the processor: AMD's
# reach 35 to 40 % of their peak with it, the library 80 to 90 %. (bfloat16 is oneDNN's, and fast on both.)
_FASTER_THAN_PYTORCH = frozenset({"avx512bf16"})  # instruction sets; chosen first on AMD's processors alone

_pack_products = PRODUCT.packer("element", "threads", "rows", "inputs", "states", "state_stride", "count", "matrices")
_NO_MATRICES = (0,) * (MATRIX.size // 8 * MAX_MATRICES)


def product(states: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``states @ weight.T + bias`` for states ``(..., n)``, a matrix ``(m, n)`` and a bias ``(m,)``.

    Up to `MAX_ROWS` vectors without a gradient read the matrix once, at the memory's speed; their sums are accumulated
    in float32 (float64 for float64) in an order that neither the number of vectors nor that of threads changes. More of
    them are multiplied by the library, with their gradients, where that is faster than PyTorch (`matmul`).

    Raises:
        ArgumentError: the shapes or devices do not fit, or an argument is no dense tensor.
    """
    found = products(states, ((weight, bias),))
    if found is not None:
        return found[0]
    if torch.compiler.is_compiling() or tracing.active():
        return functional.linear(states, weight, bias)
    if not (isinstance(states, Tensor) and isinstance(weight, Tensor)):
        check_memory(states=states, weight=weight)
    PRODUCT_SHAPES.check(states, weight, bias)
    if weight.is_meta != states.is_meta:  # PyTorch returns uninitialised memory
        got = f"{weight.device} is not {states.device}"
        raise wrong("weight", "must be on the device of `states`", got, "Load the weights first.")
    if not matmul_is_faster(states, weight, bias):
        check_memory(states=states, weight=weight, bias=bias)
        return functional.linear(states, weight, bias)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (states, weight, bias)):
        made: Tensor = _Product.apply(states, weight, bias)  # type: ignore[no-untyped-call]
        return made
    return _linear(states, weight, bias)


def products(states: Tensor, matrices: Sequence[tuple[Tensor, Tensor | None]]) -> list[Tensor] | None:
    """`product` with several matrices and biases in one call; ``None`` where PyTorch must compute each of them."""
    if torch.compiler.is_compiling() or len(matrices) > MAX_MATRICES or is_any_autocast_enabled():
        return None
    try:
        inputs, wanted = states.shape[-1], torch.is_grad_enabled()
        if not 0 < states.numel() <= MAX_ROWS * inputs or (wanted and states.requires_grad):
            return None
        tensors = [states]
        for weight, bias in matrices:
            if weight.dim() != 2 or weight.shape[1] != inputs or weight.stride(1) != 1:
                return None
            tensors.append(weight)
            if bias is not None:
                if bias.shape != weight.shape[:1]:
                    return None
                tensors.append(bias)
        if not is_served(*tensors):
            capture = capturing(*tensors)
            return None if capture is None else capture.products(states, matrices)
        if wanted and any(tensor.requires_grad for tensor in tensors):
            return None
    except ArgumentError:  # memory that was freed
        raise
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):  # a scalar, no tensor, or without sizes
        return None
    kept: list[Any] = []
    found, packed = pack_products(states, matrices, kept)
    library.product_forward(packed)
    return found


def pack_products(
    states: Tensor, matrices: Sequence[tuple[Tensor, Tensor | None]], kept: list[Any]
) -> tuple[list[Tensor], bytes]:
    """Memory for the results, and ``ll_product``; ``kept`` receives what it points to beside the matrices."""
    states, leading, inputs = states.contiguous(), states.shape[:-1], states.shape[-1]
    kept.append(states)
    numbers: list[int] = []  # ll_matrix of each
    found = []
    for weight, bias in matrices:
        outputs = weight.shape[0]
        result = torch.empty((*leading, outputs), dtype=states.dtype, device="cpu")
        found.append(result)
        if bias is not None:
            kept.append(bias.contiguous())
        address = 0 if bias is None else kept[-1].data_ptr()
        numbers += (weight.data_ptr(), weight.stride(0), address, outputs, result.data_ptr())
    numbers += _NO_MATRICES[len(numbers) :]
    packed = _pack_products(
        ELEMENTS[states.dtype], torch.get_num_threads(), states.numel() // inputs, inputs, states.data_ptr(), inputs,
        len(matrices), numbers,
    )  # fmt: skip
    return found, packed


def matmul(left: Tensor, right: Tensor, out: Tensor | None = None, add: bool = False) -> Tensor:
    """``left @ right`` of two matrices without a derivative, by the library where it is faster than PyTorch.

    Args:
        left: ``(M, K)``.
        right: ``(K, N)``.
        out: where the result ``(M, N)`` is written; new memory by default.
        add: whether the product is added to ``out``.

    Raises:
        ArgumentError: the shapes or devices do not fit, or an argument is no dense tensor.
    """
    if not (torch.compiler.is_compiling() or tracing.active()):
        _check_matmul(left, right, out)
    if out is None:
        out, add = left.new_empty(left.shape[0], right.shape[1]), False
    if not matmul_is_faster(left, right, out) or out.stride(1) != 1 or out.stride(0) < out.shape[1]:
        check_memory(left=left, right=right, out=out)
        return out.addmm_(left, right) if add else torch.mm(left, right, out=out)
    _multiply(left, right, None, out, add)
    return out


def _check_matmul(left: Tensor, right: Tensor, out: Tensor | None) -> None:
    try:
        fits = left.dim() == right.dim() == 2 and left.shape[1] == right.shape[0]
    except (AttributeError, RuntimeError, TypeError, ValueError):  # no tensor, or one without sizes
        check_memory(left=left, right=right)
        raise
    if not fits or out is not None:
        _MATMUL_SHAPES.check(left, right, out)
    for name, tensor in (("right", right), ("out", out)):
        if tensor is not None and tensor.device != left.device:  # PyTorch may return uninitialised memory
            got = f"{tensor.device} is not {left.device}"
            raise wrong(name, "must be on the device of `left`", got, "Move one with .to().")


def matmul_is_faster(left: Tensor, right: Tensor, third: Tensor | None) -> bool:
    """Whether the library computes a product of two matrices, of which the third tensor is the bias or the result."""
    return (
        not torch.compiler.is_compiling()
        and left.dtype in (torch.float32, torch.float64)
        and left.numel() > 0
        and right.numel() > 0
        and not is_any_autocast_enabled()
        and (is_served(left, right) if third is None else is_served(left, right, third))
        and instruction_set() in _FASTER_THAN_PYTORCH
    )


def _multiply(left: Tensor, right: Tensor, bias: Tensor | None, result: Tensor, add: bool = False) -> None:
    for name, tensor in (("left", left), ("right", right), ("out", result)):
        check_tensor(name, tensor)
    left, right = (x if 1 in x.stride() else x.contiguous() for x in (left, right))
    bias = None if bias is None else bias.contiguous()
    (left_row, left_step), (right_step, right_column) = left.stride(), right.stride()
    packed = MATMUL.pack(
        element=ELEMENTS[left.dtype], threads=torch.get_num_threads(),
        rows=left.shape[0], steps=left.shape[1], columns=right.shape[1],
        left=left.data_ptr(), left_row=left_row, left_step=left_step,
        right=right.data_ptr(), right_step=right_step, right_column=right_column,
        bias=0 if bias is None else bias.data_ptr(), result=result.data_ptr(), result_row=result.stride(0), add=add,
    )  # fmt: skip
    library.matmul_forward(packed)


def _linear(states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    result = torch.empty((*states.shape[:-1], weight.shape[0]), dtype=states.dtype, device="cpu")
    _multiply(states.reshape(-1, weight.shape[1]), weight.T, bias, result.view(-1, weight.shape[0]))
    return result


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(states, weight, bias)
        return _linear(states, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        states, weight, bias = ctx.saved_tensors
        needs = ctx.needs_input_grad
        if not is_gradient_served(grad, states, weight):
            tensors = (states, weight) if bias is None else (states, weight, bias)
            found = gradients_by_definition(functional.linear, tensors, needs[: len(tensors)], grad)
            return found if bias is not None else (*found, None)
        rows, grad = states.reshape(-1, weight.shape[1]), grad.reshape(-1, weight.shape[0])
        return (
            matmul(grad, weight).view(states.shape) if needs[0] else None,
            matmul(grad.T, rows) if needs[1] else None,
            grad.sum(0) if needs[2] else None,
        )
