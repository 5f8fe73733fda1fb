"""Which keys each rank needs: worked out on every rank from the pattern and the runs, without communication."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..forms.layouts import Layout, Portion, ScatteredPortion
from ..forms.lowering import Lowered, lower
from ..forms.patterns import Pattern
from ..forms.segments import FIELDS, unpack
from .runs import Runs, common, count, keys_moved, united

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Gathered keys keep their places in blocks of so many: keys that share a block in the whole share one where they are
#: gathered, and blocks that do not touch in the whole do not touch there. So the kernels form the same blocks of keys
#: as in one process, and give the same bits; only keys that no query sees are left out, at the ends of a piece.
GRID = 64


#: An all-gather takes the place of the all-to-all where it brings each rank at most so many times the keys that the
#: rank which sends or gets most moves in an all-to-all, and all ranks together need `NEEDED` of what it brings: it is
#: then about as fast within a node, and brings each key to a node once.
EXTRA, NEEDED = 1.25, 0.5


def pieces_of(runs: Sequence[tuple[int, int]]) -> Runs:
    """The runs, those joined whose blocks of the `GRID` overlap or touch: each from its first token to its last."""
    joined: list[tuple[int, int]] = []
    for first, last in united(runs):
        if joined and first // GRID * GRID <= -(-joined[-1][1] // GRID) * GRID:
            joined[-1] = joined[-1][0], last
        else:
            joined.append((first, last))
    return tuple(joined)


@dataclass(frozen=True)
class Stretch:
    """Consecutive queries of one run and one segment of the whole layout, and the keys that they see.

    Args:
        rank: the rank that holds the queries.
        segment: the segment, by its number in the layout's table.
        first: index of the first query in the whole.
        last: index after the last query.
        keys: pieces (`pieces_of`) of the keys in the whole that some of the queries see.
    """

    rank: int
    segment: int
    first: int
    last: int
    keys: Runs


def stretches(
    lowered: Lowered, segments: NDArray[np.int64], runs: Sequence[Runs], *, contiguous: bool
) -> list[Stretch]:
    """The queries of all ranks, cut at the borders of runs and segments, with the keys that they see.

    Args:
        lowered: the pattern in the whole.
        segments: ``(n, 11)``, the layout of the whole.
        runs: the queries that each rank holds.
        contiguous: whether the keys of a stretch must be one range; keys between those that are seen are then added.
    """
    starts, ends = lowered.intervals()  # (K, B | 1, Lq)
    starts, ends = np.where(starts < ends, starts, lowered.Lk), np.where(starts < ends, ends, 0)
    owned = sorted((first, last, rank) for rank, held in enumerate(runs) for first, last in held if first < last)
    owned_firsts, owned_ends = [first for first, _, _ in owned], [last for _, last, _ in owned]
    found = []
    for row in sorted(set(segments[:, 0].tolist())):
        pieces = []  # (rank, segment, first, last), ascending
        for number in sorted(np.flatnonzero(segments[:, 0] == row).tolist(), key=lambda n: int(segments[n, 1])):
            q0, q1 = segments[number, 1:3].tolist()
            for first, last, rank in owned[bisect_right(owned_ends, q0) : bisect_left(owned_firsts, q1)]:
                pieces.append((rank, number, max(first, q0), min(last, q1)))
        if not pieces:
            continue
        # reduceat takes the ranges between consecutive edges; every second one is a piece
        edges = np.array([edge for piece in pieces for edge in piece[2:]], np.int64)
        at = min(max(row, 0), starts.shape[1] - 1)
        low = np.minimum.reduceat(np.pad(starts[:, at], ((0, 0), (0, 1)), constant_values=lowered.Lk), edges, 1)[:, ::2]
        high = np.maximum.reduceat(np.pad(ends[:, at], ((0, 0), (0, 1))), edges, 1)[:, ::2]
        for place, (rank, number, first, last) in enumerate(pieces):
            ranges = [(int(a), int(b)) for a, b in zip(low[:, place], high[:, place], strict=True) if a < b]
            if lowered.tiles is not None:
                ranges = list(common(united(ranges), _of_tiles(lowered, row, first, last)))
            k0, k1 = segments[number, 3:5].tolist()
            keys = pieces_of([(max(k0, a), min(k1, b)) for a, b in ranges])
            if contiguous and len(keys) > 1:
                keys = ((keys[0][0], keys[-1][1]),)
            found.append(Stretch(rank, number, first, last, keys))
    return found


def _of_tiles(lowered: Lowered, row: int, first: int, last: int) -> Runs:
    """The keys of the tiles in which some query of a range sees something."""
    tiles = lowered.tiles
    assert tiles is not None
    state = tiles.state if row < 0 or len(tiles.state) == 1 else tiles.state[row : row + 1]
    if tiles.rows > 1:
        state = state[:, :, first // tiles.rows : -(-last // tiles.rows)]
    some = (state != -1).any((0, 1, 2))
    return united([(int(n) * GRID, min(lowered.Lk, (int(n) + 1) * GRID)) for n in np.flatnonzero(some)])


@dataclass(frozen=True, eq=False)
class Plan:
    """What one rank sends, receives and computes for a call.

    The gathered keys of a rank are those that its first run of queries needs, then those of the next: keys that several
    runs need are sent once and lie there once for each, so that no two segments share keys.

    Args:
        rank: the rank.
        needs: the keys that each rank needs, in the whole.
        held: the keys that each rank holds, in the whole.
        layout: of the rank's own call, over the gathered keys.
        pieces: of the gathered keys: ``(first, last, place)``, a range in the whole and where it begins.
        gathered: number of gathered keys.
        queries: ``(first, last, place)`` of each run of the rank's queries: a range in the whole and where it begins in
            the own call.
        runs: of each of the ``pieces`` the number of the run that needs it.
        grid: gathered keys keep their places in blocks of so many.
        spare: whether a block of the grid stays free before a rank's keys: some document begins inside of one, so that
            the blocks of a part of it may begin before its first key.
    """

    rank: int
    needs: tuple[Runs, ...]
    held: tuple[Runs, ...]
    layout: Layout
    pieces: tuple[tuple[int, int, int], ...]
    gathered: int
    queries: tuple[tuple[int, int, int], ...] = ()
    runs: tuple[int, ...] = ()
    grid: int = GRID
    spare: bool = False

    @cached_property
    def is_identity(self) -> bool:
        """Whether every rank computes with its own keys as they lie; the same on every rank."""
        in_place = all(len(need) <= 1 and not need[0][0] % self.grid for need in self.needs if need)
        return in_place and not self.spare and self.needs == self.held

    @cached_property
    def sends(self) -> bool:
        """Whether any rank needs keys of another; the same on every rank."""
        return any(common(need, held) != need for need, held in zip(self.needs, self.held, strict=True))

    @cached_property
    def gathers(self) -> bool:
        """Whether keys travel by an all-gather, since the ranks need nearly all of them; the same on every rank."""
        sent, received = keys_moved(self.needs, self.held)
        brought = (len(self.held) - 1) * self.largest
        return 0 < brought <= EXTRA * max(*sent, *received) and sum(received) >= NEEDED * brought * len(self.held)

    @cached_property
    def largest(self) -> int:
        """The keys of the rank that holds most."""
        return max(map(count, self.held), default=0)

    @cached_property
    def sent(self) -> tuple[Runs, ...]:
        """For each rank the ranges of this rank's own keys, by index there, that it needs."""
        held = self.held[self.rank]
        return tuple(_local(common(held, need), held) for need in self.needs)

    @cached_property
    def needed(self) -> tuple[Runs, ...]:
        """For each rank the ranges of its keys, by index there, that this rank needs."""
        return tuple(_local(common(held, self.needs[self.rank]), held) for held in self.held)

    @cached_property
    def received(self) -> tuple[tuple[tuple[int, tuple[tuple[int, int, int], ...]], ...], ...]:
        """For each rank the ranges that come from it: their lengths, and ``(first, last, place)`` of each copy, the
        part of the range that is copied and where among the gathered keys it begins."""
        return tuple(
            tuple((last - first, self._copies(first, last)) for first, last in common(held, self.needs[self.rank]))
            for held in self.held
        )

    def _copies(self, first: int, last: int) -> tuple[tuple[int, int, int], ...]:
        found = []
        for begin, end, place in self.pieces:
            a, b = max(first, begin), min(last, end)
            if a < b:
                found.append((a - first, b - first, place + a - begin))
        return tuple(found)

    @cached_property
    def key_index(self) -> Tensor:
        """``(gathered,)`` int64: the index of each gathered key in the whole; -1 between pieces."""
        index = torch.full((self.gathered,), -1, dtype=torch.int64)
        for first, last, place in self.pieces:
            index[place : place + last - first] = torch.arange(first, last)
        return index

    @cached_property
    def query_index(self) -> Tensor:
        """``(queries of the own call,)`` int64: the index of each in the whole; -1 between runs."""
        first, last, place = self.queries[-1] if self.queries else (0, 0, 0)
        index = torch.full((place + last - first,), -1)
        for first, last, place in self.queries:
            index[place : place + last - first] = torch.arange(first, last)
        return index

    @cached_property
    def columns(self) -> Tensor:
        """``(gathered,)`` int64: `key_index` with 0 between pieces, to choose columns of what the whole has."""
        return self.key_index.clamp(min=0)

    def tokens(self, sender: int, receiver: int) -> int:
        """How many keys one rank sends another."""
        return 0 if sender == receiver else count(common(self.held[sender], self.needs[receiver]))


