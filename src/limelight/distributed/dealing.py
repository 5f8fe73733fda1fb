"""Which tokens each rank holds: runs dealt by counted pairs of query and key."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heapreplace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..forms.layouts import Aligned, Layout
from ..forms.lowering import Lowered, lower
from ..forms.patterns import Pattern
from ..forms.segments import unpack
from .plan import Runs, united

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Runs are cut where a document's tokens are a multiple of it, so that the kernels form the same tiles of queries as in
#: one process (of 64 or of 48 queries, by the width of the processor's vectors), and give the same bits.
TILES = 192
MAX_PARTS = 8  # runs of a rank, at most
WANTED = 1.02  # more runs are cut while the fullest rank has more than this share of the average
GAIN = 0.02  # and taken if they lower this share by so much: more runs send more keys
UNEVEN = (4, 8, 16)  # pieces for each rank, on average, where ranks get different numbers of them
UNEVEN_GAIN = 0.05  # that each must lower the mean excess of pairs and tokens by: unequal pieces send more keys


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

    Where the fullest rank then still has more than 5 % too many (long documents among short ones over many ranks), the
    text is cut by pairs and tokens, the ends of long documents more finely, and ranks get different numbers of pieces,
    each the one that leaves them least full by the larger of both shares. One tile of queries (`TILES`) is not divided:
    at the end of a long document it alone may have more pairs than the average rank.

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
        runs = _dealt(work, _borders(cuts, ranks * parts), ranks)
        found = imbalance(runs, work)
        if found < least - GAIN:
            best, least = runs, found
        if least <= WANTED:
            break
        parts *= 2
    assert best is not None
    return best if least <= 1 + UNEVEN_GAIN else _uneven(best, work, cuts)


def _uneven(best: tuple[Runs, ...], work: NDArray[np.float64], cuts: NDArray[np.int64]) -> tuple[Runs, ...]:
    """The runs, or better ones of which ranks have different numbers, in pieces of about as many pairs plus tokens.

    Args:
        best: the runs so far.
        work: ``(L,)``, pairs of each token.
        cuts: where a run may begin.
    """
    length, ranks = len(work), len(best)
    shares = np.stack([np.full(length, ranks / length), work * (ranks / work.sum())])
    sums = np.pad(shares.cumsum(1), ((0, 0), (1, 0)))  # tokens and pairs before each token; a rank's share is 1
    least = (imbalance(best, work) + imbalance(best, shares[0])) / 2
    for parts in UNEVEN:
        borders = np.unique(cuts[_nearest(sums.sum(0)[cuts], ranks * parts)])
        sizes = np.diff(sums[:, borders])  # (2, pieces)
        loads = np.zeros((2, ranks))
        held: list[list[tuple[int, int]]] = [[] for _ in range(ranks)]
        for n in np.argsort(-sizes.max(0), kind="stable").tolist():
            after = loads + sizes[:, n : n + 1]
            rank = int(np.argmin(after.max(0) + 1e-3 * after.sum(0)))
            loads[:, rank] = after[:, rank]
            held[rank].append((int(borders[n]), int(borders[n + 1])))
        found = float(loads.max(1).mean())
        if found < least - UNEVEN_GAIN:
            best, least = tuple(map(united, held)), found
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


def _borders(cuts: NDArray[np.int64], pieces: int) -> NDArray[np.int64]:
    """``(pieces + 1,)``: the permitted cuts nearest to equal pieces."""
    return cuts[_nearest(cuts, pieces)]


def _nearest(places: NDArray[Any], pieces: int) -> NDArray[np.int64]:
    """``(pieces + 1,)``: indices of the ascending places nearest to equal parts of the range up to the last."""
    wanted = np.arange(pieces + 1) * places[-1] / pieces
    after = np.searchsorted(places, wanted).clip(min(1, len(places) - 1), len(places) - 1)
    before = np.maximum(after - 1, 0)
    nearer = np.where(wanted - places[before] <= places[after] - wanted, before, after)
    return np.maximum.accumulate(nearer)


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
