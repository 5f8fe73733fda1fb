"""Which implementation computes an operation: the native library, or PyTorch's own operations, the definition."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..backends.native import available, why_missing
from ..backends.native.addresses import address_or_zero
from ..backends.native.library import ELEMENTS
from ..tensors import tracing
from ..tensors.shapes import PLAIN, ArgumentError, check_dense, check_tensor, wrong
from ..tensors.torch_internals import (
    are_transforms_active,
    has_storage,
    in_forward_mode,
    is_any_autocast_enabled,
    is_plain_eager,
)


def reasons_against(*tensors: Tensor) -> list[str]:
    """Why PyTorch's own operations compute an operation on these tensors; empty when the library does."""
    if torch.compiler.is_compiling():
        return ["torch.compile and torch.export fuse such operations themselves"]
    reasons = [] if available() else [why_missing()]
    if are_transforms_active() or in_forward_mode():
        reasons.append("a transform of torch.func or a forward-mode derivative is active")
    elif tracing.active():
        reasons.append(f"PyTorch's own operations are seen by {tracing.seen_by()}")
    dtype = tensors[0].dtype
    if dtype not in ELEMENTS:
        reasons.append(f"the dtype is {dtype}; it computes {', '.join(map(str, ELEMENTS))}")
    if any(tensor.dtype is not dtype for tensor in tensors):
        reasons.append("the tensors have different dtypes")
    if not all(tensor.is_cpu for tensor in tensors):
        reasons.append("it runs on the CPU")
    if any(type(tensor) not in PLAIN or tensor.is_neg() for tensor in tensors):
        reasons.append("it reads plain memory, and a tensor subclass or a lazy negation is among the tensors")
    elif not reasons and not all(map(_has_memory, tensors)):
        reasons.append("it reads plain memory, and a tensor without is among them (of zeros, or of a transform)")
    return reasons


def is_served(*tensors: Tensor) -> bool:
    """Whether there is no reason against; this runs hundreds of times for each generated token.

    Where it is false the caller raises the error of a wrong argument, see `check_memory`.
    """
    return is_plain_eager() and is_readable(*tensors)


def is_readable(*tensors: Tensor) -> bool:
    """Whether the library is there and can read these tensors: plain memory of the CPU, of one dtype that it computes.

    Raises:
        ArgumentError: the memory of one of them was freed.
    """
    if not available():
        return False
    try:
        dtype = tensors[0].dtype
        if dtype not in ELEMENTS:
            return False
        for tensor in tensors:
            if tensor.dtype is not dtype or type(tensor) not in PLAIN or not tensor.is_cpu or tensor.is_neg():
                return False
            if not tensor.data_ptr() and not _has_memory(tensor):
                return False
    except ArgumentError:  # memory that was freed
        raise
    except (AttributeError, RuntimeError, ValueError):  # no tensor, or one without an address
        return False
    return True


def _has_memory(tensor: Tensor) -> bool:
    """Whether there is memory behind a tensor, or nothing in it.

    Raises:
        ArgumentError: its memory was freed, and PyTorch's own operations would read it.
    """
    check_tensor("states", tensor)
    return address_or_zero(tensor) != 0 or not tensor.numel()


def check_memory(**tensors: Tensor | None) -> None:
    """Raise where an argument is no dense tensor, or PyTorch's own operations would read memory that was freed."""
    for name, tensor in tensors.items():
        if not (tensor is None and name in _OPTIONAL) and (not isinstance(tensor, Tensor) or tensor.is_cpu):
            check_dense(name, tensor)


_OPTIONAL = ("bias", "out")


def can_fuse(*tensors: Tensor) -> bool:
    """Whether the library computes operations on these tensors, and PyTorch need not see each of them: no gradient,
    autocast, hook or dispatch mode observes the tensors.
    """
    if is_any_autocast_enabled():
        return False
    return not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)) and is_served(*tensors)


def is_gradient_served(grad: Tensor, *tensors: Tensor) -> bool:
    """`is_served` in a backward pass that is not differentiated itself; batched gradients have no memory."""
    return not torch.is_grad_enabled() and has_storage(grad) and is_served(grad, *tensors)


def gradients_by_definition(
    definition: Callable[..., Tensor], tensors: Sequence[Tensor], needs: Sequence[bool], grad: Tensor
) -> tuple[Tensor | None, ...]:
    """The gradients of ``definition(*tensors)`` that are needed, themselves differentiable in a double backward."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        if not again:
            tensors = [tensor.detach().requires_grad_(need) for tensor, need in zip(tensors, needs, strict=True)]
        wanted = [tensor for tensor, need in zip(tensors, needs, strict=True) if need]
        found = iter(torch.autograd.grad(definition(*tensors), wanted, grad, create_graph=again))
    return tuple([next(found) if need else None for need in needs])


def different_shapes(name: str, other: str, tensor: Tensor, wanted: Tensor) -> ArgumentError:
    """That a tensor must have the shape of another."""
    got = f"{tuple(tensor.shape)} is not {tuple(wanted.shape)}"
    return wrong(name, f"must have the shape of `{other}`", got, "Reshape one of them.")
