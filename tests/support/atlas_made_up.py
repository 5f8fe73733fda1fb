"""An atlas made up from a formula, as the plain values of `Atlas.to_dict`, to test its page without a model."""

from __future__ import annotations

import base64
import re
from typing import Any

import numpy as np

TEXT = (
    "Emma Woodhouse, handsome, clever, and rich, with a comfortable home and happy disposition, seemed to unite "
    "some of the best blessings of existence; and had lived nearly twenty-one years in the world with very little "
    "to distress or vex her. She was the youngest of the two daughters of a most affectionate, indulgent father; "
    "and had, in consequence of her sister’s marriage, been mistress of his house from a very early period."
)

EVEN, OFFSET = "even spread", "the larger of an even spread and the best fixed offset"
#: measure, detail, unit, low and high of its scores, baseline, its name, claim (role, threshold, over_baseline, margin)
MEASURES: tuple[tuple[Any, ...], ...] = (
    ("offset", "-1", "share", 0.0, 1.0, 0.02, EVEN, ("previous token", 0.5, 1.5, None)),
    ("offset", "-2", "share", 0.0, 0.6, 0.02, EVEN, ("position -2", 0.5, 1.5, None)),
    ("offset", "+0", "share", 0.0, 0.9, 0.02, EVEN, ("same token", 0.5, 1.5, None)),
    ("distance", "", "tokens", 0.5, 60.0, 41.0, EVEN, None),
    ("entropy", "", "nats", 0.1, 4.2, 3.9, EVEN, None),
    ("sink", "", "share", 0.0, 0.98, 0.01, EVEN, ("sink", 0.3, 1.5, None)),
    ("token class", "punctuation", "share", 0.0, 0.8, 0.13, OFFSET, ("punctuation", 0.6, 1.5, 0.1)),
    ("repeated random tokens", "induction", "share", 0.0, 1.0, 0.01, OFFSET, ("induction", 0.5, 1.5, 0.1)),
    ("duplicate token", "", "share", 0.0, 0.8, 0.04, OFFSET, ("duplicate token", 0.5, 2.0, 0.1)),
    ("needle", "", "share of tokens", 0.0, 1.0, 0.0, "best fixed offset", ("retrieval", 0.4, 1.0, 0.1)),
    ("syntax", "obj, head to dependent", "accuracy", 0.0, 0.75, 0.35, "best fixed offset", ("object", 0.0, 1.1, 0.1)),
    ("syntax", "det, head to dependent", "accuracy", 0.1, 0.8, 0.5, "best fixed offset", ("determiner", 0.0, 1.1, 0.1)),
    ("semantic", "", "correlation", -0.3, 0.5, 0.05, "position alone", None),
    ("ablation", "", "loss", -0.01, 0.3, 0.0, "no change", None),
)  # fmt: skip
CLASSES = ("punctuation", "number", "capitalised", "function word", "content word", "later piece of a word")
CLASS_EVEN = np.array((0.14, 0.02, 0.06, 0.38, 0.3, 0.1))
FAR = ((-64, -49), (-48, -33), (-32, -25), (-24, -17), (-16, -13), (-12, -9), (-8, -7), (-6, -5))
BINS = ((-(10**12), -65), *FAR, *((offset, offset) for offset in range(-4, 2)))


class MadeUpAtlas:
    """What `write_atlas` takes, made from the arguments of `mock_atlas`."""

    def __init__(self, *sizes: int, **settings: Any) -> None:
        self.values = mock_atlas(*sizes, **settings)

    def to_dict(self) -> dict[str, Any]:
        return self.values


