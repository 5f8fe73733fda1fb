"""Which keys a query sees, as tables on the device: segments, intervals of keys, the tile map, the list of tiles."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...forms.lowering import Lowered
from ...forms.segments import of_all_rows, unpack
from .launching import Numbers

POSITION_LIMIT = 2**30  # positions are 32-bit integers in the kernels


class Visibility(NamedTuple):
    """A lowering on the device, cut into tiles of queries or of keys."""

    work: Tensor | None  # (n, 2) int32: segment and first row of each tile; None when one segment is the whole call
    segments: Tensor | None  # (n, 11) int64
    segment: tuple[int, ...]  # query begin and end, key begin and end, offsets of queries and keys
    tiles: int  # the number of tiles
    rows: int  # batch rows of the grid: B, or 1 where each segment names its own
    spans: Tensor | None
    begins: Tensor | None
    ends: Tensor | None
    interval_strides: tuple[int, ...]
    states: Tensor | None
    bits: Tensor | None
    map_strides: tuple[int, ...]
    intervals: int  # of keys for each query, at most
    map_rows: int  # queries of a tile of the tile map: 64, 1, or 0 without a map
    longest: int  # keys of the longest segment

    @property
    def interval_tables(self) -> tuple[Any, ...]:
        """The arguments from which a kernel computes intervals: spans, begins, ends and the strides of both."""
        return self.spans, self.begins, self.ends, self.interval_strides

    @property
    def of_tile(self) -> tuple[Any, ...]:
        """The arguments of a kernel whose programs take one tile of `work` each, in its order."""
        return (
            self.work, self.segments, Numbers("segment", self.segment), *self.interval_tables, self.states, self.bits,
            self.map_strides,
        )  # fmt: skip

    @property
    def of_all_segments(self) -> tuple[Any, ...]:
        """The arguments of a kernel whose programs iterate over all segments, in its order."""
        count = 1 if self.segments is None else len(self.segments)
        return (
            self.segments, self.segment, count, *self.interval_tables, self.states, self.bits, self.map_strides
        )  # fmt: skip

    def by_keys(self, lowered: Lowered, keys: int, device: torch.device) -> Visibility:
        """These tables, cut into tiles of ``keys`` keys, which begin at multiples of ``keys``."""
        table = lowered.segment_table
        if self.work is None:
            key_begin, key_end = self.segment[2:4]
            return self._replace(tiles=max(0, -(-key_end // keys) - key_begin // keys))
        work = _key_tiles(lowered.segments, keys, device)
        return self._replace(work=work, tiles=len(work), rows=lowered.B if table[0, 0] == -1 else 1)


def interval_count(lowered: Lowered) -> int:
    """Intervals of keys for each query, at most."""
    return len(lowered.spans or b"") // 80 if lowered.arrays is None else len(lowered.arrays.starts)


def visibility(lowered: Lowered, queries: int, device: torch.device) -> Visibility:
    """The lowering on the device, cut into tiles of ``queries`` queries."""
    one = of_all_rows(lowered.segments)
    if one is not None:
        _, query_begin, query_end, key_begin, key_end, query_offset, key_offset, *_ = one
        segment = (query_begin, query_end, key_begin, key_end, query_offset, key_offset)
        work, segments, tiles = None, None, -(-(query_end - query_begin) // queries)
        rows, longest = lowered.B, key_end - key_begin
    else:
        table, segment = lowered.segment_table, (0,) * 6
        segments, work = _query_tiles(lowered.segments, queries, device)
        tiles, rows = len(work), lowered.B if len(table) and table[0, 0] == -1 else 1
        longest = int((table[:, 4] - table[:, 3]).max(initial=0))
    begins = ends = states = bits = None
    interval_strides: tuple[int, ...] = (0, 0)
    map_strides: tuple[int, ...] = (0, 0, 0)
    intervals, map_rows = interval_count(lowered), 0
    if lowered.arrays is not None:
        arrays = lowered.arrays
        begins, ends = _uploaded(lowered, "arrays", device, lambda: (arrays.starts, arrays.ends))
        interval_strides = (begins.stride(0), 0 if begins.shape[1] == 1 else begins.stride(1))
    if lowered.tiles is not None:
        tile_map = lowered.tiles
        states, bits = _uploaded(lowered, "tiles", device, lambda: (tile_map.state, tile_map.bits.view(np.int64)))
        map_strides = tuple(0 if n == 1 else s for n, s in zip(states.shape[:3], states.stride(), strict=False))
        map_rows = tile_map.rows
    spans = None if lowered.spans is None else _span_table(lowered.spans, device)
    return Visibility(
        work, segments, segment, tiles, rows, spans, begins, ends, interval_strides, states, bits, map_strides,
        intervals, map_rows, longest,
    )  # fmt: skip


def nothing_visible(lowered: Lowered) -> bool:
    """No query of the call sees any key."""
    return lowered.spans == b"" or lowered.Lk == 0


def beyond_32_bits(lowered: Lowered) -> list[str]:
    """Why kernels cannot hold the positions of a lowering; empty where they can."""
    one = of_all_rows(lowered.segments)
    if not (max(map(abs, one[5:7])) >= POSITION_LIMIT if one is not None else _is_far(lowered.segments)):
        return []
    return [f"a position is {POSITION_LIMIT} or more, and the kernels hold positions in 32 bits"]


@lru_cache(maxsize=256)
def _is_far(segments: bytes) -> bool:
    table = unpack(segments)
    return bool(len(table) and np.abs(table[:, 5:7]).max() >= POSITION_LIMIT)


@lru_cache(maxsize=64)
def _query_tiles(segments: bytes, queries: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Segments on the device, and the list of tiles of queries: segment and first query.

    Tiles that are far into their segment come last; those of a causal pattern see the most keys.
    """
    table = unpack(segments)
    counts = -(-(table[:, 2] - table[:, 1]) // queries)
    number = np.repeat(np.arange(len(table)), counts)
    within = np.arange(len(number)) - np.repeat(counts.cumsum() - counts, counts)
    work = np.stack([number, table[number, 1] + within * queries], axis=1).astype(np.int32)
    work = work[np.argsort(within, kind="stable")]
    return torch.from_numpy(table.copy()).to(device), torch.from_numpy(np.ascontiguousarray(work)).to(device)


@lru_cache(maxsize=64)
def _key_tiles(segments: bytes, keys: int, device: torch.device) -> Tensor:
    """The list of tiles of keys: segment and first key, a multiple of ``keys``.

    Tiles at the beginning of their segment come first; those of a causal pattern are seen by the most queries.
    """
    table = unpack(segments)
    begin, end = table[:, 3] // keys, -(-table[:, 4] // keys)
    counts = np.where(table[:, 3] < table[:, 4], end - begin, 0)
    number = np.repeat(np.arange(len(table)), counts)
    within = np.arange(len(number)) - np.repeat(counts.cumsum() - counts, counts)
    work = np.stack([number, (begin[number] + within) * keys], axis=1).astype(np.int32)
    work = work[np.argsort(within, kind="stable")]
    return torch.from_numpy(np.ascontiguousarray(work)).to(device)


@lru_cache(maxsize=256)
def _span_table(spans: bytes, device: torch.device) -> Tensor:
    """Spans on the device, copied once for each pattern and not for each call."""
    return torch.from_numpy(np.frombuffer(spans, np.int64).copy()).to(device)


_copies: WeakKeyDictionary[Lowered, dict[tuple[str, torch.device], tuple[Tensor, ...]]] = WeakKeyDictionary()


def _uploaded(
    lowered: Lowered, what: str, device: torch.device, arrays: Callable[[], tuple[NDArray[Any], ...]]
) -> tuple[Tensor, ...]:
    """Arrays of a lowering on the device, cached as long as the lowering exists."""
    copies = _copies.setdefault(lowered, {})
    if (what, device) not in copies:
        copies[what, device] = tuple(torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in arrays())
    return copies[what, device]
