"""The patterns of a model's attention layers, by which its work is counted."""

from __future__ import annotations

from torch import nn

from ..forms.patterns import Pattern
from ..models import EncoderDecoder
from ..nn import MultiHead
from ..nn.alignment import Alignment
from ..tensors.shapes import wrong


def patterns_of(network: nn.Module) -> list[Pattern | None]:
    """The patterns of all attention layers of a network, each as often as it occurs; ``None`` is ``Full()``.

    For `ContextParallel.balanced`. Of an encoder-decoder they are those of the decoder, cross-attention included; its
    source has the patterns of ``network.encoder``.

    >>> import limelight
    >>> from limelight.models.new import new
    >>> network = new("mistral", vocab_size=8, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
    ...               num_key_value_heads=2, intermediate_size=8, max_position_embeddings=8, sliding_window=4)
    >>> patterns_of(network)
    [Causal() & Window(back=3, ahead=0), Causal() & Window(back=3, ahead=0)]

    Args:
        network: of `limelight.nn` layers.

    Raises:
        ArgumentError: it has no attention layer of `limelight.nn`.
    """
    whole = network.named_modules(remove_duplicate=False)
    inside = "encoder." if isinstance(network, EncoderDecoder) else None
    found: list[Pattern | None] = [
        layer.pattern
        for name, layer in whole
        if isinstance(layer, (MultiHead, Alignment)) and not (inside and name.startswith(inside))
    ]
    if not found:
        got = f"{type(network).__name__} has none"
        raise wrong("network", "must have attention layers of limelight.nn", got, "Name the patterns yourself.")
    return found
