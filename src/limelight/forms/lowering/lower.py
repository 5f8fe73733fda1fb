"""`lower`: a pattern and a layout divided among spans, arrays and tiles."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from ...tensors.shapes import whole_number
from ..descriptions import Description
from ..layouts import Aligned, Layout
from ..layouts.base import check_layout
from ..patterns import Pattern
from ..segments import one_segment, unpack
from ..segments import pack as pack_segments
from ..spans import EVERYTHING, MAX_UNITED_SPANS, Spans, intersection
from ..spans import pack as pack_spans
from .arrays import MAX_SPANS, Arrays, arrays_of
from .lowered import Lowered
from .tiles import tiles_of

_EVERYTHING = pack_spans(EVERYTHING)
_ALIGNED = Aligned()


def lower(pattern: Pattern | None, layout: Layout | None, B: int, Hq: int, Lq: int, Lk: int) -> Lowered:
    """Lower a pattern under a layout.

    Cached where neither can change: spans on the pattern, other forms on the object that holds the tensors, or by the
    values of both.

    Args:
        pattern: which keys a query sees; ``None`` for all.
        layout: where queries and keys stand; ``None`` is ``Aligned()``.
        B: batch rows.
        Hq: query heads.
        Lq: queries of each row.
        Lk: keys of each row.
    """
    sizes = (B, Hq, Lq, Lk)
    if (layout is None or layout.only_segments) and (packed := _packed_spans(pattern)) is not None:
        segments = one_segment(Lq, 0, Lk, Lk - Lq, 0) if layout is None else layout.segments(B, Lq, Lk)
        assert segments is not None
        return Lowered(*sizes, segments, packed)
    layout = layout or _ALIGNED
    if not (layout.is_fixed and (pattern is None or pattern.is_fixed)):
        return _lower_rest(pattern, layout, sizes)
    holder: Description | None = next((part for part in (layout, pattern) if part is not None and part.tensors()), None)
    if holder is None:
        return _lower_rest_cached(pattern, layout, sizes)
    # Kept on the description whose tensor is promised never to change, and gone with it.
    key = (pattern if holder is layout else layout, sizes)
    kept: tuple[object, Lowered] | None = holder.__dict__.get("_lowered")
    if kept is None or kept[0] != key:
        kept = holder.__dict__["_lowered"] = (key, _lower_rest(pattern, layout, sizes))
    return kept[1]


def pairs(
    pattern: Pattern,
    queries: int,
    keys: int | None = None,
    *,
    layout: Layout | None = None,
    batch: int = 1,
    heads: int = 1,
) -> int:
    """The number of (query, key) pairs that a pattern allows, as `Pattern.pairs`.

    Raises:
        ArgumentError: a size is no whole number.
    """
    check_layout(layout)
    keys = queries if keys is None else keys
    for name, size in (("queries", queries), ("keys", keys), ("batch", batch), ("heads", heads)):
        whole_number(name, size, at_least=0)
    return lower(pattern, layout, batch, heads, queries, keys).pairs()


def _packed_spans(pattern: Pattern | None) -> bytes | None:
    """The spans of a pattern that needs no more than spans, packed; ``None`` for another.

    Kept on the pattern itself, which never changes, so that the same object costs one look.
    """
    if pattern is None:
        return _EVERYTHING
    try:
        return pattern.__dict__["_packed_spans"]  # type: ignore[no-any-return]
    except KeyError:
        packed = None if pattern.tensors() else _packed_spans_cached(pattern)
        pattern.__dict__["_packed_spans"] = packed
        return packed


@lru_cache(maxsize=1024)
def _packed_spans_cached(pattern: Pattern) -> bytes | None:
    found = _spans(pattern)
    return pack_spans(found) if found is not None and len(found) <= MAX_SPANS else None


def _spans(pattern: Pattern) -> Spans | None:
    """`Pattern.spans` for every batch row, kept where the pattern holds no tensor."""
    return pattern.spans() if pattern.tensors() else _spans_cached(pattern)


@lru_cache(maxsize=1024)
def _spans_cached(pattern: Pattern) -> Spans | None:
    return pattern.spans()


def _lower_rest(pattern: Pattern | None, layout: Layout, sizes: tuple[int, int, int, int]) -> Lowered:
    """What spans alone do not express: the parts of an "and" are divided among spans, arrays and tiles."""
    B, Hq, Lq, Lk = sizes
    conjuncts = [] if pattern is None else pattern.conjuncts()
    easy, per_row, rest = _divided(conjuncts, B)
    segments = layout.segments(B, Lq, Lk)
    pieces = layout.key_pieces(B, Lq, Lk) if segments is None else None
    ranges = layout.key_ranges(B, Lq, Lk) if segments is None and pieces is None else None
    placed = not (segments is None and pieces is None and ranges is None)

    packed: bytes | None = None
    arrays: Arrays | None = None
    if segments is not None and len(easy) <= MAX_SPANS and not per_row:
        packed = pack_spans(easy)
    elif placed:
        arrays = arrays_of(easy, per_row, pieces if segments is None else segments, ranges, B, Lq)
    if packed is None and arrays is None:  # more than a few intervals for some query: all of it becomes tiles
        rest = conjuncts
        if segments is None and placed:
            arrays = arrays_of(EVERYTHING, [], pieces, ranges, B, Lq)
        if arrays is None:
            packed, placed = _EVERYTHING, segments is not None
    # Where nothing says which keys belong to a query, the tiles do.
    holes = layout.holes() if placed else None
    tiles = None
    if rest or holes is not None or not placed:
        tiles = tiles_of(rest, holes, layout, sizes, documents=not placed)
    if segments is None:
        segments = pack_segments(B, query_end=Lq, key_end=Lk) if pieces is None else _joined(pieces)
    return Lowered(B, Hq, Lq, Lk, segments, packed, arrays, tiles)


def _joined(pieces: bytes) -> bytes:
    """Key pieces as one segment for each range of queries, from its first key to its last.

    So kernels form tiles of the queries of one document alone, as where the keys of each lie side by side.
    """
    table = unpack(pieces)
    _, first, which = np.unique(table[:, :3], axis=0, return_index=True, return_inverse=True)
    joined = table[first]
    joined[:, 5:7] = 0  # indices have no offset
    begins = joined[:, 3] - joined[:, 10]  # of the documents: the same for all pieces of one
    which = which.ravel()  # NumPy 2.0 gives it a dimension for each of the array
    np.minimum.at(joined[:, 3], which, table[:, 3])
    np.maximum.at(joined[:, 4], which, table[:, 4])
    joined[:, 10] = joined[:, 3] - begins
    return joined.tobytes()


_lower_rest_cached = lru_cache(maxsize=8)(_lower_rest)


def _divided(conjuncts: list[Pattern], B: int) -> tuple[Spans, list[Pattern], list[Pattern]]:
    """Spans that hold in every row, patterns that are spans in each row, and the rest."""
    easy = EVERYTHING
    per_row: list[Pattern] = []
    rest: list[Pattern] = []
    for part in conjuncts:
        found = _spans(part)
        joined = None if found is None else intersection(easy, found)
        if joined is not None and len(joined) <= MAX_UNITED_SPANS:
            easy = joined
        elif found is None and B and part.spans(0) is not None:
            per_row.append(part)
        else:
            rest.append(part)
    return easy, per_row, rest
