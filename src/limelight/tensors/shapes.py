"""The letters of sizes, and the checks of arguments with their one form of error.

Every file of Limelight uses these letters:

``B`` batch · ``Hq`` query heads · ``Hkv`` key-value heads (``Hq % Hkv == 0``) · ``G = Hq // Hkv`` group size ·
``Lq`` queries · ``Lk`` keys · ``D`` head width of query and key · ``Dv`` head width of value.

Tensors are ``(B, H, L, D)``, or ``(H, L, D)`` without a batch.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .torch_internals import (
    UninitializedTensorMixin,
    are_transforms_active,
    has_storage,
    is_functional,
    is_transform_tensor,
)
from .tracing import readable

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
#: Types of tensors whose values lie in their own storage; a subclass may keep its values anywhere.
PLAIN = (Tensor, torch.nn.Parameter)
#: The largest position: sums of two positions stay below the numbers that stand for infinity in kernels.
FARTHEST = 2**58


class ArgumentError(ValueError):
    """An argument breaks a rule. The message names the argument, the rule, the values and the way out."""


def wrong(argument: str, rule: str, got: str, way_out: str) -> ArgumentError:
    """An error in the form that all have: ``argument``, the ``rule``, what was ``got``, the ``way_out``."""
    return ArgumentError(f"`{argument}` {rule}, but {got}. {way_out}")


def describe(value: object) -> str:
    """A value in an error message, in at most 80 characters: a tensor by its dtype and shape, never by its values."""
    if isinstance(value, (tuple, list)) and any(isinstance(part, Tensor) for part in value):
        return f"a {type(value).__name__} of {', '.join(map(describe, value))}"
    if not isinstance(value, Tensor):
        return _shortened(repr(value))
    if value.is_nested:
        return "a nested tensor"
    if is_lazy(value):
        return f"an uninitialized {type(value).__name__}"
    return f"{str(value.dtype).replace('torch.', 'a ').replace('a int', 'an int')} tensor of shape {tuple(value.shape)}"


def _shortened(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."


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
        """Shape of the score matrix, which kernels never hold: ``(B, Hq, Lq, Lk)``."""
        return (self.B, self.Hq, self.Lq, self.Lk)


def read_shapes(query: Tensor, key: Tensor, value: Tensor, stored: int | None = None, dtype: Any = None) -> Shapes:
    """Check that three ``(B, H, L, D)`` tensors fit together and return their sizes.

    The common case costs a few comparisons of integers; only a failure looks for the rule that is broken.

    Args:
        query: ``(B, Hq, Lq, D)``.
        key: ``(B, Hkv, Lk, D)``; where ``stored``, in pages, ``(pages, Hkv, size, D)``, and the batch is 1.
        value: ``(B, Hkv, Lk, Dv)``, or ``(pages, Hkv, size, Dv)``.
        stored: the number of keys that lie in pages.
        dtype: that of key and value, where it is not the dtype of the query.

    Raises:
        ArgumentError: a wrong rank, batch, head count, length, width, dtype or device.
    """
    try:
        q, k, v = query.shape, key.shape, value.shape
        if len(q) == len(k) == len(v) == 4:
            B, Hq, Lq, D = q
            if (
                (k[0] == B if stored is None else B == 1)
                and v[0] == k[0]
                and k[3] == D
                and v[1] == k[1]
                and v[2] == k[2]
                and k[1] > 0
                and Hq % k[1] == 0
                and D > 0
                and key.dtype is (dtype or query.dtype)
                and value.dtype is key.dtype
                and query.dtype in FLOATS
                and ((query.is_cpu and key.is_cpu and value.is_cpu) or query.device == key.device == value.device)
            ):
                return Shapes(B, Hq, k[1], Lq, k[2] if stored is None else stored, D, v[3])
    except (AttributeError, RuntimeError, TypeError):  # no tensor, or one without sizes
        raise _broken_rule(query, key, value, stored is not None) from None
    key, value = (x if dtype is None else x.to(query.dtype) for x in (key, value))  # it breaks no rule
    raise _broken_rule(query, key, value, stored is not None)


def _broken_rule(query: Tensor, key: Tensor, value: Tensor, in_pages: bool) -> ArgumentError:
    """The error of the first rule that the three tensors break."""
    named: dict[str, Any] = {"query": query, "key": key, "value": value}
    for name, tensor in named.items():
        if not isinstance(tensor, Tensor):
            return _no_tensor(name, tensor)
        why = _unreadable(tensor)
        if why:
            return wrong(name, *why)
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
        if not in_pages and tensor.shape[0] != query.shape[0]:
            return wrong(
                name,
                "must have the batch size of `query`",
                f"{tensor.shape[0]} is not {query.shape[0]} (shapes {tuple(tensor.shape)} and {tuple(query.shape)})",
                "Use .expand() to share one row with a whole batch; it copies nothing.",
            )
    if in_pages and query.shape[0] != 1:
        got = f"its batch size is {query.shape[0]}"
        return wrong("query", "must be one batch row where keys lie in pages", got, "Lay the texts end to end.")
    if in_pages and value.shape[0] != key.shape[0]:
        return wrong("value", "must have the pages of `key`", f"{value.shape[0]} is not {key.shape[0]}", "Cut one.")
    return _broken_rule_of_sizes(query, key, value)


def _broken_rule_of_sizes(query: Tensor, key: Tensor, value: Tensor) -> ArgumentError:
    """The error of the first rule that heads, lengths or widths break."""
    if query.shape[3] == 0 or key.shape[3] != query.shape[3]:
        return wrong(
            "key",
            "must have the head width D of `query`, at least 1",
            f"`key` has head width {key.shape[3]}, `query` {query.shape[3]} "
            f"(shapes {tuple(key.shape)} and {tuple(query.shape)})",
            "Only `value` may have another width.",
        )
    if value.shape[1] != key.shape[1] or value.shape[2] != key.shape[2]:
        return wrong(
            "value",
            "must have the heads and the length of `key`",
            f"its shape is {tuple(value.shape)} and that of `key` {tuple(key.shape)}",
            "Each key has exactly one value.",
        )
    return wrong(
        "query",
        "must have a number of heads that is a multiple of the heads of `key`",
        f"{query.shape[1]} is not a multiple of {key.shape[1]}",
        "Grouped-query attention shares each key-value head among Hq / Hkv query heads.",
    )


def is_lazy(tensor: Tensor) -> bool:
    """Whether a tensor is a parameter or buffer of a lazy module before its first call: it has no shape."""
    return isinstance(tensor, UninitializedTensorMixin)


def check_tensor(name: str, tensor: object) -> Tensor:
    """Return ``tensor``, checked to be a tensor with a dense array of values in memory.

    A tensor whose values are elsewhere (a subclass, a tensor of a transform, another device) passes: a backend that
    reads memory refuses it in its `reasons_against`.

    Raises:
        ArgumentError: a class, another object; a nested, sparse or quantized tensor; memory that was freed.
    """
    if not isinstance(tensor, Tensor):
        raise _no_tensor(name, tensor)
    if not torch.compiler.is_compiling() and not _is_contiguous_in_storage(tensor) and readable(tensor):
        why = _unreadable(tensor)
        if why:
            raise wrong(name, *why)
    return tensor


def check_dense(name: str, tensor: object) -> Tensor:
    """`check_tensor` without its shortcut for contiguous tensors, which lets nested and quantized ones pass.

    Raises:
        ArgumentError: as `check_tensor`.
    """
    checked = check_tensor(name, tensor)
    if not torch.compiler.is_compiling() and readable(checked):
        why = _unreadable(checked)
        if why:
            raise wrong(name, *why)
    return checked


def _is_contiguous_in_storage(tensor: Tensor) -> bool:
    """Whether a tensor lies contiguously within its storage: the common case, and cheap to check."""
    try:
        return (
            type(tensor) in PLAIN
            and not tensor.is_nested
            and tensor.is_contiguous()
            and tensor.data_ptr() != 0
            and tensor.untyped_storage().nbytes() >= tensor.nbytes + tensor.storage_offset() * tensor.itemsize
        )
    except (RuntimeError, ValueError):  # a sparse tensor, or one of a transform, has neither
        return False


def _no_tensor(name: str, value: object) -> ArgumentError:
    if isinstance(value, type):
        return wrong(name, "must be a torch.Tensor", f"it is the class {value.__name__}", "Pass an instance.")
    return wrong(name, "must be a torch.Tensor", f"it is a {type(value).__name__}", "Use torch.as_tensor().")


def _unreadable(tensor: Tensor) -> tuple[str, str, str] | None:
    """Rule, finding and way out for a tensor without a dense array of values in memory; ``None`` for any other."""
    rule = "must be a dense tensor with memory"
    if tensor.is_nested:
        way_out = "Pad it and describe the lengths with Padded, or lay its .values() end to end and use Packed."
        return rule, "it is a nested tensor", way_out
    if is_lazy(tensor):
        return rule, f"it is an uninitialized {type(tensor).__name__}", "Call the lazy module once."
    if tensor.is_quantized:
        return rule, f"it is quantized ({tensor.dtype})", "Use .dequantize()."
    if tensor.layout is not torch.strided:
        return rule, f"its layout is {tensor.layout}", "Use .to_dense()."
    if type(tensor) not in PLAIN or not tensor.is_cpu:
        return None
    if are_transforms_active():
        return None
    if is_functional(tensor) or is_transform_tensor(tensor):
        return rule, "it belongs to a transform of torch.func that has ended", "Return it from the transform."
    if not has_storage(tensor):  # a batch of PyTorch's older vmap
        return None
    held = tensor.untyped_storage().nbytes()
    if held < extent(tensor):
        got = f"its storage holds {held:,} of the {extent(tensor):,} bytes that its shape and strides reach"
        return rule, got, "The storage was freed or shrunk (untyped_storage().resize_): restore it before the call."
    return None


def extent(tensor: Tensor) -> int:
    """Bytes from the start of a tensor's storage up to its last element; 0 where it has no elements."""
    last = int(tensor.storage_offset())
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        if size == 0:
            return 0
        last += (size - 1) * stride
    return int((last + 1) * tensor.itemsize)


