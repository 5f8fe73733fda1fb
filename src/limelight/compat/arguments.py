"""Checks of the arguments that other libraries' functions have in common, by their names in those libraries."""

from __future__ import annotations

from ..tensors.shapes import number


def scale(name: str, value: float | None) -> float | None:
    """A factor of the dot product, or ``None`` for ``1 / sqrt(D)``.

    Raises:
        ArgumentError: it is no finite number.
    """
    return None if value is None else number(name, value, "must be a finite number", "None is 1 / sqrt(D).")
