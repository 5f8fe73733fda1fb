"""The finer parts of a long text's heat maps: fine blocks where the coarse ones say least, and rows of single keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..reading.record import Reading
from .numbers import pack_numbers


def pack_blocks(reading: Reading, most: int) -> dict[str, Any] | None:
    """Pack at most so many fine blocks of each head as ``pack.py`` describes; ``None`` where there are none."""
    fine = reading.refinement
    if fine is None or most < 1:
        return None
    factor = fine.shares.shape[-1]
    kept = max(1, most // factor**2)
    cells = fine.cells[:, :, :kept]
    there = cells >= 0
    return {
        "block": fine.block,
        "count": there.sum(-1).ravel().tolist(),
        "cells": pack_numbers(cells[there], 16, 0.0, 65535.0),
        "shares": pack_numbers(fine.shares[:, :, :kept][there], 8, 0.0, 1.0, True),
        "apart": pack_numbers(fine.apart[:, :, :kept][there], 8, 0.0, 1.0, True),
    }


def pack_rows(reading: Reading, words: Sequence[int], around: int) -> dict[str, Any] | None:
    """Pack the strongest keys in every head of the tokens of some words and of those around them."""
    near = {
        place
        for word in words
        for token in reading.unit_tokens[word]
        for place in range(max(0, token - around), min(reading.length, token + around + 1))
    }
    if reading.exact or around < 0 or not near:
        return None
    tokens = sorted(near)
    keys, weights = (part[:, :, tokens].transpose(2, 0, 1, 3) for part in (reading.top_keys, reading.top_weights))
    wide = (16, 0.0, 65535.0) if reading.length < 65536 else (32,)
    return {
        "tokens": tokens,
        "keys": pack_numbers(np.maximum(keys, 0), *wide),
        "weights": pack_numbers(np.where(keys >= 0, weights, 0.0), 16, 0.0, 1.0),
    }
