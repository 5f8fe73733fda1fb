"""From the last vectors to a score for every token of the vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from .feed_forward import ACTIVATIONS
from .places import Places


class TokenHead(nn.Module):
    """Base of the heads that say something of every token."""

    def chosen(self, states: Tensor, places: Places) -> Tensor:
        """The vectors that `forward` is given: all of them."""
        return states


class TiedHead(TokenHead):
    """``logits = states @ embedding.T``: the embedding read backwards (Press & Wolf 2016, arXiv:1608.05859).

    Args:
        vocabulary: number of tokens.
        width: numbers per token. Neither makes a parameter: every head is made alike.
    """

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()

    def forward(self, states: Tensor, embedding: Tensor) -> Tensor:
        """States ``(..., width)`` and the embedding ``(vocabulary, width)`` to logits ``(..., vocabulary)``."""
        return functional.linear(states, embedding)


class OwnHead(TokenHead):
    """``logits = states @ weight.T`` with a matrix of its own.

    Args:
        vocabulary: number of tokens.
        width: numbers per token.
    """

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, vocabulary, bias=False)

    def forward(self, states: Tensor, embedding: Tensor) -> Tensor:
        """States ``(..., width)`` to logits ``(..., vocabulary)``; the embedding is not used."""
        return self.linear(states)  # type: ignore[no-any-return]


class MaskedHead(TokenHead):
    """BERT's guess of a hidden word: ``norm(activation(linear(x))) @ embedding.T + bias``.

    Args:
        vocabulary: number of tokens.
        width: numbers per token.
        activation: a name of `limelight.nn.feed_forward.ACTIVATIONS`.
        epsilon: of the layer norm.
    """

    def __init__(self, vocabulary: int, width: int, *, activation: str, epsilon: float) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, epsilon)
        self.offset = nn.Parameter(torch.zeros(vocabulary))
        self.activation = ACTIVATIONS[activation]

    def forward(self, states: Tensor, embedding: Tensor) -> Tensor:
        """States ``(..., width)`` and the embedding ``(vocabulary, width)`` to logits ``(..., vocabulary)``."""
        return functional.linear(self.norm(self.activation(self.linear(states))), embedding, self.offset)
