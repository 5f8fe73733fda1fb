"""Segments: a layout by arithmetic, as kernels read it.

A segment is a range of queries, the range of keys that they may see at all, and the offsets that turn the indices of
both into positions: ``position = index + offset``. A layout that is no list of segments gives each query's position and
range of keys (`KeyRanges`); where the keys of a document are not one range, it becomes a map of tiles.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from torch import Tensor

from .coordinates import Coordinates

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Fields of a segment, int64 each. ``row`` -1 stands for every batch row; ``dropout_row`` is the number of the row or
#: document that dropout is a function of. Where keys lie in pages, key ``k`` is entry ``k + page_offset`` of all
#: entries of the page table, ``size`` to a page. ``whole_queries``: how many queries the document has, where these are
#: a part of it; 0 where these are all of it. ``keys_before``: how many keys of the document come before ``key_begin``,
#: where these are a part of it; else 0. A kernel for few queries over many keys is chosen by the former, and blocks of
#: keys are counted from the document's first key, so that a part of a document is computed like the whole.
FIELDS = (
    "row", "query_begin", "query_end", "key_begin", "key_end", "query_offset", "key_offset", "dropout_row",
    "page_offset", "whole_queries", "keys_before",
)  # fmt: skip
SEGMENT_BYTES = 8 * len(FIELDS)
_PACK = struct.Struct(f"{len(FIELDS)}q")


def one_segment(Lq: int, key_begin: int, key_end: int, query_offset: int, key_offset: int) -> bytes:
    """The only segment of a layout that is the same for every batch row: all ``Lq`` queries, one range of keys."""
    return _PACK.pack(-1, 0, Lq, key_begin, key_end, query_offset, key_offset, 0, 0, 0, 0)


def pack(count: int, **columns: int | NDArray[np.int64]) -> bytes:
    """``count`` segments, by columns of `FIELDS`; by default segment ``n`` is of row ``n``, other fields are 0."""
    table = np.zeros((count, len(FIELDS)), np.int64)
    table[:, 0] = table[:, 7] = np.arange(count)
    for name, column in columns.items():
        table[:, FIELDS.index(name)] = column
    return table.tobytes()


def unpack(segments: bytes) -> NDArray[np.int64]:
    """``(n, 11)``: the segments, by `FIELDS`."""
    return np.frombuffer(segments, np.int64).reshape(-1, len(FIELDS))


def of_all_rows(segments: bytes) -> tuple[int, ...] | None:
    """The fields of the only segment, where there is one for every batch row; ``None`` for other segments."""
    if len(segments) != SEGMENT_BYTES:
        return None
    fields = _PACK.unpack(segments)
    return fields if fields[0] == -1 else None


def per_row(value: int | Tensor, B: int) -> NDArray[np.int64]:
    """``(B,)``: one number for each batch row."""
    if isinstance(value, Tensor):
        return value.numpy(force=True).astype(np.int64)
    return np.full(B, value, np.int64)


class KeyRanges(NamedTuple):
    """For each query its position and the range of keys, by index, that it may see at all: each ``(B | 1, Lq)`` int64.

    Key ``j`` of the range has position ``j + key_offset``. The range of a query that does not exist is empty.
    """

    position: NDArray[np.int64]
    key_begin: NDArray[np.int64]
    key_end: NDArray[np.int64]
    key_offset: NDArray[np.int64]

    @classmethod
    def of_segments(cls, segments: bytes, Lq: int) -> KeyRanges:
        """The key range of each of ``Lq`` queries, from packed ``segments``."""
        table = unpack(segments)
        rows = 1 if len(table) and (table[:, 0] == -1).all() else int(table[:, 0].max(initial=0)) + 1
        ranges = cls(*(np.zeros((rows, Lq), np.int64) for _ in cls._fields))
        for row, q0, q1, k0, k1, query_offset, key_offset in table[:, :7].tolist():
            queries = max(row, 0), slice(q0, q1)
            ranges.position[queries] = np.arange(q0, q1) + query_offset
            ranges.key_begin[queries], ranges.key_end[queries], ranges.key_offset[queries] = k0, k1, key_offset
        return ranges

    @classmethod
    def of_coordinates(cls, coordinates: Coordinates) -> KeyRanges | None:
        """The key ranges of a layout's coordinates; ``None`` when the keys of some document are not contiguous."""
        each = [x.numpy(force=True) for x in coordinates]
        rows = max(len(x) for x in each)
        each = [np.broadcast_to(x, (rows, x.shape[1])) for x in each]
        found = [_row_of_coordinates(*(x[row] for x in each)) for row in range(rows)]
        if any(one is None for one in found):
            return None
        none = np.zeros((0, each[0].shape[1]), np.int64)
        return cls(*(np.concatenate([none, *(one[n] for one in found if one is not None)]) for n in range(4)))

    def row(self, row: int) -> KeyRanges:
        """The ranges of one batch row, ``(1, Lq)``."""
        return self if len(self.position) == 1 else KeyRanges(*(x[row : row + 1] for x in self))

    def take(self, index: NDArray[np.int64]) -> KeyRanges:
        """The ranges of the queries ``index`` ``(B, n)``; a negative index is a query that does not exist."""
        if not self.position.shape[1]:
            return KeyRanges(*(np.zeros(index.shape, np.int64) for _ in self))
        taken = (
            np.take_along_axis(np.broadcast_to(x, (len(index), x.shape[1])), np.maximum(index, 0), 1) for x in self
        )
        position, begin, end, offset = taken
        return KeyRanges(position, np.where(index < 0, 0, begin), np.where(index < 0, 0, end), offset)


def _row_of_coordinates(
    query_position: NDArray[np.int64],
    key_position: NDArray[np.int64],
    query_document: NDArray[np.int64],
    key_document: NDArray[np.int64],
    query_exists: NDArray[np.bool_],
    key_exists: NDArray[np.bool_],
) -> tuple[NDArray[np.int64], ...] | None:
    """The fields of `KeyRanges` of one batch row, ``(1, Lq)`` each, from its coordinates."""
    keys = np.flatnonzero(key_exists)
    documents, which, counts = np.unique(key_document[keys], return_inverse=True, return_counts=True)
    begin, end = np.full(len(documents), len(key_exists)), np.zeros(len(documents), np.int64)
    np.minimum.at(begin, which, keys)
    np.maximum.at(end, which, keys + 1)
    if not len(documents):
        none = np.zeros_like(query_position)[None]
        return query_position[None], none, none, none
    offset = key_position[begin] - begin
    if (end - begin != counts).any() or (key_position[keys] - keys != offset[which]).any():
        return None
    place = np.minimum(np.searchsorted(documents, query_document), len(documents) - 1)
    seen = query_exists & (documents[place] == query_document)
    return tuple(x[None] for x in (query_position, begin[place] * seen, end[place] * seen, offset[place]))
