"""The steps of a layer beside attention, each in one pass over memory.

PyTorch computes a root-mean-square norm in eight operations, a gate in two and a rotation in three, each
through memory; its product of a bfloat16 matrix with one vector reads at half the memory's speed. Here each is one
call of the native library, forward and backward. What comes out is what those operations give, rounded once.

Those operations are the definition, and compute whatever the library is not given (`reasons_against` says why): under
``torch.compile`` and ``torch.export``, which fuse such steps themselves; under every other tracer and mode; for
``torch.func``, forward mode and every derivative beyond the first; on other devices; without the library.
"""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode

from .backends import native
from .backends.contract import Call
from .tensors import tracing
from .tensors.shapes import PLAIN, ArgumentError, Forms, check_tensor, wrong

Now = TypeVar("Now")  # what the steps that are noted anew need to know

MOST_ROWS = 16  # vectors up to which a product's time is that of reading its matrix

_MOST_MATRICES = 4
_PRODUCT = struct.Struct("7q 20q")
_NO_MATRICES = (0,) * 5 * _MOST_MATRICES
_NORM = struct.Struct("7q 2d 5q")
_GATE = struct.Struct("3q 2d 6q")
_ROTATION = struct.Struct("7q 10q 4q d")
_SUM = struct.Struct("6q")
_MATMUL = struct.Struct("15q")
_STEP = struct.Struct("2q")
_PRODUCTS_KIND, _NORM_KIND, _GATE_KIND, _ROTATION_KIND, _SUM_KIND, _FORWARD_KIND = range(6)
_ELEMENTS = native._ELEMENTS

# What the tensors of each step look like.
_PRODUCT_FORMS = Forms(states="... n", weight="m n", bias="m")
_MATMUL_FORMS = Forms(left="m k", right="k n", out="m n")
_NORM_FORMS = Forms(states="... n", weight="n")
_ROTATION_FORMS = Forms(heads="b h l d", own="rows 1 l turned", partners="rows 1 l turned")


def reasons_against(*tensors: Tensor) -> list[str]:
    """Why PyTorch's own operations compute a step of these tensors; empty when the library does."""
    if torch.compiler.is_compiling():
        return ["torch.compile and torch.export fuse such steps themselves"]
    reasons = [native._missing] if native._library is None else []
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        reasons.append("a transform of torch.func or a forward-mode derivative looks on")
    elif tracing.active():
        reasons.append(f"PyTorch's own operations are seen by {tracing.seen_by()}")
    dtype = tensors[0].dtype
    if dtype not in _ELEMENTS:
        reasons.append(f"the dtype is {dtype}; it computes {', '.join(map(str, _ELEMENTS))}")
    if any(tensor.dtype is not dtype for tensor in tensors):
        reasons.append("the tensors have different dtypes")
    if not all(tensor.is_cpu for tensor in tensors):
        reasons.append("it runs on the CPU")
    if any(type(tensor) not in PLAIN or tensor.is_neg() for tensor in tensors):
        reasons.append("it reads plain memory, and a tensor subclass or a lazy negation is among the tensors")
    elif not reasons and not all(map(_has_memory, tensors)):
        reasons.append("it reads plain memory, and a tensor without is among them (of zeros, or of a transform)")
    return reasons


def _served(*tensors: Tensor) -> bool:
    """Whether there is no reason against; this runs hundreds of times for each token that is written."""
    if torch.compiler.is_compiling() or native._library is None or tracing.active() or forward_ad._current_level >= 0:
        return False
    return _readable(*tensors)


def _readable(*tensors: Tensor) -> bool:
    """Whether the library can read these tensors: plain memory of the CPU, of one dtype that it computes."""
    dtype = tensors[0].dtype
    if dtype not in _ELEMENTS:
        return False
    try:
        for tensor in tensors:
            if tensor.dtype is not dtype or type(tensor) not in PLAIN or not tensor.is_cpu or tensor.is_neg():
                return False
            if not tensor.data_ptr() and not _has_memory(tensor):
                return False
    except RuntimeError:  # there is no address
        return _no_address(*tensors)
    return True


