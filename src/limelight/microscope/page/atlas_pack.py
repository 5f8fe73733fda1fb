"""The data of an atlas's page: `Atlas.to_dict` packed into compact JSON.

``limelight.atlas.page`` version 1; its TypeScript twin is ``web/src/atlas/data.ts``. N layers, H heads; `Packed` is
that of ``pack.py``, here with ``"missing": true`` where its largest code stands for a number that is not known. A head
is given by its place ``layer * H + head``::

    {"format": "limelight.atlas.page", "version": 1,
     "model": {"name", "kind", "layers": N, "heads": H}, "other": {"name", "corpus"} | null,
     "corpus": {"name", "texts", "tokens", "complete", "probes": [{"name", "texts", "tokens"}, ...]},
     "notes": [sentence, ...],
     "measures": [{"id", "label", "group", "unit", "definition", "baselineName", "notes", "claim" | null,
                   "chosen": Part, "scored": Part, "total": Part,
                   "baseline": Packed (N, H), "control": Packed (N, H) | null,
                   "raw": Packed (N, H) | null (the share with the sinks left in),
                   "other": Part | null (over all texts, in the other atlas)}, ...],
     "layers": [{"label", "unit", "definition", "baselineName", "score": [numbers], "low", "high", "baseline",
                 "other": [numbers] | null}, ...] (measured of whole layers, or of the N + 1 states between them),
     "roles": [{"head", "role", "measure": index, "other": boolean (in the other atlas)}, ...] without that of the sink,
     "sink": {"measure": index, "heads": [head, ...]} | null,
     "profile": {"bins": [[first, last], ...], "share": Packed (N, H, bins), "even": [numbers]} | null,
     "classes": {"names": [C], "share": Packed (N, H, C), "even": Packed (N, H, C)} | null,
     "similar": {"head": Packed, "other": Packed, "cosine": Packed} | null, the most similar first within a head,
     "examples": {"vocabulary": [token, ...], "tokens": Packed (T) vocabulary indices, all windows end to end,
                  "starts": Packed (W + 1), "window": Packed (E), "head": Packed (E), "text": Packed (E),
                  "query": Packed (E), "key": Packed (E), "weight": Packed (E)} | null, strongest first within a head,
     "picture": {"tokens": [L], "weights": Packed (N, H, L, L)} | null}

    Part = {"score": Packed (N, H), "low": Packed, "high": Packed, "n", "texts"}
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ...tensors.shapes import wrong
from ...text import printable
from .atlas_words import words_of
from .numbers import Packed, pack_numbers

FORMAT, VERSION = "limelight.atlas.page", 1
Numbers = npt.NDArray[np.float64]


class AtlasLike(Protocol):
    """What was measured of every head: the part of an atlas that its page reads."""

    def to_dict(self) -> dict[str, Any]:
        """The atlas as plain values, in the format ``limelight.atlas``."""


@dataclass(frozen=True)
class Detail:
    """A level of detail: examples per head, and whether the heat maps of a short text are kept."""

    examples: int
    picture: bool


# Finest first.
LADDER = (Detail(8, True), Detail(4, True), Detail(4, False), Detail(2, False), Detail(1, False), Detail(0, False))
SINK = "sink"  # the measure whose role stands apart from all others


def pack_atlas(atlas: Mapping[str, Any], other: Mapping[str, Any] | None, limit: int) -> str:
    """Pack an atlas into JSON of at most ``limit`` bytes, with as many examples as fit.

    Args:
        atlas: as `Atlas.to_dict` returns it.
        other: an atlas to compare with, or ``None``.
        limit: in bytes.

    Raises:
        ArgumentError: the atlases differ in layers or heads.
        ValueError: the numbers alone need more than ``limit`` bytes.
    """
    model = atlas["model"]
    if other is not None:
        here, there = ((m["layers"], m["heads"]) for m in (model, other["model"]))
        if here != there:
            got = f"the atlas has {here[0]} x {here[1]}, other {there[0]} x {there[1]}"
            way_out = "Heads correspond only between checkpoints of one architecture."
            raise wrong("other", "must have as many layers and heads", got, way_out)
    fixed = _fixed(atlas, other)
    size = 0
    for detail in LADDER:
        fixed["examples"] = _examples(atlas.get("examples") or (), detail.examples, model["heads"])
        fixed["picture"] = _picture(atlas.get("picture"), (model["layers"], model["heads"])) if detail.picture else None
        text = json.dumps(fixed, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        size = len(text.encode())
        if size <= limit:
            return text
    raise ValueError(
        f"the page of {model['layers']} x {model['heads']} heads must fit in {limit:,} bytes, but the numbers alone "
        f"need {size:,}; measure fewer things, or use --json for the tables alone."
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
        "notes": _notes(atlas),
        "measures": [_measure(measure, there.get(_key(measure)), size) for measure in measures],
        "layers": [_layers(measure, there.get(_key(measure))) for measure in of_layers],
        "roles": [
            {
                "head": _place(role, size[1]),
                "role": _safe(role["role"]),
                "measure": index[_key(role)],
                "other": source is other,
            }
            for source in (atlas, other)
            if source is not None
            for role in source["roles"]
            if _key(role) in index and role["measure"] != SINK
        ],
        "sink": _sink(atlas, index),
        "profile": _profile(atlas.get("profile")),
        "classes": _classes(atlas.get("classes")),
        "similar": _similar(atlas.get("similar"), size[1]),
    }


def _place(row: Mapping[str, Any], heads: int, before: str = "") -> int:
    return int(row[f"{before}layer"] * heads + row[f"{before}head"])


def _sink(atlas: Mapping[str, Any], index: Mapping[tuple[str, str], int]) -> dict[str, Any] | None:
    if (SINK, "") not in index:
        return None
    heads = [_place(role, atlas["model"]["heads"]) for role in atlas["roles"] if role["measure"] == SINK]
    return {"measure": index[SINK, ""], "heads": heads}


def _notes(atlas: Mapping[str, Any]) -> list[str]:
    """The notes, without the sources of thresholds, which stand with the measures."""
    claims = [measure["claim"] for measure in atlas["measures"] if measure["claim"]]
    sources = {f"{claim['role']}: {claim['source']}." for claim in claims}
    return [_safe(note) for note in atlas["notes"] if note not in sources]


def _key(entry: Mapping[str, Any]) -> tuple[str, str]:
    return entry["measure"], entry["detail"]


def _corpus(corpus: Mapping[str, Any]) -> dict[str, Any]:
    sizes = {"texts": corpus["texts"], "tokens": corpus["tokens"], "complete": corpus["complete"]}
    probes = [{**probe, "name": _safe(probe["name"])} for probe in corpus["probes"]]
    return {"name": _safe(corpus["name"]), **sizes, "probes": probes}


def _measure(measure: Mapping[str, Any], there: Mapping[str, Any] | None, size: tuple[int, int]) -> dict[str, Any]:
    control, raw, claim = (measure[name] for name in ("control", "raw", "claim"))
    return {
        **_named(measure),
        "claim": claim
        and {
            "role": _safe(claim["role"]),
            "threshold": claim["threshold"],
            "overBaseline": claim["over_baseline"],
            "margin": claim["margin"],
            "source": _safe(claim["source"]),
        },
        **{part: _part(measure[part], size) for part in ("chosen", "scored", "total")},
        "baseline": _packed(measure["baseline"], size),
        "control": None if control is None else _packed(control, size),
        "raw": None if raw is None else _packed(raw, size),
        "other": None if there is None else _part(there["total"], size),
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


def _listed(values: Any, shape: tuple[int, ...] | None = None) -> list[float | None]:
    array = np.array(values, np.float64)
    array = (array if shape is None else np.broadcast_to(array, shape)).ravel()
    return [float(f"{value:.5g}") if np.isfinite(value) else None for value in array]


def _named(measure: Mapping[str, Any]) -> dict[str, Any]:
    """What a measure is called, and how it is defined."""
    label, group, definition = words_of(*_key(measure))
    return {
        "id": _safe(" ".join(part for part in _key(measure) if part)),
        "label": _safe(label),
        "group": _safe(group),
        "unit": _safe(measure["unit"]),
        "definition": _safe(definition),
        "baselineName": _safe(measure["baseline_name"]),
        "notes": [_safe(note) for note in measure["notes"]],
    }


def _part(part: Mapping[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    numbers = {name: _packed(part[name], size) for name in ("score", "low", "high")}
    return {**numbers, "n": part["n"], "texts": part["texts"]}


def _profile(profile: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The profile without the bins at both ends that no key falls into."""
    if profile is None:
        return None
    share, even = np.array(profile["share"], np.float64), np.array(profile["even"], np.float64)
    some = np.flatnonzero((np.nan_to_num(even) > 0) | (np.nan_to_num(share).max((0, 1)) > 0))
    kept = slice(some[0], some[-1] + 1) if len(some) else slice(0)
    return {"bins": profile["bins"][kept], "share": _packed(share[..., kept]), "even": _listed(even[kept])}


