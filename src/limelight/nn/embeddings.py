"""The first vectors: what a token is before it has seen any other."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .places import Places


class TokenEmbedding(nn.Module):
    """One vector per token of the vocabulary; positions enter later (`limelight.nn.positions.Rotary`).

    Args:
        vocabulary: number of tokens.
        width: numbers per token.
    """

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)

    def forward(self, tokens: Tensor, places: Places) -> Tensor:
        """``(B, L)`` token ids to ``(B, L, width)``."""
        return self.tokens(tokens)  # type: ignore[no-any-return]


class SummedEmbedding(nn.Module):
    """``norm(token + segment + position)``, all three learned (BERT, Devlin et al. 2018, arXiv:1810.04805).

    Args:
        vocabulary: number of tokens.
        width: numbers per token.
        positions: number of learned positions.
        segments: number of segments.
        epsilon: of the layer norm.
    """

    def __init__(self, vocabulary: int, width: int, *, positions: int, segments: int, epsilon: float) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(positions, width)
        self.segments = nn.Embedding(segments, width)
        self.norm = nn.LayerNorm(width, epsilon)

    def forward(self, tokens: Tensor, places: Places) -> Tensor:
        """``(B, L)`` token ids to ``(B, L, width)``."""
        segments = torch.zeros_like(tokens) if places.segments is None else places.segments
        positions = places.positions.clamp(min=0)  # padding at the left stands before position 0 and is not looked at
        return self.norm(self.tokens(tokens) + self.segments(segments) + self.positions(positions))  # type: ignore[no-any-return]
