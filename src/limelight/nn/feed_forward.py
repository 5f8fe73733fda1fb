"""What happens to each token by itself, after it has looked at the others."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

Activation = Callable[[Tensor], Tensor]

# By the names that published configurations use.
ACTIVATIONS: dict[str, Activation] = {
    "gelu": functional.gelu,
    "gelu_new": partial(functional.gelu, approximate="tanh"),
    "gelu_pytorch_tanh": partial(functional.gelu, approximate="tanh"),
    "relu": functional.relu,
    "silu": functional.silu,
    "swish": functional.silu,
    "tanh": torch.tanh,
}


class FeedForward(nn.Module):
    """``down(activation(up(x)))`` (Vaswani et al. 2017, arXiv:1706.03762).

    Args:
        width: numbers per token.
        inner: numbers between the two matrices.
        activation: the function between them, a name of `ACTIVATIONS`.
        bias: whether the matrices carry an offset.
    """

    def __init__(self, width: int, inner: int, activation: str, bias: bool = True) -> None:
        super().__init__()
        self.up = nn.Linear(width, inner, bias)
        self.down = nn.Linear(inner, width, bias)
        self.activation = ACTIVATIONS[activation]

    def forward(self, states: Tensor) -> Tensor:
        """``(B, L, width)`` to the same."""
        return self.down(self.activation(self.up(states)))  # type: ignore[no-any-return]


class GatedFeedForward(nn.Module):
    """``down(activation(gate(x)) * up(x))``, SwiGLU when the activation is SiLU (Shazeer 2020, arXiv:2002.05202).

    Args:
        width: numbers per token.
        inner: numbers between the matrices.
        activation: the function of the gate, a name of `ACTIVATIONS`.
        bias: whether the matrices carry an offset.
    """

    def __init__(self, width: int, inner: int, activation: str, bias: bool = False) -> None:
        super().__init__()
        self.gate = nn.Linear(width, inner, bias)
        self.up = nn.Linear(width, inner, bias)
        self.down = nn.Linear(inner, width, bias)
        self.activation = ACTIVATIONS[activation]

    def forward(self, states: Tensor) -> Tensor:
        """``(B, L, width)`` to the same."""
        return self.down(self.activation(self.gate(states)) * self.up(states))  # type: ignore[no-any-return]
