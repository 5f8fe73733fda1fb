"""FlexAttention's score functions, and the score rules of `limelight.attention` that they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...forms.patterns import Pattern
from ...forms.scores import Bias, RelativeBias, ScoreRule, SoftCap
from ...tensors.shapes import ArgumentError, wrong
from .masks import check_arguments, pattern_of_node
from .patterns import EVERYTHING, both, inverse
from .recording import Node, Recording, record
from .score_forms import Scored, Step

#: ``(score, b, h, q_idx, kv_idx)``, tensors without dimensions, to the score that takes its place.
ScoreMod = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass
class Scores:
    """A score function as settings of a call.

    Attributes:
        factor: what the scale is multiplied by.
        rules: the score rules, in order.
        pattern: the keys that it does not make minus infinity.
    """

    factor: float = 1.0
    rules: list[ScoreRule] = field(default_factory=list)
    pattern: Pattern = EVERYTHING


def scores_of(score_mod: ScoreMod, query: Tensor, Lk: int) -> Scores:
    """The score rules of a function of a score and indices, in a call of a query ``(B, Hq, Lq, D)`` and ``Lk`` keys.

    Raises:
        ArgumentError: it does something to the score for which there is no rule.
    """
    check_arguments("score_mod", score_mod, 5)
    dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    recording = record("score_mod", score_mod, query.device, dtype)
    form = getattr(recording.result, "form", None)
    if not isinstance(form, Scored):
        raise _refused("its result does not depend on the score")
    if form.refused:
        raise _refused(f"it computes {form.refused} of the score")
    B, Hq, Lq, _ = query.shape
    made, steps = Scores(), list(form.steps)
    while steps:
        _take(made, steps, recording, (B, Hq, Lq, Lk), dtype)
    return made


def _take(
    made: Scores, steps: list[Step], recording: Recording, sizes: tuple[int, int, int, int], dtype: torch.dtype
) -> None:
    """Take the next step, or the three of a soft cap, from the list."""
    cap = _cap(steps)
    if cap is not None:
        if made.pattern != EVERYTHING:
            raise _refused("it computes tanh of a score that it made minus infinity")
        made.rules.append(SoftCap(cap))
        del steps[:3]
        return
    kind, by = steps.pop(0)
    if kind in ("mask", "unless"):
        seen = pattern_of_node(recording, by) if isinstance(by, Node) else EVERYTHING if bool(by) else ~EVERYTHING
        made.pattern = both(made.pattern, inverse(seen) if kind == "unless" else seen)
    elif kind in ("add", "sub"):
        made.rules.append(_bias(recording, by, kind, sizes, dtype))
    elif kind == "tanh":
        raise _refused("it computes tanh of the score that is not limit * tanh(score / limit)")
    else:
        if any(isinstance(rule, SoftCap) for rule in made.rules):
            raise _refused("it multiplies the score after a soft cap")
        if kind == "div" and by == 0:
            raise _refused("it divides the score by 0")
        factor = by if kind == "mul" else 1.0 / by
        if made.pattern != EVERYTHING and not factor > 0:
            raise _refused("it multiplies a score that it made minus infinity by a number that is not positive")
        made.factor *= factor
        made.rules = [_scaled(rule, factor) for rule in made.rules]


def _cap(steps: list[Step]) -> float | None:
    """The limit, where the next three steps are a soft cap."""
    if len(steps) < 3 or steps[1].kind != "tanh" or steps[2].kind != "mul":
        return None
    (before, by), limit = steps[0], steps[2].by
    fits = (before == "div" and by == limit) or (before == "mul" and (by == 1.0 / limit or 1.0 / by == limit))
    return limit if limit > 0 and fits else None


def _scaled(rule: ScoreRule, factor: float) -> ScoreRule:
    if isinstance(rule, RelativeBias):
        return RelativeBias(rule.table * factor, rule.buckets)
    assert isinstance(rule, Bias)
    return Bias(rule.tensor * factor)


def _bias(
    recording: Recording, node: Any, kind: str, sizes: tuple[int, int, int, int], dtype: torch.dtype
) -> ScoreRule:
    """What is added to the score: for each distance where it depends on no more of the indices, else a tensor."""
    B, Hq, Lq, Lk = sizes
    device = recording.arguments["q"].value.device
    heads = torch.arange(Hq, device=device)
    sign = -1 if kind == "sub" else 1
    if isinstance(node, Node) and "d" in node.depends and node.depends <= {"h", "d"} and Lq and Lk:
        distances = torch.arange(1 - Lq, Lk, device=device)
        both_ways = {"q": (-distances).clamp(min=0), "k": distances.clamp(min=0)}
        table = recording.evaluate(node, [{"h": heads}, both_ways])
        return RelativeBias(sign * _floats(table, dtype), _Shift(Lq - 1, Lq + Lk - 2))
    of = (torch.arange(B, device=device), heads, torch.arange(Lq, device=device), torch.arange(Lk, device=device))
    tensor = recording.evaluate(node, [{letter: index} for letter, index in zip("bhqk", of, strict=True)])
    return Bias(sign * _floats(tensor, dtype))


def _floats(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor if tensor.is_floating_point() else tensor.to(dtype)


@dataclass(frozen=True)
class _Shift:
    """The column of a table that begins at a negative distance."""

    by: int
    last: int

    def __call__(self, distance: Tensor) -> Tensor:
        return (distance + self.by).clamp(0, self.last)


def _refused(why: str) -> ArgumentError:
    rule = "must be made of steps for which there are score rules (a factor, limit * tanh(score / limit), adding what "
    rule += "does not depend on the score, minus infinity where a mask says so)"
    way_out = "Define a limelight.ScoreRule and pass it to limelight.attention (docs/extending.md)."
    return wrong("score_mod", rule, why, way_out)
