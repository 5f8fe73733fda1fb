"""`Paged`: documents laid end to end whose keys and values lie in pages of memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...tensors.shapes import check_dense, describe, position, sequence, whole_number, wrong
from ...tensors.torch_internals import break_graph
from ...tensors.tracing import readable
from ..coordinates import Coordinates
from ..pages import Pages
from .base import Layout
from .packed import Packed

_INT32 = torch.iinfo(torch.int32)
_DERIVED = ("_packed", "_totals", "_segments", "_stored")


@dataclass(frozen=True, eq=False, repr=False)
class Paged(Layout):
    """Documents laid end to end, as `Packed`, whose keys and values lie in pages of memory (PagedAttention, Kwon et al.
    2023, arXiv:2309.06180).

    A server that answers many requests keeps their keys in pages of a fixed size, so that a text grows without being
    copied, and texts that begin alike share pages. Key ``j`` of document ``r`` lies in slot ``j % size`` of page
    ``pages[r, j // size]``. The tensors of a call are

    - query ``(1, Hq, sum(query_lengths), D)``,
    - key ``(number of pages, Hkv, size, D)`` and value ``(number of pages, Hkv, size, Dv)``; ``(pages, size, H, D)``
      fits after ``.transpose(1, 2)``, without a copy.

    The result is that of ``Packed(query_lengths, key_lengths)`` over the keys of all documents, laid end to end:
    patterns, score rules and observations refer to these ``sum(key_lengths)`` keys. A kernel that reads pages reads
    them in place; otherwise, and for gradients, keys and values are gathered first (`limelight.explain` says which).

    Args:
        query_lengths: queries of each document, a sequence of ints or an ``(R,)`` integer tensor.
        key_lengths: keys of each document, as many numbers. The last query of a document has the position of its last
            key.
        pages: ``(R, M)`` page numbers, an integer tensor or a sequence of rows. Entries beyond the last key of a
            document are never read and may hold anything.

    All three are copied, so that a change of the originals changes no layout.

    Example:
        >>> import torch, limelight
        >>> key, value = torch.randn(2, 4, 8, 16, 64)  # 4 pages of 16 keys, 8 heads
        >>> layout = limelight.Paged((1, 5), (20, 5), [[2, 0], [3, -1]])  # a decoding step beside a prompt
        >>> query = torch.randn(1, 8, 6, 64)
        >>> limelight.attention(query, key, value, layout=layout, pattern=limelight.Causal()).shape
        torch.Size([1, 8, 6, 64])
    """

    query_lengths: Tensor | Sequence[int]
    key_lengths: Tensor | Sequence[int]
    pages: Tensor | Sequence[Sequence[int]]
    near = True
    paged: ClassVar[bool] = True

    def __post_init__(self) -> None:
        made = _lengths("query_lengths", self.query_lengths), _lengths("key_lengths", self.key_lengths)
        for name, tensor in zip(("query_lengths", "key_lengths", "pages"), (*made, _table(self.pages)), strict=True):
            object.__setattr__(self, name, tensor)
        if len(self.pages) != self.documents:
            got = f"it has {len(self.pages)}, and there are {self.documents} documents"
            raise wrong("pages", "must have a row for each document", got, "A document without keys may have any row.")
        for derived in _DERIVED:  # now, since something may record the calls of the layout
            getattr(self, derived)

    @cached_property
    def _packed(self) -> Packed:
        queries, keys = (torch.as_tensor(lengths).tolist() for lengths in (self.query_lengths, self.key_lengths))
        return Packed(tuple(queries), tuple(keys))

    @cached_property
    def _totals(self) -> tuple[int, int]:
        queries, keys = self._packed.both
        return int(sum(queries)), int(sum(keys))

    @cached_property
    def _stored(self) -> dict[int, Pages]:
        return {}

    @cached_property
    def _segments(self) -> bytes:
        return self._packed.segments(1, *self._totals)

    def with_tensors(self, tensors: Iterator[Any]) -> Paged:
        new = super().with_tensors(tensors)
        if new is not self:
            for derived in _DERIVED:
                new.__dict__.pop(derived, None)
        return new

    @property
    def documents(self) -> int:
        """The number of documents of the one batch row."""
        return self._packed.documents

    @property
    def is_fixed(self) -> bool:
        return True

    @property
    def in_rows(self) -> Packed:
        return self._packed

    def stored(self, size: int) -> Pages:
        found = self._stored.get(size)
        if found is None:
            lengths, table = self.key_lengths, self.pages
            assert isinstance(lengths, Tensor)
            assert isinstance(table, Tensor)
            found = self._stored[size] = Pages(lengths, table, size, self._totals[1])
        return found

    def check(self, B: int, Lq: int, Lk: int) -> None:
        if readable(self.pages) and self._totals != (Lq, Lk):
            self._packed.check(B, Lq, Lk)

    def coordinates(self, B: int, Lq: int, Lk: int, device: torch.device) -> Coordinates:
        return self._packed.coordinates(B, Lq, Lk, device)

    def segments(self, B: int, Lq: int, Lk: int) -> bytes:
        return self._segments

    @property
    def uniform_over_batch(self) -> bool:
        return True

    def select(self, rows: Tensor) -> Paged:
        return self


def _lengths(name: str, lengths: object) -> Tensor:
    """A copy of the lengths of documents, ``(R,)`` int64 on the CPU."""
    if not isinstance(lengths, Tensor):
        what = "a sequence of lengths or an integer tensor"
        parts = sequence(name, lengths, what, "Paged((1, 5), (20, 5), pages)")
        return torch.tensor([position(name, n, at_least=0) for n in parts], dtype=torch.int64, device="cpu")
    if not _is_whole(check_dense(name, lengths)) or lengths.dim() != 1:
        raise wrong(
            name,
            "must hold one whole number for each document",
            f"it is {describe(lengths)}",
            "Pass a sequence of ints or an (R,) integer tensor of lengths (differences of cu_seqlens).",
        )
    return _copied(name, lengths, torch.int64)


def _table(pages: object) -> Tensor:
    """A copy of the page table, ``(R, M)`` int32 on the CPU."""
    if not isinstance(pages, Tensor):
        what = "an (R, M) integer tensor or a sequence of rows of page numbers"
        rows = [sequence("pages", row, what, "[[2, 0], [3, 1]]") for row in sequence("pages", pages, what, "[[2, 0]]")]
        M = max(map(len, rows), default=0)
        filled = [[*(_page(page) for page in row), *[-1] * (M - len(row))] for row in rows]
        pages = torch.tensor(filled, dtype=torch.int64, device="cpu").reshape(len(rows), M)
    if not _is_whole(check_dense("pages", pages)) or pages.dim() != 2:
        rule, way_out = "must hold whole numbers, a row for each document", "Use pages.int(), of shape (R, M)."
        raise wrong("pages", rule, f"it is {describe(pages)}", way_out)
    if pages.dtype in (torch.int64, torch.uint32, torch.uint64):  # a number beyond int32 must not become a page's
        pages = pages.to(torch.int64)  # those of uint64 that are beyond int64 are then below zero, and no page either
        pages = pages.clamp(_INT32.min, _INT32.max)
    return _copied("pages", pages, torch.int32)


def _page(page: object) -> int:
    """An entry of a table as one of int32, in which a number that it cannot hold is none of a page either."""
    return min(max(whole_number("pages", page), _INT32.min), _INT32.max)


def _is_whole(tensor: Tensor) -> bool:
    return not (tensor.dtype.is_floating_point or tensor.dtype.is_complex or tensor.dtype == torch.bool)


def _copied(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if torch.compiler.is_compiling() and not torch.compiler.is_exporting():
        break_graph("the numbers of a page table are read: make Paged outside of the graph")
    elif not readable(tensor):
        raise wrong(
            name,
            "must hold numbers that can be read",
            f"{describe(tensor)} is recorded or has none",
            "Make the layout outside of what is compiled or exported.",
        )
    copied = tensor.detach().to("cpu", dtype, copy=True, memory_format=torch.contiguous_format)
    if type(copied) is not Tensor:
        try:
            copied = torch.from_numpy(copied.numpy())
        except (RuntimeError, TypeError):
            raise wrong(
                name, "must be a plain tensor", f"it is a {type(tensor).__name__}", "Use .to_local()."
            ) from None
    return copied
