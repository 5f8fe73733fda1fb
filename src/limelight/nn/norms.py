"""Normalisation: layer norm is PyTorch's own; the root-mean-square norm is here."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .. import fused
from .checks import checked, of_width, unreadable


@checked
class RMSNorm(nn.Module):
    """``(offset + weight) * x / sqrt(mean(x ** 2) + epsilon)`` over the last dimension (arXiv:1910.07467).

    Half-precision states are squared and averaged in float32, and rounded once. float32 states meet a float16 weight
    where a model keeps its residual stream wide (T5): the result has the dtype of the weight.

    Args:
        width: size of the last dimension.
        epsilon: keeps a state of zeros finite.
        offset: added to the weight: 0 (Zhang & Sennrich 2019, T5, Llama) or 1 (Gemma, whose weights are stored
            around 0, where half precision is finer).
    """

    def __init__(self, width: int, epsilon: float = 1e-6, offset: float = 0.0) -> None:
        super().__init__()
        self.epsilon, self.offset = epsilon, offset
        self.weight = nn.Parameter(torch.full((width,), 1.0 - offset))

    def forward(self, states: Tensor) -> Tensor:
        """Normalise ``states`` ``(..., width)``."""
        if not of_width(states, self.weight.shape[0], self.weight) and not _is_converted(states, self.weight):
            raise unreadable(states, self.weight.shape[0], self.weight)
        if states.dtype is torch.float32 and self.weight.dtype is torch.float16:
            return fused.rms_norm(states, self.weight.float(), self.epsilon, self.offset).to(torch.float16)
        return fused.rms_norm(states, self.weight, self.epsilon, self.offset)

    def note(self, steps: fused.Capture[Any], states: Tensor) -> Tensor | None:
        """See `limelight.nn.few_tokens`."""
        if not fused.can_fuse(states, self.weight):
            return None
        return steps.norm(states, self.weight, self.epsilon, self.offset)

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return f"{self.weight.shape[0]}, epsilon={self.epsilon}" + (f", offset={self.offset}" if self.offset else "")


def _is_converted(states: Any, weight: Tensor) -> bool:
    """Whether states of the right width have another float dtype than the weight."""
    if not isinstance(states, Tensor) or states.is_nested or states.shape[-1:] != weight.shape:
        return False
    return states.is_floating_point() and states.device == weight.device
