"""A progress bar for what takes longer than two seconds, and silence for what does not."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

PATIENCE = 2.0  # seconds

Report = Callable[[int], None]


@contextmanager
def shown(what: str, total: int) -> Iterator[Report]:
    """Yield ``report(bytes so far)``; the bar appears on standard error when two seconds have passed.

    Where standard error is no terminal, one line stands for the bar.
    """
    console = Console(stderr=True)
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
    begin, task = time.monotonic(), progress.add_task(what, total=total)
    said = False

    def report(done: int) -> None:
        nonlocal said
        progress.update(task, completed=min(done, total))
        if not said and time.monotonic() - begin > PATIENCE:
            said = True
            if console.is_terminal:
                progress.start()
            else:
                console.print(f"{what}: {total / 1e6:.1f} MB ...", highlight=False)

    try:
        yield report
    finally:
        progress.stop()
