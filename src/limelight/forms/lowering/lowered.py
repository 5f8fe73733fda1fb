"""What the lowering gives to kernels, and what can be counted from it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import numpy as np

from ..segments import of_all_rows
from ..segments import unpack as unpack_segments
from ..spans import SPAN_BYTES
from ..spans import unpack as unpack_spans
from .arrays import Arrays, Intervals, evaluate
from .tiles import Tiles
from .tiles import unpack as unpack_tiles

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(eq=False)
class Lowered:
    """A layout and a pattern as kernels read them."""

    B: int
    Hq: int
    Lq: int
    Lk: int
    segments: bytes  # `limelight.forms.segments`, packed
    spans: bytes | None  # `limelight.forms.spans`, packed; exactly one of spans and arrays is given
    arrays: Arrays | None = None
    tiles: Tiles | None = None

    @cached_property
    def segment_table(self) -> NDArray[np.int64]:
        """``(n, 11)`` int64: the segments, by `limelight.forms.segments.FIELDS`."""
        return unpack_segments(self.segments)

    @cached_property
    def covers(self) -> bool:
        """Whether every query belongs to some segment, so that kernels write every row of the output."""
        one = of_all_rows(self.segments)
        return one[1:3] == (0, self.Lq) if one is not None else _covers(self.segments, self.B, self.Lq)

    @cached_property
    def covers_keys(self) -> bool:
        """Whether every key belongs to exactly one segment, so that owners of keys write every row of the gradients."""
        return _covers_keys(self.segments, self.B, self.Lk)

    @property
    def form(self) -> str:
        """How the pattern is expressed, for people: ``"2 spans"``, ``"interval arrays and a tile map"``."""
        count = len(self.spans or b"") // SPAN_BYTES
        intervals = f"{count} span{'' if count == 1 else 's'}" if self.arrays is None else "interval arrays"
        return intervals if self.tiles is None else f"{intervals} and a tile map"

    @property
    def bytes(self) -> int:
        """Bytes of memory that the lowering holds."""
        held = len(self.segments) + len(self.spans or b"")
        if self.arrays is not None:
            held += self.arrays.starts.nbytes + self.arrays.ends.nbytes
        if self.tiles is not None:
            held += self.tiles.state.nbytes + self.tiles.bits.nbytes
        return held

    def intervals(self) -> Intervals:
        """``(K, B | 1, Lq)`` starts and ends in key index space, sorted and disjoint; empty where end <= start."""
        if self.arrays is not None:
            return self.arrays.starts[:, :, 0].astype(np.int64), self.arrays.ends[:, :, 0].astype(np.int64)
        return evaluate(unpack_spans(self.spans or b""), self.segment_table, self.Lq)

    def rows(self, first: int, last: int) -> NDArray[np.bool_]:
        """``(B | 1, Hq | 1, last - first, Lk)`` bool: which keys each query sees, for some of the queries."""
        starts, ends = self.intervals_kept
        j = np.arange(self.Lk)
        seen = np.zeros((starts.shape[1], 1, last - first, self.Lk), bool)
        for start, end in zip(starts[:, :, first:last], ends[:, :, first:last], strict=True):
            seen |= ((j >= start[..., None]) & (j < end[..., None]))[:, None]
        return seen if self.tiles is None else seen & unpack_tiles(self.tiles, first, last, self.Lk)

    def pairs(self) -> int:
        """How many (query, key) pairs are seen, over all batch rows and query heads."""
        if self.tiles is None:
            starts, ends = self.intervals_kept
            total = int(np.maximum(ends - starts, 0).sum())
            return total * self.Hq * (self.B if starts.shape[1] == 1 else 1)
        return int(sum(self._all_heads(self.rows(*part)).sum() for part in self._parts()))

    def seen_by(self) -> NDArray[np.int64]:
        """``(B | 1, Hq | 1, Lk)``: how many queries see each key."""
        if self.tiles is not None:
            parts = [self.rows(*part).sum(2) for part in self._parts()]
            return np.sum(parts, axis=0) if parts else np.zeros((1, 1, self.Lk), np.int64)
        return self._column_counts(0, self.Lq)[:, None]

    def block_pairs(self, bq: int, bk: int) -> NDArray[np.int64]:
        """``(B | 1, Hq | 1, ceil(Lq / bq), ceil(Lk / bk))``: how many pairs of each block are seen."""
        if self.tiles is None:
            starts, ends = self.intervals_kept
            some = starts < ends
            places = np.where(some, starts, 0), np.where(some, ends, 0)
            before, until = (
                np.stack([_keys_before(of[:, row], bq, bk, self.Lk) for row in range(of.shape[1])]) for of in places
            )
            return np.diff(before - until, axis=-1)[:, None]
        edges = np.arange(0, self.Lk, bk)
        result = []
        for first in range(0, self.Lq, bq):
            counts = self.rows(first, min(first + bq, self.Lq)).sum(2)
            result.append(np.add.reduceat(counts, edges, axis=-1) if self.Lk else counts)
        return np.stack(result, axis=2) if result else np.zeros((1, 1, 0, len(edges)), np.int64)

    def _column_counts(self, first: int, last: int) -> NDArray[np.int64]:
        """``(B | 1, Lk)``: how many of the queries ``first`` to ``last`` have each key in an interval."""
        starts, ends = (x[:, :, first:last] for x in self.intervals_kept)
        steps = np.zeros((starts.shape[1], self.Lk + 1), np.int64)
        for row in range(starts.shape[1]):
            some = starts[:, row] < ends[:, row]
            steps[row] += np.bincount(starts[:, row][some], minlength=self.Lk + 1)
            steps[row] -= np.bincount(ends[:, row][some], minlength=self.Lk + 1)
        return steps[:, :-1].cumsum(1)

    @cached_property
    def intervals_kept(self) -> Intervals:
        """`intervals`, evaluated once and cached."""
        return self.intervals()

    def _all_heads(self, seen: NDArray[np.bool_]) -> NDArray[np.bool_]:
        return np.broadcast_to(seen, (self.B, self.Hq, *seen.shape[2:]))

    def _parts(self) -> list[tuple[int, int]]:
        """Runs of queries whose rows together stay small."""
        step = max(1, 2**24 // max(1, self.Lk * self.B * self.Hq))
        return [(first, min(first + step, self.Lq)) for first in range(0, self.Lq, step)]


def _keys_before(places: NDArray[np.int64], bq: int, bk: int, Lk: int) -> NDArray[np.int64]:
    """``(ceil(Lq / bq), ceil(Lk / bk) + 1)``: the sum over each block of queries of ``max(edge - place, 0)``, for the
    edges of the blocks of keys and the ``places`` ``(K, Lq)`` of each query."""
    Lq = places.shape[1]
    rows, columns = -(-Lq // bq), -(-Lk // bk)
    edges = np.minimum(np.arange(columns + 1) * bk, Lk)
    block = (np.arange(Lq) // bq * (columns + 1) + places // bk).ravel()
    shape, size = (rows, columns + 1), rows * (columns + 1)
    number = np.bincount(block, minlength=size)[:size].reshape(shape)
    total = np.bincount(block, places.ravel(), minlength=size)[:size].reshape(shape).astype(np.int64)
    before = np.zeros((2, rows, columns + 1), np.int64)
    before[:, :, 1:] = np.stack([number, total])[:, :, :-1].cumsum(-1)
    found: NDArray[np.int64] = edges * before[0] - before[1]
    return found


@lru_cache(maxsize=256)
def _covers(segments: bytes, B: int, Lq: int) -> bool:
    table = unpack_segments(segments)
    rows = np.where(table[:, 0] < 0, B, 1)
    return int(((table[:, 2] - table[:, 1]) * rows).sum()) == B * Lq


@lru_cache(maxsize=256)
def _covers_keys(segments: bytes, B: int, Lk: int) -> bool:
    table = unpack_segments(segments)
    rows = [(row, begin, end) for row, _, _, begin, end, *_ in table.tolist() if begin < end]
    whole = {-1} if all(row == -1 for row, _, _ in rows) else set(range(B))
    place: dict[int, int] = {}
    for row, begin, end in sorted(rows):
        if begin != place.get(row, 0):
            return False
        place[row] = end
    return Lk == 0 or place == dict.fromkeys(whole, Lk)
