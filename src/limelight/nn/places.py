"""What one forward pass carries from the model down to every layer."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..layouts import Layout
from .positions import Rotary, Rotation


@dataclass
class Places:
    """Where every token of one forward pass stands.

    Args:
        layout: which tokens exist, in which document; handed to the operator as it is.
        positions: ``(B | 1, L)`` int64, the position of each token in its document.
        segments: ``(B, L)`` int64, the segment (token type) of each token; ``None`` for segment 0 everywhere.
    """

    layout: Layout | None
    positions: Tensor
    segments: Tensor | None = None
    _rotations: dict[tuple[Rotary, torch.dtype], Rotation] = field(default_factory=dict)

    def rotation(self, rotary: Rotary, dtype: torch.dtype) -> Rotation:
        """The cosines and sines of ``rotary``, computed once for all the layers that share it."""
        if (rotary, dtype) not in self._rotations:
            self._rotations[rotary, dtype] = rotary.at(self.positions, dtype)
        return self._rotations[rotary, dtype]
