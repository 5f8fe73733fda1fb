"""Cross-attention: what each word that a decoder writes looks at in its source, and which source it is aligned with.

The query that predicts a token stands one place before it, so a word's rows are those of the places before its tokens.
A weight on a word is the sum over its tokens, a weight from a word the mean over its queries (Clark et al. 2019).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from ...forms.observations import Observations, Observe
from ...text import Text
from ..reading.record import Floats, Reading
from ..reading.words import join_words
from ..subjects import Source
from .timing import first_states

SLICE = 0.1  # seconds of a sound that are looked at together
MAX_SOURCES = 8  # of a word in one head, in the table
NEAR_BEST = 0.9  # heads that tell nearly as much of the source as the best one align together

NAMED = "the heads that the checkpoint names"
TELLING = "the heads whose weights change most with the word that is written (mutual information)"


@dataclass(frozen=True)
class Unit:
    """A part of the source: a word or a special token with its place in the text, or a slice of a sound in seconds."""

    text: str
    start: float
    end: float
    members: tuple[int, ...]
    special: bool = False


class CrossGatherer:
    """Keeps the weights of every layer's cross-attention.

    Args:
        queries: number of tokens of the decoder.
        length: number of the encoder's states that belong to the source.
        heads: the largest number of heads of a layer.
    """

    def __init__(self, queries: int, length: int, heads: int) -> None:
        self.observe = Observe(rows=torch.arange(queries, device="cpu"))
        self.length, self.heads = length, heads
        self.layers: list[Floats] = []
        self.states = length

    def add(self, observations: Observations) -> None:
        """Keep the weights of one layer."""
        assert observations.rows is not None
        self.states = observations.rows.shape[-1]
        rows = observations.rows[0, :, :, : self.length].detach().float().cpu().numpy()
        missing = self.heads - len(rows)
        self.layers.append(np.pad(rows, ((0, missing), (0, 0), (0, 0))))


@dataclass(frozen=True)
class Cross:
    """The cross-attention of one run.

    Args:
        source: what the encoder read.
        target: the tokens that the decoder read.
        weights: ``(N, H, L, S)``: of each query of the decoder on each state of the encoder that belongs to the source.
        states: how many states the encoder has in all.
        named: heads that the checkpoint names as following the source.
        unknown: the token that stands for text which the vocabulary does not have.
    """

    source: Source
    target: Reading
    weights: Floats
    states: int
    named: tuple[tuple[int, int], ...] = ()
    unknown: str | None = None

    @property
    def warnings(self) -> list[str]:
        """Warnings about the source: tokens that the vocabulary of the model does not have."""
        tokens = () if self.source.text is None else self.source.text.tokens
        count = sum(token == self.unknown for token in tokens)
        if not count:
            return []
        return [f"{count:,} of {len(tokens):,} tokens of the source are unknown ({self.unknown})."]

    @cached_property
    def units(self) -> tuple[Unit, ...]:
        """The parts of the source."""
        if self.source.text is None:
            assert self.source.seconds is not None
            return _slices(self.source.length, self.source.seconds)
        return _words(self.source.text)

    @cached_property
    def heads(self) -> tuple[tuple[int, int], ...]:
        """``(layer, head)`` of the heads that align."""
        if self.named:
            return self.named
        rows = [position - 1 for word in self.target.words for position in word.tokens if position > 0]
        if not rows:
            return ()
        telling = _information(self.weights[:, :, rows])  # (N, H)
        best = np.argwhere(telling >= NEAR_BEST * telling.max())
        return tuple((int(layer), int(head)) for layer, head in best)

    @cached_property
    def by_word(self) -> Floats:
        """``(N, H, W, U)``: of each word of the target on each part of the source."""
        members = np.zeros((self.weights.shape[-1], len(self.units)), np.float32)
        for number, unit in enumerate(self.units):
            members[list(unit.members), number] = 1.0
        queries = np.zeros((len(self.target.words), self.weights.shape[-2]), np.float32)
        for number, word in enumerate(self.target.words):
            rows = [position - 1 for position in word.tokens if position > 0]
            queries[number, rows] = 1.0 / max(1, len(rows))
        return np.asarray(queries @ (self.weights @ members), dtype=np.float32)

    @property
    def notes(self) -> list[str]:
        """How to read the tables."""
        heads = ", ".join(f"{layer}.{head}" for layer, head in self.heads)
        how = "by dynamic time warping" if self.source.seconds else "by the largest mean weight"
        return [
            "A weight of cross-attention is that of the query which predicts the word, one place before it.",
            f"Words are aligned {how} over {NAMED if self.named else TELLING}: {heads or 'none'}.",
        ]

    def tables(self) -> dict[str, list[dict[str, Any]]]:
        """Three tables.

        - ``source``: index, part (a word, a special token, or a slice of a sound), start, end (characters, or
          seconds), special;
        - ``cross``: word, index, source, source_index, layer, head, weight, uniform: the strongest parts of each
          word in each head, as far as they get more than an even share;
        - ``alignment``: word, index, source, source_index, weight, uniform (means over the heads that align; the
          strongest part that is no special token), for a sound with start and end of the word in seconds.
        """
        source = [
            {"index": i, "part": unit.text, "start": unit.start, "end": unit.end, "special": unit.special}
            for i, unit in enumerate(self.units)
        ]
        return {"source": source, "cross": self._cross(), "alignment": self.alignment()}

    def _uniform(self, unit: int) -> float:
        return len(self.units[unit].members) / self.states

    def _cross(self) -> list[dict[str, Any]]:
        even = np.array([self._uniform(unit) for unit in range(len(self.units))])
        rows = []
        for number, word in enumerate(self.target.words):
            for layer, head in np.ndindex(*self.by_word.shape[:2]):
                weights = self.by_word[layer, head, number]
                for unit in np.argsort(-weights, kind="stable")[:MAX_SOURCES].tolist():
                    if weights[unit] > even[unit]:
                        rows.append(
                            {
                                "word": word.text,
                                "index": number,
                                "source": self.units[unit].text,
                                "source_index": unit,
                                "layer": layer,
                                "head": head,
                                "weight": _short(weights[unit]),
                                "uniform": _short(even[unit]),
                            }
                        )
        return rows

    def alignment(self) -> list[dict[str, Any]]:
        """The table ``alignment`` by itself; empty where no head aligns, or the target has no word."""
        if not self.heads or not self.target.words:
            return []
        mean = np.mean([self.by_word[layer, head] for layer, head in self.heads], axis=0)  # (W, U)
        usual = [number for number, unit in enumerate(self.units) if not unit.special] or list(range(len(self.units)))
        best = [usual[place] for place in mean[:, usual].argmax(1).tolist()]
        rows = [
            {
                "word": word.text,
                "index": number,
                "source": self.units[unit].text,
                "source_index": unit,
                "weight": _short(mean[number, unit]),
                "uniform": _short(self._uniform(unit)),
            }
            for number, (word, unit) in enumerate(zip(self.target.words, best, strict=True))
        ]
        if self.source.seconds is not None:
            for row, (start, end) in zip(rows, self._times(self.source.seconds), strict=True):
                row |= {"start": round(start, 3), "end": round(end, 3)}
        return rows

    def _times(self, seconds: float) -> list[tuple[float, float]]:
        """Start and end of each word of the target in seconds."""
        first = min(word.tokens[0] for word in self.target.words)
        rows = self.weights[:, :, first - 1 :]  # the last one predicts the end
        begins = first_states(np.stack([rows[layer, head] for layer, head in self.heads])) * seconds
        found = []
        for word in self.target.words:
            start, end = (begins[position - first] for position in (word.tokens[0], word.tokens[-1] + 1))
            found.append((float(start), float(end)))
        return found


def _information(weights: Floats) -> Floats:
    """By how many nats a head's weights tell which query they are of, ``(N, H, R, S)`` to ``(N, H)``.

    The mutual information of query and key, all queries alike: 0 for a head that looks at the same keys always.
    """
    mean = weights.mean(2)
    return np.asarray(_entropy(mean) - _entropy(weights).mean(-1), dtype=np.float32)


def _entropy(weights: Floats) -> Floats:
    return np.asarray(-(weights * np.log(np.maximum(weights, 1e-30))).sum(-1), dtype=np.float32)


def _words(text: Text) -> tuple[Unit, ...]:
    """The words of a source, and its special tokens, in their order."""
    tokens, words = join_words(text.text, text.tokens, text.spans, text.special)
    units = [Unit(word.text, word.start, word.end, word.tokens) for word in words]
    units += [
        Unit(token.text, token.start, token.end, (place,), token.special)
        for place, token in enumerate(tokens)
        if token.word < 0
    ]
    return tuple(sorted(units, key=lambda unit: unit.members[0]))


def _slices(length: int, seconds: float) -> tuple[Unit, ...]:
    """A sound in slices."""
    each = max(1, round(SLICE / seconds))
    found = []
    for begin in range(0, length, each):
        end = min(begin + each, length)
        start, stop = round(begin * seconds, 3), round(end * seconds, 3)
        found.append(Unit(f"{start:.1f} s", start, stop, tuple(range(begin, end))))
    return tuple(found)


def _short(number: float) -> float:
    """Round to six significant digits, about the precision of float32."""
    return float(f"{float(number):.6g}")
