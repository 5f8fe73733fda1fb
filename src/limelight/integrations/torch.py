"""Limelight in any model that calls ``torch.nn.functional.scaled_dot_product_attention``.

::

    with limelight.integrations.torch.sdpa() as calls:
        model(images)
    print(calls)  # which calls were taken over, which were left to PyTorch, and why
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..backends import BACKENDS, reference
from ..backends.contract import BackendError
from ..compat.sdpa import scaled_dot_product_attention, sdpa_call
from ..forms.observations import current_watcher
from ..tensors import tracing
from ..tensors.shapes import ArgumentError
from .account import Account, account
from .names import of_layer
from .weights import attend as attend_whole

_SDPA = torch.nn.functional.scaled_dot_product_attention
_LAYER = torch.nn.functional.multi_head_attention_forward
_LAYER_SIGNATURE = inspect.signature(_LAYER)
_KERNELS = tuple(backend.NAME for backend in BACKENDS if backend is not reference)


@contextmanager
def sdpa() -> Iterator[Account]:
    """Compute calls of this thread to ``scaled_dot_product_attention`` by Limelight, inside the ``with`` block.

    Limelight takes the calls for which it has the same meaning and a kernel; all others are left to PyTorch, and the
    account says why. With dropout, other weights are dropped than by PyTorch, with the same probability. While
    `limelight.watching` observes, the reference computes calls for which there is no kernel, so that they are observed
    too.

    This includes the calls of ``torch.nn.MultiheadAttention``, whose fused inference path is not used inside the block.
    With ``need_weights=True`` it returns exact weights, which take ``Lq x Lk`` memory; as in PyTorch, a query that sees
    no key has NaN then, and zeros with ``need_weights=False``.

    Yields:
        the `Account` of the calls.
    """
    with account() as calls, _Routing(calls):
        yield calls


class _Routing(TorchFunctionMode):
    def __init__(self, calls: Account) -> None:
        super().__init__()
        self.calls = calls

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is _SDPA or func is _LAYER:
            recorder = tracing.recorder(next(iter((*args, *kwargs.values())), None))
            if recorder:
                self.calls.left[f"the call is recorded by {recorder}"] += 1
                return func(*args, **kwargs)
        if func is _SDPA:
            return self._called(*args, **kwargs)
        if func is _LAYER:
            for kind in types:
                if kind not in (Tensor, torch.nn.Parameter):  # a subclass, which overrides what the layer does
                    self.calls.left[f"torch.nn.MultiheadAttention was given a {kind.__name__}"] += 1
                    return func(*args, **kwargs)
            given = _LAYER_SIGNATURE.bind(*args, **kwargs).arguments
            if given.get("need_weights", True):
                return self._layer_with_weights(given)
            return _layer(self._called)(**given)
        return func(*args, **kwargs)

    def _called(self, *args: Any, **kwargs: Any) -> Tensor:
        output = self._attend(scaled_dot_product_attention, args, kwargs)
        return _SDPA(*args, **kwargs) if output is None else output

    def _layer_with_weights(self, given: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Run PyTorch's layer without weights, and compute the weights in its one call of attention."""
        whole: list[Tensor] = []

        def attend(*args: Any, backend: str | None, name: str | None) -> Tensor:
            call = sdpa_call(*args)
            output, weights = attend_whole(
                *call.tensors, **call.settings, calls=self.calls, unseen=math.nan, backend=backend, name=name
            )
            whole.append(weights)
            return output

        def called(*args: Any) -> Tensor:
            output = self._attend(attend, args, {})
            if output is None:
                raise _Left
            return output

        # With need_weights, PyTorch uses the mask and ignores the hint `is_causal`.
        hint = given.get("is_causal", False) and given.get("attn_mask") is None
        try:
            output, _ = _layer(called)(**given | {"need_weights": False, "is_causal": hint})
        except _Left:
            return _layer(self._called)(**given)  # type: ignore[no-any-return]
        (weights,) = whole  # (B, H, Lq, Lk)
        if given.get("average_attn_weights", True):
            weights = weights.mean(1)
        return output, weights if given["query"].dim() == 3 else weights.squeeze(0)

    def _attend(self, attend: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        """The output, or ``None`` where the call is left to PyTorch, which computes it or raises."""
        backends: tuple[str | None, ...] = _KERNELS
        name, why = None, ""
        if current_watcher() is not None:
            backends, name = (None,), of_layer()
        for backend in backends:
            try:
                output = attend(*args, **kwargs, backend=backend, name=name)
            except (ArgumentError, BackendError) as error:
                why = str(error)
            except Exception as error:
                why = f"{type(error).__name__}: {error}"
            else:
                self.calls.taken[_what(args, kwargs)] += 1
                return output
        self.calls.left[why] += 1
        return None


class _Left(Exception):
    """The call inside a layer is left to PyTorch."""


def _layer(attend: Callable[..., Tensor]) -> Callable[..., Any]:
    """A copy of PyTorch's Python function for the layer that calls ``attend`` instead of SDPA (a mode does not see
    calls inside it)."""
    return FunctionType(
        _LAYER.__code__,
        {**_LAYER.__globals__, "scaled_dot_product_attention": attend},
        _LAYER.__name__,
        _LAYER.__defaults__,
    )


def _what(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """A description of the call in PyTorch's terms."""
    given = dict(zip(("query", "key", "value", "attn_mask", "dropout_p", "is_causal"), args, strict=False)) | kwargs
    mask = given.get("attn_mask")
    if given.get("is_causal"):
        seen = "causal"
    elif mask is None:
        seen = "every key"
    else:
        seen = f"a {mask.dtype} mask" if type(mask) is Tensor else f"a {type(mask).__name__}"
    return f"{seen}, dropout" if given.get("dropout_p") else seen
