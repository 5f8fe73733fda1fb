"""The training objective: the loss of a network on a batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..distributed import ContextParallel
from ..models import EncoderDecoder, Stack
from ..nn import MixtureOfExperts, SummedEmbedding, TiedHead, TokenEmbedding, UntiedHead, balance_loss, routings, z_loss
from ..nn.routing import Routing, report
from ..tensors.shapes import wrong
from .data import Batch
from .loss import IGNORED, vocabulary_loss


class Objective(nn.Module):
    """A network and its loss as one module, so that wrappers of modules (such as DDP) wrap both.

    Args:
        network: a decoder or an encoder-decoder whose head is a linear layer or tied to the token embedding.
        label_smoothing: label smoothing in training; an evaluation has none.
        autocast: the dtype of matrix products (autocast); ``None`` turns autocast off.

    Raises:
        ArgumentError: the network does not predict tokens.
    """

    def __init__(self, network: Stack, label_smoothing: float = 0.0, autocast: torch.dtype | None = None) -> None:
        super().__init__()
        if not isinstance(network.head, (TiedHead, UntiedHead)):
            got = f"its head is {type(network.head).__name__}"
            raise wrong(
                "network", "must predict tokens by a linear or tied head", got, "Use a decoder or an encoder-decoder."
            )
        self.network, self.label_smoothing, self.autocast = network, label_smoothing, autocast
        # A tuple: in a ModuleList they would be registered a second time.
        self.mixtures = tuple(
            part for part in network.modules() if isinstance(part, MixtureOfExperts) and (part.balance or part.z)
        )

    def forward(self, batch: Batch) -> Tensor:
        """Return the sum of the losses over the tokens of a batch, in nats, without ever holding all logits.

        In training mode the load-balancing losses of routers are added, times the number of predicted tokens, so that
        a mean over tokens weighs them by their coefficients. Where the tokens of the batch are divided over several
        processes, it is the part of this process: the sum over them is the loss of the batch.
        """
        with torch.autocast(batch.tokens.device.type, self.autocast, enabled=self.autocast is not None):
            if not (self.training and self.mixtures):
                return self._loss(self._states(batch), batch.targets)
            with routings() as decided:
                states = self._states(batch)
            for name, routing in decided:
                report(name, routing)  # to an enclosing `routings()` of the caller
            loss = self._loss(states, batch.targets)
            total = None if not isinstance(batch.layout, ContextParallel) else batch.layout.total
            predicted = (batch.targets != IGNORED).sum()
            predicted = predicted if total is None else total(predicted)
            return loss + predicted * self._router_loss([routing for _, routing in decided], total)

    def _router_loss(self, decided: list[Routing], total: Callable[[Tensor], Tensor] | None) -> Tensor:
        """``balance * balance_loss + z * z_loss``, over the tokens of all layers together, as in Mixtral."""
        first = self.mixtures[0]
        whole = Routing(*[torch.stack(parts) for parts in zip(*decided, strict=True)])
        return first.balance * balance_loss(whole, total=total) + first.z * z_loss(whole, total=total)

    def _states(self, batch: Batch) -> Tensor:
        if not isinstance(self.network, EncoderDecoder):
            return self.network(batch.tokens, layout=batch.layout, logits=False).states  # type: ignore[no-any-return]
        assert batch.source is not None
        source = {"source": batch.source, "source_layout": batch.source_layout}
        return self.network(batch.tokens, layout=batch.layout, logits=False, **source).states  # type: ignore[no-any-return]

    def _loss(self, states: Tensor, targets: Tensor) -> Tensor:
        label_smoothing = self.label_smoothing if self.training else 0.0
        head = self.network.head
        table: Tensor
        bias: Tensor | None
        if isinstance(head, UntiedHead):
            table, bias = head.linear.weight, head.linear.bias
        else:
            embedding = self.network.embedding
            assert isinstance(head, TiedHead)
            assert isinstance(embedding, (TokenEmbedding, SummedEmbedding))
            table, bias = embedding.tokens.weight, head.bias
        return vocabulary_loss(
            states,
            table,
            targets,
            bias=bias,
            scale=head.scale,
            cap=head.cap,
            label_smoothing=label_smoothing,
        )
