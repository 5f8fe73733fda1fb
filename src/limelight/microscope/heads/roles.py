"""Which heads have a role: claims that are made on one half of the texts and tested on the other."""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from .measure import Result
from .sums import Numbers

NO_ROLE = "no role found"
FEWEST_TEXTS = 5  # of either half: fewer say little of other texts
LEFT = 0.1  # a head that leaves less than this beside the sinks has no role but that of the sink
FALSE = 0.025  # of the claims of an atlas, on average at most so many hold by luck

RULES = (
    "A role is claimed for a head on the texts of even number, where its score must reach the threshold and lie above "
    "the baseline; it holds only if, on the texts of odd number, the score reaches the threshold again, its 95 % "
    "interval (bootstrap over texts) lies above the baseline, and it exceeds the control, the same positions in texts "
    "with shuffled tokens, by the margin (a role of position is exempt from the last). "
    f"With fewer than {FEWEST_TEXTS} texts of either kind there are no roles.",
    "Hundreds of heads are compared in tens of measures. The texts of odd number test the claims alone that those of "
    f"even number made, all claims of an atlas together, with a false discovery rate of {FALSE:.1%} (Benjamini and "
    "Hochberg 1995; p is that of a normal distribution as wide as the interval).",
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
    claims = [result for result in results if result.claim is not None]
    level = false_discovery_level(
        np.concatenate([np.zeros(0), *(_p_values(result)[chosen(result)] for result in claims)])
    )
    rows = []
    for result in claims:
        control = controls.get((result.measure, result.detail))
        shuffled = None if control is None else control.total.score
        for layer, head in np.argwhere(holds(result, shuffled, level)).tolist():
            rows.append(_row(result, shuffled, layer, head))
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


def chosen(result: Result) -> npt.NDArray[np.bool_]:
    """``(N, H)``: the heads for which the role is claimed, on the first half of the texts alone."""
    claim = result.claim
    if claim is None or min(result.chosen.texts, result.scored.texts) < FEWEST_TEXTS:
        return np.zeros(result.total.score.shape, np.bool_)
    with np.errstate(invalid="ignore"):
        found = (result.chosen.score >= claim.threshold) & (result.chosen.score > _to_beat(result))
        if result.raw is not None:  # raw is the score times what the sinks leave
            found &= result.raw >= LEFT * result.total.score
    return np.asarray(found, np.bool_)


def holds(result: Result, control: Numbers | None, level: float) -> npt.NDArray[np.bool_]:
    """``(N, H)``: the heads that were chosen, and whose role the other half of the texts confirms.

    Args:
        result: of one measure.
        control: its score on shuffled texts.
        level: the largest p-value that counts.
    """
    claim = result.claim
    found = chosen(result)
    if claim is None:
        return found
    with np.errstate(invalid="ignore"):
        found &= (result.scored.score >= claim.threshold) & (result.scored.low > _to_beat(result))
        found &= _p_values(result) <= level
        if claim.margin is not None:
            found &= False if control is None else result.scored.score - control >= claim.margin
    return found


def false_discovery_level(values: Numbers, rate: float = FALSE) -> float:
    """The largest p-value that is significant at a false discovery rate (Benjamini and Hochberg 1995); 0 for none.

    >>> false_discovery_level(np.array([0.001, 0.02, 0.6, 0.004]), 0.025)
    0.004
    """
    ordered = np.sort(values)
    significant = ordered <= rate * np.arange(1, len(ordered) + 1) / max(len(ordered), 1)
    return float(ordered[significant].max(initial=0.0))


def _to_beat(result: Result) -> Numbers:
    """What the score must exceed: the baseline and so many per cent more."""
    assert result.claim is not None
    return np.asarray(np.asarray(result.baseline) * result.claim.over_baseline)


def _p_values(result: Result) -> Numbers:
    """``(N, H)``: how likely so high a score on the second half would be if the truth were what is to beat."""
    scored = result.scored
    deviation = (scored.high - scored.low) / (2 * NormalDist().inv_cdf(0.975))
    with np.errstate(invalid="ignore", divide="ignore"):
        distance = (scored.score - _to_beat(result)) / deviation
    distance = np.where(np.isnan(distance), -np.inf, distance)
    found: Numbers = np.vectorize(NormalDist().cdf, otypes=[np.float64])(-distance)
    return found


def _row(result: Result, control: Numbers | None, layer: int, head: int) -> dict[str, Any]:
    claim = result.claim
    assert claim is not None

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
