"""Which heads have a role: claims that are made on one half of the texts and tested on the other."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .measure import Claim, Result
from .sums import Numbers

NO_ROLE = "no role found"
FEWEST_TEXTS = 5  # of either half: fewer say little of other texts
LEFT = 0.1  # a head that leaves less than this beside the sinks has no role but that of the sink

RULES = (
    "A role is claimed for a head on the texts of even number, where its score must reach the threshold and lie above "
    "the baseline; it holds only if, on the texts of odd number, the score reaches the threshold again, its 95 % "
    "interval (bootstrap over texts) lies above the baseline, and it exceeds the control, the same positions in texts "
    "with shuffled tokens, by the margin (a role of position is exempt from the last). "
    f"With fewer than {FEWEST_TEXTS} texts of either kind there are no roles.",
    "Shares are those of the attention that the sinks (the first token and special tokens) leave; a head that leaves "
    f"less than {LEFT:.0%} to other tokens has no role but that of the sink.",
    "An attention weight says where a head took its values from: it is not an explanation of what the model answers.",
)


def find_roles(results: list[Result], controls: dict[tuple[str, str], Result]) -> list[dict[str, Any]]:
    """The claims that hold, as rows in the order of layers and heads, a head's best founded first, its sink last.

    Args:
        results: of all measures.
        controls: the same on shuffled texts, by measure and detail.
    """
    rows = []
    for result in results:
        if result.claim is None:
            continue
        control = controls.get((result.measure, result.detail))
        shuffled = None if control is None else control.total.score
        for layer, head in np.argwhere(holds(result, result.claim, shuffled)).tolist():
            rows.append(_row(result, result.claim, shuffled, layer, head))
    rows.sort(key=lambda row: (row["layer"], row["head"], row["role"] == "sink", -_excess(row)))
    ranks: dict[tuple[int, int], int] = {}
    for row in rows:
        place = row["layer"], row["head"]
        row["rank"] = ranks[place] = ranks.get(place, 0) + 1
    return rows


def _excess(row: dict[str, Any]) -> float:
    """How far a score lies above its threshold, as a part of what could be."""
    score, threshold = float(row["score"]), float(row["threshold"])
    return (score - threshold) / (1.0 - threshold) if threshold < 1.0 else score / threshold - 1.0


def chosen(result: Result, claim: Claim) -> npt.NDArray[np.bool_]:
    """``(N, H)``: the heads for which the role is claimed, on the first half of the texts alone."""
    if min(result.chosen.texts, result.scored.texts) < FEWEST_TEXTS:
        return np.zeros(result.total.score.shape, np.bool_)
    with np.errstate(invalid="ignore"):
        found = (result.chosen.score >= claim.threshold) & (
            result.chosen.score > np.asarray(result.baseline) * claim.over_baseline
        )
        if result.raw is not None:  # raw is the score times what the sinks leave
            found &= result.raw >= LEFT * result.total.score
    return np.asarray(found, np.bool_)


def holds(result: Result, claim: Claim, control: Numbers | None) -> npt.NDArray[np.bool_]:
    """``(N, H)``: the heads that were chosen, and whose role the other half of the texts confirms."""
    with np.errstate(invalid="ignore"):
        found = chosen(result, claim) & (result.scored.score >= claim.threshold)
        found &= result.scored.low > np.asarray(result.baseline) * claim.over_baseline
        if claim.margin is not None:
            found &= False if control is None else result.scored.score - control >= claim.margin
    return found


def _row(result: Result, claim: Claim, control: Numbers | None, layer: int, head: int) -> dict[str, Any]:
    def at(array: Numbers | float | None) -> float | None:
        value = np.nan if array is None else np.broadcast_to(array, result.total.score.shape)[layer, head]
        return float(value) if np.isfinite(value) else None

    return {
        "layer": layer,
        "head": head,
        "rank": 0,
        "role": claim.role,
        "measure": result.measure,
        "detail": result.detail,
        "score_chosen": at(result.chosen.score),
        "score": at(result.scored.score),
        "low": at(result.scored.low),
        "high": at(result.scored.high),
        "raw": at(result.raw),
        "baseline": at(result.baseline),
        "baseline_name": result.baseline_name,
        "control": at(control),
        "threshold": claim.threshold,
        "n": result.scored.n,
        "texts": result.scored.texts,
    }
