"""An atlas made up from a formula, as the plain values of `Atlas.to_dict`, so that its page is tested without a model."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

TEXT = (
    "Emma Woodhouse, handsome, clever, and rich, with a comfortable home and happy disposition, seemed to unite some of "
    "the best blessings of existence; and had lived nearly twenty-one years in the world with very little to distress "
    "or vex her. She was the youngest of the two daughters of a most affectionate, indulgent father; and had, in "
    "consequence of her sister’s marriage, been mistress of his house from a very early period."
)

#: measure, detail, label, group, unit, low, high (of scores), baseline, its name, claim (role, threshold, factor)
MEASURES: tuple[tuple[Any, ...], ...] = (
    ("offset", "-1", "previous token", "position", "share", 0.0, 1.0, 0.02, "even spread", ("previous token", 0.5, 1.0)),
    ("offset", "-2", "two tokens back", "position", "share", 0.0, 0.6, 0.02, "even spread", ("two tokens back", 0.5, 1.0)),
    ("offset", "0", "the token itself", "position", "share", 0.0, 0.9, 0.02, "even spread", ("self", 0.5, 1.0)),
    ("distance", "", "mean distance", "position", "tokens", 0.5, 60.0, 41.0, "even spread", None),
    ("entropy", "", "entropy", "spread", "nats", 0.1, 4.2, 3.9, "even spread", None),
    ("sink", "", "sink share", "sink", "share", 0.0, 0.98, 0.01, "even spread", ("sink", 0.3, 1.0)),
    ("class", "punctuation", "punctuation", "tokens", "share", 0.0, 0.7, 0.13, "even spread", ("punctuation", 0.6, 1.0)),
    ("induction", "", "induction", "copying", "share", 0.0, 1.0, 0.01, "best fixed offset", ("induction", 0.5, 1.0)),
    ("duplicate", "", "duplicate token", "copying", "share", 0.0, 0.8, 0.04, "even spread", ("duplicate token", 0.5, 1.0)),
    ("retrieval", "", "needle found", "copying", "accuracy", 0.0, 1.0, 0.0, "best fixed offset", ("retrieval", 0.4, 1.0)),
    ("syntax", "obj", "verb to object", "syntax", "accuracy", 0.0, 0.75, 0.35, "best fixed offset", ("verb to object", 0.4, 1.1)),
    ("syntax", "det", "noun to determiner", "syntax", "accuracy", 0.1, 0.85, 0.52, "best fixed offset", ("determiner", 0.5, 1.1)),
    ("coreference", "gap", "pronoun to name", "coreference", "accuracy", 0.2, 0.83, 0.5, "nearest name", ("coreference", 0.6, 1.1)),
    ("semantic", "", "similar words", "meaning", "correlation", -0.3, 0.5, 0.05, "position alone", None),
    ("ablation", "", "importance", "importance", "loss", -0.01, 0.3, 0.0, "no change", None),
)  # fmt: skip

CLASSES = ("names", "nouns", "verbs", "function words", "numbers", "punctuation", "line ends", "special tokens")
CLASS_EVEN = (0.06, 0.2, 0.17, 0.38, 0.02, 0.14, 0.02, 0.01)


def mock_atlas(
    layers: int = 6, heads: int = 12, *, texts: int = 80, maps: bool = True, text: str = TEXT, seed: int = 0
) -> dict[str, Any]:
    """Heads with a few clear roles each, a sink that grows with depth, and examples out of one text."""
    random = np.random.default_rng(layers * 100 + heads + seed)
    depth = np.linspace(0, 1, layers)[:, None]
    kind = random.integers(0, 3 * len(MEASURES), (layers, heads))
    sink = np.clip(depth**0.5 * random.beta(2, 1.2, (layers, heads)), 0, 0.98)
    measures = [_measure(number, row, kind, sink, random, texts) for number, row in enumerate(MEASURES)]
    measures.append(_contextuality(layers, texts))
    offsets = [-64, -48, -32, -24, -16, -12, -8, *range(-6, 1)]
    return {
        "format": "limelight.atlas",
        "version": 1,
        "model": {"name": "made-up", "kind": "decoder", "layers": layers, "heads": heads},
        "corpus": {"name": "Emma (Jane Austen)", "texts": texts, "tokens": 1284 * texts},
        "measures": measures,
        "roles": [role for measure in measures for role in _held(measure)],
        "profile": {
            "offsets": offsets,
            "share": _profile(offsets, kind, random),
            "even": [float(1 / (1 + 0.2 * abs(offset)) * 0.05) for offset in offsets],
        },
        "classes": {
            "names": list(CLASSES),
            "share": _rounded(random.dirichlet(np.array(CLASS_EVEN) * 8 + 0.05, (layers, heads))),
            "even": list(CLASS_EVEN),
        },
        "examples": _examples(layers, heads, text, maps, random),
        "notes": ["Every text is read once, with the sink's share taken out and shown beside the rest."],
    }


def _rounded(values: np.ndarray) -> Any:
    found = np.round(values.astype(float), 5)
    return np.where(np.isfinite(found), found, None).tolist()


def _measure(
    number: int, row: tuple[Any, ...], kind: np.ndarray, sink: np.ndarray, random: np.random.Generator, texts: int
) -> dict[str, Any]:
    measure, detail, label, group, unit, low, high, baseline, baseline_name, claim = row
    strength = random.beta(1.1, 12, kind.shape)
    strong = (kind == number) & (random.random(kind.shape) < 0.8)
    strength = np.where(strong, random.uniform(0.75, 1.0, kind.shape), strength)
    score = sink if measure == "sink" else low + (high - low) * strength
    if measure == "ablation":
        score = low + (high - low) * strength**3
    half = (high - low) * 0.015 * (1 + random.random(kind.shape))
    held = np.clip(score + half * random.normal(0, 1, kind.shape), low, max(high, 1))

    def interval(score: np.ndarray, count: int) -> dict[str, Any]:
        values = {"score": score, "low": np.maximum(score - 2 * half, low), "high": np.minimum(score + 2 * half, max(high, 1))}
        return {name: _rounded(value) for name, value in values.items()} | {"n": 612.0 * count, "texts": count}

    return {
        "measure": measure,
        "detail": detail,
        "label": label,
        "group": group,
        "unit": unit,
        "definition": f"What the measure “{label}” adds up, in one sentence, of every query of the corpus.",
        "chosen": interval(score, texts - texts // 2),
        "scored": interval(held, texts // 2),
        "total": interval((score + held) / 2, texts),
        "baseline": _rounded(np.clip(baseline * (1 + 0.1 * random.normal(0, 1, kind.shape)), 0, None)),
        "baseline_name": baseline_name,
        "control": _rounded(np.where(strong, 0.15, 0.9) * score) if claim else None,
        "claim": claim
        and {
            "role": claim[0],
            "threshold": claim[1],
            "over_baseline": claim[2],
            "margin": None if group == "position" else 0.1,
            "source": "Olsson et al. 2022" if measure == "induction" else "Clark et al. 2019",
        },
        "raw": _rounded(score * (1 - sink)) if unit == "share" and measure != "sink" else None,
        "notes": [],
    }


def _contextuality(layers: int, texts: int) -> dict[str, Any]:
    """A property of the states between layers, not of heads."""
    score = np.linspace(1.0, 0.4, layers + 1)[:, None]
    part = {name: _rounded(score + shift) for name, shift in (("score", 0.0), ("low", -0.02), ("high", 0.02))}
    part |= {"n": 900.0, "texts": texts}
    return {
        "measure": "contextuality",
        "detail": "",
        "label": "self-similarity of a word",
        "group": "meaning",
        "unit": "cosine",
        "definition": "Mean cosine of a word with itself over contexts, less that of random words.",
        "chosen": part,
        "scored": part,
        "total": part,
        "baseline": _rounded(score * 0.3),
        "baseline_name": "random words",
        "control": None,
        "claim": None,
        "raw": None,
        "notes": [],
    }


def _held(measure: dict[str, Any]) -> list[dict[str, Any]]:
    """The heads whose held-out score passes the claim."""
    claim = measure["claim"]
    if claim is None or claim["role"] == "sink":
        return []
    score, baseline = np.array(measure["scored"]["score"]), np.array(measure["baseline"])
    passed = (score >= claim["threshold"]) & (score >= claim["over_baseline"] * baseline)
    return [
        {"layer": int(layer), "head": int(head), "role": claim["role"], "measure": measure["measure"], "detail": measure["detail"]}
        for layer, head in np.argwhere(passed)
    ]


def _profile(offsets: list[int], kind: np.ndarray, random: np.random.Generator) -> Any:
    far = np.exp(-np.abs(np.array(offsets))[None, None] / random.uniform(2, 40, (*kind.shape, 1)))
    peak = np.zeros((*kind.shape, len(offsets)))
    for number, offset in enumerate((-1, -2, 0)):
        peak[kind == number, offsets.index(offset)] = 3.0
    share = far * random.uniform(0.5, 1, far.shape) + peak
    return _rounded(share / share.sum(-1, keepdims=True))


def _examples(layers: int, heads: int, text: str, maps: bool, random: np.random.Generator) -> list[dict[str, Any]]:
    tokens = re.findall(r"\s*[\w’]+|\s*[^\w\s]", text)
    width = min(24, len(tokens))
    found = []
    for layer in range(layers):
        for head in range(heads):
            for rank in range(6):
                start = int(random.integers(0, len(tokens) - width + 1))
                query = int(random.integers(width // 2, width))
                key = int(random.integers(0, query + 1))
                example = {
                    "layer": layer,
                    "head": head,
                    "text": int(random.integers(0, 80)),
                    "tokens": tokens[start : start + width],
                    "query": query,
                    "key": key,
                    "weight": round(0.97 - 0.04 * rank, 4),
                }
                if maps and rank == 0:
                    scores = 2.0 * random.standard_normal((width, width)) + 3.0 * np.eye(width, k=-1)
                    scores[query, key] += 6
                    weights = np.exp(np.where(np.tri(width) > 0, scores, -np.inf))
                    example["map"] = _rounded(weights / weights.sum(1, keepdims=True))
                found.append(example)
    return found
