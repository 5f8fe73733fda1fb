"""Philox4x32-10, the counter-based random numbers of dropout (Salmon et al., "Random numbers: as easy as 1, 2, 3").

A weight is dropped or kept by a pure function of ``(seed, head, query position, key position, row)``, so every
backend drops the same weights and a backward pass recomputes them instead of storing them.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], seed: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four 32-bit words (as int64) for each counter; ``seed`` is an int64 tensor, its halves are the key."""
    c0, c1, c2, c3 = (c & _MASK for c in counter)
    k0, k1 = seed & _MASK, (seed >> 32) & _MASK
    for _ in range(10):
        # The 64-bit product wraps in int64; its bits are those of the unsigned product.
        first, second = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((second >> 32) & _MASK) ^ c1 ^ k0,
            second & _MASK,
            ((first >> 32) & _MASK) ^ c3 ^ k1,
            first & _MASK,
        )
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def kept(probability: float, seed: Tensor, row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """Bool, broadcast over all arguments: false where dropout removes the weight.

    The counter is ``(key // 4, query, head, row)``, its four words belong to four neighbouring keys, and a weight is
    dropped when its word is below ``floor(probability * 2^32)``.
    """
    group = torch.div(key, 4, rounding_mode="floor")
    words = philox((group, query, head, row), seed)
    place = key % 4
    word = torch.where(
        place < 2, torch.where(place == 0, words[0], words[1]), torch.where(place == 2, words[2], words[3])
    )
    return word >= int(probability * 2.0**32)
