"""Normalisation: layer norm is PyTorch's own; the root-mean-square norm is here."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class RMSNorm(nn.Module):
    """``weight * x / sqrt(mean(x ** 2) + epsilon)`` over the last dimension (Zhang & Sennrich 2019, arXiv:1910.07467).

    Half-precision states are squared and averaged in float32, and rounded once.

    Args:
        width: size of the last dimension.
        epsilon: keeps a state of zeros finite.
    """

    def __init__(self, width: int, epsilon: float = 1e-6) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, states: Tensor) -> Tensor:
        """Normalise ``states`` ``(..., width)``."""
        return functional.rms_norm(states, self.weight.shape, self.weight, self.epsilon)

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return f"{self.weight.shape[0]}, epsilon={self.epsilon}"
