"""Norm-weighted attention: how much a head writes for a key, not only how much it looks at it (Kobayashi 2020).

A head adds ``sum_j p_ij f(x_j)`` to the state of token ``i``, with ``f(x_j) = v_j @ W``: the value, passed through the
head's part of the output projection. So the contribution of key ``j`` is ``p_ij |f(x_j)|``; a separator that gets most
of the weight often has a value of next to no length. Only the norms are new: one number for each head and key.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ...tensors.shapes import ArgumentError
from ..subjects import Subject
from .record import Floats


class ValueNorms:
    """Gathers ``|f(x_j)|`` of every head and key while a subject runs.

    Args:
        subject: whose output projections are used.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.layers: dict[str, Floats] = {}
        self._products: dict[str, Tensor | None] = {}

    def __call__(self, name: str, value: Tensor) -> Floats | None:
        """Keep and return the norms of one layer, ``(H, L)``, of its values ``(1, Hkv, L, Dv)``.

        ``None`` for a layer of which no output projection is known.
        """
        if name not in self.subject.attention_names:
            return None
        if name not in self._products:
            self._products[name] = self._product(name)
        product = self._products[name]
        if product is None:
            return None
        values = value[0].detach().float()
        product = product.to(values.device)
        values = values.repeat_interleave(len(product) // len(values), dim=0)  # (H, L, Dv)
        square = torch.einsum("hld,hde,hle->hl", values, product, values)
        self.layers[name] = square.clamp(min=0.0).sqrt().cpu().numpy()
        return self.layers[name]

    def _product(self, name: str) -> Tensor | None:
        """``W W^T`` of every head, ``(H, Dv, Dv)``."""
        try:
            weight = self.subject.output_weight(name).float()  # (H, Dv, width)
        except ArgumentError:
            return None
        return weight @ weight.mT

    def norms(self) -> Floats | None:
        """All layers, ``(N, H, L)``; ``None`` if one of them has no output projection that is known."""
        found = [self.layers.get(name) for name in self.subject.attention_names]
        known = [norms for norms in found if norms is not None]
        if not known or len(known) < len(found) or len({norms.shape for norms in known}) > 1:
            return None
        return np.stack(known)
