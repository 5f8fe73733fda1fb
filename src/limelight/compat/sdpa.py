"""PyTorch's `scaled_dot_product_attention`, computed by `limelight.attention`."""

from __future__ import annotations

import math
import sys
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..forms.layouts import Aligned, Layout
from ..forms.patterns import Causal, Explicit, Pattern
from ..forms.scores import Bias, ScoreRule
from ..tensors.shapes import check_broadcast, check_dropout, describe, flag, wrong
from ..tensors.torch_internals import is_tracer_type
from .kernels import attention


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    backend: str | None = None,
    name: str | None = None,
) -> Tensor:
    """`torch.nn.functional.scaled_dot_product_attention`, of ``(..., H, L, D)`` or ``(L, D)`` tensors.

    Leading dimensions of the three broadcast, heads included. ``is_causal`` is its top-left reading: query ``i`` sees
    the keys up to ``i``, whatever the number of keys. A bool ``attn_mask`` is true where the query sees the key; a
    float one, of float32 or the dtype of the query, is added to the scores; a `torch.nn.attention.bias.CausalBias`
    becomes `limelight.Causal`, and nothing of its size is held. A query that sees nothing gives zeros. ``backend`` and
    ``name`` are those of `limelight.attention`.

    Raises:
        ArgumentError: a nested tensor or a tensor subclass, ``attn_mask`` together with ``is_causal``, or what
            `limelight.attention` refuses.
    """
    call = sdpa_call(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
    output: Tensor = attention(*call.tensors, **call.settings, backend=backend, name=name)
    return output if call.shape is None else output.reshape(call.shape)


class SdpaCall(NamedTuple):
    """A call of PyTorch's function as arguments of `limelight.attention`."""

    tensors: tuple[Tensor, Tensor, Tensor]  # (B, H, L, D)
    settings: dict[str, Any]
    shape: tuple[int, ...] | None  # of the output; None when it is that of the operator


def sdpa_call(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> SdpaCall:
    """Check the arguments of `scaled_dot_product_attention` and translate them for `limelight.attention`."""
    _check_kinds(query=query, key=key, value=value)
    dropout = check_dropout(dropout_p, "dropout_p")
    is_causal, enable_gqa = flag("is_causal", is_causal), flag("enable_gqa", enable_gqa)
    tensors, lead = _four_dimensions(query, key, value, enable_gqa)
    sizes = (*lead, query.shape[-2], key.shape[-2])
    layout: Layout | None = Aligned(query_start=0) if is_causal else None
    pattern: Pattern | None = Causal() if is_causal else None
    scores: tuple[ScoreRule, ...] = ()
    if attn_mask is not None:
        if is_causal:
            raise wrong(
                "attn_mask", "cannot be given with is_causal=True", "both are", "Put the triangle into the mask."
            )
        if _is_causal_bias(attn_mask):
            layout, pattern = _causal_bias(attn_mask, *sizes[-2:])
        else:
            mask = _mask(attn_mask, query, sizes)
            if mask.dtype == torch.bool:
                pattern = Explicit(mask)
            else:
                scores = (Bias(mask),)
    settings = {"layout": layout, "pattern": pattern, "scores": scores, "scale": scale, "dropout": dropout}
    return SdpaCall(tensors, settings, None if len(lead) == 2 else (*lead, query.shape[-2], value.shape[-1]))


def _four_dimensions(
    query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool
) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[int, ...]]:
    """The three tensors as ``(B, H, L, D)``, and the leading dimensions that they share by broadcasting.

    A single key-value head is not repeated: all query heads are one group.
    """
    q, k, v = query.shape, key.shape, value.shape
    if len(q) == len(k) == len(v) == 4 and q[0] == k[0] == v[0] and k[1] == v[1] and (enable_gqa or q[1] == k[1]):
        return (query, key, value), (q[0], q[1])
    for name, shape in (("query", q), ("key", k), ("value", v)):
        if len(shape) < 2:
            got = f"its shape is {tuple(shape)}"
            raise wrong(name, "must have at least 2 dimensions, (..., L, D)", got, "Use unsqueeze.")
    heads, key_heads, value_heads = (shape[-3] if len(shape) > 2 else 1 for shape in (q, k, v))
    if enable_gqa:
        if not (key_heads and value_heads) or heads % key_heads or heads % value_heads:
            got = f"they have {key_heads} and {value_heads}, and `query` {heads}"
            raise wrong(
                "key", "and `value` must have a number of heads that divides that of `query`", got, "Repeat them."
            )
        if key_heads != value_heads:
            key, value = (x.repeat_interleave(heads // n, -3) for x, n in ((key, key_heads), (value, value_heads)))
            key_heads = value_heads = heads
    else:
        (heads,) = _broadcast(
            "the heads of `query`, or one, without enable_gqa=True", (heads,), (key_heads,), (value_heads,)
        )
        key_heads = 1 if key_heads == value_heads == 1 else heads
    batch = _broadcast("leading dimensions that broadcast with those of `query`", q[:-3], k[:-3], v[:-3])
    B = math.prod(batch)
    tensors = tuple(
        x.expand(*batch, n, *x.shape[-2:]).reshape(B, n, *x.shape[-2:])
        for x, n in ((query, heads), (key, key_heads), (value, key_heads))
    )
    flat = max(len(q), len(k), len(v)) == 2
    return tensors, () if flat else (*batch, heads)  # type: ignore[return-value]


def _broadcast(rule: str, *shapes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape to which those of query, key and value broadcast."""
    try:
        return tuple(torch.broadcast_shapes(*shapes))  # type: ignore[no-untyped-call]
    except RuntimeError:
        got = "they are " + " and ".join(str(tuple(shape)) for shape in shapes[1:]) + f" against {tuple(shapes[0])}"
        way_out = "Sizes are matched from the last dimension on, a missing or 1-sized one is shared; enable_gqa=True "
        raise wrong("key", f"and `value` must have {rule}", got, f"{way_out}shares heads by groups.") from None


def _mask(mask: Tensor, query: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """A mask over ``sizes`` as one over ``(B, H, Lq, Lk)``; PyTorch's rules for its dtype and shape."""
    _check_kinds(attn_mask=mask)
    dtypes = (torch.bool, torch.float32, query.dtype)
    if mask.dtype not in dtypes and not _autocast_converts(mask, query):
        got = f"it is {describe(mask)} and `query` is {query.dtype}"
        raise wrong("attn_mask", "must be bool, float32 or of the dtype of `query`", got, "Convert it with .to().")
    if mask.dim() < 2:
        raise wrong(
            "attn_mask", "must have at least 2 dimensions, (..., Lq, Lk)", f"it is {describe(mask)}", "Use mask[None]."
        )
    check_broadcast("attn_mask", mask.shape, sizes)
    batch = sizes[:-3]
    if mask.dim() > 3 and len(batch) > 1:
        mask = mask.expand(*batch, *mask.shape[-3:]).reshape(math.prod(batch), *mask.shape[-3:])
    return mask


def _autocast_converts(mask: Tensor, query: Tensor) -> bool:
    """Whether autocast gives a float mask the dtype of the query; it leaves float64 alone."""
    return (
        torch.is_autocast_enabled(query.device.type)
        and mask.is_floating_point()
        and torch.float64 not in (mask.dtype, query.dtype)
    )


def _check_kinds(**tensors: Tensor) -> None:
    """Refuse tensors that mean something else than the numbers in their memory.

    Tracers wrap the tensors of a call in classes of their own (`torch.compile`, ``make_fx``); those are passed on.
    """
    for name, tensor in tensors.items():
        kind = type(tensor)
        if (kind is Tensor or kind is torch.nn.Parameter) and not tensor.is_nested:
            continue
        if not isinstance(tensor, Tensor):
            raise wrong(name, "must be a torch.Tensor", f"it is a {kind.__name__}", "Pass a tensor.")
        if tensor.is_nested:
            raise wrong(
                name, "must not be a nested tensor", f"it is one of {tensor.layout} layout",
                "Use flash_attn_varlen_func, or limelight.Packed, for documents of different lengths laid end to end.",
            )  # fmt: skip
        if not is_tracer_type(kind):
            raise wrong(
                name, "must be a plain tensor", f"it is a {kind.__module__}.{kind.__qualname__}",
                "Pass the plain tensor that it stands for; what a subclass means by its operations is not known here.",
            )  # fmt: skip


def _is_causal_bias(mask: Tensor) -> bool:
    # Importing its module costs a second; where it has not been imported, there is no instance.
    module = sys.modules.get("torch.nn.attention.bias")
    return module is not None and isinstance(mask, module.CausalBias)


def _causal_bias(bias: Any, Lq: int, Lk: int) -> tuple[Layout, Pattern]:
    """``causal_upper_left`` puts the first query at the first key, ``causal_lower_right`` the last at the last."""
    if (bias.seq_len_q, bias.seq_len_kv) != (Lq, Lk):
        got = f"it is one of {bias.seq_len_q} queries and {bias.seq_len_kv} keys"
        raise wrong(
            "attn_mask", f"must be made for {Lq} queries and {Lk} keys", got, "Make it from the sizes of the call."
        )
    return Aligned(query_start=0 if bias.variant.name == "UPPER_LEFT" else None), Causal()
