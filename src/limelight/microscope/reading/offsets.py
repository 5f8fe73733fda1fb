"""What a head gives to a token at a distance, whichever token is there: the baseline of its relations.

A head that looks at the previous token gives it nearly everything, and its relation to any one word says nothing of
that word. So a weight is compared with what the same head gives, elsewhere in the same text, to the token at the same
offset.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int32]

NEAR = 8  # offsets up to this are counted one by one; beyond, in ranges of doubling width


def offset_bins(offsets: npt.NDArray[np.integer]) -> Integers:
    """Return the bin of each offset (key position minus query position), as an int32 array of the same shape.

    Bin 0 is the token itself; bins ``2 n - 1`` and ``2 n`` are distance class ``n`` before and after it: ``n`` up to 8
    is the distance itself, 9 is 9 to 16 tokens, 10 is 17 to 32, and so on.
    """
    distance = np.abs(offsets)
    exponent = np.frexp(np.maximum(distance - 1, 1).astype(np.float64))[1]  # 2^(e-1) <= distance - 1 < 2^e
    rank = np.where(distance <= NEAR, distance, NEAR + exponent - 3)
    return np.where(offsets == 0, 0, 2 * rank - (offsets < 0)).astype(np.int32)


@dataclass(frozen=True)
class OffsetProfile:
    """The attention of every head by offset.

    ``total`` is ``(N, H, bins)``: the sum of a head's weights over all visible pairs of a bin. ``count`` is
    ``(bins,)``: how many pairs these are.
    """

    total: Floats
    count: npt.NDArray[np.float64]

    def expected(self, offsets: npt.NDArray[np.integer], visible: npt.NDArray[np.integer]) -> Floats:
        """Return what each head gives on average at some offsets, ``(N, H, *offsets.shape)``.

        One more pair joins the mean, with the share ``1 / visible`` of an even spread: the first pair at an offset has
        a baseline, too, and a pair can be taken out of the mean again (`alone`).
        """
        bins = offset_bins(offsets)
        mean = (self.total[..., bins] + 1.0 / visible) / np.maximum(self.count[bins], 1.0)
        return np.asarray(mean, dtype=np.float32)

    def alone(self, offset: int) -> float:
        """The part of one pair in the mean at its offset."""
        return 1.0 / max(1.0, float(self.count[offset_bins(np.array(offset))]))


def profile_of_weights(weights: Floats, causal: bool) -> OffsetProfile:
    """Sum exact weights ``(N, H, L, L)`` by offset."""
    length = weights.shape[-1]
    position = np.arange(length)
    bins = offset_bins(position[None, :] - position[:, None]).ravel()
    order = np.argsort(bins, kind="stable")
    starts = np.searchsorted(bins[order], np.arange(bins.max() + 2))
    sums = np.cumsum(weights.reshape(*weights.shape[:2], length * length)[..., order], axis=-1, dtype=np.float64)
    sums = np.concatenate([np.zeros((*sums.shape[:2], 1)), sums], axis=-1)
    return OffsetProfile(np.diff(sums[..., starts]).astype(np.float32), _count(length, causal))


def profile_of_strongest(keys: Integers, weights: Floats, causal: bool) -> OffsetProfile:
    """Sum the strongest weights of every query ``(N, H, L, k)`` by offset: a lower bound."""
    layers, heads, length, _ = keys.shape
    count = _count(length, causal)
    total = np.zeros((layers, heads, len(count)), np.float32)
    position = np.arange(length)[:, None]
    for layer in range(layers):
        for head in range(heads):
            seen = keys[layer, head] >= 0
            bins = offset_bins(keys[layer, head] - position)
            total[layer, head] = np.bincount(bins[seen], weights[layer, head][seen], len(count))
    return OffsetProfile(total, count)


def _count(length: int, causal: bool) -> npt.NDArray[np.float64]:
    offsets = np.arange(1 - length, length)
    pairs = np.where(offsets > 0, 0, length - np.abs(offsets)) if causal else length - np.abs(offsets)
    return np.bincount(offset_bins(offsets), weights=pairs).astype(np.float64)
