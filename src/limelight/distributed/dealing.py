"""Which tokens each rank holds: runs dealt by counted pairs of query and key."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heapreplace
from typing import TYPE_CHECKING

import numpy as np

from ..forms.layouts import Aligned, Layout
from ..forms.lowering import Lowered, lower
from ..forms.patterns import Pattern
from ..forms.segments import unpack
from .runs import Runs, united

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Runs are cut where a document's tokens are a multiple of it, so that the kernels form the same tiles of queries as in
#: one process (of 64 or of 48 queries, by the width of the processor's vectors), and give the same bits.
TILES = 192
MAX_PARTS = 8  # runs of a rank, at most
WANTED = 1.02  # more runs are cut while the fullest rank has more than this share of the average
GAIN = 0.02  # and taken if they lower this share by so much: more runs send more keys


def deal(
    length: int,
    ranks: int,
    patterns: Sequence[Pattern | None] = (None,),
    layout: Layout | None = None,
) -> tuple[Runs, ...]:
    """Deal the tokens of a text to ranks: about as many tokens for each, with about as many pairs of query and key.

    The pairs are counted over the patterns of all layers. The text is cut into as many runs as ranks, then twice, four
    and eight times as many, until the fullest rank has at most 2 % more pairs than the average; more runs are taken
    where they lower this excess by 2 % of the average. A window gives one run to each rank, a causal pattern one from
    the front and one from the end.

    Args:
        length: tokens of the text.
        ranks: number of ranks.
        patterns: of the layers, each as often as it occurs; ``None`` is ``Full()``.
        layout: documents and padding of the whole text.

    Returns:
        For each rank its runs ``((first, last), ...)``, ascending. They are cut at multiples of `TILES` in each
        document where the text is long enough for each rank to hold so many, and anywhere in a shorter text.
    """
    work = pairs_of_tokens(length, patterns, layout)
    cuts = _cuts(length, layout, TILES if length >= ranks * TILES else 1)
    best, least = None, np.inf
    parts = 1
    while parts <= MAX_PARTS:
        runs = _dealt(work, _borders(cuts, length, ranks * parts), ranks)
        found = imbalance(runs, work)
        if found < least - GAIN:
            best, least = runs, found
        if least <= WANTED:
            break
        parts *= 2
    assert best is not None
    return best


def imbalance(runs: Sequence[Runs], work: NDArray[np.float64]) -> float:
    """The pairs of the fullest rank, as a multiple of the average; 1 where there are none.

    Args:
        runs: of each rank.
        work: ``(L,)``, pairs of each token.
    """
    sums = np.concatenate([[0.0], np.cumsum(work)])
    loads = [sum(sums[last] - sums[first] for first, last in held) for held in runs]
    return float(max(loads) / (sum(loads) / len(loads))) if sum(loads) else 1.0


def pairs_of_tokens(
    length: int, patterns: Sequence[Pattern | None], layout: Layout | None = None
) -> NDArray[np.float64]:
    """``(L,)``: how many keys each query sees, summed over patterns and averaged over batch rows and heads."""
    total = np.zeros(length)
    kinds: dict[Pattern | None, int] = {}
    for pattern in patterns:
        kinds[pattern] = kinds.get(pattern, 0) + 1
    for pattern, times in kinds.items():
        total += times * pairs_of_queries(lower(pattern, layout, rows_of(layout), 1, length, length))
    return total


def pairs_of_queries(lowered: Lowered) -> NDArray[np.float64]:
    """``(Lq,)``: how many keys each query sees, averaged over batch rows and heads."""
    if lowered.tiles is None:
        starts, ends = lowered.intervals()
        found: NDArray[np.float64] = np.maximum(ends - starts, 0).sum(0).mean(0)
        return found
    total = np.zeros(lowered.Lq)
    step = max(1, 2**24 // max(1, lowered.Lk))
    for first in range(0, lowered.Lq, step):
        last = min(first + step, lowered.Lq)
        total[first:last] = lowered.rows(first, last).sum(-1).mean((0, 1))
    return total


def rows_of(layout: Layout | None) -> int:
    """Batch rows of which a layout has numbers; 1 where it is the same for all."""
    if layout is None or layout.uniform_over_batch:
        return 1
    return max([1, *(len(tensor) for tensor in layout.tensors() if tensor.dim())])


def _cuts(length: int, layout: Layout | None, step: int) -> NDArray[np.int64]:
    """Where a run may begin: borders of documents that are those of all rows, and multiples of ``step`` from there."""
    packed = (layout or Aligned()).segments(rows_of(layout), length, length)
    table = unpack(packed or b"")
    firsts = {0, length}
    for q0, q1 in table[:, 1:3].tolist() if (table[:, 0] < 0).all() else [(0, length)]:
        firsts.update(range(q0, q1, step))
        firsts.add(q1)
    return np.array(sorted(firsts), np.int64)


def _borders(cuts: NDArray[np.int64], length: int, pieces: int) -> NDArray[np.int64]:
    """``(pieces + 1,)``: the permitted cuts nearest to equal pieces."""
    wanted = np.arange(pieces + 1) * length / pieces
    after = np.clip(np.searchsorted(cuts, wanted), 1, len(cuts) - 1) if len(cuts) > 1 else np.zeros(len(wanted), int)
    before = np.maximum(after - 1, 0)
    nearest = np.where(wanted - cuts[before] <= cuts[after] - wanted, cuts[before], cuts[after])
    return np.maximum.accumulate(nearest)


def _dealt(work: NDArray[np.float64], borders: NDArray[np.int64], ranks: int) -> tuple[Runs, ...]:
    """Pieces dealt to the rank with the least work, the one with the most work first; each rank gets as many."""
    sums = np.concatenate([[0.0], np.cumsum(work)])
    pieces = list(zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True))
    each = len(pieces) // ranks
    if each == 1:
        return tuple(united([piece]) for piece in pieces)
    held: list[list[tuple[int, int]]] = [[] for _ in range(ranks)]
    loads = [(0.0, rank) for rank in range(ranks)]  # a heap of the ranks that get more
    for first, last in sorted(pieces, key=lambda piece: -float(sums[piece[1]] - sums[piece[0]])):
        load, rank = loads[0]
        held[rank].append((first, last))
        if len(held[rank]) < each:
            heapreplace(loads, (load + float(sums[last] - sums[first]), rank))
        else:
            heappop(loads)
    return tuple(map(united, held))
