"""Attention rollout: which tokens of the text a token draws on through all layers (Abnar and Zuidema 2020).

With ``A`` the weights of a layer, in the mean over its heads, and the residual connection counted as half, a layer
mixes the tokens by ``(I + A) / 2``. `rollout` is a row of the product of these matrices. The product is carried along
while the model runs, a few of its columns at a time: ``A`` times columns is what `Observe.features` returns. So the
square of a long text is never whole in memory.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..formats.progress import counted
from ..forms.observations import Observations, Observe, Seen, watching
from ..tensors.shapes import describe, whole_number, wrong
from ..text import Text
from .reading.record import Floats
from .reading.words import join_words
from .subjects import Subject, subject_of
from .tables import TableRow, Tables, short

COLUMNS = 256  # of the product, in one run
NUMBERS = 1 << 24  # that the features of a layer hold at most, where the text is long


@dataclass(frozen=True)
class Rollout(Tables):
    """The rollout of one word or token.

    Args:
        model: the name of the model.
        text: the tokens.
        tokens: positions of the tokens whose rollout this is; the mean over them.
        shares: ``(N + 1, L)``: after so many layers the share of each token of the text. Each row adds up to 1, or to
            less in a model whose attention has sinks of its own.
    """

    model: str
    text: Text
    tokens: tuple[int, ...]
    shares: Floats = field(repr=False)

    def __repr__(self) -> str:
        word = "".join(self.text.pieces[i] for i in self.tokens)
        return f"Rollout({self.model!r}, {word!r}, {len(self.shares) - 1} layers, {len(self.text):,} tokens)"

    @cached_property
    def tables(self) -> dict[str, list[TableRow]]:
        """One table, ``rollout``: the share of each token of the text, by the number of layers passed."""
        return {
            "rollout": [
                {"layers": depth, "position": i, "token": token, "special": special, "share": short(share)}
                for depth, row in enumerate(self.shares.tolist())
                for i, (token, special, share) in enumerate(zip(self.text.pieces, self.text.special, row, strict=True))
            ]
        }


def rollout(model: Any, text: str, token: str | int, *, tokenizer: Any = None) -> Rollout:
    """Attention rollout of one token: what it draws on, through all layers.

    ``u <- (u + mean_h u A_h) / 2`` from the last layer to the first, with ``u`` at first 1 at the token. Feed-forward
    layers, values and signs are not part of it: it says where information can have come from. In memory that grows
    with the length; the time is that of ``L / 256`` runs.

    Args:
        model: an encoder or decoder: a name or path for `limelight.load`, a `Pretrained`, or a model of transformers.
        text: the text.
        token: a word of the text, in any case, of which the first occurrence is taken (the mean over its tokens); or
            the position of a token, from the end if negative.
        tokenizer: of a model of transformers.

    Raises:
        ArgumentError: a model with an encoder and a decoder, or a word or position that the text does not have.

    Example:
        >>> from limelight.microscope import rollout
        >>> found = rollout("minilm", "The bank is near the river.", "bank")
        >>> found
        Rollout('minilm', 'bank', 6 layers, 9 tokens)
        >>> frame = found.to_pandas("rollout")  # doctest: +SKIP
    """
    subject = subject_of(model, tokenizer=tokenizer)
    if subject.kind == "encoder-decoder":
        got = f"{subject.name} has an encoder and a decoder"
        raise wrong("model", "must be an encoder or a decoder", got, "limelight.look shows what it looks at.")
    read, ids = subject.read(text)
    tokens = _positions(read, token)
    length = len(read)
    columns = max(16, min(COLUMNS, NUMBERS // (subject.heads * length)))
    shares = np.zeros((subject.layers + 1, length), np.float32)
    with counted(f"Rolling out {subject.name}", length) as report:
        for start in range(0, length, columns):
            end = min(start + columns, length)
            product = _Product(subject, length, start, end, tokens)
            with watching(product):
                subject.run(ids)
            shares[:, start:end] = torch.stack(product.rows).numpy()
            report(end)
    return Rollout(subject.name, read, tokens, shares)


class _Product(Seen):
    """Columns of the product of the layers, from the first on, and of each layer the mean over some rows."""

    def __init__(self, subject: Subject, length: int, start: int, end: int, tokens: tuple[int, ...]) -> None:
        super().__init__(Observe())
        self.names = frozenset(subject.attention_names)
        self.columns = torch.eye(length, dtype=torch.float32, device="cpu")[:, start:end]
        self.tokens = list(tokens)
        self.rows = [self._row()]

    def request(self, name: str | None, query: Tensor, key: Tensor) -> Observe:
        if name not in self.names:
            return self.observe
        return Observe(features=self.columns.to(query.device, torch.promote_types(query.dtype, torch.float32)))

    def add(self, name: str | None, observations: Observations) -> None:
        if name not in self.names:
            return
        assert observations.features is not None
        mixed = observations.features[0].mean(0)  # (L, columns)
        self.columns = (self.columns.to(mixed) + mixed) / 2
        self.rows.append(self._row())

    def _row(self) -> Tensor:
        return self.columns[self.tokens].mean(0).float().cpu()


def _positions(text: Text, token: str | int) -> tuple[int, ...]:
    """The tokens of the first word of that name, or the one at that position."""
    if isinstance(token, str):
        words = join_words(text.text, text.tokens, text.spans, text.special)[1]
        found = next((word for word in words if word.text.casefold() == token.casefold()), None)
        if found is None:
            known = list(dict.fromkeys(word.text for word in words))
            some = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "")
            raise wrong("token", "must be a word of the text", f"{describe(token)} is not", f"The words are: {some}.")
        return found.tokens
    position = whole_number("token", token, at_least=-len(text))
    if position >= len(text):
        rule = f"must be a position among the {len(text):,} tokens, from 0 to {len(text) - 1:,}"
        raise wrong("token", rule, f"it is {position}", "-1 is the last one.")
    return (position % len(text),)
