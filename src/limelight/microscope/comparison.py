"""Two texts compared: the distance between the vectors of the same word, and its relations that changed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..tensors.shapes import ArgumentError
from .reading import Floats, Reading
from .relations import given

# Beyond this the baseline is an average over a sample: 200 * 200 pairs of words settle it to the third digit.
_BASELINE_WORDS = 200
_CHANGED = 0.05  # a fall of the cosine that is reported first


@dataclass(frozen=True)
class Change:
    """How much more one word looks at another in the second text; ``head`` is None for the mean over heads."""

    query: int  # index into Comparison.pairs
    key: int
    layer: int
    head: int | None
    first: float
    second: float


@dataclass(frozen=True)
class Comparison:
    """The words that two texts share, and their vectors' cosine after each layer.

    ``baseline`` is the mean cosine of *different* words across the texts: what two unrelated words reach in that
    layer. A cosine means little without it, since all vectors of a layer point in similar directions (Ethayarajh 2019).
    """

    pairs: tuple[tuple[int, int], ...]  # (word of the first text, word of the second)
    cosine: Floats  # (P, N + 1)
    baseline: Floats  # (N + 1,)
    baseline_pairs: int


def shared_words(first: Reading, second: Reading) -> tuple[tuple[int, int], ...]:
    """Return the words that are in both texts: the n-th occurrence in one with the n-th in the other."""
    occurrences: dict[str, list[int]] = {}
    for number, word in enumerate(second.words):
        occurrences.setdefault(word.text.casefold(), []).append(number)
    pairs = []
    for number, word in enumerate(first.words):
        waiting = occurrences.get(word.text.casefold())
        if waiting and not word.is_punctuation:
            pairs.append((number, waiting.pop(0)))
    return tuple(pairs)


def compare_readings(first: Reading, second: Reading) -> Comparison:
    """Compare two readings by one model.

    Raises:
        ArgumentError: a reading has no vectors.
    """
    if first.vectors is None or second.vectors is None:
        raise ArgumentError(
            "compare: both readings must keep their vectors, and at least one did not; "
            "read both texts in one call: look(model, text, compare=other)."
        )
    pairs = shared_words(first, second)
    left, right = _normal(first.vectors), _normal(second.vectors)  # (N + 1, U, width)
    a, b = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    cosine = np.einsum("nuw,nuw->un", left[:, a], right[:, b]).astype(np.float32)
    baseline, count = _baseline(first, second, left, right)
    return Comparison(pairs, cosine, baseline, count)


def _baseline(first: Reading, second: Reading, left: Floats, right: Floats) -> tuple[Floats, int]:
    ours = _sample([number for number, word in enumerate(first.words) if not word.is_punctuation])
    theirs = _sample([number for number, word in enumerate(second.words) if not word.is_punctuation])
    different = np.array(
        [[first.words[a].text.casefold() != second.words[b].text.casefold() for b in theirs] for a in ours],
        dtype=bool,
    ).reshape(len(ours), len(theirs))
    if not different.any():
        return np.zeros(left.shape[0], np.float32), 0
    every = np.einsum("naw,nbw->nab", left[:, ours], right[:, theirs])
    return every[:, different].mean(axis=1).astype(np.float32), int(different.sum())


def _sample(numbers: list[int]) -> list[int]:
    step = max(1, -(-len(numbers) // _BASELINE_WORDS))
    return numbers[::step]


def _normal(vectors: Floats) -> Floats:
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(length, 1e-12), dtype=np.float32)


def words_that_changed(comparison: Comparison, first: Reading, most: int = 3) -> list[int]:
    """Return the shared words whose cosine falls most below that of their embeddings, largest fall first.

    They are indices into ``pairs``.

    Below that of the embeddings, since two places of a text differ before any attention. Content words that fall by
    at least ``_CHANGED`` come before function words that fall further: those have little meaning of their own.
    """
    usual = [n for n, (word, _) in enumerate(comparison.pairs) if word not in first.aside]
    fall = comparison.cosine[:, 0] - comparison.cosine.min(axis=1)
    content = [n for n in usual if first.words[comparison.pairs[n][0]].content and fall[n] >= _CHANGED]
    return sorted(content or usual, key=lambda n: -float(fall[n]))[:most]


def changes(first: Reading, second: Reading, comparison: Comparison, pair: int, *, most: int = 5) -> list[Change]:
    """Return the relations of one shared word to other shared content words that differ most between the texts.

    Means over the heads of a layer, one per partner (the layer where they differ most), largest first. Function words
    are no partners: what a word gives to *the* says little of either text.
    """
    a, b = comparison.pairs[pair]
    before, after = given(first, a).mean(axis=1), given(second, b).mean(axis=1)  # (N, U)
    found = []
    for partner, (left, right) in enumerate(comparison.pairs):
        if partner == pair or left in first.aside or right in second.aside or not first.words[left].content:
            continue
        difference = after[:, right] - before[:, left]
        layer = int(np.abs(difference).argmax())
        if difference[layer] == 0.0:
            continue  # the other word is seen in neither text
        found.append(Change(pair, partner, layer, None, float(before[layer, left]), float(after[layer, right])))
    return sorted(found, key=lambda change: -abs(change.second - change.first))[:most]
