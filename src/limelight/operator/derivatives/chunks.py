"""The chunks of a call: parts of its queries, each computed at once, with a range of keys that holds all they see.

The dimensions of every tensor are named by letters, its axes: b batch row, h query head, g key-value head, q query,
k key, r chosen row, p chosen pair, x and y blocks; a point for one that no chunk cuts. They are matched from the last
dimension on.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from torch import Tensor

from ...backends import reference
from ...backends.contract import Call
from ...forms.coordinates import Part
from ...forms.observations import Observe

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Bytes of scores that a chunk may hold; about ten such arrays are alive while its gradient is computed.
MAX_CHUNK_BYTES = 4 * 2**20
#: Scores up to which a chunk may look at many more keys than are seen.
FEW_SCORES = 2**19


class Chunk(NamedTuple):
    """A part of a call that is computed at once."""

    part: Part
    slices: dict[str, slice]  # of each axis

    def part_of(self, tensor: Tensor, axes: str) -> Tensor:
        """This chunk's part of a tensor, a view; a dimension of size 1, which is shared, stays whole."""
        index = [slice(None)] * tensor.dim()
        for back, axis in zip(range(1, tensor.dim() + 1), reversed(axes), strict=False):
            if axis in "rpxy" or (axis in "bhgqk" and tensor.shape[-back] != 1):
                index[-back] = self.slices[axis]
        return tensor[tuple(index)]


def chunks(call: Call) -> Iterator[Chunk]:
    """The chunks of a call, each with a range of keys outside of which its queries see nothing."""
    B, Hq, Hkv, Lq, Lk, D, _ = call.shapes
    group, observe = Hq // Hkv, call.observe or Observe()
    rows, pairs = list(indices(observe.rows)), [i for i, _ in indices(observe.pairs)]
    bq, bk = observe.blocks or (1, 1)

    def chunk(b: slice, g: slice, q: slice, k: slice) -> Chunk:
        part = Part(b, slice(g.start * group, g.stop * group), q, k)
        blocks = {"x": slice(q.start // bq, -(-q.stop // bq)), "y": slice(k.start // bk, -(-k.stop // bk))}
        chosen = {"r": _between(rows, q), "p": _between(pairs, q)}
        return Chunk(part, dict(zip("bhqk", part, strict=True)) | {"g": g} | blocks | chosen)

    few, most = FEW_SCORES, MAX_CHUNK_BYTES // reference.accumulator(call.query.dtype).itemsize
    if call.compare is not None:
        few, most = few // D, most // D
    if B * Hq * Lq * Lk <= min(few, most):
        yield chunk(slice(0, B), slice(0, Hkv), slice(0, Lq), slice(0, Lk))
        return
    # As many batch rows, or else key-value heads, as leave room for 64 queries.
    units = min(B * Hkv, max(1, most // (group * Lk * min(64, Lq))))
    batch, heads = (units // Hkv, Hkv) if units >= Hkv else (1, units)
    starts, ends = call.lowered.intervals_kept
    starts, ends = np.where(starts < ends, starts, Lk).min(0), np.where(starts < ends, ends, 0).max(0)  # (B | 1, Lq)
    if observe.pairs is not None:  # a chosen pair that is not seen must still be found
        starts, ends = np.zeros_like(starts), np.full_like(ends, Lk)
    for b in _steps(B, batch):
        own = b if len(starts) > 1 else slice(0, 1)
        low, high = starts[own].min(0), ends[own].max(0)
        for g in _steps(Hkv, heads):
            width = (b.stop - b.start) * (g.stop - g.start) * group
            for q in _cuts(low, high, most // width, few // width):
                end = int(high[q].max())
                yield chunk(b, g, q, slice(min(int(low[q].min()), end), end))


def indices(chosen: Any) -> Any:
    """Chosen rows or pairs of an `Observe`, where there are none an empty tuple."""
    return () if chosen is None else chosen


def _steps(size: int, step: int) -> list[slice]:
    return [slice(first, min(first + step, size)) for first in range(0, size, step)]


def _cuts(low: NDArray[np.int64], high: NDArray[np.int64], most: int, few: int) -> Iterator[slice]:
    """Slices of the queries with at most ``most`` scores, and not many more than are seen unless they are ``few``."""
    seen = np.concatenate([[0], np.maximum(high - low, 0).cumsum()])
    Lq, first = len(low), 0
    while first < Lq:
        count = 1
        while first + count < Lq:
            last = min(first + 2 * count, Lq)
            area = (last - first) * max(0, int(high[first:last].max() - low[first:last].min()))
            if area > most or (area > few and area > 2 * (seen[last] - seen[first])):
                break
            count = last - first
        yield slice(first, first + count)
        first += count


def _between(places: list[int], queries: slice) -> slice:
    return slice(bisect.bisect_left(places, queries.start), bisect.bisect_left(places, queries.stop))
