"""Layouts: which token stands where, in which document, and which tokens exist at all.

A layout belongs to the call, not to the pattern: no ``~`` or ``|`` of a pattern brings a missing key or another
document back. It gives every query and every key a document and a position; patterns, score rules, ``distance``
and dropout are functions of these positions and of nothing else.

=============  ==========================================================================================
``Aligned``    one document per batch row; by default the last query stands at the last key
``Padded``     one document per batch row, of its own length, padded at its right or left
``Packed``     documents laid end to end in every batch row
``KeyMask``    one document per batch row, some of whose keys do not exist
``Chosen``     some queries of another layout
=============  ==========================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..tensors.shapes import FARTHEST, check_tensor, describe, fits, flag, position, sequence, whole_number, wrong
from ..tensors.torch_internals import is_transform_tensor
from ..tensors.tracing import readable
from .descriptions import Description
from .patterns import WHOLE, Part


class Coordinates(NamedTuple):
    """Where everybody stands. Each is ``(B, L)`` or ``(1, L)``; positions and documents int64, the rest bool."""

    query_position: Tensor
    key_position: Tensor
    query_document: Tensor
    key_document: Tensor
    query_exists: Tensor
    key_exists: Tensor

    def together(self, part: Part = WHOLE) -> Tensor:
        """``(B, 1, Lq, Lk)``: both exist and stand in the same document; or a part of it."""
        query_document, query_exists = (part.of(x[:, None, :, None]) for x in (self.query_document, self.query_exists))
        key_document, key_exists = (part.of(x[:, None, None, :]) for x in (self.key_document, self.key_exists))
        return (query_document == key_document) & query_exists & key_exists


class Layout(Description):
    """Base of the layouts."""

    def check(self, B: int, Lq: int, Lk: int) -> None:
        """Raise `ArgumentError` when the layout does not fit ``B`` rows of ``Lq`` queries and ``Lk`` keys."""

    def coordinates(self, B: int, Lq: int, Lk: int, device: torch.device) -> Coordinates:
        """The definition of the layout: position, document and existence of every query and key."""
        raise NotImplementedError

    @property
    def documents(self) -> int:
        """Documents per batch row."""
        return 1


@dataclass(frozen=True, eq=False, repr=False)
class Aligned(Layout):
    """One document per batch row: query ``i`` stands at ``query_start + i``, key ``j`` at ``key_start + j``.

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
        """See `Layout.check`."""
        for name in ("query_start", "key_start"):
            start = getattr(self, name)
            if isinstance(start, Tensor):
                _check_per_row(name, start, B)
                if start.numel() and not _is_traced(start) and int(start.abs().max()) > FARTHEST:
                    farthest = int(start[start.abs().argmax()])
                    position(name, farthest)

    def coordinates(self, B: int, Lq: int, Lk: int, device: torch.device) -> Coordinates:
        """See `Layout.coordinates`."""
        key_start = _column(self.key_start, device)
        query_start = key_start + (Lk - Lq) if self.query_start is None else _column(self.query_start, device)
        query = query_start + torch.arange(Lq, device=device)
        key = key_start + torch.arange(Lk, device=device)
        return Coordinates(query, key, *_one_document(query, key), *_all_exist(query, key))


@dataclass(frozen=True, eq=False, repr=False)
class Padded(Layout):
    """One document per batch row, of its own length; the rest of the row is padding and does not exist.

    Existing keys have the positions ``0 .. key_length - 1``; the last existing query stands at the last existing key.

    Args:
        query_lengths: existing queries of each row, an int or a ``(B,)`` tensor of whole numbers.
        key_lengths: existing keys of each row; ``None`` for those of the queries.
        side: where the padding stands, ``"right"`` or ``"left"``.
    """

    query_lengths: int | Tensor
    key_lengths: int | Tensor | None = None
    side: str = "right"

    def __post_init__(self) -> None:
        if self.side not in ("right", "left"):
            raise wrong(
                "side", 'must be "right" or "left"', f"it is {self.side!r}", "It names where the padding stands."
            )
        for name in ("query_lengths", "key_lengths"):
            lengths = getattr(self, name)
            if lengths is not None and not isinstance(lengths, Tensor):
                position(name, lengths, at_least=0)

    @property
    def both(self) -> tuple[int | Tensor, int | Tensor]:
        """``(query_lengths, key_lengths)``, the default filled in."""
        return self.query_lengths, self.query_lengths if self.key_lengths is None else self.key_lengths

    def check(self, B: int, Lq: int, Lk: int) -> None:
        """See `Layout.check`."""
        for name, lengths, limit in zip(("query_lengths", "key_lengths"), self.both, (Lq, Lk), strict=True):
            if isinstance(lengths, Tensor):
                _check_per_row(name, lengths, B)
            if readable(lengths):
                _check_range(name, lengths, limit)

    def coordinates(self, B: int, Lq: int, Lk: int, device: torch.device) -> Coordinates:
        """See `Layout.coordinates`."""
        query_lengths, key_lengths = (_column(lengths, device) for lengths in self.both)
        query, key = torch.arange(Lq, device=device)[None], torch.arange(Lk, device=device)[None]
        if self.side == "left":
            query, key = query - (Lq - query_lengths), key - (Lk - key_lengths)
        query_exists = (query >= 0) & (query < query_lengths)
        key_exists = (key >= 0) & (key < key_lengths)
        query = query + (key_lengths - query_lengths)
        query, key = (query + 0 * key_lengths, key + 0 * query_lengths)
        return Coordinates(query, key, *_one_document(query, key), query_exists, key_exists)


