"""The strongest relations of a word, over all layers and heads: what it looks at, and what looks at it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from .reading import Floats, Reading


@dataclass(frozen=True)
class Relation:
    """One unit looks at another: the head that does it most, beside what even attention would give.

    ``weight`` is summed over the pieces of ``key`` and averaged over the pieces of ``query``; ``mean`` is its
    mean over all heads of that layer; ``uniform`` is the weight if each query spread its attention evenly.
    ``positional``: the head looks at a relative position (`HeadStatistics.positional`).
    """

    query: int
    key: int
    layer: int
    head: int
    weight: float
    mean: float
    uniform: float
    positional: bool = False


def given(reading: Reading, unit: int) -> Floats:
    """Return the attention that a unit gives to every unit, ``(N, H, U)``.

    Exact for a short text. For a long one only the ``k`` strongest keys of each query are known, so what a unit
    of several pieces receives is a lower bound (exact when each piece is among the ``k``).
    """
    rows = list(reading.unit_tokens[unit])
    layers, heads = reading.shares.shape[:2]
    total = np.zeros((len(reading.unit_text), layers, heads), np.float32)
    if reading.exact:
        weights = reading.shares[:, :, rows].mean(axis=2)  # (N, H, L)
        np.add.at(total, reading.unit_of, weights.transpose(2, 0, 1))
        return total.transpose(1, 2, 0)
    keys, weights = reading.top_keys[:, :, rows], reading.top_weights[:, :, rows]  # (N, H, R, k)
    layer, head, row, rank = np.nonzero(keys >= 0)
    units = reading.unit_of[keys[layer, head, row, rank]]
    np.add.at(total, (units, layer, head), weights[layer, head, row, rank] / len(rows))
    return total.transpose(1, 2, 0)


def taken(reading: Reading, unit: int) -> Floats:
    """Return the attention that a unit receives from every unit, ``(N, H, U)``; a lower bound where `given` is."""
    columns = list(reading.unit_tokens[unit])
    layers, heads = reading.shares.shape[:2]
    total = np.zeros((len(reading.unit_text), layers, heads), np.float32)
    pieces = np.bincount(reading.unit_of, minlength=len(reading.unit_text)).astype(np.float32)
    if reading.exact:
        weights = reading.shares[..., columns].sum(axis=-1)  # (N, H, L)
        np.add.at(total, reading.unit_of, weights.transpose(2, 0, 1))
    else:
        layer, head, query, rank = np.nonzero(np.isin(reading.top_keys, columns))
        found = reading.top_weights[layer, head, query, rank]
        np.add.at(total, (reading.unit_of[query], layer, head), found)
    return (total / pieces[:, None, None]).transpose(1, 2, 0)


def uniform(reading: Reading, query: int, key: int) -> float:
    """Return the weight of ``key`` if each piece of ``query`` spread its attention evenly over the keys it sees."""
    keys = np.array(reading.unit_tokens[key])
    shares = [
        (keys <= row).sum() / reading.visible[row] if reading.causal else len(keys) / reading.visible[row]
        for row in reading.unit_tokens[query]
    ]
    return float(np.mean(shares))


def strongest(
    reading: Reading, unit: int, *, received: bool = False, special: bool = False, most: int = 5
) -> list[Relation]:
    """Return the strongest relations of a unit, one per partner (the head in which it is strongest).

    Those of positional heads come last, since such a head looks at any word in that position; within both groups the
    largest come first.

    Args:
        reading: the observations of the model over the text.
        unit: a unit of the reading (words come first, so a word's number is its unit).
        received: what looks at the unit, instead of what the unit looks at.
        special: include special tokens, sinks, punctuation, and the unit itself.
        most: maximum number.
    """
    weights = taken(reading, unit) if received else given(reading, unit)  # (N, H, U)
    layers, heads, units = weights.shape
    best = weights.reshape(layers * heads, units).argmax(axis=0)
    peak = weights.reshape(layers * heads, units).max(axis=0)
    left_out: Iterable[int] = () if special else reading.aside | {unit}
    peak[list(left_out)] = 0.0
    positional = reading.heads.positional.ravel()[best]
    order = np.lexsort((-peak, positional))
    order = order[peak[order] > 0.0][:most]
    found = []
    for partner in map(int, order):
        layer, head = divmod(int(best[partner]), heads)
        query, key = (partner, unit) if received else (unit, partner)
        mean = float(weights[layer, :, partner].mean())
        even = uniform(reading, query, key)
        weight, by_position = float(peak[partner]), bool(positional[partner])
        found.append(Relation(query, key, layer, head, weight, mean, even, by_position))
    return found


def words_that_matter(reading: Reading, most: int = 4) -> list[int]:
    """Choose the most prominent content words, in reading order.

    For an encoder those whose vector moves most: the lowest cosine between the embedding and the last layer. The last
    vectors of a decoder stand for the next token and have next to nothing in common with any embedding: there, those
    that receive most attention beyond what an even spread would give them (`excess_attention`).
    """
    content = [number for number, word in enumerate(reading.words) if word.content]
    content = [number for number in content if number not in reading.aside]
    candidates = content or [number for number, word in enumerate(reading.words) if not word.is_punctuation]
    measure = -excess_attention(reading) if reading.causal else reading.path[-1]
    kept = sorted(candidates, key=lambda number: float(measure[number]))[:most]
    return sorted(kept)


def excess_attention(reading: Reading) -> Floats:
    """Return the attention that each unit receives beyond an even spread, ``(U,)``.

    Summed over the queries, mean over layers, heads and the tokens of the unit: 1 is the whole attention of one query.
    """
    excess = reading.received.mean(axis=0) - reading.expected
    units = len(reading.unit_text)
    pieces = np.bincount(reading.unit_of, minlength=units)
    return np.asarray(np.bincount(reading.unit_of, weights=excess, minlength=units) / pieces, dtype=np.float32)
