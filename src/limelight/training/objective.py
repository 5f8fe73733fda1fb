"""What is learned: the loss of a network on a batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..models import EncoderDecoder, Stack
from ..nn import OwnHead, SummedEmbedding, TiedHead, TokenEmbedding
from ..shapes import wrong
from .data import Batch
from .loss import vocabulary_loss


class Objective(nn.Module):
    """A network and its loss as one module, so that whatever wraps modules (several processes, autocast) wraps both.

    Args:
        network: decoders, or encoders with decoders, whose head is a product with a table.
        smoothing: of the labels, while training; an evaluation has none.
        products: the dtype of products (autocast); ``None`` for that of the weights.
    """

    def __init__(self, network: Stack, smoothing: float = 0.0, products: torch.dtype | None = None) -> None:
        super().__init__()
        if not isinstance(network.head, (TiedHead, OwnHead)):
            got = f"its head is {type(network.head).__name__}"
            raise wrong("network", "must foretell tokens by a product with a table", got, "Take a causal model.")
        self.network, self.smoothing, self.products = network, smoothing, products

    def forward(self, batch: Batch) -> Tensor:
        """The sum of the losses of a batch, in nats. The logits are never held whole."""
        with torch.autocast(batch.tokens.device.type, self.products, enabled=self.products is not None):
            return self._loss(self._states(batch), batch.targets)

    def _states(self, batch: Batch) -> Tensor:
        if not isinstance(self.network, EncoderDecoder):
            return self.network(batch.tokens, layout=batch.layout, logits=False).states  # type: ignore[no-any-return]
        assert batch.source is not None
        source = {"source": batch.source, "source_layout": batch.source_layout}
        return self.network(batch.tokens, layout=batch.layout, logits=False, **source).states  # type: ignore[no-any-return]

    def _loss(self, states: Tensor, targets: Tensor) -> Tensor:
        smoothing = self.smoothing if self.training else 0.0
        head = self.network.head
        if isinstance(head, OwnHead):
            return vocabulary_loss(states, head.linear.weight, targets, cap=head.cap, smoothing=smoothing)
        embedding = self.network.embedding
        assert isinstance(head, TiedHead)
        assert isinstance(embedding, (TokenEmbedding, SummedEmbedding))
        return vocabulary_loss(
            states,
            embedding.tokens.weight,
            targets,
            offset=head.offset,
            scale=head.scale,
            cap=head.cap,
            smoothing=smoothing,
        )