def _classes(classes: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if classes is None:
        return None
    names = [_safe(name) for name in classes["names"]]
    return {"names": names, "share": _packed(classes["share"]), "even": _packed(classes["even"])}


def _similar(rows: Sequence[Mapping[str, Any]] | None, heads: int) -> dict[str, Any] | None:
    if not rows:
        return None
    return {
        "head": _counted([_place(row, heads) for row in rows]),
        "other": _counted([_place(row, heads, "other_") for row in rows]),
        "cosine": pack_numbers(np.array([row["cosine"] for row in rows]), 16, -1.0, 1.0),
    }


def _picture(picture: Mapping[str, Any] | None, size: tuple[int, int]) -> dict[str, Any] | None:
    if picture is None:
        return None
    side = len(picture["tokens"])
    weights = np.frombuffer(base64.b64decode(picture["weights"]), np.uint8).reshape(*size, side, side)
    return {
        "tokens": [_safe(token) for token in picture["tokens"]],
        "weights": pack_numbers(weights / 255, 8, 0.0, 1.0),
    }


def _packed(values: Any, size: tuple[int, ...] | None = None) -> Packed:
    """16 bits a number between the smallest and the largest; the largest code where a number is not known."""
    array = np.array(values, np.float64)  # None becomes NaN
    array = array if size is None else np.broadcast_to(array, size)
    known = np.isfinite(array)
    low, high = (float(array[known].min()), float(array[known].max())) if known.any() else (0.0, 0.0)
    top = high + max(high - low, 1e-3) / 65534  # one code above the largest number
    return {**pack_numbers(np.where(known, array, top), 16, low, top), "missing": True}


def _examples(examples: Sequence[Mapping[str, Any]], most: int, heads: int) -> dict[str, Any] | None:
    """The strongest ``most`` examples of each head; windows that several heads share are kept once."""
    vocabulary: dict[str, int] = {}
    windows: dict[tuple[int, ...], int] = {}
    rows: list[tuple[int, ...]] = []
    weights: list[float] = []
    counts: dict[int, int] = {}
    for example in examples:
        head = _place(example, heads)
        counts[head] = counts.get(head, 0) + 1
        if counts[head] > most:
            continue
        ids = tuple(vocabulary.setdefault(_safe(token), len(vocabulary)) for token in example["tokens"])
        window = windows.setdefault(ids, len(windows))
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
    }


def _counted(values: Sequence[int] | npt.NDArray[Any]) -> Packed:
    return pack_numbers(np.array(values, np.int64), 32)


def _safe(text: str) -> str:
    """The text with a visible picture for each character that a page or a figure (XML 1.0) may not hold."""
    return printable(text).translate({0xFFFE: 0xFFFD, 0xFFFF: 0xFFFD})
