"""xFormers' block-diagonal masks of keys that lie in pages."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from ...forms.layouts import Packed, Paged
from ...forms.patterns import Causal, Pattern
from ...tensors.shapes import describe, wrong
from .dense import Arranged, AttentionBias
from .lengths import SeqLenInfo, SeqLenInfoOfSome, check_pages, lengths

_Self = TypeVar("_Self", bound="InPages")


@dataclass
class InPages(AttentionBias):
    """Base of the masks of texts whose keys lie in pages; its subclasses say where in them."""

    q_seqinfo: SeqLenInfo
    k_seqinfo: SeqLenInfoOfSome
    block_tables: Tensor
    page_size: int

    causal: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_pages(self.block_tables, self.page_size)
        if len(self.block_tables) != len(self.q_seqinfo.seqstart_py) - 1:
            rule = f"must be ({len(self.q_seqinfo.seqstart_py) - 1}, pages of a text)"
            raise wrong("block_tables", rule, f"it is {describe(self.block_tables)}", "Give one row for each text.")

    @property
    def pattern(self) -> Pattern | None:
        """Which keys of its text a query sees; ``None`` for all."""
        return Causal() if self.causal else None

    def query_lengths(self, Lq: int) -> list[int]:
        """The number of queries of each text, in a call of ``Lq``."""
        if self.q_seqinfo.seqstart_py[-1] != Lq:
            got = f"it is made for {self.q_seqinfo.seqstart_py[-1]}"
            raise wrong("attn_bias", f"must be made for the {Lq} queries of the call", got, "Check the lengths.")
        return [last - first for first, last in self.q_seqinfo.intervals()]

    def ranges(self) -> list[tuple[int, int]]:
        """The first key of each text, and the one after its last, counted in its own pages."""
        return [(0, n) for n in self.k_seqinfo.seqlen_py]

    def materialize(
        self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> Tensor:
        """The whole mask over the slots of all pages up to the last one in use, ``(..., Lq, slots)``."""
        slots = (int(self.block_tables.max()) + 1) * self.page_size
        return _Gathered(self).materialize((*shape[:-1], slots), dtype, device)

    def to(self: _Self, device: torch.device) -> _Self:
        return dataclasses.replace(
            self,
            q_seqinfo=self.q_seqinfo.to(device),
            k_seqinfo=self.k_seqinfo.to(device),
            block_tables=self.block_tables.to(device),
        )

    def gathered(self, Lq: int) -> Arranged:
        """The settings where the keys of each text are gathered and laid end to end."""
        index = []
        for table, (first, last) in zip(self.block_tables.long().cpu(), self.ranges(), strict=True):
            at = torch.arange(first, last, device="cpu")
            if last > len(table) * self.page_size:
                got = f"a text has {last} keys in {len(table)} pages of {self.page_size}"
                raise wrong("block_tables", "must have a column for each page of a text", got, "Add pages.")
            index.append(table[at // self.page_size] * self.page_size + at % self.page_size)
        layout = Packed(tuple(self.query_lengths(Lq)), tuple(map(len, index)))
        return Arranged(layout, self.pattern, keys=torch.cat([torch.zeros(0, dtype=torch.int64, device="cpu"), *index]))


@dataclass
class _Gathered(AttentionBias):
    mask: InPages

    def arranged(self, Lq: int, Lk: int) -> Arranged:
        return self.mask.gathered(Lq)


@dataclass
class PagedBlockDiagonalPaddedKeysMask(InPages):
    """xFormers' mask of texts whose keys lie in pages: those of a call are ``(1, pages * page_size, H, K)``.

    Key ``j`` of text ``n`` lies in slot ``j % page_size`` of page ``block_tables[n, j // page_size]``. Pages are read
    where they lie, as `limelight.Paged`.

    Args:
        q_seqinfo: the lengths of queries.
        k_seqinfo: the lengths of keys.
        block_tables: ``(N, pages of a text)`` whole numbers.
        page_size: keys of a page.
    """

    @classmethod
    def from_seqlens(
        cls,
        q_seqlen: Sequence[int],
        kv_seqlen: Sequence[int],
        block_tables: Tensor,
        page_size: int,
        *,
        device: torch.device | None = None,
    ) -> Any:
        """The mask of these numbers of queries and keys."""
        q_seqlen, slots = lengths("q_seqlen", q_seqlen), check_pages(block_tables, page_size)
        keys = SeqLenInfoOfSome.from_seqlens_padded(kv_seqlen, slots, device=device)
        return cls(SeqLenInfo.from_seqlens(q_seqlen, device=device), keys, block_tables, page_size)

    def arranged(self, Lq: int, Lk: int) -> Arranged:
        layout = Paged(self.query_lengths(Lq), list(self.k_seqinfo.seqlen_py), self.block_tables)
        return Arranged(layout, self.pattern, page_size=self.page_size)


@dataclass
class PagedBlockDiagonalCausalWithOffsetPaddedKeysMask(PagedBlockDiagonalPaddedKeysMask):
    """`PagedBlockDiagonalPaddedKeysMask`, each text causal, aligned at its bottom right."""

    causal: ClassVar[bool] = True


@dataclass
class PagedBlockDiagonalGappyKeysMask(InPages):
    """xFormers' mask of texts whose keys lie in pages, from a key of their own on; they are gathered before the call.

    Args:
        q_seqinfo: the lengths of queries.
        k_seqinfo: where the keys of each text begin and end, counted in its own pages.
        block_tables: ``(N, pages of a text)`` whole numbers.
        page_size: keys of a page.
    """

    @classmethod
    def from_seqlens(
        cls,
        q_seqlen: Sequence[int],
        kv_seqstarts: Sequence[int],
        kv_seqlen: Sequence[int],
        block_tables: Tensor,
        page_size: int,
        *,
        device: torch.device | None = None,
    ) -> Any:
        """The mask of these numbers of queries, first keys, counted in the pages of each text, and numbers of keys."""
        q_seqlen = lengths("q_seqlen", q_seqlen)
        starts, sizes = lengths("kv_seqstarts", kv_seqstarts), lengths("kv_seqlen", kv_seqlen)
        if not len(starts) == len(sizes) == len(q_seqlen):
            got = f"there are {len(starts)}, {len(sizes)} and {len(q_seqlen)}"
            raise wrong("kv_seqstarts", "and kv_seqlen must have an entry for each text", got, "The total is left out.")
        ends = [first + size for first, size in zip(starts, sizes, strict=True)]
        keys = SeqLenInfoOfSome([*starts, -1], device, ends)
        return cls(SeqLenInfo.from_seqlens(q_seqlen, device=device), keys, block_tables, page_size)

    def ranges(self) -> list[tuple[int, int]]:
        return list(zip(self.k_seqinfo.seqstart_py, self.k_seqinfo.seqlen_py, strict=False))

    def arranged(self, Lq: int, Lk: int) -> Arranged:
        return self.gathered(Lq)


@dataclass
class PagedBlockDiagonalCausalWithOffsetGappyKeysMask(PagedBlockDiagonalGappyKeysMask):
    """`PagedBlockDiagonalGappyKeysMask`, each text causal, aligned at its bottom right."""

    causal: ClassVar[bool] = True