def _has_memory(tensor: Tensor) -> bool:
    """Whether there is memory behind a tensor, or nothing in it.

    Raises:
        ArgumentError: it was freed, and PyTorch's own operations would read what is not there.
    """
    check_tensor("states", tensor)
    return native._address_of(tensor) != 0 or not tensor.numel()


def _check_memory(**tensors: Tensor | None) -> None:
    """Raise where PyTorch's own operations, which do not look, would read memory of the CPU that is not there."""
    for name, tensor in tensors.items():
        if tensor is not None and (not isinstance(tensor, Tensor) or tensor.is_cpu):
            check_tensor(name, tensor)


def _no_address(*tensors: Tensor) -> bool:
    """Raise where PyTorch's own operations would not serve either; else they do."""
    for tensor in tensors:
        check_tensor("states", tensor)
    return False


def unwatched(*tensors: Tensor) -> bool:
    """Whether nobody can tell in which pieces a step of these tensors is computed."""
    if torch._C._is_any_autocast_enabled():
        return False
    return not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)) and _served(*tensors)


class NotCapturable(Exception):
    """Ends a `Capture`; the message says which operation cannot be replayed."""


def capturing(*tensors: Tensor) -> Capture | None:
    """The capture around the call, which records operations on these tensors instead of computing them, or ``None``.

    Raises:
        NotCapturable: a gradient of one of the tensors is wanted, or the library cannot read them.
    """
    mode = None if torch.compiler.is_compiling() else _get_current_dispatch_mode()
    if not isinstance(mode, Capture):
        return None
    mode.check(*tensors)
    return mode


def _unequal(name: str, other: str, tensor: Tensor, wanted: Tensor) -> ArgumentError:
    got = f"{tuple(tensor.shape)} is not {tuple(wanted.shape)}"
    return wrong(name, f"must have the shape of `{other}`", got, "Reshape one of them.")


def _gradient_served(grad: Tensor, *tensors: Tensor) -> bool:
    """The same of a backward pass, which also nobody differentiates; batched gradients have no memory of their own."""
    return not torch.is_grad_enabled() and torch._C._has_storage(grad) and _served(grad, *tensors)


def _by_definition(
    definition: Callable[..., Tensor], tensors: Sequence[Tensor], needs: Sequence[bool], grad: Tensor
) -> tuple[Tensor | None, ...]:
    """The gradients of ``definition(*tensors)`` that are needed, differentiable where somebody will ask."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        if not again:
            tensors = [tensor.detach().requires_grad_(need) for tensor, need in zip(tensors, needs, strict=True)]
        wanted = [tensor for tensor, need in zip(tensors, needs, strict=True) if need]
        found = iter(torch.autograd.grad(definition(*tensors), wanted, grad, create_graph=again))
    return tuple([next(found) if need else None for need in needs])


# --- A matrix and few vectors -----------------------------------------------------------------------------------------


def product(states: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``states @ weight.T + bias`` for states ``(..., n)``, a matrix ``(m, n)`` and a bias ``(m,)``.

    Up to `MOST_ROWS` vectors without a gradient read the matrix once, at the memory's speed; their sums are taken in
    float32 (float64 for float64) in an order that neither the number of vectors nor that of threads changes. More of
    them are multiplied by the library, with their gradients, where that is quicker than PyTorch (see `matmul`).
    """
    found = products(states, ((weight, bias),))
    if found is not None:
        return found[0]
    if torch.compiler.is_compiling() or tracing.active():
        return functional.linear(states, weight, bias)
    _PRODUCT_FORMS.check(states, weight, bias)
    if weight.is_meta != states.is_meta:  # PyTorch returns uninitialised memory
        got = f"{weight.device} is not {states.device}"
        raise wrong("weight", "must be on the device of `states`", got, "Load the weights first.")
    if not _multiplied_here(states, weight, bias):
        _check_memory(states=states, weight=weight, bias=bias)
        return functional.linear(states, weight, bias)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (states, weight, bias)):
        made: Tensor = _Product.apply(states, weight, bias)  # type: ignore[no-untyped-call]
        return made
    return _linear(states, weight, bias)


