"""Decoders: every token sees those before it and predicts the next (GPT-2, Llama, Mistral, ...)."""

from __future__ import annotations

from .stack import Stack


class DecoderOnly(Stack):
    """Embedding, layers whose attention is causal by their recipe, a last norm, and a head."""
