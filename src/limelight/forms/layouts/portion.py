"""Layouts of some queries and keys of a larger call, at their original positions: `Portion` and `ScatteredPortion`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from ...tensors.shapes import check_tensor, describe, whole_number, wrong
from ..coordinates import Coordinates
from ..segments import FIELDS
from .base import Layout

_Self = TypeVar("_Self", bound="_Portion")


@dataclass(frozen=True, eq=False, repr=False)
class _Portion(Layout):
    """Some queries and keys of a larger call, given as segments.

    Args:
        table: ``(n, 11)`` int64 on the CPU, one segment in a row by `limelight.forms.segments.FIELDS`, batch rows given
            one by one. It is not modified afterwards. Segments of the same queries hold different keys of theirs.
        count: documents of each batch row of the larger call. ``dropout_row`` is ``row * count + document``.
        exists: ``(B | 1, Lk)`` bool, which keys exist; ``None`` where all those of the segments do.
    """

    table: Tensor
    count: int = 1
    exists: Tensor | None = None

    def __post_init__(self) -> None:
        whole_number("count", self.count, at_least=1)
        table = check_tensor("table", self.table)
        if table.dtype != torch.int64 or table.dim() != 2 or table.shape[1] != len(FIELDS):
            rule = f"must be an (n, {len(FIELDS)}) int64 tensor, one segment in a row"
            raise wrong("table", rule, f"it is {describe(table)}", "The columns are limelight.forms.segments.FIELDS.")

    def check(self, B: int, Lq: int, Lk: int) -> None:
        if not len(self.table):
            return
        low, high = self.table.amin(0).tolist(), self.table.amax(0).tolist()
        if min(low[:5]) < 0 or high[0] >= B or high[2] > Lq or high[4] > Lk:
            raise wrong(
                "table",
                "must hold segments of the call",
                f"they reach to row {high[0]}, query {high[2]} and key {high[4]}, and (B, Lq, Lk) = {(B, Lq, Lk)}",
                "Make the layout for the tensors of the call.",
            )

    @property
    def documents(self) -> int:
        """The number of documents of each batch row of the larger call."""
        return self.count

    def coordinates(self, B: int, Lq: int, Lk: int, device: torch.device) -> Coordinates:
        query, key = (torch.zeros(3, B, L, dtype=torch.int64) for L in (Lq, Lk))
        groups: list[dict[int, int]] = [{} for _ in range(B)]  # of segments with the same queries, in each row
        for row, q0, q1, k0, k1, query_offset, key_offset, number in self.table[:, :8].tolist():
            # Two groups of one document are told apart by multiples of the number of documents.
            group = groups[row].setdefault(q0, len(groups[row]))
            document = number - row * self.count + group * self.count
            for found, first, last, offset in ((query, q0, q1, query_offset), (key, k0, k1, key_offset)):
                found[0, row, first:last] = torch.arange(first + offset, last + offset)
                found[1, row, first:last] = document
                found[2, row, first:last] = 1
        if self.exists is not None:
            key[2] *= self.exists.cpu()
        query, key = query.to(device), key.to(device)
        return Coordinates(query[0], key[0], query[1], key[1], query[2].bool(), key[2].bool())

    def holes(self) -> Tensor | None:
        return None if self.exists is None or bool(self.exists.all()) else self.exists.cpu()

    @property
    def is_fixed(self) -> bool:
        return self.exists is None

    def select(self: _Self, rows: Tensor) -> _Self:
        chosen = []
        for n, row in enumerate(rows.tolist()):
            table = self.table[self.table[:, 0] == row].clone()
            table[:, 0], table[:, 7] = n, table[:, 7] + (n - row) * self.count
            chosen.append(table)
        table = torch.cat([self.table[:0], *chosen])
        exists = self.exists
        if exists is not None and len(exists) > 1:
            exists = exists[rows.to(exists.device)]
        return replace(self, table=table, exists=exists)


@dataclass(frozen=True, eq=False, repr=False)
class Portion(_Portion):
    """Some queries and keys of a larger call, where the keys that belong to a query's segment are one range.

    Each query, and each key of a batch row, belongs to one segment at most. `limelight.distributed.ContextParallel`
    computes a rank's share of a call with it.

    Args:
        table: ``(n, 11)`` int64 on the CPU, one segment in a row by `limelight.forms.segments.FIELDS`, batch rows given
            one by one. It is not modified afterwards. Segments of the same queries hold different keys of theirs.
        count: documents of each batch row of the larger call. ``dropout_row`` is ``row * count + document``.
        exists: ``(B | 1, Lk)`` bool, which keys exist; ``None`` where all those of the segments do.
    """

    def segments(self, B: int, Lq: int, Lk: int) -> bytes:
        return self.table.numpy().tobytes()


@dataclass(frozen=True, eq=False, repr=False)
class ScatteredPortion(_Portion):
    """Some queries and keys of a larger call, where keys between those of one query may be missing.

    A range of queries has a segment for each range of its keys. Indices are then not positions plus one offset, so
    kernels serve what depends on positions (ALiBi, a relative bias, dropout) under `Portion` alone.

    Args:
        table: ``(n, 11)`` int64 on the CPU, one segment in a row by `limelight.forms.segments.FIELDS`, batch rows given
            one by one. It is not modified afterwards. Segments of the same queries hold different keys of theirs.
        count: documents of each batch row of the larger call. ``dropout_row`` is ``row * count + document``.
        exists: ``(B | 1, Lk)`` bool, which keys exist; ``None`` where all those of the segments do.
    """

    def key_pieces(self, B: int, Lq: int, Lk: int) -> bytes:
        return self.table.numpy().tobytes()
