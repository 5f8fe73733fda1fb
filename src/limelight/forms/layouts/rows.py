"""Layouts of one document per batch row: `Aligned` and `Padded`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...tensors.shapes import FARTHEST, check_tensor, describe, position, wrong
from ...tensors.torch_internals import is_transform_tensor
from ...tensors.tracing import readable
from ..coordinates import Coordinates
from ..segments import one_segment, pack, per_row
from .base import Layout, all_exist, one_document


@dataclass(frozen=True, eq=False, repr=False)
class Aligned(Layout):
    """One document per batch row: query ``i`` has position ``query_start + i``, key ``j`` ``key_start + j``.

    Args:
        query_start: position of the first query, an int or a ``(B,)`` tensor. ``None`` puts the last query at the
            last key (``key_start + Lk - Lq``), so that a key-value cache works as it is. ``0`` is the reading of
            ``torch.nn.functional.scaled_dot_product_attention(is_causal=True)``.
        key_start: position of the first key, an int or a ``(B,)`` tensor.
    """

    query_start: int | Tensor | None = None
    key_start: int | Tensor = 0

    def __post_init__(self) -> None:
        if self.query_start is not None and not isinstance(self.query_start, Tensor):
            position("query_start", self.query_start)
        if not isinstance(self.key_start, Tensor):
            position("key_start", self.key_start)

    def check(self, B: int, Lq: int, Lk: int) -> None:
        for name in ("query_start", "key_start"):
            start = getattr(self, name)
            if isinstance(start, Tensor):
                _check_per_row(name, start, B)
                if start.numel() and not _is_traced(start) and int(start.abs().max()) > FARTHEST:
                    farthest = int(start[start.abs().argmax()])
                    position(name, farthest)

    def coordinates(self, B: int, Lq: int, Lk: int, device: torch.device) -> Coordinates:
        key_start = _column(self.key_start, device)
        query_start = key_start + (Lk - Lq) if self.query_start is None else _column(self.query_start, device)
        query = query_start + torch.arange(Lq, device=device)
        key = key_start + torch.arange(Lk, device=device)
        return Coordinates(query, key, *one_document(query, key), *all_exist(query, key))

    def segments(self, B: int, Lq: int, Lk: int) -> bytes:
        query_start, key_start = self.query_start, self.key_start
        if not isinstance(query_start, Tensor) and not isinstance(key_start, Tensor):
            return one_segment(Lq, 0, Lk, key_start + Lk - Lq if query_start is None else query_start, key_start)
        key_offset = per_row(key_start, B)
        query_offset = key_offset + (Lk - Lq) if query_start is None else per_row(query_start, B)
        return pack(B, query_end=Lq, key_end=Lk, query_offset=query_offset, key_offset=key_offset)

    @property
    def uniform_over_batch(self) -> bool:
        return not self.tensors()

    def text_ranges(self, L: int) -> tuple[int, int] | None:
        return (0, L) if not self.tensors() and self.key_start == 0 and self.query_start in (None, 0) else None

    def index_offset(self, Lq: int, Lk: int) -> int | None:
        if self.query_start is None:
            return Lk - Lq
        if isinstance(self.query_start, Tensor) or isinstance(self.key_start, Tensor):
            return None
        return self.query_start - self.key_start

    def select(self, rows: Tensor) -> Aligned:
        return Aligned(_of_rows(self.query_start, rows), _of_rows(self.key_start, rows))


@dataclass(frozen=True, eq=False, repr=False)
class Padded(Layout):
    """One document per batch row, of its own length; the rest of the row is padding and does not exist.

    Existing keys have the positions ``0 .. key_length - 1``; the last existing query has that of the last existing key.

    Args:
        query_lengths: existing queries of each row, an int or a ``(B,)`` tensor of whole numbers.
        key_lengths: existing keys of each row; ``None`` for those of the queries.
        side: where the padding stands, ``"right"`` or ``"left"``.
    """

    query_lengths: int | Tensor
    key_lengths: int | Tensor | None = None
    side: str = "right"
    near = True

    def __post_init__(self) -> None:
        if self.side not in ("right", "left"):
            raise wrong(
                "side", 'must be "right" or "left"', f"it is {self.side!r}", "It names where the padding stands."
            )
        for name in ("query_lengths", "key_lengths"):
            lengths = getattr(self, name)
            if isinstance(lengths, (list, tuple)):
                rule = "must be an int, or a (B,) tensor of whole numbers"
                raise wrong(name, rule, f"it is {describe(lengths)}", f"Use torch.tensor({describe(lengths)}).")
            if lengths is not None and not isinstance(lengths, Tensor):
                position(name, lengths, at_least=0)

    @property
    def both(self) -> tuple[int | Tensor, int | Tensor]:
        """``(query_lengths, key_lengths)``, the default filled in."""
        return self.query_lengths, self.query_lengths if self.key_lengths is None else self.key_lengths

    def check(self, B: int, Lq: int, Lk: int) -> None:
        for name, lengths, limit in zip(("query_lengths", "key_lengths"), self.both, (Lq, Lk), strict=True):
            if isinstance(lengths, Tensor):
                _check_per_row(name, lengths, B)
            if readable(lengths):
                _check_range(name, lengths, limit)

    def coordinates(self, B: int, Lq: int, Lk: int, device: torch.device) -> Coordinates:
        query_lengths, key_lengths = (_column(lengths, device) for lengths in self.both)
        query, key = torch.arange(Lq, device=device)[None], torch.arange(Lk, device=device)[None]
        if self.side == "left":
            query, key = query - (Lq - query_lengths), key - (Lk - key_lengths)
        query_exists = (query >= 0) & (query < query_lengths)
        key_exists = (key >= 0) & (key < key_lengths)
        query = query + (key_lengths - query_lengths)
        query, key = (query + 0 * key_lengths, key + 0 * query_lengths)
        return Coordinates(query, key, *one_document(query, key), query_exists, key_exists)

    def segments(self, B: int, Lq: int, Lk: int) -> bytes:
        queries, keys = (per_row(lengths, B) for lengths in self.both)
        query_begin, key_begin = (0, 0) if self.side == "right" else (Lq - queries, Lk - keys)
        return pack(
            B,
            query_begin=query_begin,
            query_end=query_begin + queries,
            key_begin=key_begin,
            key_end=key_begin + keys,
            query_offset=keys - queries - query_begin,
            key_offset=0 - key_begin,
        )

    @property
    def uniform_over_batch(self) -> bool:
        return not self.tensors()

    def text_ranges(self, L: int) -> tuple[int | Tensor, int | Tensor] | None:
        if self.key_lengths is not None:
            return None
        return (0 if self.side == "right" else L - self.query_lengths), self.query_lengths

    def index_offset(self, Lq: int, Lk: int) -> int | None:
        if self.side == "left":
            return Lk - Lq
        queries, keys = self.both
        return 0 if keys is queries else None

    def select(self, rows: Tensor) -> Padded:
        return Padded(_of_rows(self.query_lengths, rows), _of_rows(self.key_lengths, rows), self.side)


def _column(value: int | Tensor, device: torch.device) -> Tensor:
    """An int as ``(1, 1)``, a ``(B,)`` tensor as ``(B, 1)``."""
    if isinstance(value, Tensor):
        return value.to(device=device, dtype=torch.int64)[:, None]
    return torch.full((1, 1), value, dtype=torch.int64, device=device)


def _of_rows(value: Any, rows: Tensor) -> Any:
    """A number of each of the ``rows``, where there is one for each row."""
    return value[rows.to(value.device)] if isinstance(value, Tensor) else value


def _is_traced(tensor: Tensor) -> bool:
    """Whether the elements of a tensor cannot be read yet."""
    return not readable(tensor) or is_transform_tensor(tensor)


def _check_per_row(name: str, values: Tensor, B: int) -> None:
    check_tensor(name, values)
    if values.dim() != 1 or values.shape[0] != B or values.dtype.is_floating_point or values.dtype == torch.bool:
        raise wrong(
            name,
            f"must be an int or a (B,) = ({B},) tensor of whole numbers",
            f"it is {describe(values)}",
            "Each batch row needs one number.",
        )


def _check_range(name: str, lengths: int | Tensor, limit: int) -> None:
    values = lengths if isinstance(lengths, Tensor) else torch.tensor([lengths], device="cpu")
    if values.numel() and (int(values.min()) < 0 or int(values.max()) > limit):
        raise wrong(
            name,
            f"must lie between 0 and the {limit} tokens of the tensor",
            f"they run from {int(values.min())} to {int(values.max())}",
            "Lengths count tokens that exist; padding is not counted.",
        )
