"""Decoders: every token sees those before it and foretells the next (GPT-2, Llama and their kin)."""

from __future__ import annotations

from .stack import Stack


class DecoderOnly(Stack):
    """Embedding, layers whose attention is causal by their recipe, a last norm, and a head."""
