"""The nearest words of a word, layer by layer: which vectors of the same text its own comes near to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from .offsets import Floats, Integers

NEAREST = 3  # kept for each word and layer


@dataclass(frozen=True)
class Nearest:
    """The units with the largest cosine to each unit, after each layer.

    ``units`` and ``cosine`` are ``(N + 1, U, k)``, nearest first; ``mean`` is ``(N + 1,)``: the mean cosine of all
    different units, without which a cosine says little (Ethayarajh 2019).
    """

    units: Integers
    cosine: Floats
    mean: Floats


def nearest_units(vectors: Floats) -> Nearest | None:
    """Return the nearest units of a text, in the same layer; ``None`` for a text of one unit.

    Args:
        vectors: of the units at each depth, of length 1, ``(N + 1, U, width)`` (`Paths.vectors`).
    """
    count = vectors.shape[1]
    if count < 2:
        return None
    kept = min(NEAREST, count - 1)
    found = []
    for each in torch.from_numpy(vectors):
        cosine = each @ each.T
        mean = (cosine.sum() - cosine.diagonal().sum()) / (count * (count - 1))
        best = cosine.fill_diagonal_(-2.0).topk(kept, dim=-1)
        found.append((best.indices.to(torch.int32).numpy(), best.values.numpy(), float(mean)))
    index, values, means = zip(*found, strict=True)
    return Nearest(np.stack(index), np.stack(values), np.array(means, np.float32))
