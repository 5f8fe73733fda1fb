"""A check of devices, which may be given by name."""

from __future__ import annotations

import torch

from .shapes import describe, wrong


def check_device(name: str, value: torch.device | str) -> torch.device:
    """A device, or the one of that name.

    Raises:
        ArgumentError: there is none.
    """
    try:
        return torch.device(value)
    except (RuntimeError, TypeError):
        got = f"it is {describe(value)}"
        raise wrong(name, "must be a torch.device or the name of one", got, 'For example "cpu".') from None
