"""Checks of the arguments that other libraries' functions have in common, by their names in those libraries."""

from __future__ import annotations

import torch

from ..tensors.shapes import describe, number, wrong


def scale(name: str, value: float | None) -> float | None:
    """A factor of the dot product, or ``None`` for ``1 / sqrt(D)``.

    Raises:
        ArgumentError: it is no finite number.
    """
    return None if value is None else number(name, value, "must be a finite number", "None is 1 / sqrt(D).")


def device(name: str, value: torch.device | str) -> torch.device:
    """A device, or the one of that name.

    Raises:
        ArgumentError: there is none.
    """
    try:
        return torch.device(value)
    except (RuntimeError, TypeError):
        got = f"it is {describe(value)}"
        raise wrong(name, "must be a torch.device or the name of one", got, 'For example "cpu".') from None
