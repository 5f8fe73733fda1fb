"""The interface between the microscope and the models that it looks at."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor

from ...generation import Sampler
from ...generation.sampling import draws, penalised, tokens_in
from ...tensors.shapes import describe, wrong
from ...text import Text, printable, valid_text
from .patches import Patches

Kind = Literal["encoder", "decoder", "encoder-decoder"]


@dataclass(frozen=True)
class Run:
    """The result of running a subject once.

    Args:
        hidden: the embedding and the states after each layer, ``layers + 1`` tensors ``(B, L, width)``, of which the
            last has passed the model's last norm; empty unless requested. Blocks without observed attention count as
            parts of the layer before them (of the first layer, where they come before it).
        logits: ``(B, L, vocabulary)``; ``None`` unless requested, or without an output embedding.
        source_hidden: the same as ``hidden`` for the encoder of an encoder-decoder.
    """

    hidden: tuple[Tensor, ...] = ()
    logits: Tensor | None = None
    source_hidden: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Source:
    """What the encoder of an encoder-decoder reads.

    Args:
        input: ``(1, Lk)`` token ids, or the numbers of a sound as the encoder takes them.
        text: the tokens; ``None`` for a sound.
        length: how many states of the encoder belong to it; the others are the silence that a sound is padded with.
        seconds: from one state of the encoder to the next, for a sound.
    """

    input: Tensor
    text: Text | None
    length: int
    seconds: float | None = None


class Subject(ABC):
    """A model that the microscope can look at: its tokens, its attention layers by name, and how to run it.

    Run it inside `limelight.watching` to observe its attention: the calls come under `attention_names`,
    `encoder_names` and `cross_names`, ``(B, H, L, ...)`` each.

    Attributes:
        name: for titles and tables.
        kind: ``"encoder"``, ``"decoder"`` or ``"encoder-decoder"``.
        layers: number of layers of the main stack (the decoder of an encoder-decoder) whose attention is observed.
            Layers without attention, or with attention of their own, are not among them.
        heads: number of query heads of each of them; the largest number where they differ.
        attention_names: the names under which `limelight.watching` gathers the self-attention of the main stack, one
            for each layer, in order, all different; empty for a decoder that has cross-attention alone.
        encoder_names: those of the encoder's layers; empty unless this is an encoder-decoder.
        encoder_heads: the largest number of query heads of the encoder's layers.
        cross_names: those of the cross-attention; empty unless this is an encoder-decoder.
        unobserved: names of attention layers that cannot be observed, each with the reason.
        blocks: number of blocks of the main stack, with and without attention.
        limit: the number of positions; ``None`` if there is no limit.
        trained_positions: the number of positions that the model was trained on, where that is known.
        extrapolates: whether a text may be longer than ``limit``, because positions are computed and not looked up.
        vocabulary: the number of token ids.
        hears: whether the encoder reads sounds.
        grid: rows and columns of the patches, and the pixels along a side of one, of a model that reads pictures.
        patches: how a model that reads pictures cuts them.
        alignment_heads: ``(layer, head)`` of cross-attention that the checkpoint names as following the source.
    """

    name: str
    kind: Kind
    layers: int
    heads: int
    attention_names: tuple[str, ...]
    encoder_names: tuple[str, ...] = ()
    encoder_heads: int = 0
    cross_names: tuple[str, ...] = ()
    unobserved: Mapping[str, str] = MappingProxyType({})
    blocks: int
    limit: int | None = None
    trained_positions: int | None = None
    extrapolates: bool = False
    vocabulary: int
    hears: bool = False
    grid: tuple[int, int, int] | None = None
    patches: Patches | None = None
    alignment_heads: tuple[tuple[int, int], ...] = ()

    @property
    def causal(self) -> bool:
        """Whether a query of the main stack sees only keys that do not come after it."""
        return self.kind != "encoder"

    @abstractmethod
    def tokenize(self, text: str) -> Text:
        """The tokens of a text as the model reads it, special tokens included."""

    def read(self, given: Any, name: str = "text", *, extrapolate: bool = False) -> tuple[Text, Tensor]:
        """What `run` takes of an input, ``(1, L)`` ids, and what its tokens are.

        Args:
            given: a text; for a model that reads pictures one of PIL's, or its numbers.
            name: of the argument, for error messages.
            extrapolate: let a text be longer than the positions of a model that `extrapolates`.

        Raises:
            ArgumentError: a text without a word, one that is longer than the positions of the model, or no text.
        """
        text = self.tokenize(valid_text(checked(given, name), name))
        if not text.ids:
            got = f"the tokenizer of {self.name} makes none of {describe(given)}"
            raise wrong(name, "must make at least one token", got, "Its vocabulary may lack these characters.")
        self.check_fit(name, len(text), None if extrapolate and self.extrapolates else self.limit)
        return text, torch.tensor([text.ids], dtype=torch.int64, device="cpu")

    def check_fit(self, name: str, length: int, limit: int | None) -> None:
        """Raise `ArgumentError` for a text of more tokens than there are positions.

        Args:
            name: of the argument, for the message.
            length: number of tokens.
            limit: number of positions; ``None`` if there is no limit.
        """
        if limit is not None and length > limit:
            got = f"it has {length:,} tokens"
            way_out = "Split it into parts, or use another model."
            raise wrong(name, f"must fit the {limit:,} positions of {self.name}", got, way_out)

    def read_source(self, source: Any) -> Source:
        """What the encoder of an encoder-decoder reads: a text; or a WAV file or samples, for one that hears."""
        raise NotImplementedError

    def read_target(self, text: str) -> Text:
        """The tokens that a decoder reads of a text it writes: its first tokens, and the text without an end."""
        raise NotImplementedError

    def write(self, source: Source) -> Text:
        """What an encoder-decoder writes to a source, token by token the likeliest, as `read_target` has it."""
        raise NotImplementedError

    @abstractmethod
    def run(
        self,
        ids: Tensor,
        *,
        lengths: Tensor | None = None,
        source: Tensor | None = None,
        hidden: bool = False,
        logits: bool = False,
    ) -> Run:
        """Run the model, without gradients.

        Args:
            ids: ``(B, L)`` int64 token ids, or the numbers of pictures as `read` gives them.
            lengths: ``(B,)`` int64: how many tokens of each row exist, the rest is padding on the right; ``None``: all.
            source: ``(B, Lk)`` token ids (or the numbers of a sound or picture) for the encoder of an encoder-decoder.
            hidden: return the hidden states.
            logits: return the logits.
        """

    def follow(self, ids: Tensor, visit: Callable[[int, Tensor], None]) -> None:
        """Run the model, without gradients, and pass on the states at each depth: those of ``Run.hidden``, in order.

        A subject that passes each on as soon as it is computed never holds those of all layers, which would take
        ``(layers + 1) * L * width`` numbers.

        Args:
            ids: ``(B, L)`` int64 token ids.
            visit: called with the depth, 0 for the embedding, and the states ``(B, L, width)``.
        """
        for depth, states in enumerate(self.run(ids, hidden=True).hidden):
            visit(depth, states)

    @abstractmethod
    def lens(self, states: Tensor, depth: int) -> Tensor | None:
        """The logits that the output embedding gives to hidden states, ``(..., width)`` to ``(..., vocabulary)``.

        The logit lens (nostalgebraist 2020): the last norm, then the output embedding. States of ``depth = layers``
        have passed that norm already. ``None`` for a model without an output embedding.
        """

    @abstractmethod
    def embeddings(self) -> Tensor:
        """The table of input embeddings, ``(vocabulary, width)``, without positions."""

    @abstractmethod
    def output_weight(self, name: str) -> Tensor:
        """The part of an attention layer's output projection that each head passes through, ``(H, Dv, width)``.

        The contribution of head ``h`` to the residual stream is ``mixed_h @ output_weight(name)[h]``, with ``mixed_h``
        the ``(L, Dv)`` output of the head (Kobayashi 2020).
        """

    @property
    @abstractmethod
    def unknown_token(self) -> str | None:
        """The token that stands for text which the vocabulary does not have; ``None`` where every text has tokens."""

    def spell(self, token: int) -> str:
        """The spelling of a token id in the vocabulary, as in ``Text.tokens``."""
        raise NotImplementedError(f"{type(self).__name__} does not write text")

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without the special tokens among them."""
        raise NotImplementedError(f"{type(self).__name__} does not write text")

    def is_special(self, token: int) -> bool:
        """Whether a token id is one of the model's special tokens."""
        raise NotImplementedError(f"{type(self).__name__} does not write text")

    @property
    def ends(self) -> frozenset[int]:
        """The token ids that end a text."""
        return frozenset()

    def generate(self, ids: Sequence[int], tokens: int, sampler: Sampler, seed: int) -> tuple[int, ...]:
        """Continue a text of token ids with a decoder; return the new ones, with the one that ended the text.

        Args:
            ids: the text.
            tokens: maximum number of new tokens, which the model has positions for.
            sampler: how a token is chosen.
            seed: of a sampler that draws.
        """
        text, score = list(ids), self.scorer()
        copy = torch.zeros(1, dtype=torch.int64, device="cpu")
        for step in range(tokens):
            scores = score(text).float().cpu()
            if sampler.repetition != 1:
                scores = penalised(scores, tokens_in([text], scores), sampler.repetition)
            chosen = sampler.choose(scores, lambda step=step: draws(seed, copy, step))  # type: ignore[misc]
            text.append(int(chosen))
            if text[-1] in self.ends:
                break
        return tuple(text[len(ids) :])

    def scorer(self) -> Callable[[Sequence[int]], Tensor]:
        """A function of a text of token ids that gives the logits of its next token, ``(1, vocabulary)``.

        It is called with a text that grows at its end. This definition reads the whole text in every call; a subject
        with a cache reads the new tokens alone.
        """

        def score(ids: Sequence[int]) -> Tensor:
            row = torch.tensor([list(ids)], dtype=torch.int64, device="cpu")
            return self._logits(self.run(row, hidden=True).hidden[-1])

        return score

    def _logits(self, states: Tensor) -> Tensor:
        """The logits of the token behind the last of these states ``(1, L, width)`` of the last layer."""
        scores = self.lens(states[:, -1], self.layers)
        assert scores is not None  # the caller has checked that there is an output embedding
        return scores


def checked(text: object, name: str = "text") -> str:
    """The text, which must hold at least one word."""
    if not isinstance(text, str) or not text.strip():
        got = f"it is {describe(text)}"
        raise wrong(name, "must hold at least one word", got, 'For example: "The bank is near the river."')
    return text


def shown_name(name: str) -> str:
    """The name of a model as titles and terminals may show it: one line, without control characters."""
    return printable(" ".join(name.split()))
