"""Packed documents of a call without a mask, read from its ``position_ids`` or its ``cu_seq_lens``."""

from __future__ import annotations

from collections.abc import MutableMapping
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from ..backends.contract import BackendError
from ..forms.layouts import Layout, Packed, Portion
from ..forms.segments import pack, unpack
from ..tensors.shapes import describe
from ..tensors.tracing import readable


def documents_of(position_ids: Tensor | None, B: int, Lq: int, Lk: int) -> Layout | None:
    """The documents of positions that begin again, as `Packed` or, where rows differ, as `Portion`; ``None`` for one.

    A document begins where a position is not larger than the one before it. Padding whose positions repeat is thereby
    apart from the text, as a mask would have it.

    Args:
        position_ids: ``(B | 1, Lq)``, given beside no mask; others have another meaning and are not read, nor is what
            a graph records.
        B: batch rows.
        Lq: queries.
        Lk: keys.

    Raises:
        BackendError: positions begin again, and they are not those of the keys.
    """
    if not isinstance(position_ids, Tensor) or position_ids.dim() != 2 or not readable(position_ids):
        return None
    found = _read.get(position_ids)
    if found is None or found[1] != _version(position_ids):
        found = _layout_of(position_ids), _version(position_ids)
        if not position_ids.is_inference():  # inference tensors have no version counter
            _read[position_ids] = found
    layout: Layout | None = found[0]
    if layout is None:
        return None
    if Lq != Lk or position_ids.shape[1] != Lq or position_ids.shape[0] not in (1, B):
        raise BackendError(
            f"The position_ids, {describe(position_ids)}, begin again, so they hold several documents, but there are "
            f"{B} rows of {Lq} queries and {Lk} keys and no mask, so it is not known which keys belong to which "
            "document. Give an attention_mask."
        )
    return layout


def packed_of(cu_seq_lens_q: object, cu_seq_lens_k: object, Lq: int, Lk: int) -> Layout | None:
    """The documents that begin where ``cu_seq_lens`` say, as `Packed`; ``None`` where they say nothing.

    Queries and keys behind the last document are padding: such a query sees nothing.

    Args:
        cu_seq_lens_q: ``(N + 1,)``, where the queries of each document begin, and where the last ones end.
        cu_seq_lens_k: ``(N + 1,)``, the same of its keys.
        Lq: queries.
        Lk: keys.

    Raises:
        BackendError: they are not two tensors, or go beyond the queries or keys.
    """
    if cu_seq_lens_q is None and cu_seq_lens_k is None:
        return None
    if not isinstance(cu_seq_lens_q, Tensor) or not isinstance(cu_seq_lens_k, Tensor):
        raise BackendError(
            f"cu_seq_lens_q is {describe(cu_seq_lens_q)} and cu_seq_lens_k {describe(cu_seq_lens_k)}, but each layer "
            "needs both as tensors. Continuous batching gives them from transformers 5.24 on."
        )
    found = _packed.get(cu_seq_lens_q)
    known = (_version(cu_seq_lens_q), id(cu_seq_lens_k), _version(cu_seq_lens_k), Lq, Lk)
    if found is None or found[1] != known:
        found = _packed[cu_seq_lens_q] = _packed_layout(cu_seq_lens_q, cu_seq_lens_k, Lq, Lk), known, cu_seq_lens_k
    return found[0]


def _packed_layout(starts_q: Tensor, starts_k: Tensor, Lq: int, Lk: int) -> Layout:
    queries, keys = starts_q.diff().tolist(), starts_k.diff().tolist()
    more = Lq - sum(queries), Lk - sum(keys)
    if min(more) < 0 or len(queries) != len(keys):
        raise BackendError(
            f"cu_seq_lens_q and cu_seq_lens_k name {len(queries)} and {len(keys)} documents of {sum(queries)} queries "
            f"and {sum(keys)} keys, but there are {Lq} queries and {Lk} keys. Check both."
        )
    return Packed((*queries, more[0], 0), (*keys, 0, more[1])) if any(more) else Packed(tuple(queries), tuple(keys))


# The layout by the queries' starts, what it was made for, and the keys' starts, so that their id is not used again.
_packed: MutableMapping[Tensor, tuple[Layout, tuple[int, ...], Tensor]] = WeakIdKeyDictionary()

# The layout and the version of the positions, by the positions: all layers get the same tensor.
_read: MutableMapping[Tensor, tuple[Layout | None, int]] = WeakIdKeyDictionary()


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


def _layout_of(positions: Tensor) -> Layout | None:
    """`documents_of`, by the positions alone."""
    begins = positions.diff(dim=1) <= 0
    if not bool(begins.any()):
        return None
    rows = [torch.nonzero(row)[:, 0].add(1).tolist() for row in begins.cpu()]
    edges = [[0, *row, positions.shape[1]] for row in rows]
    if all(row == edges[0] for row in edges):
        return Packed(tuple(last - first for first, last in zip(edges[0], edges[0][1:], strict=False)))
    count = max(map(len, edges)) - 1
    runs = [(row, first, last, n) for row, found in enumerate(edges) for n, (first, last) in enumerate(pairwise(found))]
    row, first, last, number = np.array(runs, np.int64).T
    table = pack(
        len(runs), row=row, query_begin=first, query_end=last, key_begin=first, key_end=last,
        query_offset=-first, key_offset=-first, dropout_row=row * count + number,
    )  # fmt: skip
    return Portion(torch.from_numpy(unpack(table).copy()), count)
