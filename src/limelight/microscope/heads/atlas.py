"""The atlas: what every head of a model does, as tables and JSON, from which the page and the terminal output are made.

The JSON form, ``limelight.atlas`` version 1 (``NaN`` is ``null``; ``N`` layers, ``H`` heads)::

    {"format": "limelight.atlas", "version": 1,
     "model": {"name", "kind": "encoder" | "decoder", "layers": N, "heads": H},
     "corpus": {"name", "texts", "tokens", "context", "complete", "probes": [{"name", "texts", "tokens", "complete"}]},
     "notes": [sentence, ...],
     "measures": [
       {"measure", "detail", "unit", "baseline_name", "notes": [sentence, ...],
        "claim": null | {"role", "threshold", "source", "over_baseline", "margin"},
        "chosen" | "scored" | "total": {"score", "low", "high": (N, H), "n", "texts"},
        "baseline": (N, H) | number, "raw": null | (N, H), "control": null | (N, H)}],
     "roles": [{"layer", "head", "rank", "role", "measure", "detail", "score_chosen", "score", "low", "high", "raw",
                "baseline", "baseline_name", "control", "threshold", "n", "texts"}],
     "profile": null | {"bins": [[first, last], ...], "share": (N, H, bins), "even": [bins]},
     "classes": null | {"names": [...], "share": (N, H, names), "even": (N, H, names)},
     "examples": [{"layer", "head", "weight", "text", "offset", "tokens", "query", "key", "gap"}],
     "similar": [{"layer", "head", "other_layer", "other_head", "cosine"}],
     "picture": null | {"tokens": [...], "weights": base64 of (N, H, L, L) bytes, 255 for a weight of 1}}

A property of layers has arrays ``(N, 1)``, or ``(N + 1, 1)`` for the states between them. ``chosen`` is over the texts
of even number, ``scored`` over those of odd number, ``total`` over all. ``raw`` is the share with the sinks left in,
for a measure that takes them out. Offsets and bins are ``key - query``, in tokens.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, fields
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from ...tensors.shapes import wrong
from ..files import write_atomically
from ..page.notebook import frame
from ..page.write import make_atlas
from ..report import ModelFacts
from ..tables import TableRow, Tables
from .measure import Claim, Result
from .roles import NO_ROLE
from .sums import Interval, Numbers

FORMAT, VERSION = "limelight.atlas", 1
_INTERVALS = ("chosen", "scored", "total")


@dataclass(frozen=True)
class Finding:
    """A `Result` with its control: the same measure at the same positions of texts with shuffled tokens, ``(N, H)``."""

    result: Result
    control: Numbers | None

    @property
    def title(self) -> str:
        """The measure with its variant."""
        return f"{self.result.measure} {self.result.detail}".strip()

    def to_dict(self) -> dict[str, Any]:
        """The finding as one entry of ``measures`` in the JSON form."""
        result = self.result
        return {
            "measure": result.measure,
            "detail": result.detail,
            "unit": result.unit,
            "baseline_name": result.baseline_name,
            "notes": list(result.notes),
            "claim": None if result.claim is None else asdict(result.claim),
            **{name: _interval_to_dict(getattr(result, name)) for name in _INTERVALS},
            "baseline": plain(result.baseline),
            "raw": None if result.raw is None else plain(result.raw),
            "control": None if self.control is None else plain(self.control),
        }

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Finding:
        """The finding that an entry of ``measures`` in the JSON form holds."""
        baseline = data["baseline"]
        result = Result(
            measure=str(data["measure"]),
            detail=str(data["detail"]),
            **{name: _interval_from_dict(data[name]) for name in _INTERVALS},
            baseline=array(baseline) if isinstance(baseline, list) else _number(baseline),
            baseline_name=str(data["baseline_name"]),
            unit=str(data["unit"]),
            claim=None if data["claim"] is None else Claim(**data["claim"]),
            raw=None if data["raw"] is None else array(data["raw"]),
            notes=tuple(map(str, data["notes"])),
        )
        return Finding(result, None if data["control"] is None else array(data["control"]))

    def rows(self) -> list[TableRow]:
        """One row for every layer and head, those without a case left out."""
        result = self.result
        total = result.total.score
        columns = {
            "score_chosen": result.chosen.score,
            "score": result.scored.score,
            "low": result.scored.low,
            "high": result.scored.high,
            "total": total,
            "total_low": result.total.low,
            "total_high": result.total.high,
            "raw": np.nan if result.raw is None else result.raw,
            "baseline": result.baseline,
            "control": np.nan if self.control is None else self.control,
        }
        full = {name: plain(np.broadcast_to(np.asarray(each), total.shape)) for name, each in columns.items()}
        single = total.shape[1] == 1
        return [
            {
                "measure": result.measure,
                "detail": result.detail,
                "layer": layer,
                "head": None if single else head,
                **{name: each[layer][head] for name, each in full.items()},
                "baseline_name": result.baseline_name,
                "n": result.total.n,
                "texts": result.total.texts,
                "unit": result.unit,
            }
            for layer, head in np.argwhere(np.isfinite(total)).tolist()
        ]


@dataclass(frozen=True)
class Atlas(Tables):
    """What every head of a model does, measured over a corpus.

    Args:
        model: facts about the model.
        corpus: name, sizes and probes, as in the JSON form.
        notes: how to read the numbers.
        findings: of every measure.
        roles: the rows of the table of that name.
        profile: the share of each distance, as in the JSON form; ``None`` without plain text.
        classes: the share of each class of tokens, as in the JSON form.
        examples: the strongest weights of every head in their text.
        similar: the heads whose scores are most alike.
        picture: all weights of a short text.

    Example:
        >>> import limelight
        >>> atlas = limelight.heads("minilm")  # doctest: +SKIP
        >>> atlas.to_pandas("heads")["role"].value_counts()  # doctest: +SKIP
    """

    model: ModelFacts
    corpus: dict[str, Any]
    notes: list[str]
    findings: tuple[Finding, ...]
    roles: list[TableRow]
    profile: dict[str, Any] | None = None
    classes: dict[str, Any] | None = None
    examples: Sequence[TableRow] = ()
    similar: Sequence[TableRow] = ()
    picture: dict[str, Any] | None = None

    def __repr__(self) -> str:
        some = len({(row["layer"], row["head"]) for row in self.roles})
        heads = self.model.layers * self.model.heads
        complete = "" if self.corpus["complete"] else ", incomplete"
        return (
            f"Atlas({self.model.name!r}, {self.corpus['name']!r}, {self.corpus['tokens']:,} tokens{complete}, "
            f"{some:,} of {heads:,} heads with a role)"
        )

    def _repr_html_(self) -> str:
        """The page, as a notebook shows it."""
        return frame(partial(make_atlas, self, None), repr(self))

    def finding(self, measure: str, detail: str = "") -> Finding:
        """The finding of a measure and its variant.

        Raises:
            ArgumentError: there is none of this name.
        """
        for found in self.findings:
            if (found.result.measure, found.result.detail) == (measure, detail):
                return found
        known = ", ".join(dict.fromkeys(repr(found.result.measure) for found in self.findings))
        details = [found.result.detail for found in self.findings if found.result.measure == measure]
        rule = f"must be one of {details}" if details else f"must be one of {known}"
        got = f"it is {detail!r}" if details else f"it is {measure!r}"
        raise wrong("detail" if details else "measure", rule, got, "`tables['measures']` lists them all.")

    @cached_property
    def tables(self) -> dict[str, list[TableRow]]:
        """Every table by name, as a list of flat rows.

        ``heads`` (one row for each head: its role and the total of every measure), ``roles`` (every claim that holds),
        ``measures`` (every measure of every head, in long form), ``examples``, ``similar`` and ``notes``.
        """
        return {
            "heads": self._heads(),
            "roles": self.roles,
            "measures": [row for found in self.findings for row in found.rows()],
            "examples": list(self.examples),
            "similar": list(self.similar),
            "notes": [{"note": note} for note in self.notes],
        }

    def _heads(self) -> list[TableRow]:
        roles: dict[tuple[int, int], list[str]] = {}
        for row in self.roles:
            roles.setdefault((row["layer"], row["head"]), []).append(row["role"])
        shape = self.model.layers, self.model.heads
        columns = {
            found.title: plain(found.result.total.score)
            for found in self.findings
            if found.result.total.score.shape == shape
        }
        return [
            {
                "layer": layer,
                "head": head,
                "role": next(iter(roles.get((layer, head), [NO_ROLE]))),
                "roles": roles.get((layer, head), []),
                **{name: column[layer][head] for name, column in columns.items()},
            }
            for layer in range(shape[0])
            for head in range(shape[1])
        ]

    def to_dict(self) -> dict[str, Any]:
        """The JSON form that the top of this module describes, a copy that may be changed."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "model": asdict(self.model),
            "measures": [found.to_dict() for found in self.findings],
            **{name: deepcopy(getattr(self, name)) for name in _AS_THEY_ARE},
        }

    def to_json(self, indent: int | None = None) -> str:
        """The JSON form as text."""
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=indent, allow_nan=False)

    @staticmethod
    def from_dict(data: Any, name: str = "atlas") -> Atlas:
        """The atlas that a dictionary of the JSON form holds.

        Args:
            data: what `to_dict` returned.
            name: of the argument, for the error message.

        Raises:
            ArgumentError: this is no atlas, or one of another version.
        """
        if not isinstance(data, dict) or (data.get("format"), data.get("version")) != (FORMAT, VERSION):
            got = "it has none" if not isinstance(data, dict) else f"it is {data.get('format')} {data.get('version')}"
            raise wrong(name, f"must be of the format {FORMAT} {VERSION}", got, "limelight.heads(...) makes one.")
        try:
            return Atlas(
                ModelFacts(**data["model"]),
                findings=tuple(Finding.from_dict(each) for each in data["measures"]),
                **{field: data[field] for field in _AS_THEY_ARE},
            )
        except (KeyError, TypeError, ValueError) as error:
            got = f"{type(error).__name__}: {error}"
            raise wrong(name, f"must hold what {FORMAT} {VERSION} holds", got, "Measure again.") from None

    def write(self, path: str | os.PathLike[str], table: str | None = None) -> int:
        """Write the whole atlas (``.json``), or a table as CSV or Parquet, in one step; return the size in bytes.

        Args:
            path: the file; its suffix names the format: ``.json``, ``.csv`` or ``.parquet``.
            table: the name of one of `tables`; by default ``measures``, every measure of every head in long form. With
                a table, ``.json`` holds that table alone.

        Raises:
            ArgumentError: there is no such table or format, or pyarrow is not installed (for Parquet).
            OSError: the folder does not exist or cannot be written to.
        """
        path = Path(path)
        if table is None and path.suffix.lower() == ".json":
            return write_atomically(path, self.to_json().encode("utf-8", "replace"))
        return super().write(path, table or "measures")