def products(states: Tensor, matrices: Sequence[tuple[Tensor, Tensor | None]]) -> list[Tensor] | None:
    """`product` with several matrices and biases in one call; ``None`` where PyTorch shall compute each of them."""
    if torch.compiler.is_compiling() or len(matrices) > _MOST_MATRICES or torch._C._is_any_autocast_enabled():
        return None
    if not states.dim():
        return None
    inputs, wanted = states.shape[-1], torch.is_grad_enabled()
    if not 0 < states.numel() <= MOST_ROWS * inputs or (wanted and states.requires_grad):
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
    if not _served(*tensors):
        capture = capturing(*tensors)
        return None if capture is None else capture.products(states, matrices)
    if wanted and any(tensor.requires_grad for tensor in tensors):
        return None
    kept: list[Any] = []
    found, call = _products(states, matrices, kept)
    if native._library.ll_products(call):
        native.checked(1)
    return found


def _products(
    states: Tensor, matrices: Sequence[tuple[Tensor, Tensor | None]], kept: list[Any]
) -> tuple[list[Tensor], bytes]:
    """Room for the results, and ``ll_product``; ``kept`` is what it points to beside tensors of the caller."""
    states, leading, inputs = states.contiguous(), states.shape[:-1], states.shape[-1]
    kept.append(states)
    words: list[int] = []
    found = []
    for weight, bias in matrices:
        outputs = weight.shape[0]
        result = torch.empty((*leading, outputs), dtype=states.dtype, device="cpu")
        found.append(result)
        if bias is not None:
            kept.append(bias.contiguous())
        offset = 0 if bias is None else kept[-1].data_ptr()
        words += (weight.data_ptr(), weight.stride(0), offset, outputs, result.data_ptr())
    call = _PRODUCT.pack(
        _ELEMENTS[states.dtype], torch.get_num_threads(), states.numel() // inputs, inputs, states.data_ptr(), inputs,
        len(matrices), *words, *_NO_MATRICES[len(words) :],
    )  # fmt: skip
    return found, call


# --- Two matrices -----------------------------------------------------------------------------------------------------

# PyTorch's matrix products on CPUs are MKL's, which has code for AVX-512 only where Intel made the processor: AMD's
# reach 35 to 40 % of their peak with it, the library 80 to 90 %. (bfloat16 is oneDNN's, and fast on both.)
_QUICKER_THAN_PYTORCH = frozenset({"avx512bf16"})  # instruction sets; chosen first on AMD's processors alone


def matmul(left: Tensor, right: Tensor, out: Tensor | None = None, add: bool = False) -> Tensor:
    """``left @ right`` of two matrices without a derivative, by the library where it is quicker than PyTorch.

    Args:
        left: ``(M, K)``.
        right: ``(K, N)``.
        out: where the result ``(M, N)`` is written; anew by default.
        add: whether it is added to what ``out`` holds.
    """
    if not (torch.compiler.is_compiling() or tracing.active()):
        fits = left.dim() == right.dim() == 2 and left.shape[1] == right.shape[0]
        if not fits or out is not None:
            _MATMUL_FORMS.check(left, right, out)
        for name, tensor in (("right", right), ("out", out)):
            if tensor is not None and tensor.device != left.device:  # PyTorch may return uninitialised memory
                got = f"{tensor.device} is not {left.device}"
                raise wrong(name, "must be on the device of `left`", got, "Move one with .to().")
    if out is None:
        out, add = left.new_empty(left.shape[0], right.shape[1]), False
    if not _multiplied_here(left, right, out) or out.stride(1) != 1 or out.stride(0) < out.shape[1]:
        _check_memory(left=left, right=right, out=out)
        return out.addmm_(left, right) if add else torch.mm(left, right, out=out)
    _multiply(left, right, None, out, add)
    return out


def _multiplied_here(left: Tensor, right: Tensor, third: Tensor | None) -> bool:
    """Whether the library computes a product of two matrices, of which the third tensor is the bias or the result."""
    return (
        not torch.compiler.is_compiling()
        and left.dtype in (torch.float32, torch.float64)
        and left.numel() > 0
        and right.numel() > 0
        and not torch._C._is_any_autocast_enabled()
        and (_served(left, right) if third is None else _served(left, right, third))
        and native._library.ll_isa_name().decode() in _QUICKER_THAN_PYTORCH
    )


