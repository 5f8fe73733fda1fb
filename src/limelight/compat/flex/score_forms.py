"""What a function of a score does to it: steps from which score rules are made."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from torch import Tensor

from .forms import Affine, constant


class Step(NamedTuple):
    """One change of a score: ``kind`` is ``mul`` or ``div`` by a number, ``add`` or ``sub`` of what does not depend on
    the score, ``tanh``, ``mask`` or ``unless``: minus infinity unless, or where, ``by`` holds."""

    kind: str
    by: Any = None


class Scored(NamedTuple):
    """A score after some steps; ``refused`` names the operation that is none of them."""

    steps: tuple[Step, ...] = ()
    refused: str = ""


def score_form(operation: str, args: list[Any], settings: dict[str, Any]) -> Scored:
    """The form of what an operation gives, of which a score is among the arguments."""
    scores = [form for x in args if isinstance(form := getattr(x, "form", None), Scored)]
    score = scores[0] if scores else Scored(refused=operation)
    if score.refused:
        return score
    step = _step(operation, args, settings) if len(scores) == 1 else None
    if operation in ("_to_copy", "clone", "alias") and len(args) == 1:
        return score
    return score._replace(refused=operation) if step is None else Scored((*score.steps, step))


def _step(operation: str, args: list[Any], settings: dict[str, Any]) -> Step | None:
    if operation == "tanh":
        return Step("tanh")
    if operation == "neg":
        return Step("mul", -1.0)
    if operation in ("where", "masked_fill"):
        return _masked(operation, args)
    if operation not in ("add", "sub", "mul", "div") or len(args) != 2 or settings not in ({}, {"alpha": 1}):
        return None
    first = isinstance(getattr(args[0], "form", None), Scored)
    other = args[1] if first else args[0]
    if operation in ("add", "sub"):
        return Step(operation, other) if first or operation == "add" else None
    if not first and operation == "div":
        return None
    number = _number(other)
    return None if number is None else Step(operation, number)


def _masked(operation: str, args: list[Any]) -> Step | None:
    """``where(mask, score, -inf)`` and its two other spellings."""
    if operation == "masked_fill":
        score, condition, other = args
        kind = "unless"
    else:
        condition, score, other = args
        kind = "mask"
        if not isinstance(getattr(score, "form", None), Scored):
            score, other, kind = other, score, "unless"
    if not isinstance(getattr(score, "form", None), Scored) or _number(other) != -math.inf:
        return None
    return Step(kind, condition)


def _number(value: Any) -> float | None:
    """A number that has no derivative; ``None`` for anything else."""
    value = getattr(value, "form", value)
    if isinstance(value, (int, float)):
        return float(value)
    if isinstance(value, Affine):
        number = constant(value)
        return None if number is None else float(number)
    return float(value) if isinstance(value, Tensor) and not value.dim() and not value.requires_grad else None
