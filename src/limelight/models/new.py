"""A new model of a published family, of any size, with initialised weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..tensors.shapes import wrong
from .families import FAMILIES, Published
from .families.published import RecordingDict
from .stack import Stack


def new(family: str, **sizes: Any) -> Stack:
    """A model of a published family with random weights, initialised as published, ready to be trained.

    >>> import torch
    >>> model = new("llama", vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
    ...             intermediate_size=64, max_position_embeddings=128)
    >>> model(torch.randint(100, (1, 12))).logits.shape
    torch.Size([1, 12, 100])

    Args:
        family: a ``model_type`` of the hub, a key of `limelight.models.families.FAMILIES`: "llama", "bert", "t5", ...
        sizes: fields of the ``config.json`` of such a model; those with a published default may be left out.

    Returns:
        The model, a `torch.nn.Module` in training mode. Weights are drawn from torch's generator (`torch.manual_seed`).

    Raises:
        ArgumentError: an unknown family, a key that the family does not have, a missing or impossible size.
    """
    if family not in FAMILIES:
        raise wrong("family", f"must be one of {', '.join(sorted(FAMILIES))}", f"it is {family!r}", "Correct it.")
    values = RecordingDict({"model_type": family, **sizes})
    config = FAMILIES[family].configure(Published(Path("new"), values))
    unknown = sorted({*sizes} - values.read)
    if unknown:
        known, got = ", ".join(sorted(values.read - {"model_type"})), f"it has {', '.join(unknown)}"
        raise wrong("sizes", f"may have the keys {known} in the family {family}", got, "Correct them.")
    network = FAMILIES[family].shape(config)
    FAMILIES[family].initialisation(config)(network)
    return network
