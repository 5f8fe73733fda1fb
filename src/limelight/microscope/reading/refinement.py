"""Finer blocks of the heat maps of a long text: a `Refinement`, which has them where the coarse ones say least.

The observed blocks are fine ones. They are added up to the coarse blocks of the whole map; of the fine ones those are
kept that differ most from an even spread over their coarse block, so that memory does not grow with the length.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .offsets import Floats, Integers

BLOCKS = 64  # a heat map has at most this many coarse blocks along a side,
FACTOR = 8  # each of at most this many fine blocks along a side
KEPT = 8192  # fine blocks that are kept of each head


@dataclass(frozen=True)
class Refinement:
    """Fine blocks of some cells of each head's heat map, the most uneven cells first.

    With ``T`` coarse blocks along a side and ``r`` fine ones along the side of a coarse one:

    Args:
        block: tokens of a fine block; 1: single weights.
        cells: ``(N, H, M)`` the cell of the coarse map, ``row * T + column``; -1: no further one.
        shares: ``(N, H, M, r, r)`` share of the attention of a fine block's queries that falls on a fine block's keys.
        apart: ``(N, H, M, r, r)`` the part of ``shares`` that falls on tokens set apart.
    """

    block: int
    cells: Integers
    shares: Floats
    apart: Floats


def block_sizes(length: int, most: int = BLOCKS) -> tuple[int, int]:
    """Tokens of a coarse block, of which there are at most ``most``, and of a fine one, which divides it.

    >>> block_sizes(4000), block_sizes(32768), block_sizes(100)
    ((64, 8), (512, 64), (2, 1))
    """
    coarse = -(-length // most)
    factor = 1
    while factor < FACTOR and 2 * factor <= coarse:
        factor *= 2
    coarse = factor * -(-coarse // factor)
    return coarse, coarse // factor


def coarsened(sums: Tensor, factor: int) -> Tensor:
    """Add fine blocks up to coarse ones, along both sides: ``(H, t, t)`` to ``(H, T, T)``."""
    return _cells(sums, factor).sum((-2, -1))


def most_uneven(shares: Tensor, even: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """Return the cells whose fine blocks differ most from an even spread, and these blocks.

    Args:
        shares: of the fine blocks, ``(H, t, t)``.
        even: the same without what falls on tokens that may be set apart, by which cells are chosen.
        factor: fine blocks along the side of a coarse one.

    Returns:
        ``(H, M)`` cells, -1 where there is no further one, and ``(H, M, r, r)`` their fine blocks.
    """
    blocks, chosen_by = _cells(shares, factor), _cells(even, factor)
    H, T = blocks.shape[:2]
    unevenness = (chosen_by - chosen_by.mean((-2, -1), keepdim=True)).square().sum((-2, -1)).reshape(H, T * T)
    best = unevenness.topk(min(T * T, max(1, KEPT // factor**2)), dim=-1)
    kept = blocks.reshape(H, T * T, factor, factor)
    kept = kept.gather(1, best.indices[..., None, None].expand(-1, -1, factor, factor))
    return best.indices.masked_fill(best.values <= 0.0, -1).to(torch.int32), kept


def on_column(cells: Integers, rows: Floats, column: int, side: int, factor: int) -> Floats:
    """What falls on one fine column of keys, in the places of kept blocks, ``(N, H, M, r, r)``.

    Args:
        cells: ``(N, H, M)``.
        rows: ``(N, H, t)`` what the queries of each fine block give to tokens of this column.
        column: the fine column.
        side: coarse blocks along a side of the map.
        factor: fine blocks along the side of a coarse one.
    """
    padded = np.pad(rows, ((0, 0), (0, 0), (0, side * factor - rows.shape[-1])))
    by_row = padded.reshape(*rows.shape[:2], side, factor)
    found = np.zeros((*cells.shape, factor, factor), np.float32)
    layer, head, place = np.nonzero((cells >= 0) & (cells % side == column // factor))
    found[layer, head, place, :, column % factor] = by_row[layer, head, cells[layer, head, place] // side]
    return found


def _cells(blocks: Tensor, factor: int) -> Tensor:
    """``(H, t, t)`` to ``(H, T, T, r, r)``, with zeros behind the end."""
    side = -(-blocks.shape[-1] // factor)
    short = side * factor - blocks.shape[-1]
    padded = torch.nn.functional.pad(blocks, (0, short, 0, short))
    return padded.reshape(-1, side, factor, side, factor).transpose(2, 3)
