"""The data of the page: a `Report` packed into compact JSON.

``limelight.page`` version 1; its TypeScript twin is ``web/src/data.ts``. Sizes as in ``reading/record.py``::

    {"format": "limelight.page", "version": 1,
     "model": {"name", "kind", "layers": N, "heads": H},
     "notes": [sentence, ...], "warnings": [sentence, ...], "chosenBy": phrase,
     "readings": [{
        "text", "causal", "keys": null or how many each query sees, where there are more than tokens (silence),
        "tokens": {"text": [...], "start": [...], "end": [...], "word": [...], "special": [position, ...],
                   "apart": [position, ...], "unknown": [position, ...]},
        "words":  {"text": [...], "mark": [punctuation, ...], "content": [word, ...]},
        "chosen": [word, ...],
        "map":    {"block": tokens per block (1: exact weights), "shares": Packed (N, H, T, T),
                   "apart": Packed (N, H, T, T) | null (null when exact: the columns of the tokens say it),
                   "fine": null or {"block": tokens per fine block, of which (r, r) lie in one of the map's,
                            "count": [N * H numbers of refined cells], "cells": Packed (n) row * T + column,
                            "shares": Packed (n, r, r), "apart": Packed (n, r, r)},
                   "rows": null or {"tokens": [position, ...], "keys": Packed (R, N, H, k), "weights": Packed} the
                            strongest keys of these tokens in every head, 0: none},
        "relations": null (block 1: the map says it all) or
                  {"each": n, "keys": Packed (L, n), "heads": Packed (L, n) layer * H + head,
                   "weights": Packed (L, n), strongest first, 0: none; tokens set apart are left out},
        "heads":  {"entropy": [N * H numbers], "strongest", "distance", "previous", "own", "next", "apart"},
        "even":   {"entropy", "distance", "share"},
        "nearest": null or {"units": Packed (N + 1, U, k), "cosine": Packed (N + 1, U, k), "mean": [N + 1 numbers]},
        "norms": Packed (N, H, L) | null (norm of what a head writes for a key; of exact weights only),
        "offsets": {"mean": Packed (N, H, bins), "count": [bins numbers]},  (`OffsetProfile`: total / count)
        "received": Packed (N, L) log2(weight received / even weight),
        "path": Packed (N + 1, U), "steps": Packed (N + 1, U), "pathOfAll": [N + 1 numbers]}, ...],
     "writing": with predictions only; described in ``pack_writing.py``,
     "comparison": null or {"pairs": [[a, b], ...], "cosine": Packed (P, N + 1), "baseline": [N + 1 numbers],
                            "baselinePairs": count}}

    Packed = {"shape": [...], "bits": 8 | 16 | 32, "low", "high", "root": boolean, "data": base64}

``data`` is the zlib stream of little-endian unsigned integers ``q`` in C order. With ``m = 2^bits - 1``, a value is
``low + (high - low) * q / m``, or with ``root`` ``low + (high - low) * (q / m)^2``, which spends more codes on small
numbers. 32-bit numbers are plain integers (``low`` 0, ``high`` ``m``).

A page must stay small at any length, so `pack` takes the first of a ladder of settings that fits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from .contents import Contents
from .numbers import numbers as _numbers
from .numbers import pack_numbers
from .pack_reading import Detail, PackedReading
from .pack_writing import pack_predictions

FORMAT, VERSION = "limelight.page", 1

# Finest first. The last is small enough for 65,000 tokens.
LADDER = (
    Detail(16, 1024, 96, 8192, 24),
    Detail(16, 1024, 48, 8192, 24),
    Detail(8, 1024, 32, 8192, 24),
    Detail(8, 64, 24, 8192, 24),
    Detail(8, 64, 20, 8192, 16),
    Detail(8, 64, 16, 6144, 16),
    Detail(8, 64, 14, 4096, 16),
    Detail(8, 64, 12, 4096, 12),
    Detail(8, 64, 10, 3072, 8),
    Detail(8, 64, 8, 2048, 8),
    Detail(8, 64, 8, 1024, 4),
    Detail(8, 64, 8, 512, 2),
    Detail(8, 64, 8, 0, 0),
    Detail(8, 32, 6, 0, 0),
    Detail(8, 32, 4, 0, 0),
    Detail(8, 32, 2),
    Detail(8, 16, 1),
    Detail(8, 8, 1),
)

RELATION_BYTES = 4  # minimum bytes of a packed relation


def pack(report: Contents, limit: int, beside: Mapping[str, Any] | None = None) -> str:
    """Pack a report into JSON of at most ``limit`` bytes, in the finest detail that fits.

    Args:
        report: what the page is made from.
        limit: in bytes.
        beside: further keys of the data, such as the roles of an atlas.

    Raises:
        ValueError: nothing fits: the text has more tokens than a page can name in ``limit`` bytes.
    """
    size = 0
    added = {**pack_predictions(report.predictions, limit // 3), **(beside or {})}
    most = max(detail.relations for detail in LADDER)
    readings = [
        PackedReading(reading, chosen, most) for reading, chosen in zip(report.readings, report.chosen, strict=True)
    ]
    tokens = sum(reading.length for reading in report.readings if not reading.exact)
    for detail in LADDER:
        if tokens * detail.relations * RELATION_BYTES > limit:
            continue  # cannot fit
        text = json.dumps(
            _report(report, detail, readings) | added, ensure_ascii=False, separators=(",", ":"), allow_nan=False
        )
        size = len(text.encode())
        if size <= limit:
            return text
    lengths = " and ".join(str(reading.length) for reading in report.readings)
    raise ValueError(
        f"the page must fit in {limit:,} bytes, but a text of {lengths} tokens needs at least {size:,}; "
        "look at a part of the text, or use --json for the tables alone."
    )


def _report(report: Contents, detail: Detail, readings: Sequence[PackedReading]) -> dict[str, Any]:
    comparison = report.comparison
    return {
        "format": FORMAT,
        "version": VERSION,
        "model": asdict(report.model),
        "notes": report.notes,
        "warnings": report.warnings,
        "chosenBy": report.chosen_by,
        "readings": [reading.at(detail) for reading in readings],
        "comparison": comparison
        and {
            "pairs": [list(pair) for pair in comparison.pairs],
            "cosine": pack_numbers(comparison.cosine, 16, -1.0, 1.0),
            "baseline": _numbers(comparison.baseline),
            "baselinePairs": comparison.baseline_pairs,
        },
    }
