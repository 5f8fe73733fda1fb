"""Patterns by data: a table of blocks, a mask, a function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...tensors.shapes import check_broadcast, check_tensor, describe, position, wrong
from ..coordinates import Where
from .base import Pattern
from .intervals import block_of


@dataclass(frozen=True, eq=False, repr=False)
class Blocks(Pattern):
    """Block-sparse: positions are cut into blocks, and a table says which block of queries sees which block of keys.

    ``table[..., p // size, j // size]``. Positions beyond the table see nothing and are not seen.

    Args:
        table: bool, ``(query blocks, key blocks)``, with ``(Hq,)`` or ``(B, Hq)`` before it where heads or rows
            differ (1 broadcasts).
        size: positions in a block; one begins at position 0.
    """

    table: Tensor
    size: int

    def __post_init__(self) -> None:
        position("size", self.size, at_least=1)
        table = check_tensor("table", self.table)
        if table.dtype != torch.bool or not 2 <= table.dim() <= 4:
            raise wrong(
                "table",
                "must be a bool tensor (..., query blocks, key blocks)",
                f"it is {describe(self.table)}",
                "Use .bool().",
            )

    def check(self, B: int, Hq: int, Lq: int, Lk: int) -> None:
        check_tensor("table", self.table)
        check_broadcast("table", self.table.shape[:-2], (B, Hq))

    def allows(self, at: Where) -> Tensor:
        table = self.table.to(at.query_position.device)
        table = table[(None,) * (4 - table.dim())]
        row, column = block_of(at.query_position, self.size), block_of(at.key_position, self.size)
        rows, columns = table.shape[-2:]
        inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
        if rows == 0 or columns == 0:
            return inside
        batch = at.batch if table.shape[0] > 1 else 0 * at.batch[:1]
        head = at.head if table.shape[1] > 1 else 0 * at.head[:, :1]
        return inside & table[batch, head, row.clamp(0, rows - 1), column.clamp(0, columns - 1)]

    def select(self, queries: Tensor, keys: Tensor) -> Blocks:
        return self

    def for_heads(self, heads: slice) -> Blocks:
        shared = self.table.dim() < 3 or self.table.shape[-3] == 1
        return self if shared else Blocks(self.table[..., heads, :, :], self.size)


@dataclass(frozen=True, eq=False, repr=False)
class Explicit(Pattern):
    """A bool mask by token index: query ``i`` sees key ``j`` where ``mask[b, h, i, j]`` is true.

    Args:
        mask: bool, broadcastable to ``(B, Hq, Lq, Lk)``, of up to 4 dimensions.
        fixed: promises that the mask is never modified, which lets its lowering be cached: the pattern then costs one
            lowering for all layers that use the same object.
    """

    mask: Tensor
    fixed: bool = False

    def __post_init__(self) -> None:
        mask = check_tensor("mask", self.mask)
        if mask.dtype != torch.bool or mask.dim() > 4:
            raise wrong(
                "mask",
                "must be a bool tensor, true where the query sees the key",
                f"it is {describe(self.mask)}",
                "A float mask that is added to the scores is limelight.forms.scores.Bias(mask).",
            )

    def check(self, B: int, Hq: int, Lq: int, Lk: int) -> None:
        check_tensor("mask", self.mask)
        check_broadcast("mask", self.mask.shape, (B, Hq, Lq, Lk))

    def allows(self, at: Where) -> Tensor:
        return at.part.of(self.mask.to(at.query_position.device))

    def select(self, queries: Tensor, keys: Tensor) -> Explicit:
        mask = self.mask
        for dim, index in ((-2, queries), (-1, keys)):
            if mask.dim() >= -dim and mask.shape[dim] > 1:
                mask = mask.index_select(dim, index.to(mask.device))
        return Explicit(mask, self.fixed)

    def for_heads(self, heads: slice) -> Explicit:
        shared = self.mask.dim() < 3 or self.mask.shape[-3] == 1
        return self if shared else Explicit(self.mask[..., heads, :, :], self.fixed)

    @property
    def is_fixed(self) -> bool:
        return self.fixed


@dataclass(frozen=True, eq=False, repr=False)
class Predicate(Pattern):
    """Any predicate of positions, indices, heads and batch rows: a query sees a key where ``function(at)`` is true.

    ``Predicate(lambda at: (at.head == 0) | (at.key_position % 2 == 0))`` lets head 0 see every key and the others every
    second one. It is evaluated at each call, because it may close over something that changes.

    Args:
        function: from a `Where` to a bool tensor that broadcasts to ``(B, Hq, Lq, Lk)``; elementwise, since it is also
            evaluated for some of the queries alone.
        fixed: promises that equal calls give equal results, which lets the lowering be cached.
    """

    function: Callable[[Where], Tensor]
    fixed: bool = False

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise wrong("function", "must be callable", f"it is {self.function!r}", "Pass a function of one `Where`.")

    def allows(self, at: Where) -> Tensor:
        if at.whole is not None:
            return at.part._replace(queries=slice(None)).of(self.allows(at.whole))
        allowed = self.function(at)
        if not isinstance(allowed, Tensor) or allowed.dtype != torch.bool:
            raise wrong(
                "function",
                "of a Predicate must return a bool tensor",
                f"it returned {describe(allowed)}",
                "Compare, or use .bool().",
            )
        sizes = (at.batch.shape[0], at.head.shape[1], at.query_index.shape[2], at.key_index.shape[3])
        check_broadcast("function", allowed.shape, sizes)
        return allowed[(None,) * (4 - allowed.dim())]

    @property
    def is_fixed(self) -> bool:
        return self.fixed

    def as_data(self, at: Callable[[], Where]) -> Pattern:
        return Explicit(self.allows(at()))

    def select(self, queries: Tensor, keys: Tensor) -> Predicate:
        return Predicate(_OfWhole(self.function, queries, keys), self.fixed)

    def for_heads(self, heads: slice) -> Predicate:
        return Predicate(_OfHeads(self.function, heads), self.fixed)


@dataclass(frozen=True, eq=False)
class _OfWhole:
    """A function of a `Where`, given the indices of the larger call to which queries and keys belong."""

    function: Callable[[Where], Tensor]
    queries: Tensor
    keys: Tensor

    def __call__(self, at: Where) -> Tensor:
        queries, keys = self.queries.to(at.query_index.device), self.keys.to(at.key_index.device)
        return self.function(at._replace(query_index=queries[at.query_index], key_index=keys[at.key_index]))


@dataclass(frozen=True, eq=False)
class _OfHeads:
    """A function of a `Where` of all heads, of which a call has some."""

    function: Callable[[Where], Tensor]
    heads: slice

    def __call__(self, at: Where) -> Tensor:
        return self.function(at._replace(head=at.head + self.heads.start))
