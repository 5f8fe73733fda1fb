"""The observations of one run of a model over one text: a `Reading`.

Sizes: ``N`` layers, ``H`` heads, ``L`` tokens, ``U`` units (the words, then the tokens that belong to no word),
``T`` blocks of tokens along one side of a heat map. Nothing here is ``L * L`` unless the text is short enough to
be kept exactly (``block == 1``); then ``shares`` are the attention weights themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from .nearest import Nearest
from .offsets import Floats as Floats
from .offsets import Integers as Integers
from .offsets import OffsetProfile, profile_of_strongest, profile_of_weights
from .refinement import Refinement
from .words import Token, Word

# A head has a sink where a token gets more than this share of the attention of all later queries (Gu 2024);
# a token is set apart when this part of the heads has its sink there.
SINK_SHARE = 0.3
SINK_HEADS = 0.25

# A head is positional when it gives more than this share of its attention, on average over the queries of a text, to
# the previous, the own or the next token: it looks at a relative position, whichever token is there (Voita 2019).
POSITIONAL_SHARE = 0.5


@dataclass(frozen=True)
class HeadStatistics:
    """Means over the queries of a text, one number per layer and head, each ``(N, H)``.

    ``entropy`` is in nats, ``distance`` in tokens, the others are shares of attention: the strongest key's, the
    previous, own and next token's, and that of the tokens set apart (special tokens and sinks; of a sound the silence
    behind it).
    """

    entropy: Floats
    strongest: Floats
    distance: Floats
    previous: Floats
    own: Floats
    next: Floats
    apart: Floats

    @property
    def positional(self) -> npt.NDArray[np.bool_]:
        """Which heads are positional (`POSITIONAL_SHARE`), ``(N, H)``."""
        return np.asarray(np.maximum(np.maximum(self.previous, self.own), self.next) > POSITIONAL_SHARE)


@dataclass(frozen=True)
class Reading:
    """One text and the observations of one run of a model over it."""

    text: str
    tokens: tuple[Token, ...]
    words: tuple[Word, ...]
    causal: bool
    block: int  # tokens per block of the heat map; 1: exact weights
    shares: Floats  # (N, H, T, T): share of the attention of a block's queries that falls on a block's keys
    apart: tuple[int, ...]  # positions of special tokens and sinks
    apart_shares: Floats  # (N, H, T, T): the part of `shares` that falls on tokens set apart
    top_weights: Floats  # (N, H, L, k), largest first
    top_keys: Integers  # (N, H, L, k), -1: no such key; 16 bits in texts of at most 32,768 tokens
    heads: HeadStatistics
    received: Floats  # (N, L): weight received, mean over the heads, summed over the queries
    path: Floats  # (N + 1, U): cosine of a unit's vector after each layer with its vector before the first
    steps: Floats  # (N + 1, U): cosine with the layer before; 1 for the embedding
    vectors: Floats | None = None  # (N + 1, U, width), kept only for a comparison
    value_norms: Floats | None = None  # (N, H, L): norm of what a head writes for a key, of short texts (`norms.py`)
    nearest: Nearest | None = None  # of short texts: the nearest units of each unit after each layer
    refinement: Refinement | None = None  # of a long text: finer blocks of some cells of `shares`
    keys: int | None = None  # that each query sees, where there are more than tokens: the silence behind a sound
    unknown: tuple[int, ...] = ()  # positions of tokens that stand for text which the vocabulary does not have

    @property
    def exact(self) -> bool:
        """Whether every single weight is kept."""
        return self.block == 1

    @property
    def length(self) -> int:
        """The number of tokens of the text."""
        return len(self.tokens)

    @cached_property
    def visible(self) -> Integers:
        """Number of keys that each query sees, ``(L,)``."""
        if self.causal:
            return np.arange(1, self.length + 1, dtype=np.int32)
        return np.full(self.length, self.keys or self.length, dtype=np.int32)

    @cached_property
    def expected(self) -> Floats:
        """Weight each key would receive if every query spread its attention evenly, ``(L,)``."""
        even = 1.0 / self.visible
        whole = np.cumsum(even[::-1])[::-1] if self.causal else np.full(self.length, even.sum())
        return whole.astype(np.float32)

    @cached_property
    def content(self) -> frozenset[int]:
        """Units that are content words: neither function words nor punctuation, special tokens or sinks."""
        return frozenset(number for number, word in enumerate(self.words) if word.content) - self.aside

    @cached_property
    def offsets(self) -> OffsetProfile:
        """The attention of every head by offset; of a long text a lower bound, but for the own and the next tokens."""
        if self.exact:
            return profile_of_weights(self.shares, self.causal)
        profile = profile_of_strongest(self.top_keys, self.top_weights, self.causal)
        beside = self.length - 1
        neighbours = (self.heads.own * self.length, self.heads.previous * beside, self.heads.next * beside)
        for place, exact in enumerate(neighbours[: profile.total.shape[-1]]):
            profile.total[..., place] = exact
        return profile

    @cached_property
    def unit_of(self) -> Integers:
        """The unit of each token, ``(L,)``: its word, or a unit of its own behind the words."""
        return number_units(self.tokens, self.words)

    @cached_property
    def unit_tokens(self) -> tuple[tuple[int, ...], ...]:
        """The positions of each unit's tokens."""
        alone = tuple((i,) for i, token in enumerate(self.tokens) if token.word < 0)
        return tuple(word.tokens for word in self.words) + alone

    @cached_property
    def unit_text(self) -> tuple[str, ...]:
        """The text of each unit."""
        return tuple(word.text for word in self.words) + tuple(
            _sign(self.text[token.start : token.end]) or token.text for token in self.tokens if token.word < 0
        )

    @cached_property
    def aside(self) -> frozenset[int]:
        """Units left out of relations by default: special tokens, sinks and punctuation."""
        set_apart = {int(self.unit_of[position]) for position in self.apart}
        punctuation = {number for number, word in enumerate(self.words) if word.is_punctuation}
        return frozenset(set_apart | punctuation | set(range(len(self.words), len(self.unit_text))))

    def kind(self, unit: int) -> str:
        """What a unit is: ``"special"``, ``"sink"``, ``"punctuation"``, ``"blank"`` or ``"word"``."""
        first = self.unit_tokens[unit][0]
        if self.tokens[first].special:
            return "special"
        if first in self.apart:
            return "sink"
        if unit >= len(self.words):
            return "blank"
        return "punctuation" if self.words[unit].is_punctuation else "word"

    def words_between(self, unit: int, other: int) -> int:
        """Return how many words after ``unit`` the ``other`` is in the text; negative: before."""
        starts = [word.tokens[0] for word in self.words]
        at, there = (int(np.searchsorted(starts, self.unit_tokens[u][0])) for u in (unit, other))
        return there - at

    def find(self, name: str) -> tuple[int, ...]:
        """Return the words written as ``name``, in any case, in reading order."""
        wanted = name.casefold()
        return tuple(number for number, word in enumerate(self.words) if word.text.casefold() == wanted)


