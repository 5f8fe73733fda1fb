"""flash-attention's functions of batches whose rows are equally long."""

from __future__ import annotations

from torch import Tensor

from .settings import Result, attend, chance_and_scale, check_dims, meaning, result, unpacked


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
    return_attn_probs: bool = False,
) -> Result:
    """``flash_attn.flash_attn_func``: tensors are ``(B, L, H, D)``, and so is the result.

    Args:
        q: ``(B, Lq, Hq, D)``.
        k: ``(B, Lk, Hkv, D)``, where ``Hq`` is a multiple of ``Hkv``.
        v: ``(B, Lk, Hkv, Dv)``.
        dropout_p: probability with which a weight is dropped.
        softmax_scale: factor of the dot product; ``1 / sqrt(D)`` by default.
        causal: the last query has the position of the last key, and sees no later one.
        window_size: ``(left, right)`` keys before and after the query's own, -1 for no limit; ints or a tensor.
        softcap: scores become ``softcap * tanh(score / softcap)``; 0 and below is off.
        alibi_slopes: ``(Hq,)`` or ``(B, Hq)``.
        deterministic: ignored, since results are always deterministic.
        return_attn_probs: return ``(output, logsumexp, None)``, where ``logsumexp`` is ``(B, Hq, Lq)`` float32 and
            -inf where a query sees nothing. The third, in flash-attention weights for its own tests, is not given;
            `limelight.Observe` shows the weights.
    """
    check_dims("(B, L, H, D)", q=q, k=k, v=v)
    pattern, scores = meaning(causal, window_size, softcap, alibi_slopes)
    output, logsumexp = attend(
        *(tensor.transpose(1, 2) for tensor in (q, k, v)),  # no copy
        pattern=pattern, scores=scores, **chance_and_scale(dropout_p, softmax_scale, return_attn_probs),
    )  # fmt: skip
    return result(output.transpose(1, 2), logsumexp)


def flash_attn_kvpacked_func(
    q: Tensor,
    kv: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Result:
    """``flash_attn.flash_attn_kvpacked_func``: `flash_attn_func` of keys and values in one tensor, which is not copied.

    Args:
        q: ``(B, Lq, Hq, D)``.
        kv: ``(B, Lk, 2, Hkv, D)``, where ``Hq`` is a multiple of ``Hkv``.
        dropout_p: probability with which a weight is dropped.
        softmax_scale: factor of the dot product; ``1 / sqrt(D)`` by default.
        causal: the last query has the position of the last key, and sees no later one.
        window_size: ``(left, right)`` keys before and after the query's own, -1 for no limit; ints or a tensor.
        softcap: scores become ``softcap * tanh(score / softcap)``; 0 and below is off.
        alibi_slopes: ``(Hq,)`` or ``(B, Hq)``.
        deterministic: ignored, since results are always deterministic.
        return_attn_probs: return ``(output, logsumexp, None)`` with ``logsumexp`` ``(B, Hq, Lq)`` float32.
    """
    k, v = unpacked("kv", kv, 2, 5)
    return flash_attn_func(
        q, k, v, dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic,
        return_attn_probs,
    )  # fmt: skip


def flash_attn_qkvpacked_func(
    qkv: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Result:
    """``flash_attn.flash_attn_qkvpacked_func``: `flash_attn_func` of queries, keys and values in one tensor, which
    is not copied.

    Args:
        qkv: ``(B, L, 3, H, D)``.
        dropout_p: probability with which a weight is dropped.
        softmax_scale: factor of the dot product; ``1 / sqrt(D)`` by default.
        causal: the last query has the position of the last key, and sees no later one.
        window_size: ``(left, right)`` keys before and after the query's own, -1 for no limit; ints or a tensor.
        softcap: scores become ``softcap * tanh(score / softcap)``; 0 and below is off.
        alibi_slopes: ``(Hq,)`` or ``(B, Hq)``.
        deterministic: ignored, since results are always deterministic.
        return_attn_probs: return ``(output, logsumexp, None)`` with ``logsumexp`` ``(B, Hq, Lq)`` float32.
    """
    q, k, v = unpacked("qkv", qkv, 3, 5)
    return flash_attn_func(
        q, k, v, dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic,
        return_attn_probs,
    )  # fmt: skip
