"""A layer of a Transformer: look at the others, then think alone; each step added to what was there."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn

from .places import Places


class PostNorm(nn.Module):
    """``norm(x + inner(x))``, the order of the first Transformer and of BERT."""

    def __init__(self, inner: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.inner, self.norm = inner, norm

    def forward(self, states: Tensor, *places: Any) -> Tensor:
        """``(B, L, width)`` to the same."""
        return self.norm(states + self.inner(states, *places))  # type: ignore[no-any-return]


class PreNorm(nn.Module):
    """``x + inner(norm(x))``, the order of GPT-2 and Llama (Xiong et al. 2020, arXiv:2002.04745)."""

    def __init__(self, inner: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.inner, self.norm = inner, norm

    def forward(self, states: Tensor, *places: Any) -> Tensor:
        """``(B, L, width)`` to the same."""
        return states + self.inner(self.norm(states), *places)  # type: ignore[no-any-return]


class Residual(Protocol):
    """How a step is added: `PostNorm` or `PreNorm`."""

    def __call__(self, inner: nn.Module, norm: nn.Module) -> nn.Module:
        """Wrap a step."""


class Block(nn.Module):
    """One layer: attention, then feed-forward, each wrapped as a residual step.

    Args:
        attention: a residual step around attention; takes the states and the `Places`.
        feed_forward: a residual step around what each token does alone.
    """

    def __init__(self, attention: nn.Module, feed_forward: nn.Module) -> None:
        super().__init__()
        self.attention, self.feed_forward = attention, feed_forward

    def forward(self, states: Tensor, places: Places) -> Tensor:
        """``(B, L, width)`` to the same."""
        return self.feed_forward(self.attention(states, places))  # type: ignore[no-any-return]
