"""One vector for each text: the mean over its tokens (Reimers & Gurevych 2019, arXiv:1908.10084)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..tensors.shapes import describe, whole_number, wrong
from ..text import Tokenizer
from .encoder_decoder import EncoderDecoder
from .stack import Stack


def embed(
    network: Stack, tokenizer: Tokenizer, texts: str | Sequence[str], *, normalise: bool = True, batch: int = 32
) -> Tensor:
    """The mean of the last hidden states over the tokens of each text, special tokens included: ``(n, width)``.

    Args:
        network: an encoder or a decoder.
        tokenizer: its tokenizer.
        texts: one text or several.
        normalise: whether vectors are divided by their length.
        batch: how many texts are computed at once.

    Raises:
        ArgumentError: a model with an encoder and a decoder; a text beyond the positions of the model.
    """
    whole_number("batch", batch, at_least=1)
    if isinstance(network, EncoderDecoder):
        got = f"{network.config.family} has an encoder and a decoder"
        raise wrong("model", "must be a single encoder or decoder to embed texts", got, "Use its `encoded` states.")
    texts, weights = _listed(texts), next(network.parameters())
    found = torch.empty(len(texts), network.config.width, dtype=weights.dtype)
    order = sorted(range(len(texts)), key=lambda n: len(texts[n]))  # so that little of a batch is padding
    for first in range(0, len(texts), batch):
        rows = order[first : first + batch]
        tokens = tokenizer([texts[n] for n in rows]).to(weights.device)
        with torch.no_grad():
            states: Tensor = network(tokens.ids, layout=tokens.layout, logits=False).states
        B, L, _ = states.shape
        exists = torch.ones(B, L, dtype=torch.bool, device=states.device)
        if tokens.layout is not None:
            exists = tokens.layout.coordinates(B, L, L, states.device).query_exists.expand(B, L)
        found[rows] = _mean(states, exists).to(found)
    return torch.nn.functional.normalize(found, dim=-1) if normalise else found


def _listed(texts: Any) -> list[str]:
    try:
        found = [texts] if isinstance(texts, str) else list(texts)
    except TypeError:  # nothing that holds others
        found = [None]
    if not all(isinstance(text, str) for text in found):
        raise wrong("texts", "must be a string or a sequence of strings", f"it is {describe(texts)}", "Pass texts.")
    return found


def _mean(states: Tensor, exists: Tensor) -> Tensor:
    """``(B, L, width)`` to ``(B, width)``: the mean over the tokens that exist, whatever the others hold."""
    kept = torch.where(exists[..., None], states, 0.0)
    return kept.sum(1) / exists.sum(1, keepdim=True).clamp(min=1)
