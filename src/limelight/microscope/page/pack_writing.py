"""The page's data of what a decoder wrote and expected: `Predictions`, packed.

The key ``writing`` of ``limelight.page``; its TypeScript twin is in ``web/src/writing.ts``. One entry per text,
``null`` where nothing was predicted; ``P`` successive tokens, ``N`` layers, ``K`` candidates::

    {"first": position of the first predicted token, "written": position from which on the model wrote,
     "vocabulary": number of tokens, "texts": [the text of a token, ...],
     "probability": [P numbers], "rank": [P], "entropy": [P]      (-1 and 0: the token that would come next)
     "candidates": Packed (P, K) numbers in texts, "shares": Packed (P, K),
     "lens": null (left out for want of room) or
             {"top": Packed (P, N + 1, 1 to 3) numbers in texts, "shares": the same, "probability": Packed (P, N + 1),
              "rank": Packed (P, N + 1), log2}}
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ...text import printable
from ..writing.predictions import LAYER_CANDIDATES, Predictions
from .numbers import numbers, pack_numbers


def pack_predictions(predictions: Sequence[Predictions | None], limit: int) -> dict[str, Any]:
    """Return ``{"writing": ...}`` of about ``limit`` bytes at most; nothing where nothing was predicted.

    The lens loses its second and third candidates, and then all of it, where there is no room.
    """
    if not any(one is not None for one in predictions):
        return {}
    for few in (LAYER_CANDIDATES, 1, 0):
        packed = {"writing": [None if one is None else _packed(one, few) for one in predictions]}
        if few == 0 or len(json.dumps(packed)) <= limit:
            break
    return packed


def _packed(one: Predictions, few: int) -> dict[str, Any]:
    ids = sorted({*one.candidates.ravel().tolist(), *one.layer_candidates[..., :few].ravel().tolist()})
    table = np.array(ids)
    return {
        "first": one.first,
        "written": one.written,
        "vocabulary": one.vocabulary,
        "texts": [printable(one.spelled[token]) for token in ids],
        "probability": numbers(np.nan_to_num(one.probability, nan=-1.0)),
        "rank": one.rank.tolist(),
        "entropy": numbers(one.entropy),
        "candidates": _places(table, one.candidates),
        "shares": pack_numbers(one.shares, 16, 0.0, 1.0, root=True),
        "lens": _lens(one, table, few) if few else None,
    }


def _lens(one: Predictions, table: npt.NDArray[Any], few: int) -> dict[str, Any]:
    return {
        "top": _places(table, one.layer_candidates[..., :few]),
        "shares": pack_numbers(one.layer_shares[..., :few], 8, 0.0, 1.0, root=True),
        "probability": pack_numbers(np.nan_to_num(one.layer_probability), 16, 0.0, 1.0, root=True),
        "rank": pack_numbers(np.log2(np.maximum(one.layer_rank, 1)), 16, 0.0, 24.0),
    }


def _places(table: npt.NDArray[Any], ids: npt.NDArray[Any]) -> dict[str, Any]:
    """The numbers of token ids in the table of texts."""
    places = np.searchsorted(table, ids)
    return pack_numbers(places, 16, 0.0, 65535.0) if len(table) < 65536 else pack_numbers(places, 32)
