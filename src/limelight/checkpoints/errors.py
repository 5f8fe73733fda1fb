"""What can be wrong with a file, said in one paragraph."""

from __future__ import annotations

from pathlib import Path

from ..shapes import ArgumentError


class CheckpointError(ArgumentError):
    """A checkpoint is missing, damaged or of another make: what happened, with which values, what to do."""


def damaged(path: Path, what: str) -> CheckpointError:
    """The complaint about a file that cannot be what it claims to be."""
    return CheckpointError(
        f"{path} is damaged or incomplete: {what}. Nothing was loaded from it. "
        "Fetch or copy the file again, and compare its size and sha256 with those of its source."
    )


def missing(path: Path, way_out: str) -> CheckpointError:
    """The complaint about a file that should be there."""
    return CheckpointError(f"{path} does not exist. {way_out}")


def listed(names: list[str], limit: int = 8) -> str:
    """The first names of a long list, and how many more there are."""
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
