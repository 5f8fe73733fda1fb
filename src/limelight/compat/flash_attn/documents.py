"""flash-attention's functions of documents laid end to end."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...forms.layouts import Packed, Padded, Paged
from ...tensors.shapes import wrong
from .settings import Result, attend, chance_and_scale, check_dims, lengths, meaning, result, unpacked


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
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
) -> Result:
    """``flash_attn.flash_attn_varlen_func``: documents laid end to end, tensors are ``(total, H, D)``.

    Args:
        q: ``(total queries, Hq, D)``.
        k: ``(total keys, Hkv, D)``; with ``block_table``, pages.
        v: ``(total keys, Hkv, Dv)``.
        cu_seqlens_q: ``(N + 1,)`` where each document's queries begin, and the total.
        cu_seqlens_k: ``(N + 1,)`` where each document's keys begin, and the total.
        max_seqlen_q: ignored; it is accepted so that calls need not change.
        max_seqlen_k: ignored, too.
        dropout_p: probability with which a weight is dropped.
        softmax_scale: factor of the dot product; ``1 / sqrt(D)`` by default.
        causal: the last query of a document has the position of its last key, and sees no later one.
        window_size: ``(left, right)`` keys before and after the query's own, -1 for no limit; ints or a tensor.
        softcap: scores become ``softcap * tanh(score / softcap)``; 0 and below is off.
        alibi_slopes: ``(Hq,)``, or ``(N, Hq)`` for slopes of each document, which are then computed as rows of a batch,
            padded to the longest.
        deterministic: ignored, since results are always deterministic.
        return_attn_probs: return ``(output, logsumexp, None)`` with ``logsumexp`` ``(Hq, total queries)`` float32.
        block_table: ``(N, M)`` int32, the pages of each document's keys; ``k`` and ``v`` are then ``(number of pages,
            page size, Hkv, D)`` and are read in place, as `limelight.Paged`.
    """
    check_dims("(total, H, D)", q=q)
    if block_table is not None:
        check_dims("(N, M)", block_table=block_table)
    check_dims("(total, H, D)" if block_table is None else "(number of pages, page size, Hkv, D)", k=k, v=v)
    sizes = lengths("cu_seqlens_q", cu_seqlens_q), lengths("cu_seqlens_k", cu_seqlens_k)
    pattern, scores = meaning(causal, window_size, softcap, alibi_slopes)
    way: Callable[..., tuple[Tensor, Tensor | None]] = _attend_documents
    if block_table is not None:
        way = partial(_attend_pages, pages=block_table)
    if alibi_slopes is not None and alibi_slopes.dim() == 2:
        documents = len(sizes[0])
        way = _attend_rows if block_table is None else partial(_attend_rows_of_pages, pages=block_table)
        if alibi_slopes.shape[0] not in (1, documents):
            rule = "must have one number for each query head, or one row of them for each document"
            got = f"there are {documents} documents, and its shape is {tuple(alibi_slopes.shape)}"
            raise wrong("alibi_slopes", rule, got, "`cu_seqlens_q` holds one number more than there are documents.")
    output, logsumexp = way(
        q, k, v, *sizes,
        pattern=pattern, scores=scores, **chance_and_scale(dropout_p, softmax_scale, return_attn_probs),
    )  # fmt: skip
    return result(output, logsumexp)


def flash_attn_varlen_kvpacked_func(
    q: Tensor,
    kv: Tensor,
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
    return_attn_probs: bool = False,
) -> Result:
    """``flash_attn.flash_attn_varlen_kvpacked_func``: `flash_attn_varlen_func` of keys and values in one tensor, which
    is not copied.

    Args:
        q: ``(total queries, Hq, D)``.
        kv: ``(total keys, 2, Hkv, D)``, where ``Hq`` is a multiple of ``Hkv``.
        cu_seqlens_q: ``(N + 1,)`` where each document's queries begin, and the total.
        cu_seqlens_k: ``(N + 1,)`` where each document's keys begin, and the total.
        max_seqlen_q: ignored; it is accepted so that calls need not change.
        max_seqlen_k: ignored, too.
        dropout_p: probability with which a weight is dropped.
        softmax_scale: factor of the dot product; ``1 / sqrt(D)`` by default.
        causal: the last query of a document has the position of its last key, and sees no later one.
        window_size: ``(left, right)`` keys before and after the query's own, -1 for no limit; ints or a tensor.
        softcap: scores become ``softcap * tanh(score / softcap)``; 0 and below is off.
        alibi_slopes: ``(Hq,)``, or ``(N, Hq)`` for slopes of each document.
        deterministic: ignored, since results are always deterministic.
        return_attn_probs: return ``(output, logsumexp, None)`` with ``logsumexp`` ``(Hq, total queries)`` float32.
    """
    k, v = unpacked("kv", kv, 2, 4)
    return flash_attn_varlen_func(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
        dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic,
        return_attn_probs,
    )  # fmt: skip


def flash_attn_varlen_qkvpacked_func(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int | None = None,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Result:
    """``flash_attn.flash_attn_varlen_qkvpacked_func``: `flash_attn_varlen_func` of queries, keys and values in one
    tensor, which is not copied.

    Args:
        qkv: ``(total, 3, H, D)``.
        cu_seqlens: ``(N + 1,)`` where each document begins, and the total.
        max_seqlen: ignored; it is accepted so that calls need not change.
        dropout_p: probability with which a weight is dropped.
        softmax_scale: factor of the dot product; ``1 / sqrt(D)`` by default.
        causal: the last query of a document has the position of its last key, and sees no later one.
        window_size: ``(left, right)`` keys before and after the query's own, -1 for no limit; ints or a tensor.
        softcap: scores become ``softcap * tanh(score / softcap)``; 0 and below is off.
        alibi_slopes: ``(Hq,)``, or ``(N, Hq)`` for slopes of each document.
        deterministic: ignored, since results are always deterministic.
        return_attn_probs: return ``(output, logsumexp, None)`` with ``logsumexp`` ``(Hq, total queries)`` float32.
    """
    q, k, v = unpacked("qkv", qkv, 3, 4)
    lengths("cu_seqlens", cu_seqlens)
    return flash_attn_varlen_func(
        q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen,
        dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic,
        return_attn_probs,
    )  # fmt: skip


def _attend_documents(
    q: Tensor, k: Tensor, v: Tensor, query_lengths: Tensor, key_lengths: Tensor, **settings: Any
) -> tuple[Tensor, Tensor | None]:
    """Documents laid end to end in one batch row."""
    output, logsumexp = attend(
        *(tensor.transpose(0, 1)[None] for tensor in (q, k, v)), layout=Packed(query_lengths, key_lengths), **settings
    )
    return output[0].transpose(0, 1), None if logsumexp is None else logsumexp[0]


def _attend_rows(
    q: Tensor, k: Tensor, v: Tensor, query_lengths: Tensor, key_lengths: Tensor, **settings: Any
) -> tuple[Tensor, Tensor | None]:
    """Each document as a batch row of its own, padded at its right."""
    Packed(query_lengths, key_lengths).check(1, q.shape[0], k.shape[0])
    sizes = query_lengths.tolist(), key_lengths.tolist()
    rows = (
        torch.nn.utils.rnn.pad_sequence(list(torch.split(tensor, n)), batch_first=True).transpose(1, 2)
        for tensor, n in ((q, sizes[0]), (k, sizes[1]), (v, sizes[1]))
    )
    output, logsumexp = attend(*rows, layout=Padded(query_lengths, key_lengths), **settings)
    output = torch.cat([row[:, :n] for row, n in zip(output, sizes[0], strict=True)], 1).transpose(0, 1)
    if logsumexp is not None:
        logsumexp = torch.cat([row[:, :n] for row, n in zip(logsumexp, sizes[0], strict=True)], 1)
    return output, logsumexp


def _attend_pages(
    q: Tensor, k: Tensor, v: Tensor, query_lengths: Tensor, key_lengths: Tensor, *, pages: Tensor, **settings: Any
) -> tuple[Tensor, Tensor | None]:
    """Documents laid end to end whose keys lie in pages ``(number of pages, size, Hkv, D)``."""
    layout = Paged(query_lengths, key_lengths, pages)
    output, logsumexp = attend(q.transpose(0, 1)[None], k.transpose(1, 2), v.transpose(1, 2), layout=layout, **settings)
    return output[0].transpose(0, 1), None if logsumexp is None else logsumexp[0]


def _attend_rows_of_pages(
    q: Tensor, k: Tensor, v: Tensor, query_lengths: Tensor, key_lengths: Tensor, *, pages: Tensor, **settings: Any
) -> tuple[Tensor, Tensor | None]:
    """Each document as a batch row of its own, its keys gathered from pages."""
    layout = Paged(query_lengths, key_lengths, pages)
    layout.stored(k.shape[1]).check(len(k))
    tables = list(zip(pages.long(), key_lengths.tolist(), strict=True))
    keys, values = (
        torch.cat([x[:0].flatten(0, 1), *(x[table.clamp(min=0)].flatten(0, 1)[:n] for table, n in tables)])
        for x in (k, v)
    )
    return _attend_rows(q, keys, values, query_lengths, key_lengths, **settings)
