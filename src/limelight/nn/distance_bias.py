"""Relative positions: a bias of the distance between query and key, added to the score."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn

from ..forms.scores import ALiBi, RelativeBias, T5Buckets
from ..tensors.distributed import local_part
from .checks import checked


@checked
class DistanceBias(nn.Module):
    """A learned bias for each head and bucket of the distance (T5, Raffel et al. 2020, arXiv:1910.10683).

    Called, it returns the score rule ``s + weight[buckets(j - p), head]`` for a query at position ``p`` and a key at
    ``j``. Give it to one layer among its ``scores``, or to all layers through `limelight.nn.ForwardContext.scores`.

    Args:
        query_heads: ``Hq``.
        buckets: which distances share a bias.
    """

    def __init__(self, query_heads: int, buckets: T5Buckets) -> None:
        super().__init__()
        self.buckets = buckets
        self.weight = nn.Parameter(torch.empty(buckets.count, query_heads))  # as published, a row for each bucket
        nn.init.normal_(self.weight)

    def forward(self, heads: Tensor | None = None) -> RelativeBias:
        """The score rule, whose table ``(Hq, buckets)`` is a view of the parameter, so gradients reach it."""
        return RelativeBias(local_part(self.weight).T, self.buckets)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}, {self.buckets}"


@checked
class LinearBias(nn.Module):
    """ALiBi with the published slopes (Press et al. 2022, arXiv:2108.12409), without parameters.

    Called, it returns the score rule ``s - slope * |p - j|`` for a query at position ``p`` and a key at ``j``.

    Args:
        query_heads: ``Hq``.
    """

    def __init__(self, query_heads: int) -> None:
        super().__init__()
        self.query_heads = query_heads

    def forward(self, heads: Tensor) -> ALiBi:
        """The score rule, with its slopes on the device of ``heads``."""
        return _slopes(self.query_heads, heads.device)

    def extra_repr(self) -> str:
        return str(self.query_heads)


@lru_cache(maxsize=64)
def _slopes(heads: int, device: torch.device) -> ALiBi:
    return ALiBi.standard(heads, device)
