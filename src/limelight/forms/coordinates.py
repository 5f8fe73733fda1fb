"""Coordinates: where every query and key of a call stands, and the parts of a call.

A layout gives `Coordinates`: the position, the document and the existence of each query and each key. `Where` is what a
pattern or a score rule is evaluated at: the same positions in the shape of the scores, beside batch row, head and
index. `Part` names some of the batch rows, heads, queries and keys.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..tensors.devices import check_device
from ..tensors.shapes import describe, whole_number, wrong


def check_where(at: object) -> None:
    """Raise `ArgumentError` where the argument of a pattern or a score rule is no `Where`."""
    if not isinstance(at, Where):
        way_out = "Where.of(layout.coordinates(B, Lq, Lk, device), B, Hq) is that of a whole call."
        raise wrong("at", "must be a limelight.Where", f"it is {describe(at)}", way_out)


def check_sizes(B: object, Lq: object, Lk: object, device: torch.device | str) -> None:
    """Raise `ArgumentError` where the arguments of `Layout.coordinates` are no sizes and no device."""
    for name, size in (("B", B), ("Lq", Lq), ("Lk", Lk)):
        if not isinstance(size, Tensor):  # torch.jit.trace makes tensors of sizes
            whole_number(name, size)
    check_device("device", device)


class Part(NamedTuple):
    """A part of a call: slices of its batch rows, query heads, queries and keys; by default all of them."""

    batch: slice = slice(None)
    heads: slice = slice(None)
    queries: slice = slice(None)
    keys: slice = slice(None)

    def of(self, tensor: Tensor) -> Tensor:
        """This part of a tensor that broadcasts to ``(B, Hq, Lq, Lk)``; dimensions of size 1 are kept."""
        tensor = tensor[(None,) * (4 - tensor.dim())]
        return tensor[tuple(slice(None) if n == 1 else some for n, some in zip(tensor.shape, self, strict=True))]


WHOLE = Part()


class Coordinates(NamedTuple):
    """Position, document and existence of every query and key: what a layout defines.

    Each is ``(B, L)``, or ``(1, L)`` where all batch rows have the same. Positions are int64, counted in tokens of the
    document, and may be negative; documents are numbered from 0 in each row, int64; existence is bool. Numbers that
    differ by a multiple of the layout's ``documents`` are parts of one document that do not see each other.
    """

    query_position: Tensor
    key_position: Tensor
    query_document: Tensor
    key_document: Tensor
    query_exists: Tensor
    key_exists: Tensor

    def together(self, part: Part = WHOLE) -> Tensor:
        """``(B | 1, 1, Lq, Lk)`` bool: whether query and key exist and belong to the same document; or a part of it."""
        query_document, query_exists = (part.of(x[:, None, :, None]) for x in (self.query_document, self.query_exists))
        key_document, key_exists = (part.of(x[:, None, None, :]) for x in (self.key_document, self.key_exists))
        return (query_document == key_document) & query_exists & key_exists


class Where(NamedTuple):
    """The queries and keys at which a pattern or a score rule is evaluated; fields broadcast to ``(B, Hq, Lq, Lk)``.

    Positions are those of the layout; an index counts the tokens of a tensor from 0. All are int64.
    """

    batch: Tensor  # (B, 1, 1, 1)
    head: Tensor  # (1, Hq, 1, 1)
    query_position: Tensor  # (B | 1, 1, Lq, 1)
    key_position: Tensor  # (B | 1, 1, 1, Lk)
    query_index: Tensor  # (1, 1, Lq, 1)
    key_index: Tensor  # (1, 1, 1, Lk)
    part: Part  # which part of the call this is
    whole: Where | None = None  # the same queries with all batch rows, heads and keys, where some are left out

    @property
    def distance(self) -> Tensor:
        """``key_position - query_position``, ``(B | 1, 1, Lq, Lk)``: tokens from the query forward to the key."""
        return self.key_position - self.query_position

    @classmethod
    def of(cls, coordinates: Coordinates, B: int, Hq: int, part: Part = WHOLE) -> Where:
        """The queries and keys of a call of ``B`` rows and ``Hq`` query heads, or a ``part`` of them."""
        query, key = coordinates.query_position, coordinates.key_position
        device = query.device
        whole = cls(
            batch=torch.arange(B, device=device)[:, None, None, None],
            head=torch.arange(Hq, device=device)[None, :, None, None],
            query_position=query[:, None, part.queries, None],
            key_position=key[:, None, None, :],
            query_index=torch.arange(query.shape[1], device=device)[None, None, part.queries, None],
            key_index=torch.arange(key.shape[1], device=device)[None, None, None, :],
            part=Part(queries=part.queries),
        )
        if part == whole.part:
            return whole
        cut = part._replace(queries=slice(None)).of
        return cls(
            batch=cut(whole.batch),
            head=cut(whole.head),
            query_position=cut(whole.query_position),
            key_position=cut(whole.key_position),
            query_index=whole.query_index,
            key_index=cut(whole.key_index),
            part=part,
            whole=whole,
        )
