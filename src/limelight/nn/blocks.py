"""A layer of a Transformer: attention and a feed-forward network, each a step on the residual stream."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..forms.layouts import Layout
from ..tensors.shapes import wrong
from .checks import checked
from .context import ForwardContext
from .dropout import dropout as dropping

FLOAT16_END = torch.finfo(torch.float16).max - 1000  # 64,504: room for what is added next


def clamped(states: Tensor) -> Tensor:
    """float16 states ``(..., width)`` within plus and minus 64,504, as in Whisper's encoder; others unchanged."""
    return states.clamp(-FLOAT16_END, FLOAT16_END) if states.dtype is torch.float16 else states


def clamped_if_infinite(states: Tensor) -> Tensor:
    """`clamped` for every token of float16 that has an infinite feature, as in T5 and BART; others unchanged.

    Published code clamps all tokens of a batch once any of them has an infinite feature, which changes features
    between 64,504 and 65,504 of others; here a text does not depend on the rest of its batch.
    """
    if states.dtype is not torch.float16:
        return states
    return torch.where(states.isinf().any(-1, keepdim=True), clamped(states), states)


class ResidualStep(nn.Module):
    """Base of `PostNorm` and `PreNorm`: a module that is added to its input, with a norm.

    Args:
        inner: the module: attention, or a feed-forward network.
        norm: the norm.
        dropout: probability with which a feature of the result of ``inner`` is dropped in training.
        clamp: limits float16 results: `clamped` or `clamped_if_infinite`; ``None`` leaves them.
    """

    def __init__(
        self,
        inner: nn.Module,
        norm: nn.Module,
        dropout: float = 0.0,
        clamp: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.inner, self.norm, self.dropout, self.clamp = inner, norm, dropping(dropout), clamp

    def _limited(self, states: Tensor) -> Tensor:
        return states if self.clamp is None else self.clamp(states)


@checked
class PostNorm(ResidualStep):
    """``norm(x + inner(x))``, the order of the first Transformer and of BERT (Vaswani et al. 2017, arXiv:1706.03762).

    Args:
        inner: the module: attention, or a feed-forward network.
        norm: the norm.
        dropout: probability with which a feature of the result of ``inner`` is dropped in training.
        clamp: limits float16 results: `clamped` or `clamped_if_infinite`; ``None`` leaves them.
    """

    def forward(self, states: Tensor, *context: Any) -> Tensor:
        """``(B, L, width)`` to ``(B, L, width)``; ``context`` is passed to ``inner``."""
        return self._limited(self.norm(states + self.dropout(self.inner(states, *context))))


@checked
class PreNorm(ResidualStep):
    """``x + inner(norm(x))``, the order of GPT-2 and Llama (Xiong et al. 2020, arXiv:2002.04745).

    Args:
        inner: the module: attention, or a feed-forward network.
        norm: the norm.
        dropout: probability with which a feature of the result of ``inner`` is dropped in training.
        clamp: limits float16 results: `clamped` or `clamped_if_infinite`; ``None`` leaves them.
    """

    capturable = ("clamp",)

    def forward(self, states: Tensor, *context: Any) -> Tensor:
        """``(B, L, width)`` to ``(B, L, width)``; ``context`` is passed to ``inner``."""
        return self._limited(states + self.dropout(self.inner(self.norm(states), *context)))


@checked
class Sandwich(nn.Module):
    """``x + after(inner(norm(x)))``, a norm on both sides (Ding et al. 2021, arXiv:2105.13290; Gemma 2).

    Args:
        inner: the module: attention, or a feed-forward network.
        norm: the norm before it; the one after it, ``after``, is initialised as a copy.
        dropout: probability with which a feature of the result of ``after`` is dropped in training.
    """

    capturable = ()

    def __init__(self, inner: nn.Module, norm: nn.Module, dropout: float = 0.0) -> None:
        super().__init__()
        self.inner, self.norm, self.after, self.dropout = inner, norm, deepcopy(norm), dropping(dropout)

    def forward(self, states: Tensor, *context: Any) -> Tensor:
        """``(B, L, width)`` to ``(B, L, width)``; ``context`` is passed to ``inner``."""
        return states + self.dropout(self.after(self.inner(self.norm(states), *context)))  # type: ignore[no-any-return]


class Residual(Protocol):
    """Makes the residual step around a module: `PostNorm`, `PreNorm` or `Sandwich`."""

    def __call__(self, inner: nn.Module, norm: nn.Module) -> nn.Module:
        """The step around ``inner``, with ``norm``."""


@checked
class Block(nn.Module):
    """One layer: attention, then a feed-forward network, each wrapped as a residual step.

    >>> import torch
    >>> from limelight.nn import FeedForward, MultiHead, PreNorm
    >>> layer = Block(
    ...     PreNorm(MultiHead(16, query_heads=4, key_value_heads=4, head_width=4), torch.nn.LayerNorm(16)),
    ...     PreNorm(FeedForward(16, inner=64, activation="gelu"), torch.nn.LayerNorm(16)),
    ... )
    >>> layer(torch.randn(1, 30, 16)).shape
    torch.Size([1, 30, 16])

    Args:
        attention: a residual step around attention; called with the states and the `ForwardContext`.
        feed_forward: a residual step around a feed-forward network; called with the states.
    """

    capturable = ()

    def __init__(self, attention: nn.Module, feed_forward: nn.Module) -> None:
        super().__init__()
        self.attention, self.feed_forward = attention, feed_forward

    def forward(self, states: Tensor, context: ForwardContext | Layout | None = None) -> Tensor:
        """``(B, L, width)`` to ``(B, L, width)``.

        Args:
            states: ``(B, L, width)``.
            context: of the pass, or a layout; ``None`` for texts without padding at positions 0 to L - 1.
        """
        context = ForwardContext.given(context, states)
        return self.feed_forward(self.attention(states, context))  # type: ignore[no-any-return]


@checked
class DecoderBlock(nn.Module):
    """One layer of a decoder that has an encoder: self-attention, cross-attention, feed-forward (arXiv:1706.03762).

    Args:
        attention: a residual step around self-attention; called with the states and the `ForwardContext`.
        cross: a residual step around cross-attention; called with the states and `ForwardContext.cross`.
        feed_forward: a residual step around a feed-forward network; called with the states.
    """

    def __init__(self, attention: nn.Module, cross: nn.Module, feed_forward: nn.Module) -> None:
        super().__init__()
        self.attention, self.cross, self.feed_forward = attention, cross, feed_forward

    def forward(self, states: Tensor, context: ForwardContext) -> Tensor:
        """``(B, L, width)`` to ``(B, L, width)``.

        Args:
            states: ``(B, L, width)``.
            context: of the pass, whose ``cross`` holds the output of the encoder.

        Raises:
            ArgumentError: the context has no ``cross``.
        """
        if context.cross is None:
            raise wrong(
                "context",
                "must have the context of cross-attention, `cross`",
                "it is None",
                "Give ForwardContext(cross=ForwardContext(layout, positions, source=encoded)), or make a Block.",
            )
        states = self.cross(self.attention(states, context), context.cross)
        return self.feed_forward(states)  # type: ignore[no-any-return]
