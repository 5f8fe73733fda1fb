"""Where a token stands, told to attention by turning queries and keys."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Rotation(NamedTuple):
    """Cosine and sine of every angle, each ``(B | 1, 1, L, D / 2)``."""

    cosine: Tensor
    sine: Tensor

    def turn(self, heads: Tensor) -> Tensor:
        """Turn queries or keys ``(B, H, L, D)``: number ``i`` of the first half with number ``i`` of the second."""
        a, b = heads.chunk(2, dim=-1)
        return torch.cat((a * self.cosine - b * self.sine, b * self.cosine + a * self.sine), dim=-1)


class Stretch(Protocol):
    """A rule that changes the frequencies of a model taught to read longer texts than it was trained on."""

    def frequencies(self, plain: Tensor) -> Tensor:
        """New frequencies for the ``plain`` ones, in radians per position."""


@dataclass(frozen=True)
class Linear:
    """Position interpolation: every angle divided by ``factor`` (Chen et al. 2023, arXiv:2306.15595)."""

    factor: float

    def frequencies(self, plain: Tensor) -> Tensor:
        """See `Stretch`."""
        return plain / self.factor


@dataclass(frozen=True)
class LongWaves:
    """Llama 3.1's rule: long waves are slowed by ``factor``, short ones kept, those between blended.

    Args:
        factor: how much longer the texts became.
        trained_length: the length of the texts before.
        low, high: a wave of more than ``trained_length / low`` positions is long, of less than
            ``trained_length / high`` short.
    """

    factor: float
    trained_length: int
    low: float = 1.0
    high: float = 4.0

    def frequencies(self, plain: Tensor) -> Tensor:
        """See `Stretch`."""
        waves = self.trained_length * plain / (2 * math.pi)  # how many waves fit into the trained length
        keep = ((waves - self.low) / (self.high - self.low)).clamp(0, 1)
        return keep * plain + (1 - keep) * plain / self.factor


@dataclass(frozen=True)
class Rotary:
    """Rotary position embedding (Su et al. 2021, arXiv:2104.09864).

    ``angle(p, i) = p * theta ** (-2 i / width)`` for position ``p`` and pair ``i`` of ``width / 2``. The score of a
    turned query and a turned key depends on the distance of their positions only.

    Angles are computed in float64 and rounded once, as cosine and sine: the products of a float32 computation are off
    by some ten-thousandths of a radian at position 8,000.

    Args:
        width: numbers of a head that are turned, even.
        theta: the base of the frequencies; larger for longer texts.
        stretch: a later change of the frequencies, or ``None``.
    """

    width: int
    theta: float = 10_000.0
    stretch: Stretch | None = None

    def at(self, positions: Tensor, dtype: torch.dtype) -> Rotation:
        """The rotation of tokens at ``positions`` ``(B | 1, L)``, in the ``dtype`` of the heads."""
        pairs = torch.arange(0, self.width, 2, dtype=torch.float64, device=positions.device)
        frequencies = self.theta ** (-pairs / self.width)
        if self.stretch is not None:
            frequencies = self.stretch.frequencies(frequencies)
        angles = positions[:, None, :, None].double() * frequencies  # (B | 1, 1, L, D / 2)
        return Rotation(angles.cos().to(dtype), angles.sin().to(dtype))
