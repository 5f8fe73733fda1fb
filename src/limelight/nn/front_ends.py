"""Embeddings of sound and pictures."""

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
    """Base of embeddings whose input is not token ids."""

    reads_other_tokens = "its input is no tensor of tokens that could be divided"

    def sizes(self, inputs: Tensor) -> tuple[int, int]:
        """Batch and length ``(B, L)`` of the states that an input becomes.

        Raises:
            ArgumentError: an input of another shape.
        """
        raise NotImplementedError


@checked
class SpectrumEmbedding(FrontEnd):
    """The embedding of sound in Whisper (Radford et al. 2022, arXiv:2212.04356): two convolutions, then positions.

    ``gelu(conv(x))`` over 3 frames, ``gelu(conv(.))`` over 3 with a stride of 2, plus a positional embedding.

    Args:
        vocabulary: of the decoder; not used, every embedding is constructed with it.
        width: features per position (``d_model``).
        bands: frequency bands of the spectrum.
        positions: makes the positional embedding from the width.
        dropout: probability with which a feature is dropped in training.
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
        if not isinstance(inputs, Tensor) or inputs.dim() != 3 or inputs.shape[1] != self.bands:
            raise wrong(
                "source",
                f"must be the (B, {self.bands}, frames) spectrum of a sound",
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
    """The patches of a picture, each projected by one matrix, after a learned class token (ViT, arXiv:2010.11929).

    Args:
        vocabulary: not used, every embedding is constructed with it.
        width: features per position (``d_model``).
        channels: of a picture (3 for colours).
        size: its height and width in pixels.
        patch: height and width of a patch, divisors of ``size``.
        dropout: probability with which a feature is dropped in training.
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
        wanted = (self.channels, *self.size)
        if not isinstance(inputs, Tensor) or inputs.dim() != 4 or tuple(inputs.shape[1:]) != wanted:
            raise wrong(
                "tokens",
                f"must be (B, {', '.join(map(str, wanted))}) pictures",
                f"it is {describe(inputs)}",
                "Resize and normalise them as for the model's training.",
            )
        return inputs.shape[0], self.positions.shape[1]

    def forward(self, inputs: Tensor, context: ForwardContext) -> Tensor:
        """``(B, channels, height, width)`` to ``(B, 1 + patches, width)``, row by row from the top."""
        patches = self.patches(inputs).flatten(2).transpose(1, 2)
        states = torch.cat((self.class_token.expand(len(inputs), -1, -1), patches), dim=1)
        return self.dropout(states + self.positions)  # type: ignore[no-any-return]
