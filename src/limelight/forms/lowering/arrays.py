"""Intervals of keys for each query, evaluated: int32 starts and ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from ..patterns import Pattern
from ..segments import KeyRanges, unpack
from ..spans import NEVER, Span, Spans, intersection

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_SPANS = 4  # intervals of a query, at most

Intervals: TypeAlias = "tuple[NDArray[np.int64], NDArray[np.int64]]"  # starts and ends, (K, B | 1, Lq)


@dataclass(frozen=True, eq=False, repr=False)
class Arrays:
    """Intervals in key index space, sorted and disjoint: ``starts[k, b, h, i] <= j < ends[k, b, h, i]``."""

    starts: NDArray[np.int32]  # (K, B | 1, 1, Lq)
    ends: NDArray[np.int32]


def arrays_of(
    easy: Spans, per_row: Sequence[Pattern], segments: bytes | None, ranges: KeyRanges | None, B: int, Lq: int
) -> Arrays | None:
    """Merged intervals of every query; ``None`` when some query has more than `MAX_SPANS`.

    Args:
        easy: spans that hold in every batch row.
        per_row: patterns that are spans in each row, joined to ``easy`` by "and".
        segments: of the layout, or its key pieces; or else
        ranges: where each query stands and which keys it may see.
        B: batch rows.
        Lq: queries.
    """
    if not per_row:
        starts, ends = _evaluated(easy, segments, ranges, Lq, None)
    else:
        rows = []
        for row in range(B):
            joined: Spans | None = easy
            for pattern in per_row:
                found = pattern.spans(row)
                joined = None if joined is None or found is None else intersection(joined, found)
            if joined is None:
                return None
            rows.append(_evaluated(joined, segments, ranges, Lq, row))
        most = max(len(starts) for starts, _ in rows)
        starts, ends = (
            np.concatenate([np.pad(row[which], ((0, most - len(row[which])), (0, 0), (0, 0))) for row in rows], axis=1)
            for which in (0, 1)
        )
    if len(starts) > MAX_SPANS:
        return None
    return Arrays(*(np.ascontiguousarray(x[:, :, None].astype(np.int32)) for x in (starts, ends)))


def _evaluated(spans: Spans, segments: bytes | None, ranges: KeyRanges | None, Lq: int, row: int | None) -> Intervals:
    """For every batch row, or for one alone."""
    if segments is not None:
        return evaluate(spans, _in_row(unpack(segments), row), Lq)
    assert ranges is not None  # a layout has one or the other
    return _evaluate_ranges(spans, ranges if row is None else ranges.row(row))


def _in_row(table: NDArray[np.int64], row: int | None) -> NDArray[np.int64]:
    """The segments of one batch row, as those of every row."""
    if row is None:
        return table
    mine: NDArray[np.int64] = table[(table[:, 0] == row) | (table[:, 0] == -1)].copy()
    mine[:, 0] = -1
    return mine


def evaluate(spans: Spans, segments: NDArray[np.int64], Lq: int) -> Intervals:
    """Merged intervals in key index space, for the queries of every segment; a query may have several segments."""
    rows = 1 if len(segments) and (segments[:, 0] == -1).all() else int(segments[:, 0].max(initial=0)) + 1
    before: Counter[tuple[int, int]] = Counter()  # segments of the same queries so far
    places = []
    for row, q0, *_ in segments.tolist():
        places.append(before[row, q0] * len(spans))
        before[row, q0] += 1
    starts = np.zeros((max(1, max(before.values(), default=1) * len(spans)), rows, Lq), np.int64)
    ends = np.zeros_like(starts)
    for place, (row, q0, q1, k0, k1, query_offset, key_offset, *_) in zip(places, segments.tolist(), strict=True):
        p = np.arange(q0, q1) + query_offset
        for n, span in enumerate(spans, place):
            start, end = _bounds(span, p)
            start, end = np.clip(start - key_offset, k0, k1), np.clip(end - key_offset, k0, k1)
            starts[n, max(row, 0), q0:q1], ends[n, max(row, 0), q0:q1] = start, np.maximum(start, end)
    return _merged(starts, ends)


def _evaluate_ranges(spans: Spans, ranges: KeyRanges) -> Intervals:
    p, k0, k1, key_offset = ranges
    starts = np.zeros((max(1, len(spans)), *p.shape), np.int64)
    ends = np.zeros_like(starts)
    for n, span in enumerate(spans):
        start, end = _bounds(span, p)
        start, end = np.clip(start - key_offset, k0, k1), np.clip(end - key_offset, k0, k1)
        starts[n], ends[n] = start, np.maximum(start, end)
    return _merged(starts, ends)


def _bounds(span: Span, p: NDArray[np.int64]) -> Intervals:
    """First position and the one after the last of the keys that queries at the positions ``p`` see."""
    start, end = np.maximum(span.start, p + span.start_offset), np.minimum(span.end, p + span.end_offset)
    if span.chunk:
        chunk = p // span.chunk * span.chunk
        start, end = np.maximum(start, chunk + span.chunk_start), np.minimum(end, chunk + span.chunk_end)
    return start, np.where((p >= span.query_from) & (p < span.query_to), end, -NEVER)


def _merged(starts: NDArray[np.int64], ends: NDArray[np.int64]) -> Intervals:
    """Each query's intervals sorted and disjoint, the empty ones last, as few as the fullest query needs."""
    if len(starts) == 1:
        return starts, ends
    starts = np.where(starts < ends, starts, NEVER)
    ends = np.where(starts < NEVER, ends, NEVER)
    order = starts.argsort(0, kind="stable")
    starts, ends = np.take_along_axis(starts, order, 0), np.take_along_axis(ends, order, 0)
    for a, b in pairwise(range(len(starts))):  # pour an interval that touches the one before it into that one
        touch = (starts[b] <= ends[a]) & (starts[b] < NEVER)
        starts[b] = np.where(touch, starts[a], starts[b])
        ends[b] = np.where(touch, np.maximum(ends[a], ends[b]), ends[b])
        starts[a], ends[a] = np.where(touch, NEVER, starts[a]), np.where(touch, NEVER, ends[a])
    order = starts.argsort(0, kind="stable")
    starts, ends = np.take_along_axis(starts, order, 0), np.take_along_axis(ends, order, 0)
    needed = max(1, int((starts < NEVER).reshape(len(starts), -1).any(1).sum()))
    none = starts == NEVER
    return np.where(none, 0, starts)[:needed], np.where(none, 0, ends)[:needed]
