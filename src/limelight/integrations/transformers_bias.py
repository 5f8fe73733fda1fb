"""T5's position bias without the square.

T5 and its relatives compute ``table[bucket(key - query)]`` for every pair in the first layer of a stack, and hand the
``(1, Hq, Lq, Lk)`` tensor to the others. It says no more than one number for each head and distance. `leave_unwritten`
makes their ``compute_bias`` return a `PositionBias` instead while a model runs on Limelight: our attention function
reads the numbers at the ``Lq + Lk - 1`` distances, every other reader that tensor.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from ..forms.scores import RelativeBias
from ..tensors.torch_internals import DisableTorchFunctionSubclass

_ARGUMENTS = ["self", "query_length", "key_length", "device", "past_seen_tokens"]


@dataclass(frozen=True)
class _Shift:
    """The bucket of a distance in a table of all distances from ``least`` on."""

    least: int

    def __call__(self, distance: Tensor) -> Tensor:
        return distance - self.least


class PositionBias(Tensor):
    """A ``(1, Hq, Lq, Lk)`` bias by distance that is written out, by the model itself, when something computes with it.

    Written out above PyTorch's differentiation, so that the gradient of the table is never lost.
    """

    compute: Callable[..., Tensor]
    past: int
    kept: RelativeBias | None

    @staticmethod
    def of(compute: Callable[..., Tensor], shape: tuple[int, ...], like: Tensor, past: int) -> PositionBias:
        """The bias of ``shape`` that ``compute(query_length, key_length, past_seen_tokens=past)`` gives."""
        bias: PositionBias = Tensor._make_wrapper_subclass(PositionBias, shape, dtype=like.dtype, device=like.device)
        bias.compute, bias.past, bias.kept = compute, past, None
        return bias

    def rule(self) -> RelativeBias:
        """The bias by distance: ``O(Lq + Lk)`` numbers for each head; the first query stands at the position ``past``.

        Kept for the next layer, except where a gradient may be wanted: activation checkpointing recomputes it.
        """
        if torch.is_grad_enabled() or self.kept is None:
            _, _, Lq, Lk = self.shape
            least = -(self.past + Lq - 1)
            table = self.compute(1, Lk - least, past_seen_tokens=-least)  # one query that stands at -least
            rule = RelativeBias(table[0, :, 0], _Shift(least))
            if torch.is_grad_enabled():
                return rule
            self.kept = rule
        return self.kept

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Attributes such as shape and dtype are read without computing the bias; other functions get its values."""
        if func not in _AS_IT_IS:

            def numbers(value: Any) -> Any:
                if not isinstance(value, PositionBias):
                    return value
                return value.compute(*value.shape[2:], past_seen_tokens=value.past)

            args, kwargs = torch.utils._pytree.tree_map(numbers, (args, kwargs))
        with DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Reached by `detach` alone, with which activation checkpointing hands a tensor on."""
        if function not in (torch.ops.aten.detach.default, torch.ops.aten.alias.default):
            raise NotImplementedError(f"{function} on a position bias of T5 that was not written out")
        bias = args[0]
        return PositionBias.of(bias.compute, tuple(bias.shape), bias, bias.past)


# Questions about its form, and the passage through a reentrant checkpoint.
_AS_IT_IS: set[Any] = {
    *(getattr(Tensor, name).__get__ for name in ("shape", "dtype", "device", "ndim", "grad_fn", "is_leaf", "grad")),
    *(getattr(Tensor.requires_grad, name) for name in ("__get__", "__set__")),
    Tensor.size, Tensor.dim, Tensor.is_floating_point, Tensor.detach, torch.autograd.backward,
}  # fmt: skip


def leave_unwritten(config: type, implementation: str) -> None:
    """Let the layers of a config's family leave the bias unwritten while their config names ``implementation``.

    A family is served when its layers have T5's ``compute_bias(query_length, key_length, device, past_seen_tokens)``.
    Called for every mask, it looks at a family once.
    """
    name = config.__module__.replace(".configuration_", ".modeling_")
    if name in _looked_at or name not in sys.modules:
        return
    _looked_at.add(name)
    for kind in list(vars(sys.modules[name]).values()):
        written = vars(kind).get("compute_bias") if isinstance(kind, type) and kind.__module__ == name else None
        if written is not None and list(inspect.signature(written).parameters) == _ARGUMENTS:
            kind.compute_bias = _unwritten(written, implementation)


_looked_at: set[str] = set()


def _unwritten(written: Callable[..., Tensor], implementation: str) -> Callable[..., Tensor]:
    @wraps(written)
    def compute_bias(
        self: Any, query_length: int, key_length: int, device: Any = None, past_seen_tokens: int | Tensor = 0
    ) -> Tensor:
        if self.config._attn_implementation != implementation or torch.compiler.is_compiling():
            return written(self, query_length, key_length, device=device, past_seen_tokens=past_seen_tokens)

        def compute(queries: int, keys: int, past_seen_tokens: int) -> Tensor:
            return written(self, queries, keys, device=device, past_seen_tokens=past_seen_tokens)

        like = self.relative_attention_bias.weight
        return PositionBias.of(compute, (1, like.shape[1], query_length, key_length), like, int(past_seen_tokens))

    return compute_bias
