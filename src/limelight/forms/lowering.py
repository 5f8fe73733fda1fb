"""Lowering: a layout and a pattern become what kernels read, and nothing of size ``Lq * Lk`` is built on the way.

A layout becomes **segments**: runs of queries with the run of keys that they may see at all, and the offsets that
turn indices into positions. A pattern becomes, for each query, a few **intervals** of keys, in the cheapest of three
forms:

1. **spans**, arithmetic in the query's position, evaluated inside the kernel. With ``p`` the position of the query, a
   span means the keys at positions from ``max(start, p + start_offset, chunk start)`` up to, not including,
   ``min(end, p + end_offset, chunk end)``, for ``query_from <= p < query_to``. Spans are closed under ``&``, ``|`` and
   ``~``; a query sees the union of at most `MOST_SPANS` of them. A decode step builds nothing.
2. **arrays**: int32 starts and ends for each query, where the spans are too many but merge to few for each query, or
   where a length differs from row to row.
3. **tiles**: where the keys of a query are no intervals (`Explicit`, `Rule`, arbitrary `Blocks`, a key mask with
   holes), a map of 64 x 64 tiles: nobody sees, everybody sees, or 64 words of 64 bits.

Intervals and tiles are combined by "and": ``Causal() & Rule(f)`` walks only the causal half.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise, product
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .coordinates import Part, Where
from .layouts import Aligned, Chosen, KeyMask, Layout, Packed, Padded
from .patterns import And, Causal, Chunks, Explicit, Full, Keys, Not, Or, Pattern, Prefix, Rule, Window

MOST_SPANS = 4  # intervals of a query, at most
TILE = 64  # queries and keys of a tile of the map
NEVER = 2**60  # stands for infinity in a span; sums of two still fit 64 bits


# --- Spans: intervals by arithmetic ----------------------------------------------------------------------------------


class Span(NamedTuple):
    """One interval of keys for each query at a position ``query_from <= p < query_to``; see the module."""

    query_from: int = -NEVER
    query_to: int = NEVER
    start: int = -NEVER
    start_offset: int = -NEVER
    chunk: int = 0  # size of a chunk, 0 for none
    chunk_start: int = -NEVER  # added to the position where the query's chunk begins
    end: int = NEVER
    end_offset: int = NEVER
    chunk_end: int = NEVER

    def impossible(self) -> bool:
        """No query can see anything through it."""
        return (
            self.query_from >= self.query_to
            or self.start >= self.end
            or self.start_offset >= self.end_offset
            or self.chunk_start >= self.chunk_end
        )

    def within(self, other: Span) -> bool:
        """Everything seen through it is seen through ``other``."""
        unlike = other.chunk and other.chunk != self.chunk
        return not unlike and all(
            (a >= b) if lower else (a <= b)
            for a, b, lower in zip(self, other, _IS_LOWER, strict=True)
            if lower is not None
        )


_IS_LOWER = (True, False, True, True, None, True, False, False, False)  # which fields bound from below
_PACK = struct.Struct("10q")


def pack_spans(spans: tuple[Span, ...]) -> bytes:
    """Ten int64 for each span, the last unused."""
    return b"".join(_PACK.pack(*span, 0) for span in spans)


Spans = tuple[Span, ...]


def _both(a: Span, b: Span) -> Span | None:
    """The intersection; ``None`` when it has no such form (two sizes of chunks)."""
    if a.chunk and b.chunk and a.chunk != b.chunk:
        return None
    bounds = (
        max(x, y) if lower or lower is None else min(x, y)  # of two chunks one is 0 or both agree
        for x, y, lower in zip(a, b, _IS_LOWER, strict=True)
    )
    return Span(*bounds)


def _complement(span: Span) -> list[Span]:
    """What a span does not allow. The bounds are a maximum and a minimum, so each of their terms gives one span."""
    chunk = span.chunk
    parts = [
        Span(query_to=span.query_from) if span.query_from > -NEVER else None,
        Span(query_from=span.query_to) if span.query_to < NEVER else None,
        Span(end=span.start) if span.start > -NEVER else None,
        Span(end_offset=span.start_offset) if span.start_offset > -NEVER else None,
        Span(chunk=chunk, chunk_end=span.chunk_start) if span.chunk_start > -NEVER else None,
        Span(start=span.end) if span.end < NEVER else None,
        Span(start_offset=span.end_offset) if span.end_offset < NEVER else None,
        Span(chunk=chunk, chunk_start=span.chunk_end) if span.chunk_end < NEVER else None,
    ]
    return [part for part in parts if part is not None]


def _simplest(spans: list[Span]) -> Spans:
    """Without the impossible ones and those within another."""
    kept: list[Span] = []
    for span in spans:
        if span.impossible() or any(span.within(other) for other in kept):
            continue
        kept = [other for other in kept if not other.within(span)] + [span]
    return tuple(kept)


def _intersect(a: Spans, b: Spans) -> Spans | None:
    both = [_both(x, y) for x, y in product(a, b)]
    return None if any(span is None for span in both) else _simplest([span for span in both if span is not None])


def _negate(spans: Spans) -> Spans | None:
    result: Spans | None = (Span(),)
    for span in spans:
        if result is None or len(result) > 64:
            return None
        result = _intersect(result, tuple(_complement(span)))
    return result


@lru_cache(maxsize=1024)
def _spans_cached(pattern: Pattern) -> Spans | None:
    return _spans(pattern)


def spans(pattern: Pattern | None) -> Spans | None:
    """The pattern as a union of spans, however many; ``None`` when it has no such form.

    The answer is kept for patterns that hold no tensor (bounded, and keyed by the pattern's own numbers).
    """
    if pattern is None:
        return (Span(),)
    return _spans(pattern) if pattern.tensors() else _spans_cached(pattern)


def _spans(pattern: Pattern) -> Spans | None:
    match pattern:
        case Full():
            return (Span(),)
        case Causal():
            return (Span(end_offset=1),)
        case Window(back, ahead):
            start, end = (-NEVER if back is None else -back), (NEVER if ahead is None else ahead + 1)
            return (Span(start_offset=start, end_offset=end),)
        case Prefix(int() as length):
            return (Span(query_to=length, end=length),)
        case Keys(first):
            return (Span(end=first),)
        case Chunks(size):
            return (Span(chunk=size, chunk_start=0, chunk_end=size),)
        case Not(inner):
            found = spans(inner)
            return None if found is None else _negate(found)
        case And(left, right) | Or(left, right):
            a, b = spans(left), spans(right)
            if a is None or b is None:
                return None
            return _intersect(a, b) if isinstance(pattern, And) else _simplest([*a, *b])
        case _:
            return None


# --- Segments: the layout by arithmetic -------------------------------------------------------------------------------

_SEGMENT = struct.Struct("8q")
SEGMENT_FIELDS = (
    "row",
    "query_begin",
    "query_end",
    "key_begin",
    "key_end",
    "query_offset",
    "key_offset",
    "dropout_row",
)


def _segments(layout: Layout | None, B: int, Lq: int, Lk: int) -> bytes:
    """Eight int64 for each segment: `SEGMENT_FIELDS`; ``row`` -1 stands for every batch row.

    ``position = index + offset`` for queries and keys alike.
    """
    if layout is None:
        return _SEGMENT.pack(-1, 0, Lq, 0, Lk, Lk - Lq, 0, 0)
    match layout:
        case Aligned(query_start, key_start):
            if not isinstance(query_start, Tensor) and not isinstance(key_start, Tensor):
                query_start = key_start + Lk - Lq if query_start is None else query_start
                return _SEGMENT.pack(-1, 0, Lq, 0, Lk, query_start, key_start, 0)
            key_offset = _per_row(key_start, B)
            query_offset = key_offset + (Lk - Lq) if query_start is None else _per_row(query_start, B)
            return _table(B, query_end=Lq, key_end=Lk, query_offset=query_offset, key_offset=key_offset)
        case Padded():
            queries, keys = (_per_row(lengths, B) for lengths in layout.both)
            query_begin, key_begin = (0, 0) if layout.side == "right" else (Lq - queries, Lk - keys)
            return _table(
                B,
                query_begin=query_begin,
                query_end=query_begin + queries,
                key_begin=key_begin,
                key_end=key_begin + keys,
                query_offset=keys - queries - query_begin,
                key_offset=0 - key_begin,
            )
        case Packed():
            queries, keys = (
                _per_row(lengths, 0) if isinstance(lengths, Tensor) else np.asarray(lengths, dtype=np.int64)
                for lengths in layout.both
            )
            query_end, key_end = queries.cumsum(), keys.cumsum()
            return _table(
                layout.documents,
                row=-1,
                query_begin=query_end - queries,
                query_end=query_end,
                key_begin=key_end - keys,
                key_end=key_end,
                query_offset=keys - query_end,
                key_offset=keys - key_end,
            )
        case KeyMask(mask):
            # Runs at both ends are cut off here; holes between are left to the tile map.
            exists = mask.numpy(force=True)
            some = exists.any(1)
            first = np.where(some, exists.argmax(1), 0) if Lk else np.zeros(len(exists), np.int64)
            last = np.where(some, Lk - exists[:, ::-1].argmax(1), 0) if Lk else first
            if len(exists) == 1:
                return _SEGMENT.pack(-1, 0, Lq, int(first[0]), int(last[0]), Lk - Lq, 0, 0)
            return _table(B, query_end=Lq, key_begin=first, key_end=last, query_offset=Lk - Lq, key_offset=0)
        case Chosen(_, queries, whole):
            return _segments(whole, B, queries, Lk)
    raise TypeError(f"no segments are known for a {type(layout).__name__}")


def _table(count: int, **columns: int | NDArray[np.int64]) -> bytes:
    table = np.zeros((count, len(SEGMENT_FIELDS)), np.int64)
    table[:, 0] = table[:, 7] = np.arange(count)
    for name, column in columns.items():
        table[:, SEGMENT_FIELDS.index(name)] = column
    return table.tobytes()


def _per_row(value: int | Tensor, B: int) -> NDArray[np.int64]:
    if isinstance(value, Tensor):
        return value.numpy(force=True).astype(np.int64)
    return np.full(B, value, np.int64)


def _holes(layout: Layout | None) -> Tensor | None:
    """``(B | 1, Lk)`` existence of keys, when a key mask is more than one run; else ``None``."""
    if isinstance(layout, Chosen):
        return _holes(layout.whole)
    if not isinstance(layout, KeyMask):
        return None
    mask = layout.mask.detach().cpu()
    edges = mask.long().diff(dim=1).abs().sum(1) + mask[:, :1].long().sum(1) + mask[:, -1:].long().sum(1)
    return mask if bool((edges > 2).any()) else None


# --- The whole -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Arrays:
    """Intervals in key index space, sorted and disjoint: ``starts[k, b, h, i] <= j < ends[k, b, h, i]``."""

    starts: NDArray[np.int32]  # (K, B | 1, 1, Lq)
    ends: NDArray[np.int32]


@dataclass(frozen=True)
class Tiles:
    """Who sees whom, by index, in tiles of 64 keys by 64 queries (``rows == 64``) or by all queries (``rows == 1``).

    ``state``: -1 nobody, -2 everybody, ``t >= 0``: the words ``bits[t * rows : (t + 1) * rows]``, one for each query
    of the tile; bit ``j % 64`` of word ``i % 64`` is set when query ``i`` sees key ``j``.
    """

    state: NDArray[np.int32]  # (B | 1, Hq | 1, query tiles | 1, key tiles)
    bits: NDArray[np.uint64]
    rows: int


@dataclass(eq=False)
class Lowered:
    """A layout and a pattern as kernels read them."""

    B: int
    Hq: int
    Lq: int
    Lk: int
    segments: bytes  # see `_segments`
    spans: bytes | None  # see `Span` and `pack_spans`; exactly one of spans and arrays is given
    arrays: Arrays | None = None
    tiles: Tiles | None = None

    @cached_property
    def segment_table(self) -> NDArray[np.int64]:
        """``(n, 8)``: the segments, readable."""
        return np.frombuffer(self.segments, np.int64).reshape(-1, len(SEGMENT_FIELDS))

    @cached_property
    def covers(self) -> bool:
        """Every query belongs to some segment."""
        table = self.segment_table
        rows = np.where(table[:, 0] < 0, self.B, 1)
        return int(((table[:, 2] - table[:, 1]) * rows).sum()) == self.B * self.Lq

    @property
    def form(self) -> str:
        """How the pattern is expressed, in words."""
        count = len(self.spans or b"") // _PACK.size
        intervals = f"{count} span{'' if count == 1 else 's'}" if self.arrays is None else "interval arrays"
        return intervals if self.tiles is None else f"{intervals} and a tile map"

    @property
    def bytes(self) -> int:
        """Memory that the lowering holds."""
        held = len(self.segments) + len(self.spans or b"")
        if self.arrays is not None:
            held += self.arrays.starts.nbytes + self.arrays.ends.nbytes
        if self.tiles is not None:
            held += self.tiles.state.nbytes + self.tiles.bits.nbytes
        return held

    def intervals(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """``(K, B | 1, Lq)`` starts and ends in key index space, sorted and disjoint; empty where end <= start."""
        if self.arrays is not None:
            return self.arrays.starts[:, :, 0].astype(np.int64), self.arrays.ends[:, :, 0].astype(np.int64)
        raw = np.frombuffer(self.spans or b"", np.int64).reshape(-1, 10)[:, :9]
        return _evaluate(tuple(Span(*map(int, r)) for r in raw), self.segment_table, self.Lq)

    def rows(self, first: int, last: int) -> NDArray[np.bool_]:
        """``(B | 1, Hq | 1, last - first, Lk)``: who sees whom, for some of the queries."""
        starts, ends = self.intervals_kept
        j = np.arange(self.Lk)
        seen = np.zeros((starts.shape[1], 1, last - first, self.Lk), bool)
        for start, end in zip(starts[:, :, first:last], ends[:, :, first:last], strict=True):
            seen |= ((j >= start[..., None]) & (j < end[..., None]))[:, None]
        return seen if self.tiles is None else seen & _unpack(self.tiles, first, last, self.Lk)

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
        edges = np.arange(0, self.Lk, bk)
        result = []
        for first in range(0, self.Lq, bq):
            last = min(first + bq, self.Lq)
            counts = self._column_counts(first, last)[:, None] if self.tiles is None else self.rows(first, last).sum(2)
            result.append(np.add.reduceat(counts, edges, axis=-1) if self.Lk else counts)
        if not result:
            return np.zeros((1, 1, 0, len(edges)), np.int64)
        return np.stack(result, axis=2)

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
    def intervals_kept(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """`intervals`, evaluated once."""
        return self.intervals()

    def _all_heads(self, seen: NDArray[np.bool_]) -> NDArray[np.bool_]:
        return np.broadcast_to(seen, (self.B, self.Hq, *seen.shape[2:]))

    def _parts(self) -> list[tuple[int, int]]:
        """Runs of queries whose rows together stay small."""
        step = max(1, 2**24 // max(1, self.Lk * self.B * self.Hq))
        return [(first, min(first + step, self.Lq)) for first in range(0, self.Lq, step)]


def lower(pattern: Pattern | None, layout: Layout | None, B: int, Hq: int, Lq: int, Lk: int) -> Lowered:
    """Lower a pattern under a layout for ``B`` rows of ``Lq`` queries in ``Hq`` heads and ``Lk`` keys."""
    sizes = (B, Hq, Lq, Lk)
    if not isinstance(layout, (Chosen, KeyMask)) and (packed := _packed_spans(pattern)) is not None:
        return Lowered(*sizes, _segments(layout, B, Lq, Lk), packed)
    if not all(part is None or _is_fixed(part) for part in (pattern, layout)):
        return _lower_rest(pattern, layout, sizes)
    holder = next((part for part in (layout, pattern) if part is not None and part.tensors()), None)
    if holder is None:
        return _lower_rest_cached(pattern, layout, sizes)
    # Kept on the description whose tensor is promised never to change, and gone with it.
    key = (pattern if holder is layout else layout, sizes)
    kept: tuple[object, Lowered] | None = holder.__dict__.get("_lowered")
    if kept is None or kept[0] != key:
        kept = holder.__dict__["_lowered"] = (key, _lower_rest(pattern, layout, sizes))
    return kept[1]


def _is_fixed(part: Pattern | Layout) -> bool:
    """Equal calls give equal answers: no tensor or function inside that may change and did not promise otherwise."""
    if isinstance(part, (Rule, Explicit, KeyMask)):
        return part.fixed
    inner = [inner for inner in part.parts() if isinstance(inner, Pattern)]
    return all(map(_is_fixed, inner)) and not any(isinstance(value, Tensor) for value in part.parts())


def _packed_spans(pattern: Pattern | None) -> bytes | None:
    """The spans of a pattern that needs no more than spans, packed; ``None`` for another.

    Kept on the pattern itself, which never changes, so that the same object costs one look.
    """
    if pattern is None:
        return _FULL
    try:
        return pattern.__dict__["_packed_spans"]  # type: ignore[no-any-return]
    except KeyError:
        packed = None if pattern.tensors() else _packed_spans_cached(pattern)
        pattern.__dict__["_packed_spans"] = packed
        return packed


@lru_cache(maxsize=1024)
def _packed_spans_cached(pattern: Pattern) -> bytes | None:
    found = spans(pattern)
    return pack_spans(found) if found is not None and len(found) <= MOST_SPANS else None


_FULL = pack_spans((Span(),))


def _lower_rest(pattern: Pattern | None, layout: Layout | None, sizes: tuple[int, int, int, int]) -> Lowered:
    """What spans alone do not express: the parts of an "and" are divided among spans, arrays and tiles."""
    B, Hq, Lq, Lk = sizes
    segments = _segments(layout, B, Lq, Lk)
    easy: Spans = (Span(),)
    rest: list[Pattern] = []
    per_row: list[Pattern] = []
    for part in _conjuncts(pattern):
        found = spans(part)
        joined = None if found is None else _intersect(easy, found)
        if joined is not None and len(joined) <= 64:
            easy = joined
        elif _rowwise(part):
            per_row.append(part)
        else:
            rest.append(part)

    packed, arrays = (pack_spans(easy) if len(easy) <= MOST_SPANS else None), None
    table = np.frombuffer(segments, np.int64).reshape(-1, len(SEGMENT_FIELDS))
    if isinstance(layout, Chosen):
        # No offset gives their positions: the intervals of all queries, of which theirs are taken.
        arrays = _arrays(easy, per_row, table, B, layout.queries)
        if arrays is None:
            arrays, rest = _arrays((Span(),), [], table, B, layout.queries), list(_conjuncts(pattern))
        assert arrays is not None  # one span is one interval
        arrays, packed = _of_chosen(arrays, layout.index), None
        segments = _table(B, query_end=Lq, key_end=Lk)
    elif packed is None or per_row:
        arrays = _arrays(easy, per_row, table, B, Lq)
        if arrays is None:  # more than a few intervals for some query: all of it becomes tiles
            packed, rest = _FULL, list(_conjuncts(pattern))
        else:
            packed = None
    holes = _holes(layout)
    tiles = None
    if rest or holes is not None:
        tiles = _tiles(rest, holes, layout, sizes)
    return Lowered(B, Hq, Lq, Lk, segments, packed, arrays, tiles)


_lower_rest_cached = lru_cache(maxsize=8)(_lower_rest)


def _conjuncts(pattern: Pattern | None) -> list[Pattern]:
    if pattern is None:
        return []
    if isinstance(pattern, And):
        return [*_conjuncts(pattern.left), *_conjuncts(pattern.right)]
    return [pattern]


# --- Arrays ---------------------------------------------------------------------------------------------------------


def _rowwise(pattern: Pattern) -> bool:
    """It holds tensors of one number for each batch row, and is spans once a row is chosen."""
    return bool(pattern.tensors()) and _in_row(pattern, 0) is not None and spans(_in_row(pattern, 0)) is not None


def _in_row(pattern: Pattern, row: int) -> Pattern | None:
    """The pattern as batch row ``row`` sees it, without tensors; ``None`` when it cannot be said so."""
    match pattern:
        case Prefix(Tensor() as length):
            return Prefix(int(length[row])) if len(length) else None
        case Not(inner):
            found = _in_row(inner, row)
            return None if found is None else Not(found)
        case And(left, right) | Or(left, right):
            a, b = _in_row(left, row), _in_row(right, row)
            return None if a is None or b is None else type(pattern)(a, b)
        case _:
            return None if pattern.tensors() or isinstance(pattern, Rule) else pattern


def _arrays(easy: Spans, per_row: list[Pattern], segments: NDArray[np.int64], B: int, Lq: int) -> Arrays | None:
    """Merged intervals of every query; ``None`` when some query has more than `MOST_SPANS`."""
    if not per_row:
        starts, ends = _evaluate(easy, segments, Lq)
    else:
        rows = []
        for row in range(B):
            joined: Spans | None = easy
            for pattern in per_row:
                found = spans(_in_row(pattern, row))
                joined = None if joined is None or found is None else _intersect(joined, found)
            if joined is None:
                return None
            mine = segments[(segments[:, 0] == row) | (segments[:, 0] == -1)].copy()
            mine[:, 0] = -1
            rows.append(_evaluate(joined, mine, Lq))
        most = max(len(starts) for starts, _ in rows)
        starts, ends = (
            np.concatenate([np.pad(row[which], ((0, most - len(row[which])), (0, 0), (0, 0))) for row in rows], axis=1)
            for which in (0, 1)
        )
    if len(starts) > MOST_SPANS:
        return None
    return Arrays(*(np.ascontiguousarray(x[:, :, None].astype(np.int32)) for x in (starts, ends)))


def _of_chosen(arrays: Arrays, index: Tensor) -> Arrays:
    """The intervals of some queries, ``(B, Lq)`` of all; of those that do not exist none."""
    chosen = index.numpy(force=True)[None, :, None, :]
    if not arrays.starts.shape[-1]:
        none = np.zeros((len(arrays.starts), *chosen.shape[1:]), np.int32)
        return Arrays(none, none)
    taken = (
        np.take_along_axis(np.broadcast_to(x, (*x.shape[:1], len(index), *x.shape[2:])), np.maximum(chosen, 0), -1)
        for x in (arrays.starts, arrays.ends)
    )
    return Arrays(*(np.ascontiguousarray(np.where(chosen < 0, np.int32(0), x)) for x in taken))


def _evaluate(spans: Spans, segments: NDArray[np.int64], Lq: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """``(K, B | 1, Lq)`` merged intervals in key index space, for the queries of every segment."""
    rows = 1 if len(segments) and (segments[:, 0] == -1).all() else int(segments[:, 0].max(initial=0)) + 1
    starts = np.zeros((max(1, len(spans)), rows, Lq), np.int64)
    ends = np.zeros_like(starts)
    for row, q0, q1, k0, k1, query_offset, key_offset, _ in segments.tolist():
        p = np.arange(q0, q1) + query_offset
        for n, span in enumerate(spans):
            start, end = np.maximum(span.start, p + span.start_offset), np.minimum(span.end, p + span.end_offset)
            if span.chunk:
                chunk = p // span.chunk * span.chunk
                start, end = np.maximum(start, chunk + span.chunk_start), np.minimum(end, chunk + span.chunk_end)
            start, end = (np.clip(x - key_offset, k0, k1) for x in (start, end))
            end = np.where((p >= span.query_from) & (p < span.query_to), end, start)
            starts[n, max(row, 0), q0:q1], ends[n, max(row, 0), q0:q1] = start, np.maximum(start, end)
    return _merged(starts, ends)


def _merged(starts: NDArray[np.int64], ends: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
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


# --- Tiles ----------------------------------------------------------------------------------------------------------


def _tiles(
    parts: list[Pattern], holes: Tensor | None, layout: Layout | None, sizes: tuple[int, int, int, int]
) -> Tiles:
    """The map of what ``parts`` (joined by "and") and the holes of a key mask allow, built a few queries at a time."""
    B, Hq, Lq, Lk = sizes
    if not parts:
        assert holes is not None
        return _pack([holes.numpy()[:, None, None, :]], rows=1, Lk=Lk)
    evaluate = _evaluator(parts, holes, layout, sizes)
    step = max(TILE, 2**24 // max(1, Lk * B * Hq) // TILE * TILE)
    return _pack([evaluate(first, min(first + step, Lq)) for first in range(0, Lq, step)], rows=TILE, Lk=Lk)


def _evaluator(
    parts: list[Pattern], holes: Tensor | None, layout: Layout | None, sizes: tuple[int, int, int, int]
) -> Callable[[int, int], NDArray[np.bool_]]:
    B, Hq, Lq, Lk = sizes
    coordinates = (layout or Aligned()).coordinates(B, Lq, Lk, torch.device("cpu"))

    def evaluate(first: int, last: int) -> NDArray[np.bool_]:
        at = Where.of(coordinates, B, Hq, Part(queries=slice(first, last)))
        allowed = torch.ones((1, 1, 1, 1), dtype=torch.bool, device="cpu") if holes is None else holes[:, None, None, :]
        for part in parts:
            allowed = allowed & part.allows(at).cpu()
        return allowed.expand(*allowed.shape[:2], last - first, Lk).numpy()

    return evaluate


def _pack(slabs: list[NDArray[np.bool_]], rows: int, Lk: int) -> Tiles:
    """Slabs of ``(B | 1, Hq | 1, queries, Lk)`` as a tile map. Bits are kept of mixed tiles only."""
    states, bits, count = [], [], 0
    columns = -(-Lk // TILE)
    for slab in slabs:
        b, h, n, _ = slab.shape
        tiles = -(-n // rows)
        # Beyond the edge a tile repeats "yes", so that whole tiles at the edge are whole.
        padded = np.ones((b, h, tiles * rows, columns * TILE), bool)
        padded[:, :, :n, :Lk] = slab
        words = np.packbits(padded, axis=-1, bitorder="little").view(np.uint64)
        words = words.reshape(b, h, tiles, rows, columns).swapaxes(3, 4)  # (b, h, query tile, key tile, row)
        # Nobody: no bit of a real query and key.
        padded[:, :, n:] = False
        padded[..., Lk:] = False
        some = padded.reshape(b, h, tiles, rows, columns, TILE).any((3, 5))
        all_ = (words == np.uint64(2**64 - 1)).all(-1)
        mixed = some & ~all_
        state = np.where(some, np.int32(-2), np.int32(-1)).astype(np.int32)
        state[mixed] = np.arange(count, count + mixed.sum(), dtype=np.int32)
        count += int(mixed.sum())
        states.append(state)
        bits.append(words[mixed].reshape(-1))
    if not states:
        return Tiles(np.zeros((1, 1, 0, columns), np.int32), np.zeros(0, np.uint64), rows)
    return Tiles(np.ascontiguousarray(np.concatenate(states, axis=2)), np.concatenate(bits), rows)


def _unpack(tiles: Tiles, first: int, last: int, Lk: int) -> NDArray[np.bool_]:
    """``(B | 1, Hq | 1, last - first, Lk)``: the map, readable."""
    i = np.arange(first, last) if tiles.rows == TILE else np.zeros(last - first, np.int64)
    state = tiles.state[:, :, i // TILE]  # (b, h, n, key tiles)
    words = np.where(state == -2, np.uint64(2**64 - 1), np.uint64(0))
    mixed = state >= 0
    index = state.astype(np.int64) * tiles.rows + (i % TILE if tiles.rows == TILE else 0 * i)[:, None]
    words[mixed] = tiles.bits[index[mixed]]
    seen = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=-1, bitorder="little")
    return seen[..., :Lk].astype(bool)
