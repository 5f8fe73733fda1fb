"""Decoders: every token sees those before it and foretells the next (GPT-2, Llama and their kin)."""

from __future__ import annotations

from torch import Tensor

from .config import Config
from .stack import Stack


class DecoderOnly(Stack):
    """Embedding, layers whose attention is causal by their recipe, a last norm, and a head.

    Args:
        config: what to make; its ``attention`` carries the causal pattern.
    """

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.norm = config.norm(config.width)

    def finish(self, states: Tensor) -> Tensor:
        """The last norm."""
        return self.norm(states)  # type: ignore[no-any-return]