def mock_atlas(
    layers: int = 6, heads: int = 12, *, texts: int = 80, text: str = TEXT, name: str = "made-up", seed: int = 0
) -> dict[str, Any]:
    """Heads of which a third has a clear role, a sink that grows with depth, and examples out of one text."""
    random = np.random.default_rng(layers * 100 + heads + seed)
    depth = np.linspace(0, 1, layers)[:, None]
    kind = random.integers(0, 3 * len(MEASURES), (layers, heads))
    sink = np.clip(depth**0.5 * random.beta(2, 1.2, (layers, heads)), 0, 0.98)
    measures = [_measure(number, row, kind, sink, random, texts) for number, row in enumerate(MEASURES)]
    sizes = {"texts": texts, "tokens": 1284 * texts, "complete": True}
    even = np.array([float((first > -100) * (last <= 0) * (last - max(first, -100) + 1) / 66) for first, last in BINS])
    tokens = [piece.replace("  ", " ") for piece in re.findall(r"\s*[\w’]+|\s*[^\w\s]", text)]
    return {
        "format": "limelight.atlas",
        "version": 1,
        "model": {"name": name, "kind": "decoder", "layers": layers, "heads": heads},
        "corpus": {"name": "Emma (Jane Austen)", **sizes, "context": 2048, "probes": [{"name": "text", **sizes}]},
        "notes": [
            "A role is claimed for a head on the texts of even number.",
            "induction: Clark et al. 2019, section 3.",
        ],
        "measures": [*measures, _contextuality(layers, texts)],
        "roles": [role for measure in measures for role in _held(measure)],
        "profile": {"bins": [list(bin) for bin in BINS], "share": _profile(even, kind, random), "even": even.tolist()},
        "classes": {
            "names": list(CLASSES),
            "share": _rounded(random.dirichlet(CLASS_EVEN * 8 + 0.05, (layers, heads))),
            "even": _rounded(np.broadcast_to(CLASS_EVEN, (layers, heads, len(CLASSES)))),
        },
        "examples": _examples(layers, heads, tokens, random),
        "similar": _similar(layers * heads, heads, random),
        "picture": _picture(layers, heads, tokens[:32], random),
    }


def _rounded(values: np.ndarray) -> Any:
    """Nested lists of numbers with five significant digits."""
    return [_rounded(value) for value in values] if values.ndim else float(f"{float(values):.5g}")


