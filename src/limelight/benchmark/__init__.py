"""Measure attention on this machine: `limelight bench`.

In the order of reading: `cases` (what is measured, as data) → `timing` (how) → `figure` (a picture of the result).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from .cases import MEMORY_TOKENS, QUICK_MEMORY_TOKENS, Case, cases
from .figure import picture
from .timing import Row, machine, measure, memory

__all__ = ["Case", "Row", "as_json", "chosen", "machine", "memory_row", "picture", "run"]

MEMORY = "memory of forward + backward, 1 head"


def chosen(only: str = "", quick: bool = False) -> list[Case]:
    """Cases whose name or group contains ``only``; with ``quick``, the short ones of the table."""
    return [c for c in cases() if only.lower() in f"{c.group}: {c.name}".lower() and (c.quick or not quick)]


def run(some: Iterable[Case], threads: int, seconds: float, begin: Callable[[Case], None]) -> Iterator[Row]:
    """Measure one case after the other with so many threads, each for about so many seconds."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for case in some:
            begin(case)
            yield measure(case, threads, seconds)
    finally:
        torch.set_num_threads(before)


def memory_row(threads: int, quick: bool = False) -> dict[str, Any]:
    """See `timing.memory`."""
    return memory(QUICK_MEMORY_TOKENS if quick else MEMORY_TOKENS, threads)


def as_json(about: dict[str, Any], rows: Iterable[Row], taken: dict[str, Any] | None) -> dict[str, Any]:
    """Everything that was measured, as plain numbers; schema ``limelight.bench`` 1."""
    cases = [row.as_json() for row in rows]
    return {"schema": "limelight.bench", "version": 1, "machine": about, "cases": cases, "memory": taken}
