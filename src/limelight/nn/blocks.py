"""A layer of a Transformer: look at the others, then think alone; each step added to what was there."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..forms.layouts import Layout
from ..fused import Capture
from ..tensors.shapes import wrong
from .checks import checked
from .dropout import dropout as dropping
from .few_tokens import does_nothing, in_turn
from .places import Places

FLOAT16_END = torch.finfo(torch.float16).max - 1000  # 64,504: room for what is added next


def clamped(states: Tensor) -> Tensor:
    """float16 states ``(..., width)`` within plus and minus 64,504, as Whisper's encoder has it; others as they are."""
    return states.clamp(-FLOAT16_END, FLOAT16_END) if states.dtype is torch.float16 else states


def clamped_if_infinite(states: Tensor) -> Tensor:
    """`clamped` for every vector of float16 that has an infinite feature, as T5 and BART have it; others as they are.

    Published code clamps all vectors of a batch once any of them is infinite, which differs for features between
    64,504 and 65,504 of others; here a text does not depend on its neighbours.
    """
    if states.dtype is not torch.float16:
        return states
    return torch.where(states.isinf().any(-1, keepdim=True), clamped(states), states)


@checked
class PostNorm(nn.Module):
    """``norm(x + inner(x))``, the order of the first Transformer and of BERT.

    Args:
        inner: the step.
        norm: the norm.
        dropout: probability with which a number of the step's result is dropped in training.
        clamp: what brings float16 results back into range, `clamped` or `clamped_if_infinite`; ``None`` leaves them.
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

    def forward(self, states: Tensor, *places: Any) -> Tensor:
        """``(B, L, width)`` to the same."""
        states = self.norm(states + self.dropout(self.inner(states, *places)))
        return states if self.clamp is None else self.clamp(states)


@checked
class PreNorm(nn.Module):
    """``x + inner(norm(x))``, the order of GPT-2 and Llama (Xiong et al. 2020, arXiv:2002.04745).

    Args:
        inner: the step.
        norm: the norm.
        dropout: probability with which a number of the step's result is dropped in training.
        clamp: what brings float16 results back into range, `clamped` or `clamped_if_infinite`; ``None`` leaves them.
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

    def forward(self, states: Tensor, *places: Any) -> Tensor:
        """``(B, L, width)`` to the same."""
        states = states + self.dropout(self.inner(self.norm(states), *places))
        return states if self.clamp is None else self.clamp(states)

    def note(self, steps: Capture[Places], states: Tensor) -> Tensor | None:
        """See `limelight.nn.few_tokens`."""
        if self.clamp is not None:
            return None
        found = in_turn(steps, (self.norm, self.inner), states) if does_nothing(self.dropout) else None
        return None if found is None else steps.add(states, found)


@checked
class Sandwich(nn.Module):
    """``x + after(inner(norm(x)))``, a norm on both sides (Ding et al. 2021, arXiv:2105.13290; Gemma 2).

    Args:
        inner: the step.
        norm: the norm before it; that ``after`` it begins as a copy.
        dropout: probability with which a number of the step's result is dropped in training.
    """

    def __init__(self, inner: nn.Module, norm: nn.Module, dropout: float = 0.0) -> None:
        super().__init__()
        self.inner, self.norm, self.after, self.dropout = inner, norm, deepcopy(norm), dropping(dropout)

    def forward(self, states: Tensor, *places: Any) -> Tensor:
        """``(B, L, width)`` to the same."""
        return states + self.dropout(self.after(self.inner(self.norm(states), *places)))  # type: ignore[no-any-return]

    def note(self, steps: Capture[Places], states: Tensor) -> Tensor | None:
        """See `limelight.nn.few_tokens`."""
        found = in_turn(steps, (self.norm, self.inner, self.after), states) if does_nothing(self.dropout) else None
        return None if found is None else steps.add(states, found)


class Residual(Protocol):
    """How a step is added: `PostNorm`, `PreNorm` or `Sandwich`."""

    def __call__(self, inner: nn.Module, norm: nn.Module) -> nn.Module:
        """Wrap a step."""


@checked
class Block(nn.Module):
    """One layer: attention, then feed-forward, each wrapped as a residual step.

    Args:
        attention: a residual step around attention; takes the states and the `Places`.
        feed_forward: a residual step around what each token does alone.
    """

    def __init__(self, attention: nn.Module, feed_forward: nn.Module) -> None:
        super().__init__()
        self.attention, self.feed_forward = attention, feed_forward

    def forward(self, states: Tensor, places: Places | Layout | None = None) -> Tensor:
        """``(B, L, width)`` to the same; ``places`` as `limelight.nn.MultiHead` has it."""
        places = Places.given(places, states)
        return self.feed_forward(self.attention(states, places))  # type: ignore[no-any-return]

    def note(self, steps: Capture[Places], states: Tensor) -> Tensor | None:
        """See `limelight.nn.few_tokens`."""
        return in_turn(steps, (self.attention, self.feed_forward), states)


@checked
class DecoderBlock(nn.Module):
    """One layer of a decoder that has an encoder: look back, look across, think alone (arXiv:1706.03762).

    Args:
        attention: a residual step around the attention of the text to itself; takes the states and the `Places`.
        cross: a residual step around the attention to the encoder's vectors; takes the states and `Places.across`.
        feed_forward: a residual step around what each token does alone.
    """

    def __init__(self, attention: nn.Module, cross: nn.Module, feed_forward: nn.Module) -> None:
        super().__init__()
        self.attention, self.cross, self.feed_forward = attention, cross, feed_forward

    def forward(self, states: Tensor, places: Places) -> Tensor:
        """``(B, L, width)`` to the same; ``places.across`` holds the encoder's vectors."""
        if places.across is None:
            raise wrong(
                "places",
                "must say what a decoder with an encoder looks across at",
                "`across` is None",
                "Give Places(across=Places(layout, positions, source=encoded)), or make a Block.",
            )
        states = self.cross(self.attention(states, places), places.across)
        return self.feed_forward(states)  # type: ignore[no-any-return]
