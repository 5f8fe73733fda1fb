"""From the last vectors to a score for every token of the vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import fused
from .feed_forward import ACTIVATIONS
from .places import Places
from .projection import Projection


class TokenHead(nn.Module):
    """Base of the heads that say something of every token."""

    def chosen(self, states: Tensor, places: Places) -> Tensor:
        """The vectors that `forward` is given: all of them."""
        return states


class TiedHead(TokenHead):
    """``logits = scale * states @ embedding.T``: the embedding read backwards (Press & Wolf 2016, arXiv:1608.05859).

    Args:
        vocabulary: number of tokens.
        width: numbers per token. Neither makes a parameter: every head is made alike.
        scale: what the states are multiplied with (``1 / sqrt(width)`` in T5).
        cap: logits are bent into ``(-cap, cap)`` by ``cap * tanh(logit / cap)`` (Gemma 2); ``None`` leaves them.
        bias: whether every token has an offset (Marian).
    """

    def __init__(
        self, vocabulary: int, width: int, *, scale: float = 1.0, cap: float | None = None, bias: bool = False
    ) -> None:
        super().__init__()
        self.scale, self.cap = scale, cap
        self.offset = nn.Parameter(torch.zeros(vocabulary)) if bias else None

    def forward(self, states: Tensor, embedding: Tensor) -> Tensor:
        """States ``(..., width)`` and the embedding ``(vocabulary, width)`` to logits ``(..., vocabulary)``."""
        states = states if self.scale == 1.0 else states * self.scale
        return _capped(fused.product(states, embedding, self.offset), self.cap)


class OwnHead(TokenHead):
    """``logits = states @ weight.T`` with a matrix of its own.

    Args:
        vocabulary: number of tokens.
        width: numbers per token.
        cap: logits are bent into ``(-cap, cap)``, see `TiedHead`.
    """

    def __init__(self, vocabulary: int, width: int, *, cap: float | None = None) -> None:
        super().__init__()
        self.cap = cap
        self.linear = Projection(width, vocabulary, bias=False)

    def forward(self, states: Tensor, embedding: Tensor) -> Tensor:
        """States ``(..., width)`` to logits ``(..., vocabulary)``; the embedding is not used."""
        return _capped(self.linear(states), self.cap)


class MaskedHead(TokenHead):
    """BERT's guess of a hidden word: ``norm(activation(linear(x))) @ embedding.T + bias``.

    Args:
        vocabulary: number of tokens.
        width: numbers per token.
        activation: a name of `limelight.nn.feed_forward.ACTIVATIONS`.
        epsilon: of the layer norm.
        inner: numbers per token of the embedding, where it is narrower than the model (ALBERT); ``None`` for ``width``.
    """

    def __init__(
        self, vocabulary: int, width: int, *, activation: str, epsilon: float, inner: int | None = None
    ) -> None:
        super().__init__()
        narrow = width if inner is None else inner
        self.linear = nn.Linear(width, narrow)
        self.norm = nn.LayerNorm(narrow, epsilon)
        self.offset = nn.Parameter(torch.zeros(vocabulary))
        self.activation = ACTIVATIONS[activation]

    def forward(self, states: Tensor, embedding: Tensor) -> Tensor:
        """States ``(..., width)`` and the embedding ``(vocabulary, width)`` to logits ``(..., vocabulary)``."""
        return fused.product(self.norm(self.activation(self.linear(states))), embedding, self.offset)


def _capped(logits: Tensor, cap: float | None) -> Tensor:
    return logits if cap is None else cap * torch.tanh(logits / cap)
