"""`Packed`: documents laid end to end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...tensors.shapes import check_tensor, describe, position, sequence, wrong
from ...tensors.tracing import readable
from ..coordinates import Coordinates
from ..segments import pack, per_row
from .base import Layout, all_exist


class _Facts(NamedTuple):
    """What follows from the lengths of queries and of keys; ``values``: these, those of a tensor as bytes of int64."""

    values: tuple[tuple[int, ...] | bytes, ...]
    totals: tuple[int, ...]
    least: tuple[int, ...]  # 0 for no document
    segments: bytes

    @classmethod
    def of(cls, values: tuple[tuple[int, ...] | bytes, ...]) -> _Facts:
        queries, keys = (np.frombuffer(x, np.int64) if isinstance(x, bytes) else np.array(x, np.int64) for x in values)
        query_end, key_end = queries.cumsum(), keys.cumsum()
        segments = pack(
            len(queries),
            row=-1,
            query_begin=query_end - queries,
            query_end=query_end,
            key_begin=key_end - keys,
            key_end=key_end,
            query_offset=keys - query_end,
            key_offset=keys - key_end,
        )
        totals = tuple([sum(x) if isinstance(x, tuple) else int(np.frombuffer(x, np.int64).sum()) for x in values])
        return cls(values, totals, (int(queries.min(initial=0)), int(keys.min(initial=0))), segments)


@dataclass(frozen=True, eq=False, repr=False)
class Packed(Layout):
    """Documents laid end to end in every batch row, as ``cu_seqlens`` does it; no document sees another.

    Keys of a document have the positions ``0 .. key_length - 1``; its last query has the position of its last key.

    Args:
        query_lengths: queries of each document, a sequence of ints or an ``(N,)`` integer tensor (the differences of
            ``cu_seqlens``), adding up to ``Lq``.
        key_lengths: keys of each document, adding up to ``Lk``; ``None`` for as many as queries.
    """

    query_lengths: tuple[int, ...] | Tensor
    key_lengths: tuple[int, ...] | Tensor | None = None
    near = True

    def __post_init__(self) -> None:
        for name in ("query_lengths", "key_lengths"):
            lengths = getattr(self, name)
            if lengths is None:
                continue
            if not isinstance(lengths, Tensor):
                parts = sequence(name, lengths, "a sequence of lengths or an integer tensor", "Packed((100, 150))")
                lengths = tuple(position(name, n, at_least=0) for n in parts)
                object.__setattr__(self, name, lengths)
            elif check_tensor(name, lengths) is not lengths or lengths.dim() != 1 or lengths.dtype.is_floating_point:
                raise wrong(
                    name,
                    "must hold one whole number for each document",
                    f"it is {describe(lengths)}",
                    "Pass a sequence of ints or an (N,) integer tensor of lengths (differences of cu_seqlens).",
                )
        if self.key_lengths is not None and len(self.key_lengths) != len(self.query_lengths):
            raise wrong(
                "key_lengths",
                "must name as many documents as `query_lengths`",
                f"{len(self.key_lengths)} is not {len(self.query_lengths)}",
                "Give a document without keys the length 0.",
            )

    @property
    def documents(self) -> int:
        """The number of documents of each batch row."""
        return len(self.query_lengths)

    @property
    def both(self) -> tuple[tuple[int, ...] | Tensor, tuple[int, ...] | Tensor]:
        """``(query_lengths, key_lengths)``, the default filled in."""
        return self.query_lengths, self.query_lengths if self.key_lengths is None else self.key_lengths

    def check(self, B: int, Lq: int, Lk: int) -> None:
        if not all(map(readable, self.both)):
            return
        names = ("query_lengths", "query_lengths" if self.key_lengths is None else "key_lengths")
        for name, lengths in zip(names, self.both, strict=True):
            if isinstance(lengths, Tensor):
                check_tensor(name, lengths)
        facts = self._facts()
        for name, total, least, what, size in zip(
            names, facts.totals, facts.least, ("Lq", "Lk"), (Lq, Lk), strict=True
        ):
            if least < 0:
                raise wrong(name, "must not hold a negative length", f"its smallest is {least}", "Check cu_seqlens.")
            if total != size:
                raise wrong(
                    name,
                    f"must add up to {what}",
                    f"{self.documents} documents have {total} tokens in all, and {what} = {size}",
                    "Cut the tensors to the tokens that exist, or name the rest as one more document.",
                )

    def _facts(self) -> _Facts:
        """What follows from the lengths. It is kept with their values, which are compared: a tensor may be written to,
        by ways that its version does not count.
        """
        values = tuple([per_row(x, 0).tobytes() if isinstance(x, Tensor) else x for x in self.both])
        kept: _Facts | None = self.__dict__.get("_kept_facts")
        if kept is None or kept.values != values:
            kept = self.__dict__["_kept_facts"] = _Facts.of(values)
        return kept

    def coordinates(self, B: int, Lq: int, Lk: int, device: torch.device) -> Coordinates:
        query_lengths, key_lengths = (torch.as_tensor(n, device=device, dtype=torch.int64) for n in self.both)
        numbers = torch.arange(self.documents, device=device)
        query_document = torch.repeat_interleave(numbers, query_lengths, output_size=Lq)
        key_document = torch.repeat_interleave(numbers, key_lengths, output_size=Lk)
        query_first, key_first = query_lengths.cumsum(0) - query_lengths, key_lengths.cumsum(0) - key_lengths
        query = torch.arange(Lq, device=device) - (query_first + query_lengths - key_lengths)[query_document]
        key = torch.arange(Lk, device=device) - key_first[key_document]
        query, key = query[None], key[None]
        return Coordinates(query, key, query_document[None], key_document[None], *all_exist(query, key))

    def segments(self, B: int, Lq: int, Lk: int) -> bytes:
        return self._facts().segments

    @property
    def uniform_over_batch(self) -> bool:
        return True

    def text_ranges(self, L: int) -> tuple[int, int] | None:
        return (0, L) if self.documents == 1 and self.key_lengths is None else None

    def index_offset(self, Lq: int, Lk: int) -> int | None:
        return 0 if self.key_lengths is None else None

    def cross(self, source: Layout) -> Layout:
        return Packed(self.query_lengths, source.query_lengths) if isinstance(source, Packed) else super().cross(source)

    def select(self, rows: Tensor) -> Packed:
        return self
