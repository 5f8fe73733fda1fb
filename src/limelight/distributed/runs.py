"""Runs of consecutive tokens: what ranks hold and need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from ..tensors.shapes import wrong

#: Runs of consecutive tokens, ``(first, last)`` with the last one excluded, ascending and disjoint.
Runs: TypeAlias = "tuple[tuple[int, int], ...]"


def count(runs: Runs) -> int:
    """The number of tokens in some runs."""
    return sum(last - first for first, last in runs)


def united(runs: Sequence[tuple[int, int]]) -> Runs:
    """The runs of all tokens in some ranges: sorted, those that overlap or touch joined, empty ones left out."""
    joined: list[tuple[int, int]] = []
    for first, last in sorted(run for run in runs if run[0] < run[1]):
        if joined and first <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(joined[-1][1], last)
        else:
            joined.append((first, last))
    return tuple(joined)


def common(one: Runs, other: Runs) -> Runs:
    """The runs of the tokens that lie in both; both are ascending."""
    found, n, m = [], 0, 0
    while n < len(one) and m < len(other):
        first, last = max(one[n][0], other[m][0]), min(one[n][1], other[m][1])
        if first < last:
            found.append((first, last))
        n, m = (n + 1, m) if one[n][1] <= other[m][1] else (n, m + 1)
    return tuple(found)


def checked_runs(name: str, runs: Any, size: int) -> tuple[Runs, ...]:
    """The runs of all ranks as tuples of ints, empty ones left out.

    Args:
        name: of the argument that holds them.
        runs: of each rank.
        size: number of ranks.

    Raises:
        ArgumentError: not each token is held once, or the runs of a rank are not ascending.
    """
    made = tuple(tuple((int(first), int(last)) for first, last in held if first < last) for held in runs)
    if len(made) != size:
        raise wrong(name, f"must hold the runs of {size} ranks", f"it holds {len(made)}", "One tuple for each rank.")
    end = 0
    for first, last in sorted(run for held in made for run in held):
        if first != end:
            way_out = "Cut the text at the same places for all ranks."
            raise wrong(name, "must hold each token once", f"token {min(first, end)} is missing or repeated", way_out)
        end = last
    if any(list(held) != sorted(held) for held in made):
        raise wrong(name, "must be ascending for each rank", f"they are {made}", "Sort the runs of a rank.")
    return made


def keys_moved(needs: Sequence[Runs], held: Sequence[Runs]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """How many keys each rank sends and receives in an uneven all-to-all.

    Args:
        needs: the keys that each rank needs (`Plan.needs`).
        held: the keys that each rank holds, all ranks together each key once.

    Returns:
        Keys sent and keys received, by rank. A key that two other ranks need is sent twice.
    """
    ends = np.array([run for need in needs for run in need], np.int64).reshape(-1, 2)
    steps = np.zeros(max([0, *(last for own in held for _, last in own)]) + 1, np.int64)
    np.add.at(steps, ends[:, 0], 1)
    np.add.at(steps, ends[:, 1], -1)
    wanted = np.concatenate([[0], steps.cumsum()[:-1].cumsum()])  # times that the keys before each are needed
    kept = [count(common(need, own)) for need, own in zip(needs, held, strict=True)]
    sent = [sum(int(wanted[last] - wanted[first]) for first, last in own) for own in held]
    return (
        tuple(n - own for n, own in zip(sent, kept, strict=True)),
        tuple(count(need) - own for need, own in zip(needs, kept, strict=True)),
    )
