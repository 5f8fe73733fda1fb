"""The glossary of sizes, and the one checker of arguments.

Every file of Limelight uses these letters:

``B`` batch · ``Hq`` query heads · ``Hkv`` key-value heads (``Hq % Hkv == 0``) · ``G = Hq // Hkv`` group size ·
``Lq`` queries · ``Lk`` keys · ``D`` head width of query and key · ``Dv`` head width of value.

Tensors are ``(B, H, L, D)``, or ``(H, L, D)`` without a batch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class ArgumentError(ValueError):
    """An argument breaks a rule. The message names the argument, the rule, the values and the way out."""


def wrong(argument: str, rule: str, got: str, way_out: str) -> ArgumentError:
    """The one form of every complaint: ``argument``, the ``rule``, what was ``got``, the ``way_out``."""
    return ArgumentError(f"`{argument}` {rule}, but {got}. {way_out}")


def describe(value: object) -> str:
    """A value for an error: a tensor by its dtype and shape, never by its numbers."""
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)}"
    return repr(value)


class Shapes(NamedTuple):
    """The sizes of one call."""

    B: int
    Hq: int
    Hkv: int
    Lq: int
    Lk: int
    D: int
    Dv: int

    @property
    def scores(self) -> tuple[int, int, int, int]:
        """Shape of the score matrix that nobody should hold: ``(B, Hq, Lq, Lk)``."""
        return (self.B, self.Hq, self.Lq, self.Lk)


def read_shapes(query: Tensor, key: Tensor, value: Tensor) -> Shapes:
    """Check that three ``(B, H, L, D)`` tensors fit together and return their sizes.

    The common case costs a handful of integer comparisons; only a failure looks for the words.

    Raises:
        ArgumentError: a wrong rank, batch, head count, length, width, dtype or device.
    """
    try:
        q, k, v = query.shape, key.shape, value.shape
    except AttributeError:
        raise _complaint(query, key, value) from None
    if len(q) == len(k) == len(v) == 4:
        B, Hq, Lq, D = q
        if (
            k[0] == B
            and v[0] == B
            and k[3] == D
            and v[1] == k[1]
            and v[2] == k[2]
            and k[1] > 0
            and Hq % k[1] == 0
            and D > 0
            and query.dtype is key.dtype
            and query.dtype is value.dtype
            and query.dtype in FLOATS
            and ((query.is_cpu and key.is_cpu and value.is_cpu) or query.device == key.device == value.device)
        ):
            return Shapes(B, Hq, k[1], Lq, k[2], D, v[3])
    raise _complaint(query, key, value)


def _complaint(query: Tensor, key: Tensor, value: Tensor) -> ArgumentError:
    """The first rule that the three tensors break."""
    named: dict[str, Any] = {"query": query, "key": key, "value": value}
    for name, tensor in named.items():
        if not isinstance(tensor, Tensor):
            return wrong(name, "must be a torch.Tensor", f"it is a {type(tensor).__name__}", "Pass a tensor.")
        if tensor.dim() != 4:
            return wrong(
                name,
                "must have 4 dimensions (B, H, L, D), or all three tensors 3: (H, L, D)",
                f"its shape is {tuple(tensor.shape)}",
                "Use unsqueeze or transpose; a (B, L, H, D) tensor fits after .transpose(1, 2), without a copy.",
            )
        if tensor.dtype not in FLOATS:
            return wrong(
                name, "must be float32, bfloat16, float16 or float64", f"it is {tensor.dtype}", "Convert it with .to()."
            )
    for name in ("key", "value"):
        tensor = named[name]
        if tensor.dtype != query.dtype:
            return wrong(name, "must have the dtype of `query`", f"{tensor.dtype} is not {query.dtype}", "Convert one.")
        if tensor.device != query.device:
            return wrong(
                name,
                "must be on the device of `query`",
                f"{tensor.device} is not {query.device}",
                "Move one with .to().",
            )
        if tensor.shape[0] != query.shape[0]:
            return wrong(
                name,
                "must have the batch size of `query`",
                f"{tensor.shape[0]} is not {query.shape[0]} (shapes {tuple(tensor.shape)} and {tuple(query.shape)})",
                "Use .expand() to share one row with a whole batch; it copies nothing.",
            )
    if query.shape[3] == 0 or key.shape[3] != query.shape[3]:
        return wrong(
            "key",
            "must have the head width D of `query`, at least 1",
            f"{key.shape[3]} stands against {query.shape[3]} (shapes {tuple(key.shape)} and {tuple(query.shape)})",
            "Only `value` may have another width.",
        )
    if value.shape[1] != key.shape[1] or value.shape[2] != key.shape[2]:
        return wrong(
            "value",
            "must have the heads and the length of `key`",
            f"its shape is {tuple(value.shape)} and that of `key` {tuple(key.shape)}",
            "Each key carries exactly one value.",
        )
    return wrong(
        "query",
        "must have a number of heads that is a multiple of the heads of `key`",
        f"{query.shape[1]} is not a multiple of {key.shape[1]}",
        "Grouped-query attention shares each key-value head among Hq / Hkv query heads.",
    )


def whole_number(name: str, value: object, *, at_least: int | None = None) -> int:
    """``value`` as an int, or an error that names it. A bool or a float is no whole number."""
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise wrong(name, "must be a whole number", f"it is {value!r}", "Pass an int.")
    if at_least is not None and value < at_least:
        raise wrong(name, f"must be at least {at_least}", f"it is {value}", f"Use {at_least} or more.")
    return value  # type: ignore[return-value]


def fits(have: int, want: int) -> bool:
    """Whether a dimension of size ``have`` broadcasts to ``want``.

    Two comparisons: to a compiler ``have in (1, want)`` is false of a constant and a size that it does not know yet.
    """
    return have == 1 or have == want


def check_broadcast(name: str, shape: tuple[int, ...], sizes: tuple[int, ...]) -> None:
    """Raise unless a tensor of ``shape`` broadcasts to ``sizes``."""
    fit = len(shape) <= len(sizes) and all(map(fits, reversed(shape), reversed(sizes)))
    if not fit:
        raise wrong(
            name,
            f"must broadcast to {sizes}",
            f"its shape is {tuple(shape)}",
            "Sizes are matched from the last dimension on; a missing or 1-sized one is shared.",
        )
