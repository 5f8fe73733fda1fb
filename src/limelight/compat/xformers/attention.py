"""xFormers' function, computed by `limelight.attention`."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from ...forms.scores import Bias
from ...tensors.shapes import check_dropout, check_tensor, describe, wrong
from ..kernels import attention
from . import blocks, dense, paged
from .dense import Arranged, AttentionBias, LowerTriangularMaskWithTensorBias

_BIASES = {
    name: found
    for module in (dense, blocks, paged)
    for name, found in vars(module).items()
    if isinstance(found, type) and issubclass(found, AttentionBias) and not name.startswith("_")
}


def memory_efficient_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_bias: Tensor | AttentionBias | Any | None = None,
    p: float = 0.0,
    scale: float | None = None,
    *,
    op: Any = None,
    output_dtype: torch.dtype | None = None,
) -> Tensor:
    """``xformers.ops.memory_efficient_attention``: tensors are ``(B, M, H, K)``, and so is the result.

    Args:
        query: ``(B, Mq, H, K)``; ``(B, Mq, K)`` for one head; or ``(B, Mq, G, H, K)``, of ``G`` groups of heads.
        key: the same with ``Mkv`` tokens. Heads of a group that share keys by ``expand`` are not computed apart.
        value: the same with ``Mkv`` tokens and ``Kv`` features.
        attn_bias: a mask of this module or of xFormers itself, or a float tensor that is added to the scores:
            ``(B, H, Mq, Mkv)``, ``(B, Mq, Mkv)`` or ``(B, G, H, Mq, Mkv)``, or what broadcasts to it.
        p: probability with which a weight is dropped.
        scale: factor of the dot product; ``1 / sqrt(K)`` by default.
        op: ignored: it names a kernel of xFormers. `limelight.explain` says what computes a call.
        output_dtype: of the result; that of the query by default.

    Returns:
        ``(B, Mq, H, Kv)``, or the same in the dimensions of the query; zeros for a query that sees nothing.

    Raises:
        ArgumentError: the shapes do not fit, or the mask is made for others.

    Example:
        >>> import torch
        >>> import limelight.compat.xformers as xops
        >>> q, k, v = torch.randn(3, 1, 30, 8, 64)
        >>> mask = xops.BlockDiagonalMask.from_seqlens([10, 20]).make_causal()
        >>> xops.memory_efficient_attention(q, k, v, attn_bias=mask).shape
        torch.Size([1, 30, 8, 64])
    """
    q, k, v = _heads(query, key, value)
    dropout = check_dropout(p, "p")
    if output_dtype is not None and not isinstance(output_dtype, torch.dtype):
        raise wrong("output_dtype", "must be a torch.dtype", f"it is {describe(output_dtype)}", "Use torch.float32.")
    settings = _settings(attn_bias, query, k)
    if settings.page_size:
        k, v = (_pages(x, settings.page_size) for x in (k, v))
    elif settings.keys is not None:
        k, v = (x.index_select(1, settings.keys.to(x.device)) for x in (k, v))
    output: Tensor = attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2),
        layout=settings.layout, pattern=settings.pattern, scores=settings.scores, scale=scale, dropout=dropout,
    )  # fmt: skip
    output = output.transpose(1, 2).reshape(*query.shape[:-1], value.shape[-1])
    return output if output_dtype is None else output.to(output_dtype)


def _heads(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The three as ``(B, M, H, K)``, keys and values of as few heads as there are."""
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        dims = check_tensor(name, tensor).dim()
        if dims not in (3, 4, 5) or dims != query.dim():
            rule = "must be (B, M, H, K), (B, M, K) or (B, M, G, H, K), all three alike"
            raise wrong(name, rule, f"it is {describe(tensor)}", "Use unsqueeze.")
    if query.dim() == 3:
        return query[:, :, None], key[:, :, None], value[:, :, None]
    if query.dim() == 4:
        return query, key, value
    shared = all(x.shape[3] == 1 or x.stride(3) == 0 for x in (key, value)) and bool(key.shape[3])
    for name, tensor in (("key", key), ("value", value)):
        if tensor.shape[2] != query.shape[2] or tensor.shape[3] not in (1, query.shape[3]):
            got = f"it is {describe(tensor)}, and `query` {describe(query)}"
            raise wrong(name, "must have the groups of heads of `query`", got, "Use expand for heads that share keys.")
    if shared:
        return query.flatten(2, 3), key[:, :, :, 0], value[:, :, :, 0]
    heads = query.shape[3]
    key, value = (x.expand(-1, -1, -1, heads, -1).flatten(2, 3) for x in (key, value))
    return query.flatten(2, 3), key, value


def _settings(bias: Any, query: Tensor, key: Tensor) -> Arranged:
    if bias is None:
        return Arranged()
    if isinstance(bias, Tensor):
        return Arranged(scores=(_bias(bias, query),))
    if not isinstance(bias, AttentionBias):
        bias = _own(bias)
    if query.dim() == 3 and isinstance(bias, LowerTriangularMaskWithTensorBias):
        way_out = "Use query.unsqueeze(2)."
        raise wrong("attn_bias", "with a tensor needs (B, M, H, K) tensors", f"`query` is {describe(query)}", way_out)
    if isinstance(bias, (blocks.Blocks, paged.InPages)) and len(query) != 1:
        got = f"it has {len(query)}"
        raise wrong("query", "must have one batch row with a block-diagonal mask", got, "Lay the texts end to end.")
    settings: Arranged = bias.arranged(query.shape[1], key.shape[1])
    return settings


def _bias(tensor: Tensor, query: Tensor) -> Bias:
    """A tensor that is added to the scores, in dimensions like those of the query, as that of four."""
    if query.dim() == 3 and tensor.dim() == 3:
        tensor = tensor[:, None]
    if query.dim() == 5 and tensor.dim() == 5:
        B, *_, Lq, Lk = tensor.shape
        tensor = tensor.expand(B, query.shape[2], query.shape[3], Lq, Lk).flatten(1, 2)
    return Bias(tensor)


def _pages(x: Tensor, size: int) -> Tensor:
    """Keys or values ``(1, pages * size, H, K)`` as ``(pages, size, H, K)``, without a copy."""
    if x.shape[1] % size:
        got = f"there are {x.shape[1]} slots in pages of {size}"
        raise wrong("key", "must consist of whole pages", got, "Check the page_size of the mask.")
    return x[0].unflatten(0, (-1, size))  # type: ignore[no-any-return, no-untyped-call]


def _own(bias: Any) -> AttentionBias:
    """Ours of the same name as a mask of xFormers itself.

    Raises:
        ArgumentError: there is none.
    """
    made = _BIASES.get(type(bias).__name__)
    if made is None or not type(bias).__module__.startswith("xformers"):
        way_out = "Use one of limelight.compat.xformers, or pass bias.materialize(shape)."
        raise wrong("attn_bias", "must be a mask or a tensor", f"it is a {type(bias).__name__}", way_out)
    if made is LowerTriangularMaskWithTensorBias:
        return LowerTriangularMaskWithTensorBias(bias._bias)
    if not dataclasses.is_dataclass(made):
        return made()
    fields = {f.name: getattr(bias, f.name) for f in dataclasses.fields(made)}
    own: AttentionBias = made(**fields)
    return own
