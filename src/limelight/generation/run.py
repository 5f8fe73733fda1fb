"""A model in the middle of texts: it is given the next tokens of every row, and says what follows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..layouts import Padded
from ..models.stack import Encoded, Stack
from ..nn import Cache
from .prompts import padded


class Run:
    """One run of a network over rows that grow, with all that it has read in a cache.

    Args:
        network: who reads.
        source: what its encoder made of the source of each row; ``None`` for a model without one.
    """

    def __init__(self, network: Stack, source: Encoded | None = None) -> None:
        self.network, self.source, self.cache = network, source, Cache()
        self.device = next(network.parameters()).device

    @torch.no_grad()
    def read(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Read the next tokens of each row, at least one; the scores ``(R, V)`` of what follows, at least float32."""
        ids, layout = padded(rows, self.device)
        across = {} if self.source is None else {"source": self.source}
        states = self.network(ids, layout=layout, logits=False, cache=self.cache, **across).states
        last = states[:, -1]
        if isinstance(layout, Padded):
            last = states[torch.arange(len(rows), device=self.device), torch.tensor([len(row) - 1 for row in rows])]
        scores = self.network.head_on(last)
        return scores.to(torch.promote_types(scores.dtype, torch.float32))

    def select(self, rows: Sequence[int]) -> None:
        """Go on with these rows, in this order, each as often as it is named."""
        chosen = torch.tensor(rows, dtype=torch.int64)
        self.cache.select(chosen)
        if self.source is not None:
            self.source = self.source.select(chosen)
