"""The data of the page: a `Report` packed into compact JSON.

``limelight.page`` version 1; its TypeScript twin is ``web/src/data.ts``. Sizes as in ``reading.py``::

    {"format": "limelight.page", "version": 1,
     "model": {"name", "kind", "layers": N, "heads": H},
     "notes": [sentence, ...], "warnings": [sentence, ...], "chosenBy": phrase,
     "readings": [{
        "text", "causal",
        "tokens": {"text": [...], "start": [...], "end": [...], "word": [...], "special": [position, ...],
                   "apart": [position, ...], "unknown": [position, ...]},
        "words":  {"text": [...], "mark": [punctuation, ...], "content": [word, ...]},
        "chosen": [word, ...],
        "map":    {"block": tokens per block (1: exact weights), "shares": Packed (N, H, T, T),
                   "apart": Packed (N, H, T, T) | null (null when exact: the columns of the tokens say it)},
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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from typing import Any

import numpy as np

from ..reading import Floats, Reading, even_distance, mean_path
from .contents import Contents
from .numbers import numbers as _numbers
from .numbers import pack_numbers
from .pack_relations import Relations, rank_relations
from .pack_writing import pack_predictions

FORMAT, VERSION = "limelight.page", 1

# Characters that no figure may hold (XML 1.0), one for one, so that places in the text stay.
VISIBLE = {
    **{code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n\r"},
    0xFFFE: 0xFFFD,
    0xFFFF: 0xFFFD,
}


@dataclass(frozen=True)
class Detail:
    """A level of detail: bits of a heat map's cell, blocks along its side, relations per token."""

    bits: int
    blocks: int
    relations: int