def number(name: str, value: object, rule: str, way_out: str) -> float:
    """Return ``value``, checked to be a finite real number.

    Raises:
        ArgumentError: it is not; the message has ``rule`` and ``way_out``.
    """
    if isinstance(value, (torch.SymInt, torch.SymFloat)) or (
        torch.compiler.is_compiling() and isinstance(value, (int, float))
    ):
        return value  # type: ignore[return-value]
    try:
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            return value
    except OverflowError:
        pass
    raise wrong(name, rule, f"it is {describe(value)}", way_out)


def whole_number(name: str, value: object, *, at_least: int | None = None, at_most: int | None = None) -> int:
    """Return ``value``, checked to be an int from ``at_least`` to ``at_most``.

    Raises:
        ArgumentError: it is not; a bool or a float is no whole number.
    """
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise wrong(name, "must be a whole number", f"it is {describe(value)}", "Pass an int.")
    if at_least is not None and value < at_least:
        raise wrong(name, f"must be at least {at_least}", f"it is {value}", f"Use {at_least} or more.")
    if at_most is not None and isinstance(value, int) and value > at_most:
        raise wrong(name, f"must be at most {at_most}", f"it is {describe(value)}", f"Use {at_most} or less.")
    return value  # type: ignore[return-value]


def flag(name: str, value: object) -> bool:
    """Return ``value``, checked to be a bool.

    Raises:
        ArgumentError: it is not.
    """
    if not isinstance(value, bool):
        raise wrong(name, "must be True or False", f"it is {describe(value)}", "Pass a bool.")
    return value


