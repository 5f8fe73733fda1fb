"""Measure attention on this machine: `limelight bench`.

In reading order: `cases` (what is measured, as data) → `timing` (how) → `figure` (a plot of the result).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from .cases import MEMORY_TOKENS, QUICK_MEMORY_TOKENS, Case, cases
from .figure import figure_of
from .timing import Measurement, machine, measure, memory

__all__ = ["Case", "Measurement", "as_json", "chosen", "figure_of", "machine", "memory_row", "run"]

MEMORY = "memory of forward + backward, 1 head"


def chosen(only: str = "", quick: bool = False) -> list[Case]:
    """Return the cases whose name or group contains ``only``; with ``quick``, the short ones of the table."""
    return [c for c in cases() if only.lower() in f"{c.group}: {c.name}".lower() and (c.quick or not quick)]


def run(some: Iterable[Case], threads: int, seconds: float, begin: Callable[[Case], None]) -> Iterator[Measurement]:
    """Measure cases one by one on ``threads`` threads, each for about ``seconds``, after calling ``begin`` with it."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for case in some:
            begin(case)
            yield measure(case, threads, seconds)
    finally:
        torch.set_num_threads(before)


def memory_row(threads: int, quick: bool = False) -> dict[str, Any]:
    """Measure the memory of a long call, forward and backward (`timing.memory`); ``quick``: of a shorter one."""
    return memory(QUICK_MEMORY_TOKENS if quick else MEMORY_TOKENS, threads)


def as_json(about: dict[str, Any], rows: Iterable[Measurement], taken: dict[str, Any] | None) -> dict[str, Any]:
    """Return all measurements as JSON values: format ``limelight.bench``, version 1."""
    cases = [row.as_json() for row in rows]
    return {"format": "limelight.bench", "version": 1, "machine": about, "cases": cases, "memory": taken}