def _multiply(left: Tensor, right: Tensor, bias: Tensor | None, result: Tensor, add: bool = False) -> None:
    for name, tensor in (("left", left), ("right", right), ("out", result)):
        check_tensor(name, tensor)
    left, right = (x if 1 in x.stride() else x.contiguous() for x in (left, right))
    bias = None if bias is None else bias.contiguous()
    words = _MATMUL.pack(
        _ELEMENTS[left.dtype], torch.get_num_threads(), *left.shape, right.shape[1], left.data_ptr(), *left.stride(),
        right.data_ptr(), *right.stride(), 0 if bias is None else bias.data_ptr(), result.data_ptr(), result.stride(0),
        add,
    )  # fmt: skip
    native.checked(native._library.ll_matmul_values(words))


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
        if not _gradient_served(grad, states, weight):
            tensors = (states, weight) if bias is None else (states, weight, bias)
            found = _by_definition(functional.linear, tensors, needs[: len(tensors)], grad)
            return found if bias is not None else (*found, None)
        rows, grad = states.reshape(-1, weight.shape[1]), grad.reshape(-1, weight.shape[0])
        return (
            matmul(grad, weight).view(states.shape) if needs[0] else None,
            matmul(grad.T, rows) if needs[1] else None,
            grad.sum(0) if needs[2] else None,
        )


# --- Norm -------------------------------------------------------------------------------------------------------------


def rms_norm(states: Tensor, weight: Tensor, epsilon: float, offset: float = 0.0) -> Tensor:
    """``(offset + weight) * x / sqrt(mean(x ** 2) + epsilon)`` over the last dimension (arXiv:1910.07467).

    Args:
        states: ``(..., width)``. Half precision is squared, averaged and multiplied in float32, and rounded once.
        weight: ``(width,)``.
        epsilon: keeps a state of zeros finite.
        offset: added to the weight, in float32 or wider.
    """
    if not _served(states, weight):
        if (capture := capturing(states, weight)) is not None:
            return capture.norm(states, weight, epsilon, offset)
        _check_memory(states=states, weight=weight)
        return _norm_defined(states, weight, epsilon, offset)
    if not states.numel():
        _NORM_FORMS.check(states, weight)
        return _norm_defined(states, weight, epsilon, offset)
    if torch._C._is_any_autocast_enabled() and states.dtype in (torch.bfloat16, torch.float16):
        return _norm_defined(states, weight, epsilon, offset)  # autocast has its own mind about the dtype
    if torch.is_grad_enabled() and (states.requires_grad or weight.requires_grad):
        normed: Tensor = _Norm.apply(states, weight, epsilon, offset)  # type: ignore[no-untyped-call]
        return normed
    return _norm(states, weight, epsilon, offset, None)


def _norm_defined(states: Tensor, weight: Tensor, epsilon: float, offset: float) -> Tensor:
    if not offset:
        return functional.rms_norm(states, weight.shape, weight, epsilon)
    # 1 + weight needs more digits than half precision has
    wide = torch.promote_types(states.dtype, torch.float32)
    weight = weight.to(wide) + offset
    return functional.rms_norm(states.to(wide), weight.shape, weight, epsilon).to(states.dtype)


def _norm(states: Tensor, weight: Tensor, epsilon: float, offset: float, inverse: Tensor | None) -> Tensor:
    states, weight = states.contiguous(), weight.contiguous()
    result = torch.empty_like(states)
    native.checked(native._library.ll_norm_forward(_norm_words(states, weight, epsilon, offset, result, inverse)))
    return result