def _local(some: Runs, runs: Runs) -> Runs:
    """The same tokens by their indices where the ``runs`` lie end to end; each of ``some`` lies within one run."""
    found, n, before = [], 0, 0
    for first, last in some:
        while runs[n][1] <= first:
            before += runs[n][1] - runs[n][0]
            n += 1
        found.append((before + first - runs[n][0], before + last - runs[n][0]))
    return tuple(found)


def needs_of(found: Sequence[Stretch], size: int) -> tuple[Runs, ...]:
    """The keys that each of ``size`` ranks needs."""
    needs: list[list[tuple[int, int]]] = [[] for _ in range(size)]
    for stretch in found:
        needs[stretch.rank].extend(stretch.keys)
    return tuple(map(united, needs))


def make_plan(
    pattern: Pattern | None,
    whole: Layout,
    sizes: tuple[int, int, int, int],
    query_runs: Sequence[Runs],
    key_runs: Sequence[Runs],
    rank: int,
    *,
    contiguous: bool,
    blocks: tuple[int, int] = (1, GRID),
) -> Plan:
    """The plan of one rank for a call.

    Args:
        pattern: of the call, in the whole.
        whole: the layout of the whole; it has segments.
        sizes: ``(B, Hq, Lq, Lk)`` of the whole.
        query_runs: the queries that each rank holds.
        key_runs: the keys that each rank holds.
        rank: the rank.
        contiguous: whether kernels must count positions: each run of queries then gets all keys between the first and
            the last that it needs.
        blocks: queries and keys of a block; both keep their places in blocks of so many.
    """
    B, _, Lq, Lk = sizes
    query_step, grid = blocks
    packed = whole.segments(B, Lq, Lk)
    assert packed is not None
    segments = unpack(packed)
    found = stretches(lower(pattern, whole, *sizes), segments, query_runs, contiguous=contiguous)
    pieces: list[tuple[int, int, int]] = []
    queries: list[tuple[int, int, int]] = []
    runs: list[int] = []
    spare = any((s.keys[0][0] - segments[s.segment, 3]) % grid > s.keys[0][0] % grid for s in found if s.keys)
    lines, scattered, gathered, placed, free = [], False, 0, 0, grid if spare else 0
    for number, (first, last) in enumerate(query_runs[rank]):
        queries.append((first, last, -(-placed // query_step) * query_step + first % query_step))
        placed = queries[-1][2] + last - first
        mine = [s for s in found if s.rank == rank and first <= s.first and s.last <= last]
        # Pieces keep their place on the grid, and an empty place of the grid lies between two.
        run_pieces = []
        for begin, end in pieces_of([keys for stretch in mine for keys in stretch.keys]):
            place = free + begin % grid
            run_pieces.append((begin, end, place))
            gathered = place + end - begin
            free = -(-gathered // grid) * grid + grid
        for stretch in mine:
            some = _segments(stretch, segments[stretch.segment].tolist(), run_pieces, queries[-1][2] - first)
            scattered |= len(some) > 1
            lines += some
        pieces += run_pieces
        runs += [number] * len(run_pieces)
    holes = whole.holes()
    exists = None
    if holes is not None:
        exists = torch.zeros((len(holes), gathered), dtype=torch.bool)
        for begin, end, place in pieces:
            exists[:, place : place + end - begin] = holes[:, begin:end]
    table = torch.from_numpy(_of_each_row(np.array(lines, np.int64).reshape(-1, len(FIELDS)), B, whole.documents))
    kind = ScatteredPortion if scattered else Portion
    layout = kind(table, max(1, whole.documents), exists)
    needs = needs_of(found, len(query_runs))
    parts = tuple(pieces), gathered, tuple(queries), tuple(runs), grid, spare
    return Plan(rank, needs, tuple(key_runs), layout, *parts)


def _segments(
    stretch: Stretch, segment: list[int], pieces: Sequence[tuple[int, int, int]], shift: int
) -> list[tuple[int, ...]]:
    """A stretch as segments of the rank's own call, one for each piece of its keys.

    Args:
        stretch: queries and their keys.
        segment: the one of the whole in which they lie.
        pieces: gathered keys of the run.
        shift: from an index of a query in the whole to that in the own call.
    """
    if not stretch.keys:
        return []
    row, q0, q1, of_whole, _, query_offset, key_offset, number, _, _, _ = segment
    found: list[tuple[int, ...]] = []
    for begin, end, place in pieces:
        first, last = max(begin, stretch.keys[0][0]), min(end, stretch.keys[-1][1])
        if first < last:
            k0 = place + first - begin
            queries = stretch.first + shift, stretch.last + shift
            offsets = query_offset - shift, key_offset + first - k0
            found.append((row, *queries, k0, k0 + last - first, *offsets, number, 0, q1 - q0, first - of_whole))
    return found


def _of_each_row(table: NDArray[np.int64], B: int, documents: int) -> NDArray[np.int64]:
    """Segments with those of every batch row written out for each."""
    every = table[:, 0] < 0
    rows = [table[~every]]
    for row in range(B if every.any() else 0):
        one = table[every].copy()
        one[:, 0], one[:, 7] = row, one[:, 7] + row * documents
        rows.append(one)
    return np.concatenate(rows)