_AS_THEY_ARE = tuple(field.name for field in fields(Atlas) if field.name not in ("model", "findings"))


def load_atlas(path: str | Path) -> Atlas:
    """The atlas that a JSON file holds, as `Atlas.write` wrote it.

    Raises:
        ArgumentError: the file does not exist, or holds no atlas.
    """
    path = Path(path)
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        got = f"{path} cannot be read ({error.strerror})"
        raise wrong("path", "must name an atlas", got, "Atlas.write('atlas.json') makes one.") from None
    except ValueError:
        raise wrong(
            "path", "must name an atlas", f"{path} is no JSON", "Atlas.write('atlas.json') makes one."
        ) from None
    return Atlas.from_dict(data, "path")


def plain(values: Any) -> Any:
    """Nested lists of numbers with five significant digits, ``None`` for what is not finite."""
    found = np.asarray(values, np.float64)
    if found.ndim:
        return [plain(each) for each in found] if found.ndim > 1 else [_short(each) for each in found.tolist()]
    return _short(float(found))


def array(values: Any) -> Numbers:
    """A float64 array of nested lists, NaN for ``None``: the reverse of `plain`."""
    return np.array(values, np.float64)


def _short(value: float) -> float | None:
    return float(f"{value:.5g}") if math.isfinite(value) else None


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _interval_to_dict(interval: Interval) -> dict[str, Any]:
    scores = {name: plain(getattr(interval, name)) for name in ("score", "low", "high")}
    return {**scores, "n": interval.n, "texts": interval.texts}


def _interval_from_dict(data: dict[str, Any]) -> Interval:
    score, low, high = (array(data[name]) for name in ("score", "low", "high"))
    return Interval(score, low, high, float(data["n"]), int(data["texts"]))
