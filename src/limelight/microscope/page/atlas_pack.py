"""The data of an atlas's page: `Atlas.to_dict` packed into compact JSON.

``limelight.atlas.page`` version 1; its TypeScript twin is ``web/src/atlas/data.ts``. N layers, H heads; `Packed` is that
of ``pack.py``, here with ``"missing": true`` where its largest code stands for a number that is not known::

    {"format": "limelight.atlas.page", "version": 1,
     "model": {"name", "kind", "layers": N, "heads": H}, "other": {"name", "corpus"} | null,
     "corpus": {"name", "texts", "tokens"}, "notes": [sentence, ...], "sink": index of its measure | null,
     "measures": [{"id", "label", "group", "unit", "definition", "baselineName", "notes", "claim" | null,
                   "chosen": Part, "scored": Part, "total": Part,
                   "baseline": Packed (N, H), "control": Packed (N, H) | null,
                   "raw": Packed (N, H) | null (the share with the sink left in),
                   "other": Packed (N, H) | null (total score in the other atlas)}, ...],
     "layers": [{"label", "unit", "definition", "baselineName", "score": [numbers], "low", "high", "baseline",
                 "other": [numbers] | null}, ...] (measured of whole layers, or of the N + 1 states between them),
     "roles": [{"head": layer * H + head, "role", "measure": index, "other": boolean (in the other atlas)}, ...],
     "profile": {"offsets": [O numbers], "share": Packed (N, H, O), "even": [O numbers] | null} | null,
     "classes": {"names": [C], "share": Packed (N, H, C), "even": [C numbers] | null} | null,
     "examples": {"vocabulary": [token, ...], "tokens": Packed (T) vocabulary indices, all windows end to end,
                  "starts": Packed (W + 1), "window": Packed (E), "head": Packed (E), "text": Packed (E),
                  "query": Packed (E), "key": Packed (E), "weight": Packed (E), strongest first within a head,
                  "maps": {"example": [index, ...], "weights": Packed, each (W, W), end to end}} | null}

    Part = {"score": Packed (N, H), "low": Packed, "high": Packed, "n", "texts"}
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ...text import printable
from .pack import Packed, pack_numbers

FORMAT, VERSION = "limelight.atlas.page", 1
Numbers = npt.NDArray[np.float64]


class AtlasLike(Protocol):
    """What was measured of every head: the part of an atlas that its page reads."""

    def to_dict(self) -> dict[str, Any]:
        """The atlas as plain values, in the format ``limelight.atlas``."""


@dataclass(frozen=True)
class Detail:
    """A level of detail: examples per head, and the widest window whose heat map is kept (0: none)."""

    examples: int
    map_side: int


# Finest first.
LADDER = (Detail(8, 48), Detail(6, 32), Detail(6, 0), Detail(4, 0), Detail(2, 0), Detail(1, 0), Detail(0, 0))


def pack_atlas(atlas: Mapping[str, Any], other: Mapping[str, Any] | None, limit: int) -> str:
    """Pack an atlas into JSON of at most ``limit`` bytes, with as many examples as fit.

    Args:
        atlas: as `Atlas.to_dict` returns it.
        other: an atlas to compare with, or ``None``.
        limit: in bytes.

    Raises:
        ValueError: the atlases differ in layers or heads, or the numbers alone need more than ``limit`` bytes.
    """
    model = atlas["model"]
    if other is not None:
        here, there = ((m["layers"], m["heads"]) for m in (model, other["model"]))
        if here != there:
            raise ValueError(
                f"other must have as many layers and heads as the atlas: {here[0]} x {here[1]} here, {there[0]} x "
                f"{there[1]} there; compare two checkpoints of one architecture, or write two pages."
            )
    fixed = _fixed(atlas, other)
    size = 0
    for detail in LADDER:
        fixed["examples"] = _examples(atlas.get("examples") or (), detail, model["heads"])
        text = json.dumps(fixed, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        size = len(text.encode())
        if size <= limit:
            return text
    raise ValueError(
        f"the page of {model['layers']} x {model['heads']} heads must fit in {limit:,} bytes, but the numbers alone need "
        f"{size:,}; measure fewer things, or use --json for the tables alone."
    )


def _fixed(atlas: Mapping[str, Any], other: Mapping[str, Any] | None) -> dict[str, Any]:
    """Everything but the examples."""
    model = atlas["model"]
    size = model["layers"], model["heads"]
    of_heads = [np.shape(measure["total"]["score"]) == size for measure in atlas["measures"]]
    measures = [measure for measure, own in zip(atlas["measures"], of_heads, strict=True) if own]
    of_layers = [measure for measure, own in zip(atlas["measures"], of_heads, strict=True) if not own]
    index = {_key(measure): number for number, measure in enumerate(measures)}
    there = {_key(measure): measure for measure in other["measures"]} if other else {}
    return {
        "format": FORMAT,
        "version": VERSION,
        "model": {"name": _safe(model["name"]), "kind": model["kind"], "layers": size[0], "heads": size[1]},
        "corpus": _corpus(atlas["corpus"]),
        "other": other and {"name": _safe(other["model"]["name"]), "corpus": _corpus(other["corpus"])},
        "notes": [_safe(note) for note in atlas["notes"]],
        "sink": next((number for (measure, _), number in index.items() if measure == "sink"), None),
        "measures": [_measure(measure, there.get(_key(measure)), size) for measure in measures],
        "layers": [_layers(measure, there.get(_key(measure))) for measure in of_layers],
        "roles": [
            {
                "head": role["layer"] * size[1] + role["head"],
                "role": _safe(role["role"]),
                "measure": index[_key(role)],
                "other": source is other,
            }
            for source in (atlas, other)
            if source is not None
            for role in source["roles"]
            if _key(role) in index
        ],
        "profile": _shares(atlas.get("profile"), "offsets"),
        "classes": _shares(atlas.get("classes"), "names"),
    }


def _key(entry: Mapping[str, Any]) -> tuple[str, str]:
    return entry["measure"], entry["detail"]


def _corpus(corpus: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": _safe(corpus["name"]), "texts": corpus["texts"], "tokens": corpus["tokens"]}


def _measure(measure: Mapping[str, Any], there: Mapping[str, Any] | None, size: tuple[int, int]) -> dict[str, Any]:
    control, raw, claim = (measure.get(name) for name in ("control", "raw", "claim"))
    return {
        **_named(measure),
        "claim": claim
        and {
            "role": _safe(claim["role"]),
            "threshold": claim["threshold"],
            "overBaseline": claim["over_baseline"],
            "margin": claim.get("margin"),
            "source": _safe(claim["source"]),
        },
        **{part: _part(measure[part], size) for part in ("chosen", "scored", "total")},
        "baseline": _packed(measure["baseline"], size),
        "control": None if control is None else _packed(control, size),
        "raw": None if raw is None else _packed(raw, size),
        "other": None if there is None else _packed(there["total"]["score"], size),
    }


def _layers(measure: Mapping[str, Any], there: Mapping[str, Any] | None) -> dict[str, Any]:
    """A measure of layers: few numbers, written out."""
    total, shape = measure["total"], np.shape(measure["total"]["score"])
    return {
        **_named(measure),
        **{name: _listed(total[name], shape) for name in ("score", "low", "high")},
        "baseline": _listed(measure["baseline"], shape),
        "other": None if there is None else _listed(there["total"]["score"], shape),
    }


def _listed(values: Any, shape: tuple[int, ...]) -> list[float | None]:
    array = np.broadcast_to(np.array(values, np.float64), shape).ravel()
    return [float(f"{value:.5g}") if np.isfinite(value) else None for value in array]


def _named(measure: Mapping[str, Any]) -> dict[str, Any]:
    """What a measure is called, and how it is defined."""
    label = " ".join(part for part in _key(measure) if part)
    return {
        "id": label,
        "label": _safe(measure.get("label") or label),
        "group": _safe(measure.get("group") or measure["measure"]),
        "unit": _safe(measure["unit"]),
        "definition": _safe(measure.get("definition") or ""),
        "baselineName": _safe(measure["baseline_name"]),
        "notes": [_safe(note) for note in measure["notes"]],
    }


def _part(part: Mapping[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    numbers = {name: _packed(part[name], size) for name in ("score", "low", "high")}
    return {**numbers, "n": part["n"], "texts": part["texts"]}


def _shares(shares: Mapping[str, Any] | None, names: str) -> dict[str, Any] | None:
    if shares is None:
        return None
    even = shares.get("even")
    listed = [_safe(name) if isinstance(name, str) else name for name in shares[names]]
    return {names: listed, "share": _packed(shares["share"]), "even": None if even is None else list(even)}


def _packed(values: Any, size: tuple[int, ...] | None = None) -> Packed:
    """16 bits a number between the smallest and the largest; the largest code where a number is not known."""
    array = np.array(values, np.float64)  # None becomes NaN
    array = array if size is None else np.broadcast_to(array, size)
    known = np.isfinite(array)
    low, high = (float(array[known].min()), float(array[known].max())) if known.any() else (0.0, 0.0)
    top = high + max(high - low, 1e-6) / 65534  # one code above the largest number
    return {**pack_numbers(np.where(known, array, top), 16, low, top), "missing": True}


def _examples(examples: Sequence[Mapping[str, Any]], detail: Detail, heads: int) -> dict[str, Any] | None:
    """The strongest examples of each head; windows that several heads share are kept once."""
    vocabulary: dict[str, int] = {}
    windows: dict[tuple[int, ...], int] = {}
    rows: list[tuple[int, ...]] = []
    weights: list[float] = []
    maps: list[Numbers] = []
    mapped: list[int] = []
    counts: dict[int, int] = {}
    for example in examples:
        head = example["layer"] * heads + example["head"]
        counts[head] = counts.get(head, 0) + 1
        if counts[head] > detail.examples:
            continue
        ids = tuple(vocabulary.setdefault(_safe(token), len(vocabulary)) for token in example["tokens"])
        window = windows.setdefault(ids, len(windows))
        if (weights_of := example.get("map")) is not None and len(ids) <= detail.map_side:
            mapped.append(len(rows))
            maps.append(np.nan_to_num(np.array(weights_of, np.float64)).ravel())
        rows.append((window, head, example["text"], example["query"], example["key"]))
        weights.append(example["weight"])
    if not rows:
        return None
    columns = zip(("window", "head", "text", "query", "key"), np.array(rows).T, strict=True)
    return {
        "vocabulary": list(vocabulary),
        "tokens": _counted([token for window in windows for token in window]),
        "starts": _counted(np.cumsum([0, *map(len, windows)])),
        **{name: _counted(column) for name, column in columns},
        "weight": pack_numbers(np.array(weights), 16, 0.0, 1.0),
        "maps": {
            "example": mapped,
            "weights": pack_numbers(np.concatenate(maps) if maps else np.zeros(0), 8, 0.0, 1.0, root=True),
        },
    }


def _counted(values: Sequence[int] | npt.NDArray[Any]) -> Packed:
    return pack_numbers(np.array(values, np.int64), 32)


def _safe(text: str) -> str:
    """The text with a visible picture for each character that a page or a figure (XML 1.0) may not hold."""
    return printable(text).translate({0xFFFE: 0xFFFD, 0xFFFF: 0xFFFD})
