"""Two atlases, head by head."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np

from ...tensors.shapes import wrong
from ..page.notebook import frame
from ..page.write import make_atlas
from ..report import ModelFacts
from ..tables import TableRow, Tables
from .atlas import Atlas, plain


def check_comparable(first: ModelFacts, second: ModelFacts) -> None:
    """Check that two models have as many layers and heads.

    Raises:
        ArgumentError: they have not.
    """
    if (first.layers, first.heads) != (second.layers, second.heads):
        got = " and ".join(f"{model.name} has {model.layers} x {model.heads}" for model in (first, second))
        way_out = "Heads correspond only between checkpoints of one architecture."
        raise wrong("compare", "must have as many layers and heads", got, way_out)


@dataclass(frozen=True)
class AtlasComparison(Tables):
    """Two models, or two checkpoints of one, whose heads correspond by layer and number.

    Args:
        first: an atlas.
        second: an atlas with as many layers and heads.
    """

    first: Atlas
    second: Atlas

    def __post_init__(self) -> None:
        check_comparable(self.first.model, self.second.model)

    def __repr__(self) -> str:
        return f"AtlasComparison({self.first!r}, {self.second!r})"

    def _repr_html_(self) -> str:
        """The page of both, as a notebook shows it."""
        return frame(partial(make_atlas, self.first, self.second), repr(self))

    @property
    def notes(self) -> list[str]:
        """How to read the numbers."""
        notes = ["A change is clear where the two 95 % intervals (bootstrap over texts) do not overlap."]
        names = [atlas.corpus["name"] for atlas in (self.first, self.second)]
        if names[0] != names[1]:
            notes.append(f"The corpora differ ({names[0]}; {names[1]}): so may the scores, for the same head.")
        return notes

    @cached_property
    def tables(self) -> dict[str, list[TableRow]]:
        """Every table by name, as a list of flat rows.

        ``heads`` (for each head both roles, and the measure that changed most of those whose change is clear) and
        ``measures`` (both totals of every measure that both have, their change, and whether it is clear).
        """
        measures = self._measures()
        return {"heads": self._heads(measures), "measures": measures}

    def to_dict(self) -> dict[str, Any]:
        """Both atlases and the tables as plain values."""
        atlases = {"first": self.first.to_dict(), "second": self.second.to_dict()}
        return {"format": "limelight.atlas.comparison", "version": 1, **atlases, "tables": deepcopy(self.tables)}

    def _measures(self) -> list[TableRow]:
        there = {(found.result.measure, found.result.detail): found.result for found in self.second.findings}
        rows = []
        for found in self.first.findings:
            one, other = found.result, there.get((found.result.measure, found.result.detail))
            if other is None or one.total.score.shape != other.total.score.shape:
                continue
            with np.errstate(invalid="ignore"):
                clear = (one.total.high < other.total.low) | (other.total.high < one.total.low)
            by = other.total.score - one.total.score
            columns = [plain(each) for each in (one.total.score, other.total.score, by)]
            known = np.isfinite(by)
            single = one.total.score.shape[1] == 1
            for layer, head in np.argwhere(known).tolist():
                first, second, change = (column[layer][head] for column in columns)
                rows.append(
                    {
                        "measure": one.measure,
                        "detail": one.detail,
                        "layer": layer,
                        "head": None if single else head,
                        "first": first,
                        "second": second,
                        "change": change,
                        "clear": bool(clear[layer, head]),
                        "unit": one.unit,
                    }
                )
        return rows

    def _heads(self, measures: list[TableRow]) -> list[TableRow]:
        most: dict[tuple[int, int], TableRow] = {}
        for row in measures:
            if not row["clear"] or row["head"] is None or not row["unit"].startswith("share"):
                continue
            place = row["layer"], row["head"]
            if abs(row["change"]) > abs(most.get(place, {"change": 0.0})["change"]):
                most[place] = row
        rows = []
        for here, there in zip(self.first.tables["heads"], self.second.tables["heads"], strict=True):
            row = most.get((here["layer"], here["head"]), {})
            rows.append(
                {
                    "layer": here["layer"],
                    "head": here["head"],
                    "role": here["role"],
                    "other_role": there["role"],
                    "same": here["role"] == there["role"],
                    "changed": f"{row['measure']} {row['detail']}".strip() if row else None,
                    "first": row.get("first"),
                    "second": row.get("second"),
                    "change": row.get("change"),
                }
            )
        return sorted(rows, key=lambda row: (-abs(row["change"] or 0.0), row["layer"], row["head"]))
