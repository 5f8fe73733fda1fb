"""The matrix product of a layer, with a way of its own for a single token."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Projection(nn.Linear):
    """``states @ weight.T + bias``: `torch.nn.Linear`, and quicker for one token.

    While a text is written every matrix meets one vector, and the time is that of reading the matrix. PyTorch's product
    for that case reads bfloat16 at twice the speed of its general one (12 against 6 GB/s on a core measured).
    """

    def forward(self, states: Tensor) -> Tensor:
        """``(..., in_features)`` to ``(..., out_features)``."""
        return project(states, self.weight, self.bias)


def project(states: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``states @ weight.T + bias`` for states ``(..., n)``, a matrix ``(m, n)`` and a bias ``(m,)``."""
    alone = states.is_cpu and states.numel() == weight.shape[1] and states.dtype is weight.dtype
    if not alone or torch.is_autocast_enabled("cpu"):
        return functional.linear(states, weight, bias)
    vector = states.reshape(-1)
    product = torch.mv(weight, vector) if bias is None else torch.addmv(bias, weight, vector)
    return product.view(*states.shape[:-1], -1)
