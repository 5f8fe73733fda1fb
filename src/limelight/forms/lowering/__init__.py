"""Lowering: a layout and a pattern become what kernels read, and nothing of size ``Lq * Lk`` is built on the way.

A layout becomes **segments** (`limelight.forms.segments`): ranges of queries, each with the range of keys that it may
see at all, and the offsets that turn indices into positions. A pattern becomes, for each query, a few **intervals** of
keys, in the cheapest of three forms:

1. **spans** (`limelight.forms.spans`), arithmetic in the query's position, evaluated inside the kernel. A query sees
   the union of at most `MAX_SPANS` of them. A decode step builds nothing.
2. **arrays**: int32 starts and ends for each query, where the spans are too many but merge to few for each query, where
   a length differs from row to row, or where the layout is no list of segments.
3. **tiles**: where the keys of a query are no intervals (`Explicit`, `Predicate`, arbitrary `Blocks`, a key mask with
   holes), a map of 64 x 64 tiles: no pair is seen, every pair, or 64 words of 64 bits.

Intervals and tiles are combined by "and": ``Causal() & Predicate(f)`` walks only the causal half.

What a pattern or a layout is in these forms is stated by its own class (`Pattern.spans`, `Layout.segments`,
``key_ranges``, ``holes``); the lowering names no class.
"""

from .arrays import MAX_SPANS, Arrays
from .lower import lower, pairs
from .lowered import Lowered
from .tiles import TILE, Tiles

__all__ = ["MAX_SPANS", "TILE", "Arrays", "Lowered", "Tiles", "lower", "pairs"]