def position(name: str, value: object, *, at_least: int = -FARTHEST) -> int:
    """Return ``value``, checked to be a position, or a number of positions, from ``at_least`` to `FARTHEST`.

    Raises:
        ArgumentError: it is not.
    """
    found = whole_number(name, value)
    if isinstance(found, int) and not at_least <= found <= FARTHEST:
        rule = f"must lie between {at_least if at_least > -FARTHEST else '-2^58'} and 2^58"
        raise wrong(name, rule, f"it is {describe(found)}", "The kernels cannot distinguish positions beyond.")
    return found


def check_sink(sink: object, query: Tensor, shapes: Shapes) -> None:
    """Raise unless ``sink`` holds one float logit for each query head, beside the query."""
    tensor = check_tensor("sink", sink)
    if tensor.shape == (shapes.Hq,) and tensor.dtype in FLOATS and tensor.device == query.device:
        return
    rule = f"must be a float tensor of one logit for each query head, ({shapes.Hq},), beside `query`"
    if tensor.shape != (shapes.Hq,):
        raise wrong("sink", rule, f"its shape is {tuple(tensor.shape)}", "Use .expand().")
    raise wrong("sink", rule, f"it is {describe(tensor)} on {tensor.device}", "Convert or move it with .to().")


def check_seed(seed: object) -> None:
    """Raise unless ``seed`` is an int of 64 bits or an integer tensor of one element."""
    rule = "must be an int of 64 bits or an integer tensor of one element"
    if isinstance(seed, Tensor):
        check_tensor("seed", seed)
        whole = not (seed.is_floating_point() or seed.is_complex() or seed.dtype == torch.bool)
        if not whole or seed.numel() != 1:
            raise wrong("seed", rule, f"it is {describe(seed)}", "Use torch.tensor(5).")
    elif isinstance(whole_number("seed", seed), int) and not -(2**63) <= seed < 2**63:  # type: ignore[operator]
        raise wrong("seed", rule, f"it is {describe(seed)}", "Use seed % 2**63.")


def check_dropout(dropout: object, name: str = "dropout") -> float:
    """``dropout`` as a probability below 1."""
    rule, way_out = "must be a probability from 0 to below 1", "0 drops nothing."
    found = number(name, dropout, rule, way_out)
    if not 0.0 <= found < 1.0:
        raise wrong(name, rule, f"it is {found}", way_out)
    return found


def sequence(name: str, value: object, what: str, example: str) -> tuple[Any, ...]:
    """Return the parts of ``value``, checked to be a sequence.

    Raises:
        ArgumentError: it is not; the message has ``what`` it must be and an ``example``.
    """
    if not isinstance(value, (tuple, list, range)):
        raise wrong(name, f"must be {what}", f"it is {describe(value)}", f"Write {example}.")
    return tuple(value)


def fits(have: int, want: int) -> bool:
    """Whether a dimension of size ``have`` broadcasts to ``want``.

    Two comparisons: for a compiler ``have in (1, want)`` is false where one is a constant and the other symbolic.
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
