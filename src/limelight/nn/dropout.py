"""Dropout, which costs nothing where its probability is 0, and random numbers for tokens on several processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..forms.layouts import Layout
from ..tensors.shapes import describe, wrong

_layout: ContextVar[Layout | None] = ContextVar("layout", default=None)


def dropout(probability: float) -> nn.Module:
    """`Dropout`, or `torch.nn.Identity` for a probability of 0.

    Args:
        probability: that a feature is dropped in training; the others are divided by ``1 - probability``.
    """
    return Dropout(probability) if probability else nn.Identity()


class Dropout(nn.Dropout):
    """`torch.nn.Dropout`, which inside of `drawn_for` drops the same features as one process with the whole text."""

    capturable = ("p",)

    def forward(self, states: Tensor) -> Tensor:
        """``(B, L, ...)`` to the same shape."""
        if not self.training or torch.compiler.is_compiling() or _layout.get() is None:
            return super().forward(states)
        return states * drawn(states, lambda whole: functional.dropout(whole.fill_(1), self.p, inplace=True))


@contextmanager
def drawn_for(layout: Layout | None) -> Iterator[None]:
    """Make layers inside draw the random numbers of a whole text of which this process holds some tokens.

    Compiled layers draw those of the own tokens alone.

    Every process draws those of all tokens and takes its own, so that the generators of all processes stay equal where
    their seeds are.

    Args:
        layout: of the text; nothing changes where it is that of one process.
    """
    if layout is None or not layout.spread or torch.compiler.is_compiling():
        yield
        return
    token = _layout.set(layout)
    try:
        yield
    finally:
        _layout.reset(token)


def drawn(like: Tensor, fill: Callable[[Tensor], Tensor]) -> Tensor:
    """Return random numbers, inside of `drawn_for` those of the own tokens among the numbers of the whole text.

    Args:
        like: ``(B, L, ...)``: the shape, dtype and device of the numbers.
        fill: fills an empty tensor with random numbers, and returns it.

    Raises:
        ArgumentError: inside of `drawn_for` ``like`` does not hold the tokens of texts.
    """
    layout = None if torch.compiler.is_compiling() else _layout.get()
    if layout is None:
        return fill(torch.empty_like(like))
    if like.dim() < 3:
        got = f"random numbers are drawn for {describe(like)}"
        raise wrong("layout", "must be that of whole texts for dropout inside of experts", got, "Set it to 0.")
    return layout.own_tokens(lambda length: fill(like.new_empty(like.shape[0], length, *like.shape[2:])), like.shape[1])
