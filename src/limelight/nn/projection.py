"""The matrix product of a layer, with a way of its own for few tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules import module

from .. import fused


class Projection(nn.Linear):
    """``states @ weight.T + bias``: `torch.nn.Linear`, and quicker for few tokens (`limelight.fused.product`).

    While a text is written every matrix meets one vector, and the time is that of reading the matrix.
    """

    def forward(self, states: Tensor) -> Tensor:
        """``(..., in_features)`` to ``(..., out_features)``."""
        return fused.product(states, self.weight, self.bias)


def together(states: Tensor, *layers: nn.Module) -> list[Tensor]:
    """What each of the ``layers`` makes of the same states; of few tokens in one call, where each is a `Projection`.

    A layer that somebody replaced, hooked or wrapped is called by itself.
    """
    if not torch.compiler.is_compiling() and all(_is_plain(layer) for layer in layers):
        found = fused.products(states, [(layer.weight, layer.bias) for layer in layers])  # type: ignore[misc]
        if found is not None:
            return found
    return [layer(states) for layer in layers]


def _is_plain(layer: nn.Module) -> bool:
    return (
        type(layer) is Projection
        and not (layer._forward_hooks or layer._forward_pre_hooks or "forward" in layer.__dict__)
        and not (module._global_forward_hooks or module._global_forward_pre_hooks)
    )
