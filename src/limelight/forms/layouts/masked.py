"""Layouts in which some keys are missing, or that hold some queries of another: `KeyMask` and `Subset`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...tensors.shapes import check_tensor, describe, fits, flag, whole_number, wrong
from ...tensors.tracing import readable
from ..coordinates import Coordinates
from ..segments import KeyRanges, one_segment, pack
from .base import Layout
from .rows import Aligned


@dataclass(frozen=True, eq=False, repr=False)
class KeyMask(Layout):
    """One document per batch row, some of whose keys do not exist; positions are those of ``Aligned()``.

    Args:
        mask: ``(B, Lk)`` bool, true where the key exists.
        fixed: promises that the mask is never modified, which lets its lowering be cached: the layout then costs one
            lowering for all layers that use the same object.
    """

    mask: Tensor
    fixed: bool = False
    near = True

    def __post_init__(self) -> None:
        flag("fixed", self.fixed)
        mask = check_tensor("mask", self.mask)
        if mask.dtype != torch.bool or mask.dim() != 2:
            got = f"it is {describe(mask)}"
            way_out = "Use mask.bool()."
            if mask.dim() != 2:
                way_out = "Of a (B, 1, 1, Lk) mask use mask[:, 0, 0]; one of pairs is limelight.Explicit(mask)."
            raise wrong("mask", "must be a (B, Lk) bool tensor, true where a key exists", got, way_out)

    def check(self, B: int, Lq: int, Lk: int) -> None:
        check_tensor("mask", self.mask)
        if not fits(self.mask.shape[0], B) or self.mask.shape[1] != Lk:
            raise wrong(
                "mask",
                "must have one row for each batch row and one column for each key",
                f"its shape is {tuple(self.mask.shape)}, and (B, Lk) = {(B, Lk)}",
                "With a cache, the mask covers the cached keys too.",
            )

    def coordinates(self, B: int, Lq: int, Lk: int, device: torch.device) -> Coordinates:
        plain = Aligned().coordinates(B, Lq, Lk, device)
        return plain._replace(key_exists=self.mask.to(device))

    def segments(self, B: int, Lq: int, Lk: int) -> bytes:
        # Keys missing at both ends are cut off here.
        exists = self.mask.numpy(force=True)
        some = exists.any(1)
        first = np.where(some, exists.argmax(1), 0) if Lk else np.zeros(len(exists), np.int64)
        last = np.where(some, Lk - exists[:, ::-1].argmax(1), 0) if Lk else first
        if len(exists) == 1:
            return one_segment(Lq, int(first[0]), int(last[0]), Lk - Lq, 0)
        return pack(B, query_end=Lq, key_begin=first, key_end=last, query_offset=Lk - Lq, key_offset=0)

    def holes(self) -> Tensor | None:
        mask = self.mask.detach().cpu()
        edges = mask.long().diff(dim=1).abs().sum(1) + mask[:, :1].long().sum(1) + mask[:, -1:].long().sum(1)
        return mask if bool((edges > 2).any()) else None

    @property
    def is_fixed(self) -> bool:
        return self.fixed

    @property
    def uniform_over_batch(self) -> bool:
        return self.mask.shape[0] == 1

    def index_offset(self, Lq: int, Lk: int) -> int:
        return Lk - Lq

    def select(self, rows: Tensor) -> KeyMask:
        return self if self.mask.shape[0] == 1 else KeyMask(self.mask[rows.to(self.mask.device)], self.fixed)


@dataclass(frozen=True, eq=False, repr=False)
class Subset(Layout):
    """A subset of the queries of a larger call, at their original positions; the keys are those of the larger call.

    Query ``c`` of row ``b`` has the position of query ``index[b, c]`` of the larger call, so it gets the same output as
    there: a head that works for some tokens (`limelight.nn.MixtureOfHeads`) is computed for these alone. A pattern or a
    bias by index (`limelight.Explicit`, `limelight.Bias`) counts the queries of the subset.

    Args:
        index: ``(B, Lq)`` int64, indices of queries of the larger call; -1 for a query that does not exist. Ascending
            is fastest.
        queries: number of queries of the larger call.
        of: the layout of the larger call; ``None`` is ``Aligned()``.
    """

    index: Tensor
    queries: int
    of: Layout | None = None

    def __post_init__(self) -> None:
        whole_number("queries", self.queries, at_least=0)
        index = check_tensor("index", self.index)
        if index.dim() != 2 or index.dtype != torch.int64:
            got = f"it is {describe(index)}"
            raise wrong(
                "index", "must be a (B, Lq) int64 tensor of queries of the larger call", got, "Use mask.nonzero()."
            )
        if self.of is not None and (self.of.spread or self.of.paged):
            raise wrong(
                "of",
                "must be a layout of rows in one process",
                f"it is {self.of!r}",
                "Gather the keys that lie elsewhere.",
            )

    def check(self, B: int, Lq: int, Lk: int) -> None:
        check_tensor("index", self.index)
        if tuple(self.index.shape) != (B, Lq):
            raise wrong(
                "index",
                "must have one row for each batch row and one column for each query",
                f"its shape is {tuple(self.index.shape)}, and (B, Lq) = {(B, Lq)}",
                "Fill a row that has fewer with -1.",
            )
        if readable(self.index) and self.index.numel() and int(self.index.max()) >= self.queries:
            raise wrong(
                "index",
                f"must hold numbers below {self.queries}, the queries of the larger call",
                f"its largest is {int(self.index.max())}",
                "Give `queries` as the number of queries of the larger call.",
            )
        if self.of is not None:
            self.of.check(B, self.queries, Lk)

    def coordinates(self, B: int, Lq: int, Lk: int, device: torch.device) -> Coordinates:
        whole = (self.of or Aligned()).coordinates(B, self.queries, Lk, device)
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
        return 1 if self.of is None else self.of.documents

    def key_ranges(self, B: int, Lq: int, Lk: int) -> KeyRanges | None:
        whole = self.of or Aligned()
        segments = whole.segments(B, self.queries, Lk)
        if segments is not None:
            return KeyRanges.of_segments(segments, self.queries).take(self.index.numpy(force=True))
        found = whole.key_ranges(B, self.queries, Lk)
        return None if found is None else found.take(self.index.numpy(force=True))

    def holes(self) -> Tensor | None:
        return None if self.of is None else self.of.holes()

    def select(self, rows: Tensor) -> Subset:
        whole = None if self.of is None else self.of.select(rows)
        return Subset(self.index[rows.to(self.index.device)], self.queries, whole)
