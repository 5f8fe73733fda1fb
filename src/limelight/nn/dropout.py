"""Dropout, and nothing at all where there is none."""

from __future__ import annotations

from torch import nn


def dropout(probability: float) -> nn.Module:
    """PyTorch's dropout; for 0 a module that hands on what it is given, which costs a decode step nothing.

    Args:
        probability: with which a number is dropped in training, the others divided by ``1 - probability``.
    """
    return nn.Dropout(probability) if probability else nn.Identity()
