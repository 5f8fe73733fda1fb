"""The page's relations of a long text: the most informative ones of each token, ranked once for every size of page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..reading.record import Floats, Integers, Reading
from .numbers import pack_numbers

ROWS = 512  # tokens ranked at once


@dataclass(frozen=True)
class Relations:
    """Relations of each of ``L`` tokens, the most informative first, each ``(L, n)``.

    Args:
        keys: the position of the token looked at.
        heads: the head, ``layer * H + head``.
        weights: the weight; 0 where there is no further relation.
    """

    keys: Integers
    heads: Integers
    weights: Floats

    def pack(self, most: int) -> dict[str, Any]:
        """Pack the first ``most`` relations of each token, the largest weight first, as ``pack.py`` describes."""
        parts = [part[:, :most] for part in (self.keys, self.heads, self.weights)]
        order = np.argsort(-parts[2], axis=1, kind="stable")
        keys, heads, weights = (np.take_along_axis(part, order, 1) for part in parts)
        wide = (16, 0.0, 65535.0)
        return {
            "each": keys.shape[1],
            "keys": pack_numbers(np.maximum(keys, 0), *(wide if len(keys) < 65536 else (32,))),
            "heads": pack_numbers(heads, *wide),
            "weights": pack_numbers(weights, 16, 0.0, 1.0),
        }


def rank_relations(reading: Reading, most: int) -> Relations:
    """Return the ``most`` most informative relations of each token.

    A key that many heads share would crowd out all others: each further head on the same key counts half as much as
    the one before. Attention to tokens set apart is in the maps, and left out here.
    """
    top_keys, top_weights = _top(reading)
    layers, heads, length, k = top_keys.shape
    every = layers * heads * k
    most = min(most, every)
    parts: list[tuple[Integers, Integers, Floats]] = []
    for start in range(0, length, ROWS):
        part = (slice(None), slice(None), slice(start, start + ROWS))
        key = top_keys[part].transpose(2, 0, 1, 3).reshape(-1, every)
        weight = top_weights[part].transpose(2, 0, 1, 3).reshape(-1, every)
        weight = np.where(np.isin(key, reading.apart) | (key < 0), 0.0, weight)
        worth = weight * np.exp2(-_rank(key, weight))
        chosen = np.argpartition(-worth, most - 1, axis=1)[:, :most]
        order = np.argsort(-np.take_along_axis(worth, chosen, 1), axis=1, kind="stable")
        chosen = np.take_along_axis(chosen, order, 1)
        found = (
            np.take_along_axis(key, chosen, 1),
            (chosen // k).astype(np.int32),
            np.take_along_axis(weight, chosen, 1),
        )
        parts.append(found)
    keys, numbers, weights = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Relations(keys, numbers, weights.astype(np.float32))


def _rank(key: Integers, weight: Floats) -> npt.NDArray[np.float32]:
    """Return for each candidate of a row how many stronger candidates have the same key."""
    order = np.argsort(-weight, axis=1, kind="stable")
    order = np.take_along_axis(order, np.argsort(np.take_along_axis(key, order, 1), axis=1, kind="stable"), 1)
    sorted_keys = np.take_along_axis(key, order, 1)
    at = np.arange(key.shape[1])
    fresh = np.concatenate([np.ones((len(key), 1), bool), sorted_keys[:, 1:] != sorted_keys[:, :-1]], 1)
    first = np.maximum.accumulate(np.where(fresh, at, 0), axis=1)
    rank = np.empty(key.shape, np.float32)
    np.put_along_axis(rank, order, (at - first).astype(np.float32), 1)
    return rank


def _top(reading: Reading) -> tuple[Integers, Floats]:
    """The strongest keys of every query; of exact weights that were too many for the page, found here."""
    if not reading.exact:
        return reading.top_keys, reading.top_weights
    k = min(8, reading.length)
    keys = np.argpartition(-reading.shares, k - 1, axis=-1)[..., :k].astype(np.int32)
    return keys, np.take_along_axis(reading.shares, keys, -1)
