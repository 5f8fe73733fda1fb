"""From the last vectors to a score for every token of the vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import fused
from .checks import activation_of, checked
from .context import ForwardContext
from .feed_forward import ACTIVATIONS
from .projection import Projection


class TokenHead(nn.Module):
    """Base of the heads that say something of every token."""

    @property
    def tied(self) -> bool:
        """Whether its matrix is the token embedding."""
        return True

    def chosen(self, states: Tensor, context: ForwardContext) -> Tensor:
        """The vectors that `forward` is given: all of them."""
        return states


@checked
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
        self.bias = nn.Parameter(torch.zeros(vocabulary)) if bias else None

    def forward(self, states: Tensor, embedding: Tensor) -> Tensor:
        """States ``(..., width)`` and the embedding ``(vocabulary, width)`` to logits ``(..., vocabulary)``."""
        states = states if self.scale == 1.0 else states * self.scale
        return _capped(fused.product(states, embedding, self.bias), self.cap)


@checked
class UntiedHead(TokenHead):
    """An untied head, ``logits = scale * states @ weight.T``: a matrix of its own.

    Args:
        vocabulary: number of tokens.
        width: features per token.
        scale, cap, bias: as in `TiedHead`.
    """

    def __init__(
        self, vocabulary: int, width: int, *, scale: float = 1.0, cap: float | None = None, bias: bool = False
    ) -> None:
        super().__init__()
        self.scale, self.cap = scale, cap
        self.linear = Projection(width, vocabulary, bias=bias)

    @property
    def tied(self) -> bool:
        """Never."""
        return False

    def forward(self, states: Tensor, embedding: Tensor) -> Tensor:
        """States ``(..., width)`` to logits ``(..., vocabulary)``; the embedding is not used."""
        states = states if self.scale == 1.0 else states * self.scale
        return _capped(self.linear(states), self.cap)


@checked
class MaskedHead(TokenHead):
    """BERT's guess of a hidden word: ``norm(activation(linear(x))) @ embedding.T + bias``.

    Args:
        vocabulary: number of tokens.
        width: numbers per token.
        activation: a name of `limelight.nn.feed_forward.ACTIVATIONS`.
        epsilon: of the layer norm.
        inner: numbers per token of the embedding, where it is narrower than the model (ALBERT); ``None`` for ``width``.
        untied: whether the output matrix is a parameter of its own instead of the token embedding.
    """

    def __init__(
        self,
        vocabulary: int,
        width: int,
        *,
        activation: str,
        epsilon: float,
        inner: int | None = None,
        untied: bool = False,
    ) -> None:
        super().__init__()
        narrow = width if inner is None else inner
        self.linear = nn.Linear(width, narrow)
        self.norm = nn.LayerNorm(narrow, epsilon)
        self.output = Projection(narrow, vocabulary, bias=False) if untied else None
        self.bias = nn.Parameter(torch.zeros(vocabulary))
        self.activation = activation_of(activation, ACTIVATIONS)

    @property
    def tied(self) -> bool:
        """Unless it has a matrix of its own."""
        return self.output is None

    def forward(self, states: Tensor, embedding: Tensor) -> Tensor:
        """States ``(..., width)`` and the embedding ``(vocabulary, width)`` to logits ``(..., vocabulary)``."""
        table = embedding if self.output is None else self.output.weight
        return fused.product(self.norm(self.activation(self.linear(states))), table, self.bias)


def _capped(logits: Tensor, cap: float | None) -> Tensor:
    return logits if cap is None else cap * torch.tanh(logits / cap)
