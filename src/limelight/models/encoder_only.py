"""Encoders: every token sees every other (BERT, RoBERTa, ViT, ...)."""

from __future__ import annotations

from .stack import Stack


class EncoderOnly(Stack):
    """Embedding, layers, and for some a head (masked language model, classification).

    >>> import torch, limelight
    >>> bert = limelight.load("minilm").network  # doctest: +SKIP
    >>> bert(torch.tensor([[101, 2924, 102]])).states.shape  # doctest: +SKIP
    torch.Size([1, 3, 384])
    """
