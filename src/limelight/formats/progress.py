"""A progress bar for what takes longer than two seconds, and silence for what does not."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

PATIENCE = 2.0  # seconds

Report = Callable[[int], None]


@contextmanager
def downloaded(what: str, size: int) -> Iterator[Report]:
    """Yield ``report(bytes so far)`` and show bytes and their speed."""
    with _shown(what, size, f" ({size / 1e6:.1f} MB)", DownloadColumn(), TransferSpeedColumn()) as report:
        yield report


@contextmanager
def counted(what: str, total: int) -> Iterator[Report]:
    """Yield ``report(done so far)`` and show the share of ``total`` that is done."""
    with _shown(what, total, "", TaskProgressColumn()) as report:
        yield report


@contextmanager
def _shown(what: str, total: int, note: str, *columns: ProgressColumn) -> Iterator[Report]:
    """A bar on standard error when two seconds have passed; where that is no terminal, one line stands for it."""
    console = Console(stderr=True)
    parts = (TextColumn("{task.description}"), BarColumn(), *columns, TimeRemainingColumn())
    progress = Progress(*parts, console=console, transient=True)
    begin, task = time.monotonic(), progress.add_task(what, total=total)
    shown = threading.Lock()  # taken for good by what shows the bar: the first report after two seconds, or the timer

    def show() -> None:
        if not shown.acquire(blocking=False):
            return
        if console.is_terminal:
            progress.start()
        else:
            console.print(f"{what}{note} ...", highlight=False)

    def report(done: int) -> None:
        progress.update(task, completed=min(done, total))
        if time.monotonic() - begin > PATIENCE:
            show()

    # The first step alone may take longer than that.
    timer = threading.Timer(PATIENCE, show)
    timer.daemon = True
    timer.start()
    try:
        yield report
    finally:
        timer.cancel()
        timer.join()  # else it may show the bar after its end
        if progress.live.is_started:
            progress.stop()
