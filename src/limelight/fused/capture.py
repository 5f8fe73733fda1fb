"""The capture of operations: a dispatch mode that records native calls instead of computing, as a CUDA graph does."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..tensors.torch_internals import current_dispatch_mode, is_composite
from .dispatch import is_readable


class Calls(Protocol):
    """Where a capture records operations (`limelight.fused.CapturedCalls`); each method returns the future result."""

    def norm(self, states: Tensor, weight: Tensor, epsilon: float, offset: float) -> Tensor:
        """Record a root-mean-square norm (`rms_norm`)."""

    def products(self, states: Tensor, matrices: Sequence[tuple[Tensor, Tensor | None]]) -> list[Tensor]:
        """Record the products of a few vectors with several matrices (`products`)."""

    def gated(self, activation: Callable[[Tensor], Tensor], gate: Tensor, up: Tensor) -> Tensor:
        """Record a gate, ``activation(gate) * up`` (`gated`)."""

    def rotate_halves(self, heads: Tensor, own: Tensor, partners: Tensor, result: Tensor) -> Tensor:
        """Record a rotary embedding of heads (`rotate_halves`)."""

    def add(self, left: Tensor, right: Tensor) -> Tensor:
        """Record the sum of two tensors of one shape."""

    def keep(self, *tensors: Tensor) -> None:
        """Keep tensors alive whose addresses are recorded."""


class NotCapturable(Exception):
    """Ends a `Capture`; the message says which operation cannot be replayed."""


def capturing(*tensors: Tensor) -> Capture | None:
    """The capture around the call, which records operations on these tensors instead of computing them, or ``None``.

    Raises:
        NotCapturable: a gradient of one of the tensors is wanted, or the library cannot read them.
    """
    mode = None if torch.compiler.is_compiling() else current_dispatch_mode()
    if not isinstance(mode, Capture):
        return None
    mode.check(*tensors)
    return mode


class Capture(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records code that runs inside it, instead of computing, as the stream capture of a CUDA graph does.

    Functions of `limelight.fused` and sums of two tensors become native calls of ``calls``; views and uninitialised
    tensors are made as ever. Any other operation would not be computed again by the library, and raises.

    Args:
        calls: where native calls are recorded.

    Raises, inside:
        NotCapturable: an operation that cannot be replayed.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """PyTorch would import its compiler (one second) at the first operation, to keep the mode from being traced."""
        return False

    def __init__(self, calls: Calls) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls = calls

    def check(self, *tensors: Tensor) -> None:
        """Raise unless an operation on these tensors can be replayed; keep them alive where it can."""
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
            raise NotCapturable("a gradient is wanted")
        if not is_readable(*tensors):
            raise NotCapturable("the native library does not read one of the tensors")
        self.calls.keep(*tensors)

    def norm(self, states: Tensor, weight: Tensor, epsilon: float, offset: float) -> Tensor:
        """Record a root-mean-square norm (`rms_norm`)."""
        return self.calls.norm(states.contiguous(), weight.contiguous(), epsilon, offset)

    def products(self, states: Tensor, matrices: Sequence[tuple[Tensor, Tensor | None]]) -> list[Tensor]:
        """Record the products of a few vectors with several matrices (`products`)."""
        return self.calls.products(states, matrices)

    def gated(self, activation: Callable[[Tensor], Tensor], gate: Tensor, up: Tensor) -> Tensor:
        """Record `gated`, of an activation of `SIGMOID_FORMS`."""
        return self.calls.gated(activation, gate.contiguous(), up.contiguous())

    def rotate_halves(self, heads: Tensor, own: Tensor, partners: Tensor) -> Tensor:
        """Record a rotary embedding of heads (`rotate_halves`)."""
        heads = heads if heads.stride(3) == 1 else heads.contiguous()
        return self.calls.rotate_halves(heads, own, partners, torch.empty_like(heads))

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
            return self.calls.add(*(tensor.contiguous() for tensor in args))
        raise NotCapturable(f"{func} is computed by PyTorch")


_UNINITIALISED = frozenset({"aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty"})


@functools.cache
def _kind(operation: Any) -> str:
    """The kind of an operation: ``composite`` of others, ``made`` (a view or empty memory), or ``computed``."""
    if is_composite(operation):
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
