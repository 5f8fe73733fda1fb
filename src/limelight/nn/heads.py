"""Output heads: from the last states to a logit for every token of the vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import fused
from .checks import activation_of, checked, of_width, unreadable
from .context import ForwardContext
from .feed_forward import ACTIVATIONS
from .projection import Projection


class TokenHead(nn.Module):
    """Base of the heads that compute logits for every token."""

    @property
    def tied(self) -> bool:
        """Whether the output matrix is the token embedding."""
        return True

    def chosen(self, states: Tensor, context: ForwardContext) -> Tensor:
        """The states that `forward` is called with: all of them."""
        return states


@checked
class TiedHead(TokenHead):
    """``logits = scale * states @ embedding.T + bias``, tied to the token embedding (arXiv:1608.05859).

    Args:
        vocabulary: number of tokens.
        width: features per token (``d_model``).
        scale: factor of the states (``1 / sqrt(width)`` in T5).
        cap: limits logits to ``(-cap, cap)`` by ``cap * tanh(logit / cap)`` (Gemma 2); ``None`` for no limit.
        bias: whether there is a bias for every token (Marian).
    """

    def __init__(
        self, vocabulary: int, width: int, *, scale: float = 1.0, cap: float | None = None, bias: bool = False
    ) -> None:
        super().__init__()
        self.scale, self.cap = scale, cap
        self.bias = nn.Parameter(torch.zeros(vocabulary)) if bias else None

    def forward(self, states: Tensor, embedding: Tensor) -> Tensor:
        """States ``(..., width)`` and the embedding ``(vocabulary, width)`` to logits ``(..., vocabulary)``.

        Raises:
            ArgumentError: states of another width, dtype or device than the embedding.
        """
        if not of_width(states, embedding.shape[1], embedding):
            raise unreadable(states, embedding.shape[1], embedding)
        states = states if self.scale == 1.0 else states * self.scale
        return _capped(fused.product(states, embedding, self.bias), self.cap)


@checked
class UntiedHead(TokenHead):
    """``logits = scale * states @ weight.T + bias``, with a weight that is not tied to the token embedding.

    Args:
        vocabulary: number of tokens.
        width: features per token.
        scale: factor of the states.
        cap: limits logits to ``(-cap, cap)`` by ``cap * tanh(logit / cap)``; ``None`` for no limit.
        bias: whether there is a bias for every token.
    """

    def __init__(
        self, vocabulary: int, width: int, *, scale: float = 1.0, cap: float | None = None, bias: bool = False
    ) -> None:
        super().__init__()
        self.scale, self.cap = scale, cap
        self.linear = Projection(width, vocabulary, bias=bias)

    @property
    def tied(self) -> bool:
        return False

    def forward(self, states: Tensor, embedding: Tensor) -> Tensor:
        """States ``(..., width)`` to logits ``(..., vocabulary)``; the embedding is not used."""
        states = states if self.scale == 1.0 else states * self.scale
        return _capped(self.linear(states), self.cap)


@checked
class MaskedHead(TokenHead):
    """``logits = norm(activation(linear(x))) @ embedding.T + bias``: masked tokens of BERT (arXiv:1810.04805).

    Args:
        vocabulary: number of tokens.
        width: features per token (``d_model``).
        activation: a name of `limelight.nn.feed_forward.ACTIVATIONS`.
        epsilon: of the layer norm, added to the variance.
        inner: features per token of the embedding where they are fewer (ALBERT); ``None`` for ``width``.
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
        return self.output is None

    def forward(self, states: Tensor, embedding: Tensor) -> Tensor:
        """States ``(..., width)`` and the embedding ``(vocabulary, inner)`` to logits ``(..., vocabulary)``.

        Raises:
            ArgumentError: states of another width, dtype or device.
        """
        if not of_width(states, self.linear.in_features, self.linear.weight):
            raise unreadable(states, self.linear.in_features, self.linear.weight)
        table = embedding if self.output is None else self.output.weight
        return fused.product(self.norm(self.activation(self.linear(states))), table, self.bias)


def _capped(logits: Tensor, cap: float | None) -> Tensor:
    return logits if cap is None else cap * torch.tanh(logits / cap)
