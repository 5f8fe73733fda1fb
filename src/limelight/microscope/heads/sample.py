"""The texts that the heads of a model are measured on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ...text import Text
from ..words import Token, Word, join_words


@dataclass(frozen=True)
class Sample:
    """One run of the model: a text (or tokens that are no text), and what is known of it.

    Args:
        text: the tokens.
        number: the place of the text in its corpus, from 0. Texts are the units of the bootstrap; heads are chosen on
            texts with an even number (half 0) and scored on those with an odd one (half 1).
        labels: what a measure needs beside the text: a parse, the candidates of a pronoun.
        source: token ids of the encoder, for an encoder-decoder.
    """

    text: Text
    number: int
    labels: Mapping[str, Any] = field(default_factory=dict)
    source: tuple[int, ...] | None = None

    @property
    def half(self) -> int:
        """0 for a text on which heads are chosen, 1 for one on which they are scored."""
        return self.number % 2

    def __len__(self) -> int:
        return len(self.text)

    @cached_property
    def ids(self) -> Tensor:
        """``(1, L)`` int64."""
        return torch.tensor([self.text.ids], dtype=torch.int64, device="cpu")

    @cached_property
    def joined(self) -> tuple[tuple[Token, ...], tuple[Word, ...]]:
        """The tokens with their words, and the words with their tokens."""
        return join_words(self.text.text, self.text.tokens, self.text.spans, self.text.special)
