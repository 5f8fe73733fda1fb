"""The head of a text classifier: from the states of the first token to a logit for every class."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..tensors.shapes import wrong
from .checks import activation_of, checked, of_width, refuse_spread, unreadable
from .context import ForwardContext
from .feed_forward import ACTIVATIONS


@checked
class ClassHead(nn.Module):
    """Logits of classes from a text's first token: ``output(activation(inner(x_first)))`` (BERT, arXiv:1810.04805).

    Args:
        vocabulary: number of tokens; not used, every head is constructed with it.
        width: features per token (``d_model``).
        labels: the names of the classes.
        activation: a name of `limelight.nn.feed_forward.ACTIVATIONS`; ``None`` for ``output(x_first)`` alone.
    """

    reads_other_tokens = "one process alone holds the first token of a text"

    def __init__(self, vocabulary: int, width: int, *, labels: Sequence[str], activation: str | None) -> None:
        super().__init__()
        self.width, self.labels = width, tuple(labels)
        self.inner = None if activation is None else nn.Linear(width, width)
        self.activation = None if activation is None else activation_of(activation, ACTIVATIONS)
        self.output = nn.Linear(width, len(self.labels))

    def chosen(self, states: Tensor, context: ForwardContext) -> Tensor:
        """The states ``(B, width)`` of the first token of every text, of states ``(B, L, width)``.

        Raises:
            ArgumentError: a layout with several texts in a row, or over several processes.
        """
        refuse_spread(self, context.layout)
        if context.layout is None:
            return states[:, 0]
        B, L, _ = states.shape
        if context.layout.documents != 1:
            raise wrong(
                "layout",
                "must hold one text a row for a model that classifies texts",
                f"it holds {context.layout.documents}",
                "Use Padded, or call the network without logits and pass the states of first tokens to `head_on`.",
            )
        exists = context.layout.coordinates(B, L, L, states.device).query_exists.expand(B, L)
        return states[torch.arange(B, device=states.device), exists.int().argmax(-1)]

    def forward(self, states: Tensor, embedding: Tensor) -> Tensor:
        """States of first tokens ``(..., width)`` to logits ``(..., classes)``; the embedding is not used.

        Raises:
            ArgumentError: states of another width, dtype or device.
        """
        if not of_width(states, self.width, self.output.weight):
            raise unreadable(states, self.width, self.output.weight)
        if self.inner is not None and self.activation is not None:
            states = self.activation(self.inner(states))
        return self.output(states)  # type: ignore[no-any-return]
