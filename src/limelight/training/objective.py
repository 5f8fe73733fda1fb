"""What is learned: the loss of a network on a batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..models import EncoderDecoder, Stack
from ..nn import MixtureOfExperts, SummedEmbedding, TiedHead, TokenEmbedding, UntiedHead, balance_loss, routings, z_loss
from ..nn.routing import Routing, report
from ..tensors.shapes import wrong
from .data import Batch
from .loss import IGNORED, vocabulary_loss


class Objective(nn.Module):
    """A network and its loss as one module, so that whatever wraps modules (several processes, autocast) wraps both.

    Args:
        network: decoders, or encoders with decoders, whose head is a product with a table.
        smoothing: of the labels, while training; an evaluation has none.
        products: the dtype of products (autocast); ``None`` for that of the weights.
    """

    def __init__(self, network: Stack, smoothing: float = 0.0, products: torch.dtype | None = None) -> None:
        super().__init__()
        if not isinstance(network.head, (TiedHead, UntiedHead)):
            got = f"its head is {type(network.head).__name__}"
            raise wrong("network", "must foretell tokens by a product with a table", got, "Take a causal model.")
        self.network, self.smoothing, self.products = network, smoothing, products
        # A tuple, for modules in a list of modules would be ours a second time.
        self.mixtures = tuple(
            part for part in network.modules() if isinstance(part, MixtureOfExperts) and (part.balance or part.z)
        )

    def forward(self, batch: Batch) -> Tensor:
        """The sum of the losses of a batch, in nats. The logits are never held whole.

        While training, the losses that keep routers of experts even are added, times the tokens that are foretold, so
        that they weigh in a mean over tokens as the coefficients say.
        """
        with torch.autocast(batch.tokens.device.type, self.products, enabled=self.products is not None):
            if not (self.training and self.mixtures):
                return self._loss(self._states(batch), batch.targets)
            with routings() as decided:
                states = self._states(batch)
            for name, routing in decided:
                report(name, routing)  # to whoever else collects them
            loss = self._loss(states, batch.targets)
            foretold = (batch.targets != IGNORED).sum()
            return loss + foretold * self._of_routers([routing for _, routing in decided])

    def _of_routers(self, decided: list[Routing]) -> Tensor:
        """``balance * balance_loss + z * z_loss``, over the tokens of all layers together, as in Mixtral."""
        first = self.mixtures[0]
        whole = Routing(*[torch.stack(parts) for parts in zip(*decided, strict=True)])
        return first.balance * balance_loss(whole) + first.z * z_loss(whole)

    def _states(self, batch: Batch) -> Tensor:
        if not isinstance(self.network, EncoderDecoder):
            return self.network(batch.tokens, layout=batch.layout, logits=False).states  # type: ignore[no-any-return]
        assert batch.source is not None
        source = {"source": batch.source, "source_layout": batch.source_layout}
        return self.network(batch.tokens, layout=batch.layout, logits=False, **source).states  # type: ignore[no-any-return]

    def _loss(self, states: Tensor, targets: Tensor) -> Tensor:
        smoothing = self.smoothing if self.training else 0.0
        head = self.network.head
        table: Tensor
        offset: Tensor | None
        if isinstance(head, UntiedHead):
            table, offset = head.linear.weight, head.linear.bias
        else:
            embedding = self.network.embedding
            assert isinstance(head, TiedHead)
            assert isinstance(embedding, (TokenEmbedding, SummedEmbedding))
            table, offset = embedding.tokens.weight, head.bias
        return vocabulary_loss(
            states,
            table,
            targets,
            offset=offset,
            scale=head.scale,
            cap=head.cap,
            smoothing=smoothing,
        )
