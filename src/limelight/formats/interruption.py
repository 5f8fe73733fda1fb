"""Ctrl-C and termination, which end a run after the step that is being computed."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def stop_requested() -> Iterator[threading.Event]:
    """Yield an event that SIGINT and SIGTERM set, to be checked after each step; a second signal acts at once.

    Under torchrun one Ctrl-C arrives twice, from the terminal and from torchrun: within a second it counts once.
    Outside of the main thread, signals are left alone and the event is never set.
    """
    requested = threading.Event()
    first = 0.0
    if threading.current_thread() is not threading.main_thread():
        yield requested
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, frame: object) -> None:
        nonlocal first
        if not requested.is_set():
            first = time.monotonic()
            requested.set()
        elif time.monotonic() - first > 1:
            signal.signal(number, before[signal.Signals(number)])
            signal.raise_signal(number)

    for number in before:
        signal.signal(number, handle)
    try:
        yield requested
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