@dataclass(frozen=True, eq=False, repr=False)
class Packed(Layout):
    """Documents laid end to end in every batch row, as ``cu_seqlens`` does it; no document sees another.

    Keys of a document have the positions ``0 .. key_length - 1``; its last query stands at its last key.

    Args:
        query_lengths: the lengths of the documents, a sequence of ints or an ``(N,)`` tensor, adding up to ``Lq``.
        key_lengths: the same for the keys, adding up to ``Lk``; ``None`` for those of the queries.
    """

    query_lengths: tuple[int, ...] | Tensor
    key_lengths: tuple[int, ...] | Tensor | None = None

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
        """Documents per batch row."""
        return len(self.query_lengths)

    @property
    def both(self) -> tuple[tuple[int, ...] | Tensor, tuple[int, ...] | Tensor]:
        """``(query_lengths, key_lengths)``, the default filled in."""
        return self.query_lengths, self.query_lengths if self.key_lengths is None else self.key_lengths

    def check(self, B: int, Lq: int, Lk: int) -> None:
        """See `Layout.check`."""
        if not all(map(readable, self.both)):
            return
        names = ("query_lengths", "query_lengths" if self.key_lengths is None else "key_lengths")
        for name, lengths, what, size in zip(names, self.both, ("Lq", "Lk"), (Lq, Lk), strict=True):
            if isinstance(lengths, Tensor):
                check_tensor(name, lengths)
            total = int(lengths.sum()) if isinstance(lengths, Tensor) else sum(lengths)
            if isinstance(lengths, Tensor) and len(lengths) and int(lengths.min()) < 0:
                raise wrong(
                    name, "must not hold a negative length", f"its least is {int(lengths.min())}", "Check cu_seqlens."
                )
            if total != size:
                raise wrong(
                    name,
                    f"must add up to {what}",
                    f"{self.documents} documents of {total} tokens in all stand against {what} = {size}",
                    "Cut the tensors to the tokens that exist, or name the rest as one more document.",
                )

    def coordinates(self, B: int, Lq: int, Lk: int, device: torch.device) -> Coordinates:
        """See `Layout.coordinates`."""
        query_lengths, key_lengths = (torch.as_tensor(n, device=device, dtype=torch.int64) for n in self.both)
        numbers = torch.arange(self.documents, device=device)
        query_document = torch.repeat_interleave(numbers, query_lengths, output_size=Lq)
        key_document = torch.repeat_interleave(numbers, key_lengths, output_size=Lk)
        query_first, key_first = query_lengths.cumsum(0) - query_lengths, key_lengths.cumsum(0) - key_lengths
        query = torch.arange(Lq, device=device) - (query_first + query_lengths - key_lengths)[query_document]
        key = torch.arange(Lk, device=device) - key_first[key_document]
        query, key = query[None], key[None]
        return Coordinates(query, key, query_document[None], key_document[None], *_all_exist(query, key))


