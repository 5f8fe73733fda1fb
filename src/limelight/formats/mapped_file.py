"""A binary file that is mapped into memory and read forward, never past its end."""

from __future__ import annotations

import mmap
from pathlib import Path

from .errors import damaged, missing


class MappedFile:
    """A file in memory, and the position up to which it has been read.

    Args:
        path: the file.

    Raises:
        CheckpointError: no such file, or an empty one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise missing(path, "Name the folder that holds it.")
        with path.open("rb") as file:
            try:
                self._data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            except ValueError as error:
                raise damaged(path, "it is empty") from error
        self._at = 0

    def _skip(self, size: int) -> int:
        """Where the next ``size`` bytes begin, which count as read.

        Raises:
            CheckpointError: the file has fewer bytes left.
        """
        if size > len(self._data) - self._at:
            raise damaged(
                self.path, f"it promises {size:,} more bytes at byte {self._at:,} of {len(self._data):,}, and they lack"
            )
        self._at += size
        return self._at - size
