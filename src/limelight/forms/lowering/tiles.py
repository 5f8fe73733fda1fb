"""A map of tiles: which pairs are seen where the keys of a query are no intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..coordinates import Part, Where
from ..layouts import Layout
from ..patterns import Pattern

if TYPE_CHECKING:
    from numpy.typing import NDArray

TILE = 64  # queries and keys of a tile of the map
_ALL = np.uint64(2**64 - 1)


@dataclass(frozen=True, eq=False, repr=False)
class Tiles:
    """A bit for each pair of query and key, by index, in tiles of 64 keys by 64 queries or, shared, by all queries.

    ``state`` of a tile is -1 where no pair is seen, -2 where every pair is, and else ``t >= 0``: its words are
    ``bits[t * rows : (t + 1) * rows]``, one for each query; bit ``j % 64`` of word ``i % rows`` is set where query
    ``i`` sees key ``j``. ``rows`` is 64, or 1 where all queries share one word.
    """

    state: NDArray[np.int32]  # (B | 1, Hq | 1, query tiles | 1, key tiles)
    bits: NDArray[np.uint64]
    rows: int


def tiles_of(
    parts: Sequence[Pattern],
    holes: Tensor | None,
    layout: Layout,
    sizes: tuple[int, int, int, int],
    *,
    documents: bool = False,
) -> Tiles:
    """The map of what ``parts`` (joined by "and") and the holes of a layout allow, built a few queries at a time.

    Args:
        parts: patterns.
        holes: which keys exist, ``(B | 1, Lk)`` bool; ``None`` where intervals say it.
        layout: where queries and keys stand.
        sizes: ``(B, Hq, Lq, Lk)``.
        documents: whether the map also says which documents belong together, as no interval does.
    """
    B, Hq, Lq, Lk = sizes
    if not parts and not documents:
        assert holes is not None
        return _pack([holes.numpy()[:, None, None, :]], rows=1, Lk=Lk)
    evaluate = _evaluator(parts, holes, layout, sizes, documents)
    step = max(TILE, 2**24 // max(1, Lk * B * Hq) // TILE * TILE)
    return _pack([evaluate(first, min(first + step, Lq)) for first in range(0, Lq, step)], rows=TILE, Lk=Lk)


def _evaluator(
    parts: Sequence[Pattern],
    holes: Tensor | None,
    layout: Layout,
    sizes: tuple[int, int, int, int],
    documents: bool,
) -> Callable[[int, int], NDArray[np.bool_]]:
    B, Hq, Lq, Lk = sizes
    coordinates = layout.coordinates(B, Lq, Lk, torch.device("cpu"))

    def evaluate(first: int, last: int) -> NDArray[np.bool_]:
        queries = Part(queries=slice(first, last))
        at = Where.of(coordinates, B, Hq, queries)
        allowed = torch.ones((1, 1, 1, 1), dtype=torch.bool, device="cpu") if holes is None else holes[:, None, None, :]
        if documents:
            allowed = allowed & coordinates.together(queries)
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
        # Empty: no bit of an existing query and key is set.
        padded[:, :, n:] = False
        padded[..., Lk:] = False
        some = padded.reshape(b, h, tiles, rows, columns, TILE).any((3, 5))
        all_ = (words == _ALL).all(-1)
        mixed = some & ~all_
        state = np.where(some, np.int32(-2), np.int32(-1)).astype(np.int32)
        state[mixed] = np.arange(count, count + mixed.sum(), dtype=np.int32)
        count += int(mixed.sum())
        states.append(state)
        bits.append(words[mixed].reshape(-1))
    if not states:
        return Tiles(np.zeros((1, 1, 0, columns), np.int32), np.zeros(0, np.uint64), rows)
    return Tiles(np.ascontiguousarray(np.concatenate(states, axis=2)), np.concatenate(bits), rows)


def unpack(tiles: Tiles, first: int, last: int, Lk: int) -> NDArray[np.bool_]:
    """``(B | 1, Hq | 1, last - first, Lk)``: the map, readable."""
    i = np.arange(first, last) if tiles.rows == TILE else np.zeros(last - first, np.int64)
    state = tiles.state[:, :, i // TILE]  # (b, h, n, key tiles)
    words = np.where(state == -2, _ALL, np.uint64(0))
    mixed = state >= 0
    index = state.astype(np.int64) * tiles.rows + (i % TILE if tiles.rows == TILE else 0 * i)[:, None]
    words[mixed] = tiles.bits[index[mixed]]
    seen = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=-1, bitorder="little")
    return seen[..., :Lk].astype(bool)
