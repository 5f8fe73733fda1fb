"""Arrays as compact JSON: quantised, compressed, in base64."""

from __future__ import annotations

import base64
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

Packed = dict[str, Any]


def pack_numbers(
    values: npt.NDArray[Any], bits: int, low: float = 0.0, high: float | None = None, root: bool = False
) -> Packed:
    """Quantise an array and pack it in the form that the top of ``pack.py`` describes.

    Args:
        values: any shape, finite; clipped to ``[low, high]``.
        bits: 8, 16, or 32 (integers as they are).
        low: the value of the smallest code.
        high: the value of the largest code; by default the largest value.
        root: quantise the square root, which spends more codes on small numbers.
    """
    most = 2**bits - 1
    if bits == 32:
        codes = values
        top = float(most)
    else:
        top = float(values.max(initial=low)) if high is None else high
        top = max(top, low + 1e-9)
        scaled = np.clip((values.astype(np.float64) - low) / (top - low), 0.0, 1.0)
        codes = np.rint((np.sqrt(scaled) if root else scaled) * most)
    raw = codes.astype({8: "<u1", 16: "<u2", 32: "<u4"}[bits]).tobytes()
    return {
        "shape": list(values.shape),
        "bits": bits,
        "low": low,
        "high": top,
        "root": root,
        "data": base64.b64encode(zlib.compress(raw)).decode(),
    }


def pack_rows(weights: npt.NDArray[Any], levels: int) -> dict[str, Packed]:
    """Pack rows of weights, each relative to its own largest one, with ``levels`` steps of the square root.

    A weight is ``top * (code / levels)^2``: ``{"codes": Packed (..., S), "top": Packed (...)}``. Few levels compress
    well, and are spent where a row has its weights.

    Args:
        weights: ``(..., S)``, between 0 and 1.
        levels: the largest code, at most 65535.
    """
    top = weights.max(-1, initial=0.0)
    scaled = np.sqrt(weights / np.maximum(top, 1e-30)[..., None], dtype=np.float32)
    bits = 8 if levels < 256 else 16
    codes = np.rint(scaled * levels)
    return {"codes": pack_numbers(codes, bits, 0.0, 2.0**bits - 1), "top": pack_numbers(top, 16, 0.0, 1.0, root=True)}


def numbers(values: npt.NDArray[Any]) -> list[float]:
    """The values of an array as plain numbers of five significant digits."""
    return [float(f"{float(value):.5g}") for value in values]
