"""Ctrl-C while the command line is still being imported: one line, as later, instead of a traceback.

Importing PyTorch takes seconds, and `limelight.cli.main` cannot catch what happens before it runs.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import TracebackType


def _on_the_command_line() -> bool:
    """Whether this process was started as ``limelight`` or ``python -m limelight``."""
    arguments = getattr(sys, "orig_argv", [])
    as_module = sys.argv[:1] == ["-m"] and arguments[arguments.index("-m") + 1 :][:1] == ["limelight"]
    return as_module or Path(sys.argv[0] if sys.argv else "").stem == "limelight"


def _told(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


if _on_the_command_line():
    sys.excepthook = _told
