"""Token embeddings."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .checks import check_ids, checked, token_vectors
from .context import ForwardContext
from .dropout import dropout as dropping


@checked
class TokenEmbedding(nn.Module):
    """A learned vector for each token of the vocabulary, without positions (which `limelight.nn.Rotary` adds later).

    Args:
        vocabulary: number of tokens.
        width: features per token (``d_model``).
        scale: factor of the embeddings (``sqrt(width)`` in Gemma), rounded to their dtype first, as in Gemma.
        dropout: probability with which a feature is dropped in training.
    """

    def __init__(self, vocabulary: int, width: int, *, scale: float = 1.0, dropout: float = 0.0) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.scale, self.dropout = scale, dropping(dropout)

    def forward(self, tokens: Tensor, context: ForwardContext | None = None) -> Tensor:
        """``(B, L)`` token ids to ``(B, L, width)``.

        Raises:
            ArgumentError: ids that are no integers, lie on another device or outside of the vocabulary.
        """
        states = token_vectors(self.tokens, tokens)
        if self.scale != 1.0:
            states = states * torch.full((), self.scale, dtype=states.dtype, device=states.device)
        return self.dropout(states)  # type: ignore[no-any-return]


@checked
class SummedEmbedding(nn.Module):
    """``widen(norm(scale * token + segment + position))`` (Vaswani et al. 2017; BERT, Devlin et al. 2018).

    Args:
        vocabulary: number of tokens.
        width: features per token (``d_model``).
        positions: makes the positional embedding from the width: `limelight.nn.LearnedPositions` or
            `limelight.nn.Sinusoids`.
        segments: number of learned segments; 0 for none.
        norm: makes the norm from the width; ``None`` for none.
        scale: factor of the token embeddings (``sqrt(width)`` in the first Transformer).
        inner: features per token up to the norm, after which a matrix widens them to ``width`` (ALBERT,
            arXiv:1909.11942); ``None`` for ``width`` and no matrix.
        dropout: probability with which a feature is dropped in training, after the norm.
    """

    def __init__(
        self,
        vocabulary: int,
        width: int,
        *,
        positions: Callable[[int], nn.Module],
        segments: int = 0,
        norm: Callable[[int], nn.Module] | None = None,
        scale: float = 1.0,
        inner: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        narrow = width if inner is None else inner
        self.tokens = nn.Embedding(vocabulary, narrow)
        self.positions = positions(narrow)
        self.segments = nn.Embedding(segments, narrow) if segments else None
        self.norm = None if norm is None else norm(narrow)
        self.widen = None if inner is None else nn.Linear(inner, width)
        self.scale, self.dropout = scale, dropping(dropout)

    def forward(self, tokens: Tensor, context: ForwardContext | None = None) -> Tensor:
        """``(B, L)`` token ids to ``(B, L, width)``.

        Raises:
            ArgumentError: ids that are no integers, lie on another device or outside of the vocabulary.
        """
        states = token_vectors(self.tokens, tokens)
        context = ForwardContext.given(context, tokens)
        if self.scale != 1.0:
            states = states * self.scale
        if self.segments is not None:
            segments = torch.zeros_like(tokens) if context.segments is None else context.segments
            check_ids("segments", segments, "segments", self.segments.weight)
            states = states + self.segments(segments)
        states = states + self.positions(context.positions, states.dtype)
        if self.norm is not None:
            states = self.norm(states)
        states = self.dropout(states)
        return states if self.widen is None else self.widen(states)  # type: ignore[no-any-return]