def _measure(
    number: int, row: tuple[Any, ...], kind: np.ndarray, sink: np.ndarray, random: np.random.Generator, texts: int
) -> dict[str, Any]:
    measure, detail, unit, low, high, baseline, baseline_name, claim = row
    strong = (kind == number) & (random.random(kind.shape) < 0.8)
    strength = np.where(strong, random.uniform(0.75, 1.0, kind.shape), random.beta(1.1, 12, kind.shape))
    score = sink if measure == "sink" else low + (high - low) * strength ** (3 if measure == "ablation" else 1)
    half = (high - low) * 0.015 * (1 + random.random(kind.shape))
    held = np.clip(score + half * random.normal(0, 1, kind.shape), low, max(high, 1))

    def interval(score: np.ndarray, count: int) -> dict[str, Any]:
        bounds = {"low": np.maximum(score - 2 * half, low), "high": np.minimum(score + 2 * half, max(high, 1))}
        return {key: _rounded(value) for key, value in {"score": score, **bounds}.items()} | {
            "n": 612.0 * count,
            "texts": count,
        }

    names = ("role", "threshold", "over_baseline", "margin")
    return {
        "measure": measure,
        "detail": detail,
        "unit": unit,
        "chosen": interval(score, texts - texts // 2),
        "scored": interval(held, texts // 2),
        "total": interval((score + held) / 2, texts),
        "baseline": _rounded(np.clip(baseline * (1 + 0.1 * random.normal(0, 1, kind.shape)), 0, None)),
        "baseline_name": baseline_name,
        "control": _rounded(np.where(strong, 0.15, 0.9) * score) if claim else None,
        "claim": claim and dict(zip(names, claim, strict=True)) | {"source": "Clark et al. 2019, section 3"},
        "raw": _rounded(score * (1 - sink)) if unit == "share" and measure != "sink" else None,
        "notes": [],
    }


def _contextuality(layers: int, texts: int) -> dict[str, Any]:
    """A property of the states between layers, not of heads."""
    score = np.linspace(1.0, 0.4, layers + 1)[:, None]
    part = {key: _rounded(score + shift) for key, shift in (("score", 0.0), ("low", -0.02), ("high", 0.02))}
    part |= {"n": 900.0, "texts": texts}
    return {
        "measure": "contextuality",
        "detail": "",
        "unit": "cosine",
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
    if claim is None:
        return []
    score, baseline, control = (
        np.array(values) for values in (measure["scored"]["score"], measure["baseline"], measure["control"])
    )
    passed = (score >= claim["threshold"]) & (score >= claim["over_baseline"] * baseline)
    if claim["margin"] is not None:
        passed &= score >= control + claim["margin"]
    halves = {
        "score_chosen": measure["chosen"]["score"],
        **{key: measure["scored"][key] for key in ("score", "low", "high")},
    }
    tables = halves | {"baseline": measure["baseline"], "control": measure["control"]}
    fixed = {"role": claim["role"], "measure": measure["measure"], "detail": measure["detail"], "rank": 1}
    fixed |= {"baseline_name": measure["baseline_name"], "threshold": claim["threshold"], "raw": None}
    fixed |= {key: measure["scored"][key] for key in ("n", "texts")}
    return [
        {
            "layer": int(layer),
            "head": int(head),
            **fixed,
            **{key: values[layer][head] for key, values in tables.items()},
        }
        for layer, head in np.argwhere(passed)
    ]


def _profile(even: np.ndarray, kind: np.ndarray, random: np.random.Generator) -> Any:
    share = even * random.uniform(0.3, 1.5, (*kind.shape, len(even)))
    for number, at in enumerate((BINS.index((-1, -1)), BINS.index((-2, -2)), BINS.index((0, 0)))):
        share[kind == number, at] = 3.0
    return _rounded(share / share.sum(-1, keepdims=True))


def _examples(layers: int, heads: int, tokens: list[str], random: np.random.Generator) -> list[dict[str, Any]]:
    width = min(24, len(tokens))
    found = []
    for layer in range(layers):
        for head in range(heads):
            for rank in range(8):
                start = int(random.integers(0, len(tokens) - width + 1))
                query = int(random.integers(width // 2, width))
                key = int(random.integers(0, query + 1))
                place = {"layer": layer, "head": head, "text": int(random.integers(0, 80)), "offset": key - query}
                window = tokens[start : start + width]
                found.append(
                    place
                    | {
                        "tokens": window,
                        "query": query,
                        "key": key,
                        "gap": None,
                        "weight": round(0.97 - 0.04 * rank, 4),
                    }
                )
    return found


def _similar(count: int, heads: int, random: np.random.Generator) -> list[dict[str, Any]]:
    rows = []
    for place in range(count):
        for rank in range(min(5, count - 1)):
            other = (place + 1 + int(random.integers(0, count - 1))) % count
            rows.append(
                {
                    "layer": place // heads,
                    "head": place % heads,
                    "other_layer": other // heads,
                    "other_head": other % heads,
                }
                | {"cosine": round(0.95 - 0.1 * rank, 3)}
            )
    return rows


def _picture(layers: int, heads: int, tokens: list[str], random: np.random.Generator) -> dict[str, Any]:
    side = len(tokens)
    scores = 2.0 * random.standard_normal((layers, heads, side, side)) + 4.0 * np.eye(side, k=-1)
    weights = np.exp(np.where(np.tri(side) > 0, scores, -np.inf))
    weights /= weights.sum(-1, keepdims=True)
    codes = np.rint(weights * 255).astype(np.uint8)
    return {"tokens": tokens, "weights": base64.b64encode(codes.tobytes()).decode()}
