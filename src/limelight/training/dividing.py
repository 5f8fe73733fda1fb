"""The tokens of a batch, divided over the processes of a context."""

from __future__ import annotations

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from ..distributed import ContextParallel, patterns_of
from ..forms.layouts import Layout
from ..forms.patterns import Pattern
from ..models import EncoderDecoder, Stack
from ..tensors.shapes import wrong
from .data import Batch


class BatchDivision:
    """Takes a rank's tokens of each batch, dealt so that all ranks have about as many pairs of query and key.

    The pairs are counted over the patterns of all layers, and those of a source over the layers of the encoder.

    Args:
        network: whose layers read the batches.
        group: the mesh of the context, of one dimension.
    """

    def __init__(self, network: Stack, group: DeviceMesh) -> None:
        self.group, self.patterns = group, patterns_of(network)
        self.source_patterns = patterns_of(network.encoder) if isinstance(network, EncoderDecoder) else []

    def own(self, batch: Batch) -> Batch:
        """Return the part of a batch that this rank computes."""
        tokens, layout = self._deal(batch.tokens, batch.layout, self.patterns)
        batch = batch._replace(tokens=tokens, targets=layout.mine(batch.targets), layout=layout)
        if batch.source is None:
            return batch
        source, layout = self._deal(batch.source, batch.source_layout, self.source_patterns)
        return batch._replace(source=source, source_layout=layout)

    def _deal(
        self, tokens: Tensor, layout: Layout | None, patterns: list[Pattern | None]
    ) -> tuple[Tensor, ContextParallel]:
        spread = ContextParallel.balanced(self.group, tokens.shape[1], patterns=patterns, layout=layout)
        return spread.mine(tokens), spread


def check_divisible(network: nn.Module) -> None:
    """Check that the tokens of a network's batches can be divided: only attention reads other tokens.

    Raises:
        ArgumentError: a layer reads other tokens by itself.
    """
    for name, part in network.named_modules():
        why = getattr(part, "reads_other_tokens", None)
        if why is not None:
            got = f"{name} is {type(part).__name__}, and {why}"
            way_out = "Use run.shard or run.tensor, or another layer."
            raise wrong("run.context", "must be 1 where a layer reads other tokens by itself", got, way_out)
