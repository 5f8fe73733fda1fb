"""The interface of a measure: what it observes, what it adds up, and what it says of every head."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...forms.observations import Observations, Observe
from ..subjects import Subject
from .sample import Sample
from .sums import Interval

FLAGS = ("logsumexp", "max_score", "max_weight", "entropy", "distance", "received")


@dataclass(frozen=True)
class Request:
    """What a measure observes of one text, the same in every layer; fields as those of `limelight.Observe`.

    Args:
        flags: names of the observations that are on or off: ``entropy``, ``distance``, ``max_weight``, ``received``.
        top: how many of the largest weights.
        features: ``(L, F)`` float32.
        rows: ``(R,)`` int64.
        pairs: ``(P, 2)`` int64 (query, key).
    """

    flags: frozenset[str] = frozenset()
    top: int = 0
    features: Tensor | None = None
    rows: Tensor | None = None
    pairs: Tensor | None = None


class Union:
    """One `Observe` that serves several requests, and the part of its observations that belongs to each.

    Args:
        requests: of the measures, in their order.
    """

    def __init__(self, requests: list[Request]) -> None:
        self.requests = requests
        flags: dict[str, Any] = {flag: any(flag in request.flags for request in requests) for flag in FLAGS}
        self.observe = Observe(
            **flags,
            top=max((request.top for request in requests), default=0),
            features=_joined([request.features for request in requests], 1),
            rows=_joined([request.rows for request in requests], 0),
            pairs=_joined([request.pairs for request in requests], 0),
        )

    def parts(self, seen: Observations) -> list[Observations]:
        """For each request its observations of the first row of the batch, ``(H, ...)``."""
        at = {"features": 0, "rows": 0, "pairs": 0}
        found = []
        for request in self.requests:
            fields: dict[str, Any] = {flag: _first(getattr(seen, flag)) for flag in request.flags}
            if request.top:
                fields["top_weights"] = _first(seen.top_weights)[..., : request.top]
                fields["top_keys"] = _first(seen.top_keys)[..., : request.top]
            if request.features is not None:
                fields["features"] = _first(seen.features).narrow(-1, at["features"], request.features.shape[1])
                at["features"] += request.features.shape[1]
            if request.rows is not None:
                fields["rows"] = _first(seen.rows).narrow(1, at["rows"], len(request.rows))
                at["rows"] += len(request.rows)
            if request.pairs is not None:
                fields["pairs"] = _first(seen.pairs).narrow(1, at["pairs"], len(request.pairs))
                at["pairs"] += len(request.pairs)
            found.append(Observations(**fields))
        return found


def _joined(tensors: list[Tensor | None], dim: int) -> Tensor | None:
    some = [tensor for tensor in tensors if tensor is not None]
    return torch.cat(some, dim) if some else None


def _first(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor[0].cpu()


@dataclass(frozen=True)
class Claim:
    """When a score makes a role: the rule is tested on texts that did not choose the head.

    Args:
        role: the name of the role, ``"induction"``.
        threshold: the least score.
        over_baseline: how far the score must lie above the baseline, as a factor of it (1.1 for ten per cent).
        source: where the threshold comes from.
    """

    role: str
    threshold: float
    source: str
    over_baseline: float = 1.0


@dataclass(frozen=True)
class Result:
    """What a measure found.

    Args:
        measure: its name; with ``detail`` unique within an atlas.
        detail: the variant, such as an offset, a class of tokens or a relation; empty if there is one alone.
        chosen: over the texts on which heads are chosen.
        scored: over the other texts.
        total: over all texts.
        baseline: what an even spread or the best fixed offset would reach, ``(N, H)`` or one number.
        baseline_name: which of them, in words.
        unit: ``"share"``, ``"nats"``, ``"tokens"``, ``"accuracy"``, ``"loss"`` ...
        claim: of which role this is the evidence; ``None`` for a description without a claim.
    """

    measure: str
    detail: str
    chosen: Interval
    scored: Interval
    total: Interval
    baseline: npt.NDArray[np.float64] | float
    baseline_name: str
    unit: str
    claim: Claim | None = None
    notes: tuple[str, ...] = field(default=())


class Measure(ABC):
    """Something that is measured of every head in one pass over texts.

    For each text `request` is asked once, then `add` is called for every layer in order. Sums live in `Ratio`s, so
    memory does not grow with the corpus.

    Args:
        subject: the model.
    """

    name: str

    def __init__(self, subject: Subject) -> None:
        self.subject = subject

    @abstractmethod
    def request(self, sample: Sample) -> Request | None:
        """What to observe of a text; ``None`` where this measure has nothing to count in it."""

    @abstractmethod
    def add(self, sample: Sample, layer: int, seen: Observations) -> None:
        """Count one layer of a text: ``seen`` holds what was requested, ``(H, ...)`` each, without a batch."""

    @abstractmethod
    def results(self) -> list[Result]:
        """What was found so far."""

    def state(self) -> dict[str, npt.NDArray[np.generic]]:
        """The sums as arrays, from which a run goes on."""
        raise NotImplementedError

    def restore(self, state: dict[str, npt.NDArray[np.generic]]) -> None:
        """Take over the sums of `state`."""
        raise NotImplementedError
