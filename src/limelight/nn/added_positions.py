"""Absolute positions: a vector for each position that is added to the token embedding."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..tensors.shapes import whole_number, wrong
from .checks import check_ids, checked
from .positions import InterleavedPairs, Pairing

AS_IN_THE_PAPER = InterleavedPairs()


@checked
class Sinusoids(nn.Module):
    """Sinusoidal positions: ``sin(p * f_i)``, ``cos(p * f_i)``, ``f_i = base ** (-i / steps)`` (arXiv:1706.03762).

    Computed in float64 and rounded once. There are no parameters, and any position has its vector.

    Args:
        width: features per token (``d_model``), even.
        base: the slowest wave is about ``base`` times as long as the fastest.
        steps: number of steps from the fastest wave to ``base``: ``width / 2`` in the paper (``None``), one less in
            its published code and in Whisper.
        pairing: which features are the sine and the cosine of a wave: `limelight.nn.InterleavedPairs` (``sin, cos,
            sin, cos``) in the paper, `limelight.nn.SplitHalves` (all sines, then all cosines) in its published code,
            Marian and Whisper.
    """

    def __init__(
        self, width: int, *, base: float = 10_000.0, steps: int | None = None, pairing: Pairing = AS_IN_THE_PAPER
    ) -> None:
        super().__init__()
        if whole_number("width", width, at_least=2) % 2:
            got, way_out = f"it is {width}", f"Use {width - 1} or {width + 1}."
            raise wrong("width", "must be even: each wave has a sine and a cosine", got, way_out)
        self.width, self.base, self.pairing = width, base, pairing
        self.steps = width // 2 if steps is None else whole_number("steps", steps, at_least=1)

    def forward(self, positions: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """``(B | 1, L)`` positions to ``(B | 1, L, width)`` in ``dtype``."""
        waves = torch.arange(self.width // 2, dtype=torch.float64, device=positions.device)
        angles = positions[..., None].double() * torch.exp(-math.log(self.base) / self.steps * waves)
        return self.pairing.join(angles.sin(), angles.cos()).to(dtype)

    def extra_repr(self) -> str:
        return f"{self.width}, base={self.base}, steps={self.steps}, pairing={self.pairing}"


@checked
class LearnedPositions(nn.Embedding):
    """A learned vector for each position, in row ``position + offset`` of the table (arXiv:1705.03122; BERT).

    Args:
        width: features per token (``d_model``).
        count: number of positions.
        offset: rows before that of position 0, which no text uses: 2 in RoBERTa and BART, whose tables begin with
            a row for padding.
    """

    def __init__(self, width: int, *, count: int, offset: int = 0) -> None:
        super().__init__(count + whole_number("offset", offset, at_least=0), width)
        self.offset = offset

    def forward(self, positions: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """``(B | 1, L)`` int64 positions to ``(B | 1, L, width)``; negative ones, which are padding, count as 0.

        Raises:
            ArgumentError: positions of another dtype or device.
        """
        check_ids("positions", positions, "positions", self.weight)
        return super().forward(positions.clamp(min=0) + self.offset)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, offset={self.offset}"