# Finest first. The last is small enough for 65,000 tokens.
LADDER = (
    Detail(16, 1024, 96),
    Detail(16, 1024, 48),
    Detail(8, 1024, 32),
    Detail(8, 64, 24),
    Detail(8, 64, 20),
    Detail(8, 64, 16),
    Detail(8, 64, 14),
    Detail(8, 64, 12),
    Detail(8, 64, 10),
    Detail(8, 64, 8),
    Detail(8, 32, 6),
    Detail(8, 32, 4),
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
    ranked = [
        cache(partial(rank_relations, reading, max(detail.relations for detail in LADDER)))
        for reading in report.readings
    ]
    tokens = sum(reading.length for reading in report.readings if not reading.exact)
    for detail in LADDER:
        if tokens * detail.relations * RELATION_BYTES > limit:
            continue  # cannot fit
        text = json.dumps(
            _report(report, detail, ranked) | added, ensure_ascii=False, separators=(",", ":"), allow_nan=False
        )
        size = len(text.encode())
        if size <= limit:
            return text
    lengths = " and ".join(str(reading.length) for reading in report.readings)
    raise ValueError(
        f"the page must fit in {limit:,} bytes, but a text of {lengths} tokens needs at least {size:,}; "
        "look at a part of the text, or use --json for the tables alone."
    )


def _report(report: Contents, detail: Detail, ranked: Sequence[Callable[[], Relations]]) -> dict[str, Any]:
    comparison = report.comparison
    return {
        "format": FORMAT,
        "version": VERSION,
        "model": asdict(report.model),
        "notes": report.notes,
        "warnings": report.warnings,
        "chosenBy": report.chosen_by,
        "readings": [
            _reading(reading, list(chosen), detail, relations)
            for reading, chosen, relations in zip(report.readings, report.chosen, ranked, strict=True)
        ],
        "comparison": comparison
        and {
            "pairs": [list(pair) for pair in comparison.pairs],
            "cosine": pack_numbers(comparison.cosine, 16, -1.0, 1.0),
            "baseline": _numbers(comparison.baseline),
            "baselinePairs": comparison.baseline_pairs,
        },
    }


def _reading(reading: Reading, chosen: list[int], detail: Detail, ranked: Callable[[], Relations]) -> dict[str, Any]:
    tokens, words, heads = reading.tokens, reading.words, reading.heads
    fine = reading.length <= 1024
    ratio = np.log2(np.maximum(reading.received, 1e-6) / reading.expected)
    return {
        "text": reading.text.translate(VISIBLE),
        "causal": reading.causal,
        "tokens": {
            "text": [token.text.translate(VISIBLE) for token in tokens],
            "start": [token.start for token in tokens],
            "end": [token.end for token in tokens],
            "word": [token.word for token in tokens],
            "special": [index for index, token in enumerate(tokens) if token.special],
            "apart": list(reading.apart),
            "unknown": list(reading.unknown),
        },
        "words": {
            "text": [word.text.translate(VISIBLE) for word in words],
            "mark": [index for index, word in enumerate(words) if word.is_punctuation],
            "content": [index for index, word in enumerate(words) if word.content],
        },
        "chosen": chosen,
        "map": _map(reading, detail),
        "relations": None if _whole(reading, detail) else ranked().pack(detail.relations),
        "heads": {name: _numbers(getattr(heads, name).ravel()) for name in heads.__dataclass_fields__},
        "even": {
            "entropy": float(np.mean(np.log(reading.visible))),
            "distance": even_distance(reading),
            "share": float(np.mean(1.0 / reading.visible)),
        },
        "nearest": reading.nearest
        and {
            "units": pack_numbers(reading.nearest.units, 16, 0.0, 65535.0),
            "cosine": pack_numbers(reading.nearest.cosine, 16, -1.0, 1.0),
            "mean": _numbers(reading.nearest.mean),
        },
        "norms": pack_numbers(reading.value_norms, 16)
        if reading.value_norms is not None and _whole(reading, detail)
        else None,
        "offsets": {
            "mean": pack_numbers(reading.offsets.total / np.maximum(reading.offsets.count, 1.0), 16, 0.0, 1.0, True),
            "count": reading.offsets.count.astype(int).tolist(),
        },
        "received": pack_numbers(ratio, 8, -8.0, 14.0),
        "path": pack_numbers(reading.path, 16 if fine else 8, -1.0, 1.0),
        "steps": pack_numbers(reading.steps, 16 if fine else 8, -1.0, 1.0),
        "pathOfAll": _numbers(mean_path(reading)),
    }


def _whole(reading: Reading, detail: Detail) -> bool:
    """Whether every single weight goes into the page."""
    return reading.exact and reading.length <= detail.blocks


def _map(reading: Reading, detail: Detail) -> dict[str, Any]:
    shares, apart, block = reading.shares, reading.apart_shares, reading.block
    if _whole(reading, detail):
        linear = detail.bits == 16
        return {"block": 1, "shares": pack_numbers(shares, detail.bits, 0.0, 1.0, not linear), "apart": None}
    while shares.shape[-1] > detail.blocks:
        shares = _coarser(shares, block, reading.length)
        apart = _coarser(apart, block, reading.length)
        block *= 2
    return {
        "block": block,
        "shares": pack_numbers(shares, detail.bits, 0.0, 1.0, True),
        "apart": pack_numbers(apart, detail.bits, 0.0, 1.0, True),
    }


def _coarser(shares: Floats, block: int, length: int) -> Floats:
    """Join blocks two by two: sum over keys, mean over queries."""
    side = shares.shape[-1]
    count = np.minimum(block, length - block * np.arange(side)).astype(np.float32)
    padded = np.pad(shares * count[:, None], ((0, 0), (0, 0), (0, side % 2), (0, side % 2)))
    joined = padded[..., 0::2, :] + padded[..., 1::2, :]
    joined = joined[..., 0::2] + joined[..., 1::2]
    pairs = np.pad(count, (0, side % 2))
    return np.asarray(joined / (pairs[0::2] + pairs[1::2])[:, None], dtype=np.float32)
