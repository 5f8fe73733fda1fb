"""Write a file in one step: it is whole, or it is what it was before."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path


def write_atomically(path: str | os.PathLike[str], content: bytes) -> int:
    """Write ``content`` to ``path`` in one step, and return its size in bytes.

    Raises:
        OSError: the folder does not exist or cannot be written to; an earlier file of that name is unchanged then.
    """
    target = Path(path)
    if not target.parent.is_dir():  # else the error names the temporary file
        raise FileNotFoundError(errno.ENOENT, "there is no such folder", str(target.parent))
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise
    return len(content)