def _sign(blank: str) -> str:
    """The sign by which a token of blanks is shown, ``""`` for any other."""
    return ("↵" if "\n" in blank else "␣") if blank.isspace() else ""


def number_units(tokens: Sequence[Token], words: Sequence[Word]) -> Integers:
    """Return the unit of each token, ``(L,)``: the number of its word, or a number of its own after those of words."""
    units = np.array([token.word for token in tokens], dtype=np.int32)
    wordless = units < 0
    units[wordless] = len(words) + np.arange(wordless.sum())
    return units


def mean_path(reading: Reading) -> Floats:
    """Return the mean over all words of the cosine with the embedding, by layer: the baseline of a word's path."""
    words = [number for number, word in enumerate(reading.words) if not word.is_punctuation]
    return np.asarray(reading.path[:, words or slice(None)].mean(axis=1), dtype=np.float32)


def even_distance(reading: Reading) -> float:
    """Return the mean absolute distance, in tokens, of attention spread evenly over the visible keys."""
    length = reading.length
    if reading.causal:
        return (length - 1) / 4.0
    if reading.keys is not None:
        return float(np.abs(np.arange(length)[:, None] - np.arange(reading.keys)).mean())
    return (length * length - 1) / (3.0 * length)


def find_sinks(received: Floats, causal: bool, length: int) -> tuple[int, ...]:
    """Return the first token if it is a sink in a quarter of the heads or more: later queries give it `SINK_SHARE`.

    Args:
        received: weight that the first token receives from all queries, in each head, ``(N, H)``.
        causal: whether queries see earlier keys only; in such models the first token takes left-over attention.
        length: number of tokens.

    In a short text the share must also be 1.5 times that of an even spread.
    """
    if not causal or length < 4:
        return ()
    later = (received - 1.0) / (length - 1)  # all that the first token itself can look at is itself
    even = float(np.mean(1.0 / np.arange(2, length + 1)))
    return (0,) if (later > max(SINK_SHARE, 1.5 * even)).mean() >= SINK_HEADS else ()
