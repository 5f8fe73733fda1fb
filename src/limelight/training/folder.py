"""The folder of a run: whether a run may start or resume there, and the lock that keeps it for one run at a time."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ..formats.safetensors_files import SINGLE
from ..tensors.shapes import wrong
from . import checkpoint

LOSSES = "losses.csv"


def check_output(output: Path, resume: bool) -> None:
    """Check that a run may start in a folder, or resume there.

    Raises:
        ArgumentError: the folder holds another run or model, or nothing to resume.
    """
    last, begun = checkpoint.newest(output), (output / LOSSES).is_file()
    if resume and last is None and not begun:
        way_out = "Check --output, or leave out --resume to start a run there."
        raise wrong("--resume", "needs a run to resume", f"{output} holds none", way_out)
    if not resume and last is not None:
        raise wrong("--output", "must hold no run yet", f"it holds {last}", "--resume continues that run.")
    if not resume and not begun and (output / SINGLE).exists():
        raise wrong("--output", "must hold no other model", f"it holds {output / SINGLE}", "Name another folder.")


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Create the folder of a run and lock it; a run that fails before its first step leaves no new folder.

    Raises:
        ArgumentError: another run is writing there.
    """
    made = [folder for folder in (output, *output.parents) if not folder.exists()]
    output.mkdir(parents=True, exist_ok=True)
    lock = FileLock(output / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        got = f"another one is writing {output}"
        raise wrong("--output", "must belong to one run at a time", got, "Wait for it, or name another.") from None
    try:
        yield
    except BaseException:
        if made and not _has_stepped(output):
            shutil.rmtree(output)
            for folder in made[1:]:
                folder.rmdir()
        raise
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def _has_stepped(output: Path) -> bool:
    """Whether the losses of a run have a row below their header."""
    losses = output / LOSSES
    return losses.is_file() and losses.read_text("utf-8").count("\n") > 1
