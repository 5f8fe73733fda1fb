"""Dropout, which costs nothing where its probability is 0."""

from __future__ import annotations

from torch import nn


def dropout(probability: float) -> nn.Module:
    """`torch.nn.Dropout`, or `torch.nn.Identity` for a probability of 0.

    Args:
        probability: that a feature is dropped in training; the others are divided by ``1 - probability``.
    """
    return nn.Dropout(probability) if probability else nn.Identity()
