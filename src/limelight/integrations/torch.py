"""Limelight underneath any model that calls ``torch.nn.functional.scaled_dot_product_attention``.

::

    with limelight.integrations.torch.sdpa() as told:
        model(images)
    print(told)  # which calls were taken over, which were left to PyTorch, and why
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .. import compat
from ..backends import BACKENDS, reference
from ..backends.contract import BackendError
from ..observations import current_watcher
from ..shapes import ArgumentError
from .account import Account, account
from .names import of_layer

_SDPA = torch.nn.functional.scaled_dot_product_attention
_LAYER = torch.nn.functional.multi_head_attention_forward
_KERNELS = tuple(backend.NAME for backend in BACKENDS if backend is not reference)


@contextmanager
def sdpa() -> Iterator[Account]:
    """Inside, calls of this thread to ``scaled_dot_product_attention`` are computed by Limelight.

    Those that mean exactly the same and that a kernel of Limelight serves; every other one is left to PyTorch, and
    the account says why. A call with dropout drops other weights than PyTorch would, as many and as independent. While
    `limelight.watching` observes, the reference serves calls that no kernel does, so that they are seen.

    ``torch.nn.MultiheadAttention`` is among the callers, and its fused inference path rests meanwhile.

    Yields:
        the `Account` of the calls.
    """
    with account() as told, _Routing(told):
        yield told


class _Routing(TorchFunctionMode):
    def __init__(self, told: Account) -> None:
        super().__init__()
        self.told = told
        # PyTorch's layer is a function of Python that hides the calls inside it from us: the same code, asking us.
        self.layer = FunctionType(
            _LAYER.__code__,
            {**_LAYER.__globals__, "scaled_dot_product_attention": self._called},
            _LAYER.__name__,
            _LAYER.__defaults__,
        )

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is _SDPA:
            return self._called(*args, **kwargs)
        if func is _LAYER:
            if kwargs.get("need_weights", True):
                self.told.left["torch.nn.MultiheadAttention was called with need_weights=True"] += 1
            return self.layer(*args, **kwargs)
        return func(*args, **kwargs)

    def _called(self, *args: Any, **kwargs: Any) -> Tensor:
        output = self._attend(args, kwargs)
        return _SDPA(*args, **kwargs) if output is None else output

    def _attend(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        """The output, or ``None`` where the call is left to PyTorch."""
        tensors = [*args[:4], *(kwargs.get(name) for name in ("query", "key", "value", "attn_mask"))]
        why = _unlike_ours([tensor for tensor in tensors if isinstance(tensor, Tensor)])
        backends: tuple[str | None, ...] = _KERNELS
        name = None
        if not why and current_watcher():
            backends, name = (None,), of_layer()
        for backend in () if why else backends:
            try:
                output = compat.scaled_dot_product_attention(*args, **kwargs, backend=backend, name=name)
            except (ArgumentError, BackendError, TypeError) as error:  # PyTorch may know what it means, or says so
                why = str(error)
            else:
                self.told.taken[_what(args, kwargs)] += 1
                return output
        self.told.left[why] += 1
        return None


def _unlike_ours(tensors: list[Tensor]) -> str:
    """Why the tensors are not plain ones, in words; empty when they are."""
    if torch.compiler.is_compiling():
        return "the call is being compiled"
    for tensor in tensors:
        if tensor.is_nested:
            return "a nested tensor is among the arguments"
        if type(tensor) not in (Tensor, torch.nn.Parameter):
            return f"a {type(tensor).__name__} is among the arguments"
    return ""


def _what(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """The call in the words of PyTorch."""
    given = dict(zip(("query", "key", "value", "attn_mask", "dropout_p", "is_causal"), args, strict=False)) | kwargs
    mask = given.get("attn_mask")
    seen = "causal" if given.get("is_causal") else "every key" if mask is None else f"a {mask.dtype} mask"
    return f"{seen}, dropout" if given.get("dropout_p") else seen
