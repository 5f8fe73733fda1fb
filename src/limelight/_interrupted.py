"""Ctrl-C while the command line is still being imported: one line, as later, instead of a traceback.

Importing PyTorch takes seconds, and `limelight.cli.main` cannot catch what happens before it runs. An exception would
not do: PyTorch takes whatever importing NumPy raises for its absence. So the process ends where it is.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType


def _on_the_command_line() -> bool:
    """Whether this process was started as ``limelight`` or ``python -m limelight``."""
    arguments = getattr(sys, "orig_argv", [])
    as_module = sys.argv[:1] == ["-m"] and arguments[arguments.index("-m") + 1 :][:1] == ["limelight"]
    return as_module or Path(sys.argv[0] if sys.argv else "").stem == "limelight"


def _end(number: int, frame: FrameType | None) -> None:
    os.write(2, b"interrupted\n")
    os._exit(130)


def imported() -> None:
    """Everything is there: from now on a Ctrl-C is an exception again."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


if (
    _on_the_command_line()
    and threading.current_thread() is threading.main_thread()
    and signal.getsignal(signal.SIGINT) is signal.default_int_handler
):
    signal.signal(signal.SIGINT, _end)
