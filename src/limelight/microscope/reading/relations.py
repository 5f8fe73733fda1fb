"""The strongest relations of a word, over all layers and heads: what it looks at, and what looks at it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .record import POSITIONAL_SHARE, Floats, Reading


@dataclass(frozen=True)
class Relation:
    """One unit looks at another: the head that does it most, beside what even attention would give.

    ``weight`` is summed over the pieces of ``key`` and averaged over the pieces of ``query``; ``mean`` is its
    mean over all heads of that layer; ``uniform`` is the weight if each query spread its attention evenly;
    ``at_offset`` is what the same head gives on average, elsewhere in the text, at the same offset.
    ``positional``: the head looks at a relative position (`HeadStatistics.positional`). ``contribution`` is the share
    of ``key`` in the length of what the head writes for ``query`` (`contribution`); None where it is not known.
    """

    query: int
    key: int
    layer: int
    head: int
    weight: float
    mean: float
    uniform: float
    at_offset: float
    positional: bool = False
    contribution: float | None = None

    @property
    def lift(self) -> float:
        """The weight as a multiple of ``at_offset``: above 1 the head prefers this word to others in its place."""
        return self.weight / max(self.at_offset, 1e-9)


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


def at_offset(reading: Reading, unit: int, weights: Floats, *, received: bool = False) -> Floats:
    """Return what each head gives at the offsets between a unit and every other elsewhere in the text, ``(N, H, U)``.

    The mean over all other pairs of tokens at the same offset, and one pair with an even share; summed and averaged
    over pieces like the weights. Offsets of more than 8 tokens are taken in ranges of doubling width.

    Args:
        reading: the observations of the model over the text.
        unit: a unit of the reading.
        weights: of the unit, `given` or `taken`: they are taken out of the mean.
        received: of the attention that the unit receives.
    """
    pieces = np.array(reading.unit_tokens[unit])[:, None]
    others = np.arange(reading.length)[None]
    query, key = (others, pieces) if received else (pieces, others)
    seen = np.broadcast_to((key <= query) | (not reading.causal), (len(pieces), reading.length))
    means = reading.offsets.expected(key - query, reading.visible[query]) * seen  # (N, H, pieces, L)
    means = means.sum(axis=2) if received else means.mean(axis=2)
    total = np.zeros((len(reading.unit_text), *means.shape[:2]), np.float32)
    np.add.at(total, reading.unit_of, means.transpose(2, 0, 1))
    count = np.bincount(reading.unit_of, minlength=len(total)).astype(np.float32)
    if received:
        total /= count[:, None, None]
    first = np.array([tokens[0] for tokens in reading.unit_tokens])
    own = np.array([reading.offsets.alone(int(place - pieces[0, 0]) * (-1 if received else 1)) for place in first])
    return np.asarray(np.maximum(total.transpose(1, 2, 0) - weights * own, 0.0), dtype=np.float32)


def strongest(
    reading: Reading, unit: int, *, received: bool = False, special: bool = False, most: int = 5
) -> list[Relation]:
    """Return the strongest relations of a unit: content words first, then others, then those of positional heads.

    Within a group the largest excess comes first: the weight beyond what the same head gives at the same offset
    elsewhere in the text (`at_offset`). There is one relation for each partner, in the head where the excess is
    largest; and a second one, in the last group, where a positional head gives the partner more than half.

    Args:
        reading: the observations of the model over the text.
        unit: a unit of the reading (words come first, so a word's number is its unit).
        received: what looks at the unit, instead of what the unit looks at.
        special: include special tokens, sinks, punctuation, and the unit itself.
        most: maximum number; half as many of positional heads join them.
    """
    weights = taken(reading, unit) if received else given(reading, unit)  # (N, H, U)
    if not len(weights):
        return []  # no layer of the model has self-attention
    usual = at_offset(reading, unit, weights, received=received)
    by_position = reading.heads.positional[..., None]
    if not special:
        weights[..., list(reading.aside | {unit})] = 0.0
    content = np.isin(np.arange(weights.shape[-1]), list(reading.content))
    free = _best(np.where(by_position, 0.0, weights), usual)
    free.sort(key=lambda found: (not content[found[0]], -found[2]))
    fixed = _best(np.where(by_position & (weights > POSITIONAL_SHARE), weights, 0.0), usual)
    fixed.sort(key=lambda found: -weights[(*divmod(found[1], weights.shape[1]), found[0])])
    found = []
    for (partner, place, _), positional in (
        *((one, False) for one in free[:most]),
        *((one, True) for one in fixed[: (most + 1) // 2]),
    ):
        layer, head = divmod(place, weights.shape[1])
        query, key = (partner, unit) if received else (unit, partner)
        weight, mean = float(weights[layer, head, partner]), float(weights[layer, :, partner].mean())
        even, baseline = uniform(reading, query, key), float(usual[layer, head, partner])
        by_norm = contribution(reading, query, key, layer, head)
        found.append(Relation(query, key, layer, head, weight, mean, even, baseline, positional, by_norm))
    return found


def contribution(reading: Reading, query: int, key: int, layer: int, head: int) -> float | None:
    """Return a key's share of what a head writes for a query: weights times norms of values, summed to one.

    Like weights it is summed over the pieces of ``key`` and averaged over those of ``query``. None for a long text, and
    for a model whose output projections are not known.
    """
    if not reading.exact or reading.value_norms is None:
        return None
    rows, columns = list(reading.unit_tokens[query]), list(reading.unit_tokens[key])
    written = reading.shares[layer, head, rows] * reading.value_norms[layer, head]
    return float((written[:, columns].sum(axis=1) / np.maximum(written.sum(axis=1), 1e-30)).mean())


def _best(weights: Floats, usual: Floats) -> list[tuple[int, int, float]]:
    """For each partner with any weight, the head with the largest excess: (partner, head counted over all, excess)."""
    excess = np.where(weights > 0.0, weights - usual, -np.inf).reshape(-1, weights.shape[-1])
    best = excess.argmax(axis=0)
    peak = excess.max(axis=0)
    return [(int(n), int(best[n]), float(peak[n])) for n in np.flatnonzero(np.isfinite(peak))]


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
