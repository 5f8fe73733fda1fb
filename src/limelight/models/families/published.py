"""A published configuration, read with care."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...checkpoints.errors import CheckpointError


@dataclass(frozen=True)
class Published:
    """The values of a configuration and the file they stand in.

    Args:
        path: the file, named in complaints.
        values: what it says.
    """

    path: Path
    values: Mapping[str, Any]

    def get(self, key: str) -> Any:
        """The value as it stands, ``None`` where there is none."""
        return self.values.get(key)

    def whole(self, key: str, default: int | None = None) -> int:
        """A whole number of at least 1."""
        value = self._or(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.refused(key, "a whole number of at least 1")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A number above 0."""
        value = self._or(key, default)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not value > 0:
            raise self.refused(key, "a number above 0")
        return float(value)

    def one_of(self, key: str, choices: Collection[Any], default: Any) -> Any:
        """One of the ``choices``."""
        value = self._or(key, default)
        if not any(value == choice for choice in choices):
            raise self.refused(key, f"one of {', '.join(map(repr, choices))}")
        return value

    def refused(self, key: str, rule: str) -> CheckpointError:
        """The complaint about one value."""
        return CheckpointError(
            f"{self.path} says {key} = {self.values.get(key)!r}, and Limelight reads there {rule}. "
            "Take another checkpoint, or correct the file if it was edited."
        )

    def _or(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        return default if value is None else value
