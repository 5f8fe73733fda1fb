"""Neighbours' conventions: the signatures of PyTorch and flash-attention, over the one operator.

Thin on purpose. What the neighbour means by an argument is said here once; where its meaning cannot be kept, the call
raises.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .attention import attention
from .layouts import Aligned, Packed
from .patterns import Causal, Explicit, Pattern, Window
from .scores import ALiBi, Bias, ScoreRule, SoftCap
from .shapes import wrong


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
    """`torch.nn.functional.scaled_dot_product_attention`, of ``(B, H, L, D)`` or ``(H, L, D)`` tensors.

    ``is_causal`` is its top-left reading: query ``i`` sees the keys up to ``i``, whatever the number of keys. A bool
    ``attn_mask`` is true where the query sees the key; a float one is added to the scores. A query that sees nothing
    gives zeros. ``backend`` and ``name`` are those of `limelight.attention`.
    """
    if attn_mask is not None and is_causal:
        raise wrong("attn_mask", "cannot be given with is_causal=True", "both are", "Put the triangle into the mask.")
    if not enable_gqa and key.shape[-3] != query.shape[-3]:
        got = f"{key.shape[-3]} stand against {query.shape[-3]}"
        raise wrong("key", "must have the heads of `query` without enable_gqa=True", got, "Say enable_gqa=True.")
    pattern: Pattern | None = Causal() if is_causal else None
    scores: tuple[ScoreRule, ...] = ()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        pattern = Explicit(attn_mask)
    elif attn_mask is not None:
        scores = (Bias(attn_mask),)
    layout = Aligned(query_start=0) if is_causal else None
    return _output(
        query, key, value, layout=layout, pattern=pattern, scores=scores, scale=scale, dropout=dropout_p,
        backend=backend, name=name,
    )  # fmt: skip


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
) -> Tensor:
    """``flash_attn.flash_attn_func``: tensors are ``(B, L, H, D)``, and so is the result.

    ``window_size=(left, right)`` counts keys before and after the query's own, -1 for no limit; ``causal`` puts the
    last query at the last key. Results are deterministic whatever ``deterministic`` says.
    """
    heads_first = (tensor.transpose(1, 2) for tensor in (q, k, v))  # no copy
    pattern, scores = _flash(causal, window_size, softcap, alibi_slopes)
    output = _output(*heads_first, pattern=pattern, scores=scores, scale=softmax_scale, dropout=dropout_p)
    return output.transpose(1, 2)


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
) -> Tensor:
    """``flash_attn.flash_attn_varlen_func``: documents laid end to end, tensors are ``(total, H, D)``.

    Args:
        cu_seqlens_q: ``(N + 1,)`` where each document's queries begin, and the total; likewise ``cu_seqlens_k``.
        max_seqlen_q: not needed, and taken so that calls need not change; likewise ``max_seqlen_k``.
    """
    layout = Packed(_lengths("cu_seqlens_q", cu_seqlens_q), _lengths("cu_seqlens_k", cu_seqlens_k))
    heads_first = (tensor.transpose(0, 1)[None] for tensor in (q, k, v))
    pattern, scores = _flash(causal, window_size, softcap, alibi_slopes)
    output = _output(
        *heads_first, layout=layout, pattern=pattern, scores=scores, scale=softmax_scale, dropout=dropout_p
    )
    return output[0].transpose(0, 1)


def _flash(
    causal: bool, window_size: tuple[int, int], softcap: float, alibi_slopes: Tensor | None
) -> tuple[Pattern | None, tuple[ScoreRule, ...]]:
    """Pattern and score rules in flash-attention's words; it caps scores before it adds the ALiBi slopes."""
    left, right = (None if side < 0 else side for side in window_size)
    pattern: Pattern | None = None
    if left is not None or right is not None:
        pattern = Window(left, right)
    if causal:
        pattern = Causal() if pattern is None else Causal() & pattern
    scores: list[ScoreRule] = []
    if softcap:
        scores.append(SoftCap(softcap))
    if alibi_slopes is not None:
        scores.append(ALiBi(alibi_slopes))
    return pattern, tuple(scores)


def _lengths(name: str, ends: Tensor) -> Tensor:
    if ends.dim() != 1 or len(ends) < 1 or ends.dtype.is_floating_point:
        raise wrong(name, "must be (N + 1,) whole numbers", f"its shape is {tuple(ends.shape)}", "Begin with 0.")
    return ends.diff()


def _output(query: Tensor, key: Tensor, value: Tensor, **settings: object) -> Tensor:
    output = attention(query, key, value, **settings)  # type: ignore[arg-type]
    assert isinstance(output, Tensor)
    return output
