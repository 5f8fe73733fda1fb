"""One text of the page's data, in any level of detail: a `PackedReading`, as the top of ``pack.py`` describes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..reading.record import Floats, Reading, even_distance, mean_path
from .numbers import numbers, pack_numbers
from .pack_refinement import pack_blocks, pack_rows
from .pack_relations import rank_relations

# Characters that no figure may hold (XML 1.0), one for one, so that places in the text stay.
VISIBLE = {
    **{code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n\r"},
    0xFFFE: 0xFFFD,
    0xFFFF: 0xFFFD,
}


@dataclass(frozen=True)
class Detail:
    """A level of detail.

    ``bits`` of a heat map's cell, ``blocks`` along its side, ``relations`` per token; of a long text also ``fine``
    blocks of each head, and tokens ``around`` the chosen words whose strongest keys are there in every head (-1: not
    even those of the words).
    """

    bits: int
    blocks: int
    relations: int
    fine: int = 0
    around: int = -1


class PackedReading:
    """Packs one text; what several levels of detail have in common is packed once.

    Args:
        reading: the text and its observations.
        chosen: the words to begin with.
        relations: the largest number of relations per token of any level.
    """

    def __init__(self, reading: Reading, chosen: Sequence[int], relations: int) -> None:
        self.reading, self.chosen, self.relations = reading, list(chosen), relations
        self._made: dict[tuple[Any, ...], Any] = {}

    def at(self, detail: Detail) -> dict[str, Any]:
        """The text in a level of detail."""
        reading, once = self.reading, self._once
        whole = _whole(reading, detail)
        ranked = None if whole else once(("ranked",), lambda: rank_relations(reading, self.relations))
        norms = reading.value_norms if whole else None
        return {
            **once(("fixed",), self._fixed),
            "map": self._map(detail),
            "relations": ranked and once(("relations", detail.relations), lambda: ranked.pack(detail.relations)),
            "norms": None if norms is None else once(("norms",), lambda: pack_numbers(norms, 16)),
        }

    def _once(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def _map(self, detail: Detail) -> dict[str, Any]:
        reading, once = self.reading, self._once
        found = once(("map", detail.bits, detail.blocks), lambda: _map(reading, detail))
        refined = found["block"] == reading.block > 1
        return {
            **found,
            "fine": once(("fine", detail.fine), lambda: pack_blocks(reading, detail.fine)) if refined else None,
            "rows": once(("rows", detail.around), lambda: pack_rows(reading, self.chosen, detail.around)),
        }

    def _fixed(self) -> dict[str, Any]:
        reading = self.reading
        tokens, words, heads = reading.tokens, reading.words, reading.heads
        fine = reading.length <= 1024
        ratio = np.log2(np.maximum(reading.received, 1e-6) / reading.expected)
        return {
            "text": reading.text.translate(VISIBLE),
            "causal": reading.causal,
            "keys": reading.keys,
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
            "chosen": self.chosen,
            "heads": {name: numbers(getattr(heads, name).ravel()) for name in heads.__dataclass_fields__},
            "even": {
                "entropy": float(np.mean(np.log(reading.visible))),
                "distance": even_distance(reading),
                "share": float(np.mean(1.0 / reading.visible)),
            },
            "nearest": reading.nearest
            and {
                "units": pack_numbers(reading.nearest.units, 16, 0.0, 65535.0),
                "cosine": pack_numbers(reading.nearest.cosine, 16, -1.0, 1.0),
                "mean": numbers(reading.nearest.mean),
            },
            "offsets": {
                "mean": pack_numbers(
                    reading.offsets.total / np.maximum(reading.offsets.count, 1.0), 16, 0.0, 1.0, True
                ),
                "count": reading.offsets.count.astype(int).tolist(),
            },
            "received": pack_numbers(ratio, 8, -8.0, 14.0),
            "path": pack_numbers(reading.path, 16 if fine else 8, -1.0, 1.0),
            "steps": pack_numbers(reading.steps, 16 if fine else 8, -1.0, 1.0),
            "pathOfAll": numbers(mean_path(reading)),
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