def _norm_words(
    states: Tensor, weight: Tensor, epsilon: float, offset: float, result: Tensor, inverse: Tensor | None
) -> bytes:
    if states.shape[-1:] != weight.shape:
        _NORM_FORMS.check(states, weight)
    width = weight.shape[0]
    return _NORM.pack(
        _ELEMENTS[states.dtype], torch.get_num_threads(), states.numel() // width, width, states.data_ptr(), width,
        weight.data_ptr(), epsilon, offset, result.data_ptr(), 0 if inverse is None else inverse.data_ptr(), 0, 0, 0,
    )  # fmt: skip


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, epsilon: float, offset: float) -> Tensor:
        _NORM_FORMS.check(states, weight)
        ctx.epsilon, ctx.offset = epsilon, offset
        inverse = torch.empty(states.numel() // weight.shape[0], **native._NUMBERS[states.dtype])
        ctx.save_for_backward(states, weight, inverse)
        return _norm(states, weight, epsilon, offset, inverse)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        states, weight, inverse = ctx.saved_tensors
        needs = ctx.needs_input_grad[:2]
        if not _gradient_served(grad, states, weight):
            define = lambda states, weight: _norm_defined(states, weight, ctx.epsilon, ctx.offset)  # noqa: E731
            return *_by_definition(define, (states, weight), needs, grad), None, None
        states, weight, grad = states.contiguous(), weight.contiguous(), grad.contiguous()
        width = weight.shape[0]
        of_states = torch.empty_like(states) if needs[0] else None
        of_weight = torch.empty_like(weight) if needs[1] else None
        words = _NORM.pack(
            _ELEMENTS[states.dtype], torch.get_num_threads(), len(inverse), width, states.data_ptr(), width,
            weight.data_ptr(), ctx.epsilon, ctx.offset, 0, inverse.data_ptr(), grad.data_ptr(),
            0 if of_states is None else of_states.data_ptr(), 0 if of_weight is None else of_weight.data_ptr(),
        )  # fmt: skip
        native.checked(native._library.ll_norm_backward(words))
        return of_states, of_weight, None, None


# --- Gate -------------------------------------------------------------------------------------------------------------


def gelu_tanh(x: Tensor) -> Tensor:
    """``x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2``: GELU as GPT-2 computes it (arXiv:1606.08415)."""
    _check_memory(x=x)
    return functional.gelu(x, approximate="tanh")


# By function: those of a module are the same object in every copy of a layer; a partial, a lambda or a method is not.
# activation(x) = x * sigmoid(a x + b x^3); of the GELU with tanh z that is x (1 + tanh z) / 2 = x sigmoid(2 z).
SIGMOID_FORMS: dict[Callable[[Tensor], Tensor], tuple[float, float]] = {
    functional.silu: (1.0, 0.0),
    gelu_tanh: ((8 / math.pi) ** 0.5, 0.044715 * (8 / math.pi) ** 0.5),
}


def gated(activation: Callable[[Tensor], Tensor], gate: Tensor, up: Tensor) -> Tensor:
    """``activation(gate) * up``, number by number (Shazeer 2020, arXiv:2002.05202).

    The library computes the activations of `SIGMOID_FORMS`, PyTorch the others.
    """
    if activation not in SIGMOID_FORMS or gate.shape != up.shape or not gate.numel() or not _served(gate, up):
        if activation in SIGMOID_FORMS and (capture := capturing(gate, up)) is not None:
            return capture.gated(activation, gate, up)
        _check_memory(gate=gate, up=up)
        return activation(gate) * up
    if torch.is_grad_enabled() and (gate.requires_grad or up.requires_grad):
        found: Tensor = _Gate.apply(gate, up, activation)  # type: ignore[no-untyped-call]
        return found
    return _gate(gate, up, activation)


def _gate(gate: Tensor, up: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
    gate, up = gate.contiguous(), up.contiguous()
    result = torch.empty_like(gate)
    native.checked(native._library.ll_gate_values(_gate_words(gate, up, activation, result)))
    return result


def _gate_words(gate: Tensor, up: Tensor, activation: Callable[[Tensor], Tensor], result: Tensor) -> bytes:
    return _GATE.pack(
        _ELEMENTS[gate.dtype], torch.get_num_threads(), gate.numel(), *SIGMOID_FORMS[activation], gate.data_ptr(),
        up.data_ptr(), result.data_ptr(), 0, 0, 0,
    )  # fmt: skip


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.activation = activation
        return _gate(gate, up, activation)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        if not _gradient_served(grad, gate, up):
            define = lambda gate, up: ctx.activation(gate) * up  # noqa: E731
            return *_by_definition(define, (gate, up), ctx.needs_input_grad[:2], grad), None
        gate, up, grad = gate.contiguous(), up.contiguous(), grad.contiguous()
        of_gate, of_up = torch.empty_like(gate), torch.empty_like(up)
        words = _GATE.pack(
            _ELEMENTS[gate.dtype], torch.get_num_threads(), gate.numel(), *SIGMOID_FORMS[ctx.activation],
            gate.data_ptr(), up.data_ptr(), 0, grad.data_ptr(), of_gate.data_ptr(), of_up.data_ptr(),
        )  # fmt: skip
        native.checked(native._library.ll_gate_values(words))
        return of_gate, of_up, None


# --- Rotation ---------------------------------------------------------------------------------------------------------


def rotate_halves(heads: Tensor, own: Tensor, partners: Tensor) -> Tensor:
    """Numbers ``i`` and ``turned / 2 + i`` of each head times ``own``, plus the other one times ``partners``.

    Args:
        heads: ``(B, H, L, D)``; numbers from ``turned`` on stay.
        own: ``(B | 1, 1, L, turned)``: the cosine of every pair, twice.
        partners: the same shape: minus the sine of every pair, then the sine.
    """
    if own.requires_grad or partners.requires_grad or not _served(heads, own, partners):
        if (capture := capturing(heads, own, partners)) is not None:
            return capture.rotate_halves(heads, own, partners)
        _check_memory(heads=heads, own=own, partners=partners)
        return _rotation_defined(heads, own, partners)
    if not heads.numel():
        _check_rotation(heads, own, partners)
        return _rotation_defined(heads, own, partners)
    if torch.is_grad_enabled() and heads.requires_grad:
        turned: Tensor = _Rotate.apply(heads, own, partners)  # type: ignore[no-untyped-call]
        return turned
    return _rotate(heads, own, partners, 1.0)


def _check_rotation(heads: Tensor, own: Tensor, partners: Tensor) -> None:
    _ROTATION_FORMS.check(heads, own, partners)
    rows, _, _, turned = own.shape
    if rows not in (1, heads.shape[0]) or turned > heads.shape[3] or turned % 2:
        got = f"it has {rows} rows and {turned} numbers, and the shape of `heads` is {tuple(heads.shape)}"
        way_out = "Numbers are rotated in pairs; give one row for all of the batch or one for each."
        raise wrong("own", "must have 1 or B rows and an even number of numbers up to D", got, way_out)


def _rotation_defined(heads: Tensor, own: Tensor, partners: Tensor) -> Tensor:
    turned = own.shape[-1]
    rest = heads[..., turned:]
    heads = heads[..., :turned] if rest.shape[-1] else heads
    first, second = heads.chunk(2, dim=-1)
    heads = torch.addcmul(heads * own, torch.cat((second, first), dim=-1), partners)
    return torch.cat((heads, rest), dim=-1) if rest.shape[-1] else heads


def _rotate(heads: Tensor, own: Tensor, partners: Tensor, direction: float) -> Tensor:
    if heads.dim() != 4:
        _check_rotation(heads, own, partners)
    heads = heads if heads.stride(3) == 1 else heads.contiguous()
    own = own.contiguous()
    partners = partners.contiguous()
    result = torch.empty_like(heads)
    if result.stride(3) != 1:  # a width of one number is no pair; dimensions of size 1 may come with any step
        result = torch.empty(heads.shape, dtype=heads.dtype, device="cpu")
    native.checked(native._library.ll_rotate(_rotation_words(heads, own, partners, direction, result)))
    return result


def _rotation_words(heads: Tensor, own: Tensor, partners: Tensor, direction: float, result: Tensor) -> bytes:
    B, H, L, D = heads.shape
    form = own.shape
    turned = form[-1]
    if form != partners.shape or turned % 2 or turned > D or (form != (1, 1, L, turned) and form != (B, 1, L, turned)):
        _check_rotation(heads, own, partners)
    return _ROTATION.pack(
        _ELEMENTS[heads.dtype], torch.get_num_threads(), B, H, L, D, turned,
        heads.data_ptr(), *heads.stride(), result.data_ptr(), *result.stride(),
        own.data_ptr(), partners.data_ptr(), 0 if own.shape[0] == 1 else L * turned, turned, direction,
    )  # fmt: skip


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, heads: Tensor, own: Tensor, partners: Tensor) -> Tensor:
        ctx.save_for_backward(own, partners)
        return _rotate(heads, own, partners, 1.0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        own, partners = ctx.saved_tensors  # back by the same angles
        if not _gradient_served(grad, own, partners):
            return _rotation_defined(grad, own, -partners), None, None
        return _rotate(grad, own, partners, -1.0), None, None


# --- Several steps in one call ----------------------------------------------------------------------------------------


class Steps(Generic[Now]):
    """Steps over few tokens, noted one after the other; each `run` computes them in one call of the library.

    The methods are those of this module, and give the same bits; what they return is filled by `run`. They are for
    tensors of which `unwatched` is true, contiguous but for heads, whose last stride is 1.
    """

    def __init__(self) -> None:
        self._noted: list[bytes | Callable[[Steps[Now], Now], None]] = []
        self._kept: list[Any] = []  # what the addresses point to

    def norm(self, states: Tensor, weight: Tensor, epsilon: float, offset: float) -> Tensor:
        """See `rms_norm`."""
        result = torch.empty_like(states)
        self._note(_NORM_KIND, _norm_words(states, weight, epsilon, offset, result, None))
        self._kept.append(result)
        return result

    def products(self, states: Tensor, matrices: Sequence[tuple[Tensor, Tensor | None]]) -> list[Tensor]:
        """See `products`: up to `MOST_ROWS` vectors, and as many matrices as that takes."""
        for weight, bias in matrices:
            _PRODUCT_FORMS.check(states, weight, bias)
        found, words = _products(states, matrices, self._kept)
        self._note(_PRODUCTS_KIND, words)
        self._kept += found
        return found

    def gated(self, activation: Callable[[Tensor], Tensor], gate: Tensor, up: Tensor) -> Tensor:
        """See `gated`, of an activation of `SIGMOID_FORMS`."""
        if gate.shape != up.shape:
            raise _unequal("up", "gate", up, gate)
        result = torch.empty_like(gate)
        self._note(_GATE_KIND, _gate_words(gate, up, activation, result))
        self._kept.append(result)
        return result

    def rotate_halves(self, heads: Tensor, own: Tensor, partners: Tensor, result: Tensor) -> Tensor:
        """See `rotate_halves`; into ``result`` ``(B, H, L, D)``, which may be ``heads`` itself."""
        if result.shape != heads.shape:
            raise _unequal("result", "heads", result, heads)
        own, partners = own.contiguous(), partners.contiguous()
        self._note(_ROTATION_KIND, _rotation_words(heads, own, partners, 1.0, result))
        self._kept += (own, partners, result)
        return result

    def copy(self, heads: Tensor, result: Tensor) -> None:
        """``heads`` ``(B, H, L, D)`` into ``result``: a rotation that turns nothing."""
        if result.shape != heads.shape:
            raise _unequal("result", "heads", result, heads)
        nothing = heads.new_empty(1, 1, heads.shape[2], 0)
        self._note(_ROTATION_KIND, _rotation_words(heads, nothing, nothing, 1.0, result))
        self._kept.append(result)

    def attention(self, call: Call, output: Tensor) -> None:
        """`limelight.attention` of a checked call without observations and derivatives, into ``output``."""
        self._note(_FORWARD_KIND, native.noted(call, output, self._kept))
        self._kept += (call, output)

    def add(self, left: Tensor, right: Tensor) -> Tensor:
        """``left + right``, of one shape."""
        if left.shape != right.shape:
            raise _unequal("right", "left", right, left)
        result = torch.empty_like(left)
        words = _SUM.pack(
            _ELEMENTS[left.dtype], torch.get_num_threads(), left.numel(), left.data_ptr(), right.data_ptr(),
            result.data_ptr(),
        )  # fmt: skip
        self._note(_SUM_KIND, words)
        self._kept.append(result)
        return result

    def anew(self, note: Callable[[Steps[Now], Now], None]) -> None:
        """Steps that ``note(steps, now)`` notes anew in each `run`."""
        self._noted.append(note)

    def run(self, now: Now) -> None:
        """Compute what was noted; ``now`` is what `anew` is given."""
        passing: Steps[Now] = Steps()
        for note in self._noted:
            if isinstance(note, bytes):
                passing._noted.append(note)
            else:
                note(passing, now)
        words = b"".join(passing._noted)  # type: ignore[arg-type]
        native.checked(native._library.ll_steps(words, len(words)))

    def keep(self, *tensors: Tensor) -> None:
        """Keep tensors alive whose addresses are among what was noted."""
        self._kept += tensors

    def _note(self, kind: int, words: bytes) -> None:
        self._noted += (_STEP.pack(kind, len(words)), words)


class Capture(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records code that runs inside it, instead of computing, as the stream capture of a CUDA graph does.

    Functions of this module and sums of two tensors become native calls of ``steps``; views and uninitialised tensors
    are made as ever. Any other operation computes something that the library would not compute again, and raises.

    Args:
        steps: where native calls are recorded.

    Raises, inside:
        NotCapturable: an operation that cannot be replayed.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """PyTorch would import its compiler (one second) at the first operation, to keep the mode from being traced."""
        return False

    def __init__(self, steps: Steps[Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.steps = steps

    def check(self, *tensors: Tensor) -> None:
        """Raise unless an operation on these tensors can be replayed; keep them alive where it can."""
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
            raise NotCapturable("a gradient is wanted")
        if not _readable(*tensors):
            raise NotCapturable("the native library does not read one of the tensors")
        self.steps.keep(*tensors)

    def norm(self, states: Tensor, weight: Tensor, epsilon: float, offset: float) -> Tensor:
        """Record `rms_norm`."""
        return self.steps.norm(states.contiguous(), weight.contiguous(), epsilon, offset)

    def products(self, states: Tensor, matrices: Sequence[tuple[Tensor, Tensor | None]]) -> list[Tensor]:
        """Record `products`."""
        return self.steps.products(states, matrices)

    def gated(self, activation: Callable[[Tensor], Tensor], gate: Tensor, up: Tensor) -> Tensor:
        """Record `gated`, of an activation of `SIGMOID_FORMS`."""
        return self.steps.gated(activation, gate.contiguous(), up.contiguous())

    def rotate_halves(self, heads: Tensor, own: Tensor, partners: Tensor) -> Tensor:
        """Record `rotate_halves`."""
        heads = heads if heads.stride(3) == 1 else heads.contiguous()
        return self.steps.rotate_halves(heads, own, partners, torch.empty_like(heads))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        kind = _kind(func)
        if kind == "made":
            return func(*args, **kwargs)
        if kind == "composite":
            with self:
                return func.decompose(*args, **kwargs)
        if func is torch.ops.aten.add.Tensor and not kwargs and _is_sum(*args):
            self.check(*args)
            return self.steps.add(*(tensor.contiguous() for tensor in args))
        raise NotCapturable(f"{func} is computed by PyTorch")


_UNINITIALISED = frozenset({"aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty"})


@functools.cache
def _kind(operation: Any) -> str:
    """What a capture does with an operation: ``composite`` of others, ``made`` as ever, or ``computed``."""
    if torch._C._dispatch_has_kernel_for_dispatch_key(operation.name(), "CompositeImplicitAutograd"):
        return "composite"
    aliases = [returned.alias_info for returned in operation._schema.returns]
    is_view = bool(aliases) and all(alias is not None and not alias.is_write for alias in aliases)
    return "made" if is_view or operation._schema.name in _UNINITIALISED else "computed"


def _is_sum(left: object, right: object) -> bool:
    """Whether two operands are tensors of one shape whose sum the library computes."""
    return (
        isinstance(left, Tensor)
        and isinstance(right, Tensor)
        and left.shape == right.shape
        and left.dtype == right.dtype
    )
