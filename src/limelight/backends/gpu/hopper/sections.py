"""How many heads are computed together on Hopper, so that all programs end at about the same time."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

SHARING = 4  # programs that read each head at the same time; with as many, a section may exceed the L2 cache
STARTING = 3.0  # what an item takes beside its blocks, in blocks of 64 rows
EVEN = 0.98  # a balance beyond which nothing else is looked for


@lru_cache(maxsize=256)
def balanced_section(tiles: int, columns: int, processors: int, limit: int, group: int) -> int:
    """The section (`limelight.backends.gpu.hopper.tuning.section`) that divides causal items evenly.

    Items are dealt to the programs in alternating direction, the longest of each section first
    (`limelight.backends.gpu.hopper.kernels.schedule`). If a program gets only two or three items of a section, their
    sums are as unequal as 0.55 to 0.95, so the number of heads matters. It is ``limit`` if that is even enough, else
    the smallest that is, else the most even one.

    Args:
        tiles: tiles of a column.
        columns: heads of all batch rows.
        processors: programs that run at the same time.
        limit: columns whose rows fit the L2 cache, a multiple of ``group`` or all columns.
        group: columns that read the same rows; a section is a multiple of it.
    """
    most = min(columns, max(limit, processors // SHARING // group * group))
    best, section = 0.0, limit
    candidates: list[int] = [limit, *range(group, most + 1, group)]
    for candidate in candidates:
        balance = _balance(tiles, columns, processors, candidate)
        if balance >= EVEN:
            return candidate
        if balance > best + 0.005:
            best, section = balance, candidate
    return section


def _balance(tiles: int, columns: int, processors: int, section: int) -> float:
    """The mean of the programs' loads over the largest one, of causal items."""
    number = np.arange(tiles * columns)
    part = number // (section * tiles)
    wide = np.minimum(section, columns - part * section)
    blocks = 2.0 * (tiles - (number - part * section * tiles) // wide)
    index, place = np.divmod(number, processors)
    program = np.where(index % 2 == 0, place, processors - 1 - place)
    loads = np.bincount(program, blocks + STARTING, processors)
    return float(loads.mean() / loads.max())
