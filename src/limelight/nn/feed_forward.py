"""What happens to each token by itself, after it has looked at the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .. import fused
from ..fused import Capture
from .checks import activation_of, checked
from .dropout import dropout as dropping
from .few_tokens import does_nothing
from .projection import Projection, in_pieces, notable, together, widened

Activation = Callable[[Tensor], Tensor]


def relu_squared(x: Tensor) -> Tensor:
    """``max(x, 0) ** 2`` (So et al. 2021, arXiv:2109.08668)."""
    return functional.relu(x).square()


def quick_gelu(x: Tensor) -> Tensor:
    """``x * sigmoid(1.702 x)`` (Hendrycks & Gimpel 2016, arXiv:1606.08415), as CLIP has it."""
    return x * torch.sigmoid(1.702 * x)


# By the names that published configurations use.
ACTIVATIONS: dict[str, Activation] = {
    "gelu": functional.gelu,
    "gelu_fast": fused.gelu_tanh,
    "gelu_new": fused.gelu_tanh,
    "gelu_pytorch_tanh": fused.gelu_tanh,
    "quick_gelu": quick_gelu,
    "relu": functional.relu,
    "relu2": relu_squared,
    "sigmoid": torch.sigmoid,
    "silu": functional.silu,
    "swish": functional.silu,
    "tanh": torch.tanh,
}


@checked
class FeedForward(nn.Module):
    """``down(activation(up(x)))`` (Vaswani et al. 2017, arXiv:1706.03762).

    Args:
        width: numbers per token.
        inner: numbers between the two matrices.
        activation: the function between them, a name of `ACTIVATIONS`.
        bias: whether the matrices carry an offset.
        dropout: probability with which a number between the matrices is dropped in training.
    """

    def __init__(self, width: int, inner: int, activation: str, bias: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        self.up = Projection(width, inner, bias)
        self.down = Projection(inner, width, bias)
        self.inner, self.activation, self.dropout = inner, activation_of(activation, ACTIVATIONS), dropping(dropout)

    def forward(self, states: Tensor) -> Tensor:
        """``(B, L, width)`` to the same."""
        return in_pieces(self._step, states, self.inner, (self.up, self.down))

    def _step(self, states: Tensor) -> Tensor:
        return widened(self.down, self.dropout(self.activation(self.up(states))))


@checked
class GatedFeedForward(nn.Module):
    """``down(activation(gate(x)) * up(x))`` (Shazeer 2020, arXiv:2002.05202).

    GLU when the activation is the sigmoid (Dauphin et al. 2016, arXiv:1612.08083), GeGLU when it is GELU, SwiGLU when
    it is SiLU.

    Args:
        width: numbers per token.
        inner: numbers between the matrices.
        activation: the function of the gate, a name of `ACTIVATIONS`.
        bias: whether the matrices carry an offset.
        dropout: probability with which a number between the matrices is dropped in training.
    """

    def __init__(self, width: int, inner: int, activation: str, bias: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.gate = Projection(width, inner, bias)
        self.up = Projection(width, inner, bias)
        self.down = Projection(inner, width, bias)
        self.inner, self.activation, self.dropout = inner, activation_of(activation, ACTIVATIONS), dropping(dropout)

    def forward(self, states: Tensor) -> Tensor:
        """``(B, L, width)`` to the same."""
        return in_pieces(self._step, states, self.inner, (self.gate, self.up, self.down))

    def _step(self, states: Tensor) -> Tensor:
        gate, up = together(states, self.gate, self.up)
        return widened(self.down, self.dropout(fused.gated(self.activation, gate, up)))

    def note(self, steps: Capture[Any], states: Tensor) -> Tensor | None:
        """See `limelight.nn.few_tokens`."""
        if self.activation not in fused.SIGMOID_FORMS or not does_nothing(self.dropout):
            return None
        pairs = notable(states, self.gate, self.up, self.down)
        if pairs is None:
            return None
        inner = steps.gated(self.activation, *steps.products(states, pairs[:2]))
        return steps.products(inner, pairs[2:])[0]
