"""What models return: named tuples, which `torch.export.save` writes and `torch.export.load` makes again.

They lie apart from the models, so that a new process which loads an exported model needs ``import limelight`` alone.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from .forms.layouts import Layout
from .tensors.torch_internals import saved_by_export


@saved_by_export
class Encoded(NamedTuple):
    """A source that an encoder has read: its vectors ``(B, Lk, width)``, its layout, and on request every layer's."""

    states: Tensor
    layout: Layout | None
    hidden: tuple[Tensor, ...] | None = None

    def select(self, rows: Tensor) -> Encoded:
        """These ``rows`` ``(N,)``, in this order; a row may occur several times."""
        layout = None if self.layout is None else self.layout.select(rows)
        rows = rows.to(self.states.device)
        hidden = None if self.hidden is None else tuple(states[rows] for states in self.hidden)
        return Encoded(self.states[rows], layout, hidden)


@saved_by_export
class Output(NamedTuple):
    """What a model returns.

    ``states`` are the last hidden states ``(B, L, width)``. ``hidden``, on request, holds the embedding and the states
    after each layer, ``layers + 1`` tensors of which the last are ``states``. ``logits`` are ``(B, L, vocabulary)``, or
    ``(B, classes)`` of a model that classifies, or ``None`` for a model without them or if not requested.
    States at padding positions are undefined. ``encoded`` is the encoded source, in a model with an encoder.

    An exported model is loaded by `torch.export.load` in any process that has imported `limelight`.
    """

    states: Tensor
    hidden: tuple[Tensor, ...] | None
    logits: Tensor | None
    encoded: Encoded | None = None
