"""Spans: intervals of keys by arithmetic in the query's position, the form in which kernels read most patterns.

With ``p`` the position of a query, a span means the keys at positions from ``max(start, p + start_offset, chunk
start)`` up to, not including, ``min(end, p + end_offset, chunk end)``, for ``query_from <= p < query_to``. A pattern
that is a union of spans (`Spans`) costs a kernel a few comparisons for each tile and no memory. Unions of spans are
closed under `intersection`, `union` and `complement`.
"""

from __future__ import annotations

import struct
from itertools import product
from typing import NamedTuple

NEVER = 2**60  # stands for infinity in a span; sums of two still fit 64 bits
MAX_UNITED_SPANS = 64  # spans from which on a union is no longer intersected or complemented


class Span(NamedTuple):
    """One interval of keys for each query at a position ``query_from <= p < query_to``; see the module.

    Bounds that are left out do not bound. Positions are tokens, and may be negative.
    """

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
        """Whether no query can see anything through it."""
        return (
            self.query_from >= self.query_to
            or self.start >= self.end
            or self.start_offset >= self.end_offset
            or self.chunk_start >= self.chunk_end
        )

    def within(self, other: Span) -> bool:
        """Whether everything that is seen through it is seen through ``other``."""
        unlike = other.chunk and other.chunk != self.chunk
        return not unlike and all(
            (a >= b) if lower else (a <= b)
            for a, b, lower in zip(self, other, _IS_LOWER, strict=True)
            if lower is not None
        )


Spans = tuple[Span, ...]
EVERYTHING: Spans = (Span(),)

_IS_LOWER = (True, False, True, True, None, True, False, False, False)  # which fields bound from below


class Reach(NamedTuple):
    """How many keys before and after its own position a query may see at most; ``None`` where no bound is known."""

    back: int | None
    ahead: int | None


UNBOUNDED = Reach(None, None)


def union(a: Spans, b: Spans) -> Spans:
    """The keys that either allows."""
    return _simplest([*a, *b])


def intersection(a: Spans, b: Spans) -> Spans | None:
    """The keys that both allow; ``None`` when they are no union of spans (two sizes of chunks)."""
    both = [_both(x, y) for x, y in product(a, b)]
    return None if any(span is None for span in both) else _simplest([span for span in both if span is not None])


def complement(spans: Spans) -> Spans | None:
    """The keys that none of the spans allows; ``None`` when they are no union of spans, or of too many."""
    result: Spans | None = EVERYTHING
    for span in spans:
        if result is None or len(result) > MAX_UNITED_SPANS:
            return None
        result = intersection(result, tuple(_complement_of_one(span)))
    return result


def reach(spans: Spans) -> Reach:
    """How far a query sees at most through a union of spans."""
    backs, aheads = [], []
    for span in spans:
        chunk_back = span.chunk - 1 - span.chunk_start if span.chunk and span.chunk_start > -NEVER else NEVER
        chunk_ahead = span.chunk_end - 1 if span.chunk and span.chunk_end < NEVER else NEVER
        backs.append(min(-span.start_offset, chunk_back))
        aheads.append(min(span.end_offset - 1, chunk_ahead))
    back, ahead = max(backs, default=0), max(aheads, default=0)
    return Reach(None if back >= NEVER else max(back, 0), None if ahead >= NEVER - 1 else max(ahead, 0))


# --- In memory -------------------------------------------------------------------------------------------------------

SPAN_BYTES = 80
_PACK = struct.Struct("10q")


def pack(spans: Spans) -> bytes:
    """Ten int64 for each span, its fields in order, the last unused."""
    return b"".join(_PACK.pack(*span, 0) for span in spans)


def unpack(packed: bytes) -> Spans:
    """The spans that `pack` wrote."""
    return tuple(Span(*numbers[:9]) for numbers in _PACK.iter_unpack(packed))


# --- Single spans ----------------------------------------------------------------------------------------------------


def _both(a: Span, b: Span) -> Span | None:
    """The intersection; ``None`` when it has no such form (two sizes of chunks)."""
    if a.chunk and b.chunk and a.chunk != b.chunk:
        return None
    bounds = (
        max(x, y) if lower or lower is None else min(x, y)  # of two chunks one is 0 or both agree
        for x, y, lower in zip(a, b, _IS_LOWER, strict=True)
    )
    return Span(*bounds)


def _complement_of_one(span: Span) -> list[Span]:
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