@dataclass(frozen=True, eq=False, repr=False)
class KeyMask(Layout):
    """One document per batch row, some of whose keys do not exist; positions are those of ``Aligned()``.

    Args:
        mask: ``(B, Lk)`` bool, true where the key exists.
        fixed: the caller's word that the numbers of the mask never change; its lowering is then kept with this object,
            for the next layer that is given it.
    """

    mask: Tensor
    fixed: bool = False

    def __post_init__(self) -> None:
        flag("fixed", self.fixed)
        mask = check_tensor("mask", self.mask)
        if mask.dtype != torch.bool or mask.dim() != 2:
            got = f"it is {describe(mask)}"
            raise wrong("mask", "must be a (B, Lk) bool tensor, true where a key exists", got, "Use mask.bool().")

    def check(self, B: int, Lq: int, Lk: int) -> None:
        """See `Layout.check`."""
        check_tensor("mask", self.mask)
        if not fits(self.mask.shape[0], B) or self.mask.shape[1] != Lk:
            raise wrong(
                "mask",
                "must have one row for each batch row and one column for each key",
                f"{tuple(self.mask.shape)} stands against (B, Lk) = {(B, Lk)}",
                "With a cache, the mask covers the cached keys too.",
            )

    def coordinates(self, B: int, Lq: int, Lk: int, device: torch.device) -> Coordinates:
        """See `Layout.coordinates`."""
        plain = Aligned().coordinates(B, Lq, Lk, device)
        return plain._replace(key_exists=self.mask.to(device))


@dataclass(frozen=True, eq=False, repr=False)
class Chosen(Layout):
    """Some queries of a larger call: query ``c`` stands where query ``index[b, c]`` of the ``whole`` stands.

    So a part of the queries can be asked alone, each row its own, and gets what it would get among all: a head that
    works for some tokens (`limelight.nn.MixtureOfHeads`). The keys are those of the whole. A pattern by index
    (`limelight.Explicit`) counts the chosen queries, not all.

    Args:
        index: ``(B, Lq)`` int64, queries of the whole; -1 for a query that does not exist. Ascending is fastest.
        queries: ``Lq`` of the whole.
        whole: the layout of the whole; ``None`` is ``Aligned()``.
    """

    index: Tensor
    queries: int
    whole: Layout | None = None

    def __post_init__(self) -> None:
        whole_number("queries", self.queries, at_least=0)
        index = check_tensor("index", self.index)
        if index.dim() != 2 or index.dtype != torch.int64:
            got = f"it is {describe(index)}"
            raise wrong("index", "must be a (B, Lq) int64 tensor of queries of the whole", got, "Use mask.nonzero().")

    def check(self, B: int, Lq: int, Lk: int) -> None:
        """See `Layout.check`."""
        check_tensor("index", self.index)
        if tuple(self.index.shape) != (B, Lq):
            raise wrong(
                "index",
                "must have one row for each batch row and one column for each query",
                f"{tuple(self.index.shape)} stands against (B, Lq) = {(B, Lq)}",
                "Fill a row that has fewer with -1.",
            )
        if readable(self.index) and self.index.numel() and int(self.index.max()) >= self.queries:
            raise wrong(
                "index",
                f"must hold numbers below {self.queries}, the queries of the whole",
                f"its largest is {int(self.index.max())}",
                "Give `queries` as the length before the choice.",
            )
        if self.whole is not None:
            self.whole.check(B, self.queries, Lk)

    def coordinates(self, B: int, Lq: int, Lk: int, device: torch.device) -> Coordinates:
        """See `Layout.coordinates`."""
        whole = (self.whole or Aligned()).coordinates(B, self.queries, Lk, device)
        index = self.index.to(device)
        some = index >= 0
        position, document, exists = (
            torch.zeros_like(index, dtype=x.dtype)
            if self.queries == 0
            else x.expand(B, self.queries).gather(1, index.clamp(min=0))
            for x in (whole.query_position, whole.query_document, whole.query_exists)
        )
        return whole._replace(query_position=position, query_document=document, query_exists=exists & some)

    @property
    def documents(self) -> int:
        """See `Layout.documents`."""
        return 1 if self.whole is None else self.whole.documents


def _column(value: int | Tensor, device: torch.device) -> Tensor:
    """An int as ``(1, 1)``, a ``(B,)`` tensor as ``(B, 1)``."""
    if isinstance(value, Tensor):
        return value.to(device=device, dtype=torch.int64)[:, None]
    return torch.full((1, 1), value, dtype=torch.int64, device=device)


def _one_document(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    return torch.zeros_like(query), torch.zeros_like(key)


def _all_exist(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ones_like(query, dtype=torch.bool), torch.ones_like(key, dtype=torch.bool)


def _is_traced(tensor: Tensor) -> bool:
    """Whether the numbers of a tensor are not known yet."""
    return not readable(tensor) or is_transform_tensor(tensor)


def _check_per_row(name: str, values: Tensor, B: int) -> None:
    check_tensor(name, values)
    if values.dim() != 1 or values.shape[0] != B or values.dtype.is_floating_point or values.dtype == torch.bool:
        raise wrong(
            name,
            f"must be an int or a (B,) = ({B},) tensor of whole numbers",
            f"it is {describe(values)}",
            "One number stands for each batch row.",
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
