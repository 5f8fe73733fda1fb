"""The texts that the heads of a model are measured on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...text import Text
from ..reading.words import Token, Word, join_words
from .sums import Numbers


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
        """The token ids that the model reads, ``(1, L)`` int64."""
        return torch.tensor([self.text.ids], dtype=torch.int64, device="cpu")

    @cached_property
    def shuffled(self) -> Tensor:
        """``(1, L)``: the ids with all tokens but the sinks in another order, a pure function of ``number``.

        As a control the model runs on these, while the sample stays what it is: the same pairs of positions are
        measured, so that a head which finds its keys by position alone scores as before.
        """
        generator = torch.Generator("cpu").manual_seed(self.number)
        at = self.queries
        ids = self.ids.clone()
        ids[0, at] = ids[0, at[torch.randperm(len(at), generator=generator, device="cpu")]]
        return ids

    @cached_property
    def sinks(self) -> tuple[int, ...]:
        """The tokens that take left-over attention: the first one, and special tokens (Xiao 2023, Clark 2019)."""
        return tuple(i for i, special in enumerate(self.text.special) if special or i == 0)

    @cached_property
    def queries(self) -> Tensor:
        """``(Q,)`` int64: the tokens that are no sink, of which measures count the weights."""
        kept = set(range(len(self))) - set(self.sinks)
        return torch.tensor(sorted(kept), dtype=torch.int64, device="cpu")

    def some_queries(self, most: int) -> Tensor:
        """At most so many of the queries, in order, drawn at random as a pure function of ``number``."""
        random = np.random.Generator(np.random.Philox(key=self.number))
        at = np.sort(random.choice(len(self.queries), min(most, len(self.queries)), replace=False))
        return self.queries[torch.from_numpy(at)]

    @cached_property
    def present(self) -> Numbers:
        """``(L,)``: 1 for a key that is no sink."""
        found = np.ones(len(self))
        found[list(self.sinks)] = 0.0
        return found

    @cached_property
    def joined(self) -> tuple[tuple[Token, ...], tuple[Word, ...]]:
        """The tokens with their words, and the words with their tokens."""
        return join_words(self.text.text, self.text.tokens, self.text.spans, self.text.special)
