"""From the last vectors to a score for every class of texts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..tensors.shapes import wrong
from .checks import activation_of, checked
from .context import ForwardContext
from .feed_forward import ACTIVATIONS


@checked
class ClassHead(nn.Module):
    """What a text is about, told from its first token: ``output(activation(inner(x_first)))`` (Devlin et al. 2018).

    Args:
        vocabulary: number of tokens; makes no parameter, every head is made alike.
        width: numbers per token.
        labels: the names of the classes.
        activation: a name of `limelight.nn.feed_forward.ACTIVATIONS`; ``None`` for ``output(x_first)`` alone.
    """

    def __init__(self, vocabulary: int, width: int, *, labels: Sequence[str], activation: str | None) -> None:
        super().__init__()
        self.labels = tuple(labels)
        self.inner = None if activation is None else nn.Linear(width, width)
        self.activation = None if activation is None else activation_of(activation, ACTIVATIONS)
        self.output = nn.Linear(width, len(self.labels))

    def chosen(self, states: Tensor, context: ForwardContext) -> Tensor:
        """The vector ``(B, width)`` of the first token of every text."""
        if context.layout is None:
            return states[:, 0]
        B, L, _ = states.shape
        if context.layout.documents != 1:
            raise wrong(
                "layout",
                "must hold one text a row for a model that classifies texts",
                f"it holds {context.layout.documents}",
                "Use Padded, or call the network without logits and hand the vectors of first tokens to `head_on`.",
            )
        exists = context.layout.coordinates(B, L, L, states.device).query_exists.expand(B, L)
        return states[torch.arange(B, device=states.device), exists.int().argmax(-1)]

    def forward(self, states: Tensor, embedding: Tensor) -> Tensor:
        """First vectors ``(..., width)`` to logits ``(..., classes)``; the embedding is not used."""
        if self.inner is not None and self.activation is not None:
            states = self.activation(self.inner(states))
        return self.output(states)  # type: ignore[no-any-return]
