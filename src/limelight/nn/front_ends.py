"""First vectors of what is no text: sound and pictures."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..tensors.shapes import describe, wrong
from .checks import checked
from .context import ForwardContext
from .dropout import dropout as dropping


class FrontEnd(nn.Module):
    """Base of what makes first vectors of something else than token ids."""

    def sizes(self, inputs: Tensor) -> tuple[int, int]:
        """``(B, L)``: how many it holds and how many vectors each becomes; raises where it is no such thing."""
        raise NotImplementedError


@checked
class SpectrumEmbedding(FrontEnd):
    """Sound, as Whisper reads it (Radford et al. 2022, arXiv:2212.04356): two convolutions, then positions.

    ``gelu(conv(x))`` over 3 frames, ``gelu(conv(.))`` over 3 with a stride of 2, plus the vector of each position.

    Args:
        vocabulary: of the decoder; makes no parameter, every embedding is made alike.
        width: numbers per vector.
        bands: bands of the spectrum.
        positions: makes what gives each position its vector, from the width.
        dropout: probability with which a number is dropped in training.
    """

    def __init__(
        self, vocabulary: int, width: int, *, bands: int, positions: Callable[[int], nn.Module], dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.bands = bands
        self.first = nn.Conv1d(bands, width, kernel_size=3, padding=1)
        self.second = nn.Conv1d(width, width, kernel_size=3, stride=2, padding=1)
        self.positions = positions(width)
        self.dropout = dropping(dropout)

    def sizes(self, inputs: Tensor) -> tuple[int, int]:
        """See `FrontEnd`."""
        if not isinstance(inputs, Tensor) or inputs.dim() != 3 or inputs.shape[1] != self.bands:
            raise wrong(
                "source",
                f"must be the ({'B'}, {self.bands}, frames) spectrum of a sound",
                f"it is {describe(inputs)}",
                "limelight.models.sound.spectrum makes it.",
            )
        return inputs.shape[0], (inputs.shape[2] + 1) // 2

    def forward(self, inputs: Tensor, context: ForwardContext) -> Tensor:
        """``(B, bands, frames)`` to ``(B, (frames + 1) // 2, width)``."""
        states = functional.gelu(self.second(functional.gelu(self.first(inputs)))).transpose(1, 2)
        return self.dropout(states + self.positions(context.positions, states.dtype))  # type: ignore[no-any-return]


@checked
class PatchEmbedding(FrontEnd):
    """A picture as patches, each a vector by one matrix, behind a mark of its own (arXiv:2010.11929).

    Args:
        vocabulary: makes no parameter, every embedding is made alike.
        width: numbers per vector.
        channels: of a picture.
        size: its height and width in pixels.
        patch: height and width of a patch, divisors of ``size``.
        dropout: probability with which a number is dropped in training.
    """

    def __init__(
        self,
        vocabulary: int,
        width: int,
        *,
        channels: int,
        size: tuple[int, int],
        patch: tuple[int, int],
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.size, self.channels = size, channels
        count = (size[0] // patch[0]) * (size[1] // patch[1])
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.patches = nn.Conv2d(channels, width, kernel_size=patch, stride=patch)
        self.positions = nn.Parameter(torch.zeros(1, count + 1, width))
        self.dropout = dropping(dropout)

    def sizes(self, inputs: Tensor) -> tuple[int, int]:
        """See `FrontEnd`."""
        wanted = (self.channels, *self.size)
        if not isinstance(inputs, Tensor) or inputs.dim() != 4 or tuple(inputs.shape[1:]) != wanted:
            raise wrong(
                "tokens",
                f"must be (B, {', '.join(map(str, wanted))}) pictures",
                f"it is {describe(inputs)}",
                "Resize them, and bring their numbers to the range of the model's training.",
            )
        return inputs.shape[0], self.positions.shape[1]

    def forward(self, inputs: Tensor, context: ForwardContext) -> Tensor:
        """``(B, channels, height, width)`` to ``(B, 1 + patches, width)``, row by row from the top."""
        patches = self.patches(inputs).flatten(2).transpose(1, 2)
        states = torch.cat((self.class_token.expand(len(inputs), -1, -1), patches), dim=1)
        return self.dropout(states + self.positions)  # type: ignore[no-any-return]
