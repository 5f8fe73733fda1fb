"""Two texts compared: the distance between the vectors of the same word, and its relations that changed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...tensors.shapes import ArgumentError
from .record import Floats, Reading
from .relations import at_offset, given

# Beyond this the baseline is an average over a sample: 200 * 200 pairs of words settle it to the third digit.
_BASELINE_WORDS = 200
_CHANGED = 0.05  # a fall of the cosine that is reported first
_CHANGE = 0.05  # a weight's difference below this is not reported
_NOISE_WORDS = 100  # shared words that the noise of a head is taken from


@dataclass(frozen=True)
class Change:
    """One head that gives another share to the same word in the second text.

    ``noise`` is the root mean square change of that head between all other words that both texts share.
    """

    query: int  # index into Comparison.pairs
    key: int
    layer: int
    head: int
    first: float
    second: float
    noise: float


@dataclass(frozen=True)
class Contrast:
    """One head that takes a word's context from different words of the two texts.

    The keys are units of the first and of the second text, with the weights that the word gives them.
    """

    layer: int
    head: int
    first_key: int
    second_key: int
    first: float
    second: float
    first_at_offset: float
    second_at_offset: float


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


def changes(first: Reading, second: Reading, comparison: Comparison, pair: int, *, most: int = 6) -> list[Change]:
    """Return the heads in which a shared word's attention to another shared content word differs most.

    Reported is what differs by at least 0.05, and by three times the head's root mean square change between all other
    shared words: two texts differ a little everywhere. Function words are no partners: what a word gives to *the* says
    little of either text. At most two heads for each partner, the largest change first. Of a long text, weights that
    are not among a query's strongest count as 0.
    """
    pairs = comparison.pairs
    left, right = [a for a, _ in pairs], [b for _, b in pairs]
    partners = [
        number for number, (a, b) in enumerate(pairs) if number != pair and a in first.content and b in second.content
    ]
    if not partners:
        return []
    square, rows = np.zeros(first.shares.shape[:2], np.float64), 0
    others = [number for number in range(len(pairs)) if number != pair][:_NOISE_WORDS]
    for number in others:
        a, b = pairs[number]
        square += ((given(second, b)[..., right] - given(first, a)[..., left]) ** 2).mean(axis=-1)
        rows += 1
    noise = np.sqrt(square / max(1, rows))  # (N, H)
    before, after = given(first, pairs[pair][0])[..., left], given(second, pairs[pair][1])[..., right]  # (N, H, P)
    difference = np.abs(after - before)
    found = []
    for partner in partners:
        change = np.where(difference[..., partner] >= np.maximum(_CHANGE, 3 * noise), difference[..., partner], 0.0)
        for place in np.argsort(-change, axis=None, kind="stable")[:2]:
            layer, head = divmod(int(place), change.shape[1])
            if change[layer, head] > 0.0:
                one, two = (float(each[layer, head, partner]) for each in (before, after))
                found.append(Change(pair, partner, layer, head, one, two, float(noise[layer, head])))
    return sorted(found, key=lambda change: -abs(change.second - change.first))[:most]


def contrasts(first: Reading, second: Reading, comparison: Comparison, pair: int, *, most: int = 5) -> list[Contrast]:
    """Return the heads in which a shared word looks at different content words in the two texts.

    For each head the content word whose weight exceeds most what the head gives at that offset (`at_offset`) in each
    text; the head is reported if these are different words, and both exceed it by 0.05. Largest sum of both first, one
    head for each two words.
    """
    a, b = comparison.pairs[pair]
    sides = []
    for reading, unit in ((first, a), (second, b)):
        weights = given(reading, unit)
        partners = sorted(reading.content - {unit})
        if not partners:
            return []
        usual = at_offset(reading, unit, weights)[..., partners]
        weights = weights[..., partners]
        best = (weights - usual).argmax(axis=-1)[..., None]
        weight, base = (np.take_along_axis(values, best, -1)[..., 0] for values in (weights, usual))
        sides.append((np.array(partners)[best[..., 0]], weight, base))
    (key_a, weight_a, base_a), (key_b, weight_b, base_b) = sides
    excess = np.minimum(weight_a - base_a, weight_b - base_b)
    score = np.where((excess >= _CHANGE) & ~first.heads.positional, weight_a - base_a + weight_b - base_b, 0.0)
    found: dict[tuple[str, str], Contrast] = {}
    for place in np.argsort(-score, axis=None, kind="stable"):
        layer, head = at = divmod(int(place), score.shape[1])
        words = (first.unit_text[key_a[at]].casefold(), second.unit_text[key_b[at]].casefold())
        if score[at] <= 0.0 or len(found) == most:
            break
        if words[0] != words[1] and words not in found:
            numbers = (float(values[at]) for values in (weight_a, weight_b, base_a, base_b))
            found[words] = Contrast(layer, head, int(key_a[at]), int(key_b[at]), *numbers)
    return list(found.values())
