"""The interface of a measure: what it observes, what it adds up, and what it reports of every head."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ...forms.observations import Observations, Observe
from ..subjects import Run, Subject
from .reach import Reach, reaches_of
from .sample import Sample
from .sums import Interval, Numbers, Offsets, Ratio, Shares, State

Made = TypeVar("Made")

FLAGS = ("logsumexp", "max_score", "max_weight", "entropy", "distance", "received")


@dataclass(frozen=True)
class Request:
    """What a measure observes of one text, the same in every layer; fields as those of `limelight.Observe`.

    Args:
        flags: names of the observations that are on or off: ``entropy``, ``distance``, ``max_weight``, ``received`` of
            `Observe`, ``sinks`` for the weight on each sink of the sample, and ``values`` for the values of the call.
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


@dataclass(repr=False)
class Part(Observations):
    """The observations of one layer that a measure requested, ``(H, ...)`` each: there is no batch.

    Args:
        sinks: ``(H, L, S)``: the weight that each query gives to each of ``sample.sinks``.
        values: ``(Hkv, L, Dv)``: what the weights are applied to.
    """

    sinks: Tensor | None = None
    values: Tensor | None = None

    @property
    def sink(self) -> Tensor:
        """``(H, L)``: the weight that each query gives to all sinks."""
        assert self.sinks is not None
        return self.sinks.sum(-1)


class Union:
    """One `Observe` that serves several requests, and the part of its observations that belongs to each.

    Args:
        requests: of the measures, in their order.
        sample: the text.
    """

    def __init__(self, requests: list[Request], sample: Sample) -> None:
        self.requests = requests
        flags: dict[str, Any] = {flag: any(flag in request.flags for request in requests) for flag in FLAGS}
        self.sinks = len(sample.sinks) if any("sinks" in request.flags for request in requests) else 0
        sinks = torch.eye(len(sample), dtype=torch.float32, device="cpu")[:, list(sample.sinks)] if self.sinks else None
        self.observe = Observe(
            **flags,
            top=max((request.top for request in requests), default=0),
            features=_joined([sinks, *[request.features for request in requests]], 1),
            rows=_joined([request.rows for request in requests], 0),
            pairs=_joined([request.pairs for request in requests], 0),
        )

    def on(self, device: torch.device) -> Observe:
        """What to observe, with its tensors on the device of the model."""
        if device.type == "cpu":
            return self.observe
        tensors = {name: getattr(self.observe, name) for name in ("features", "rows", "pairs")}
        moved: dict[str, Any] = {name: each.to(device) for name, each in tensors.items() if each is not None}
        return replace(self.observe, **moved)

    def parts(self, seen: Observations, value: Tensor, heads: int) -> list[Part]:
        """For each request its observations of the first row of the batch, ``(H, ...)``.

        A layer with fewer heads than ``heads`` has others that are not a number, so that they have no score.

        Args:
            seen: the observations of a call.
            value: the values of the call, ``(B, Hkv, L, Dv)``.
            heads: ``H``.
        """
        seen = seen.map(lambda tensor: _filled(tensor[0].cpu(), heads))
        at = {"features": self.sinks, "rows": 0, "pairs": 0}
        found = []
        for request in self.requests:
            fields: dict[str, Any] = {flag: getattr(seen, flag) for flag in request.flags if flag in FLAGS}
            if "sinks" in request.flags:
                fields["sinks"] = _some(seen.features)[..., : self.sinks]
            if "values" in request.flags:
                fields["values"] = value[0]
            if request.top:
                fields["top_weights"] = _some(seen.top_weights)[..., : request.top]
                fields["top_keys"] = _some(seen.top_keys)[..., : request.top]
            for name, dim, size in (("features", -1, 1), ("rows", 1, 0), ("pairs", 1, 0)):
                wanted = getattr(request, name)
                if wanted is not None:
                    fields[name] = _some(getattr(seen, name)).narrow(dim, at[name], wanted.shape[size])
                    at[name] += wanted.shape[size]
            found.append(Part(**fields))
        return found


def _filled(tensor: Tensor, heads: int) -> Tensor:
    """``(H, ...)`` with as many heads as there should be."""
    if tensor.shape[0] == heads:
        return tensor
    nothing = float("nan") if tensor.is_floating_point() else -1
    return torch.cat([tensor, tensor.new_full((heads - tensor.shape[0], *tensor.shape[1:]), nothing)])


def _joined(tensors: list[Tensor | None], dim: int) -> Tensor | None:
    some = [tensor for tensor in tensors if tensor is not None]
    return torch.cat(some, dim) if some else None


def _some(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor


@dataclass(frozen=True)
class Claim:
    """When a score makes a role: the rule is tested on texts that did not choose the head.

    Args:
        role: the name of the role, ``"induction"``.
        threshold: the least score.
        source: where the threshold comes from.
        over_baseline: how far the score must lie above the baseline, as a factor of it (1.1 for ten per cent).
        margin: by how much the score must exceed that of the control, the same positions in a shuffled text; ``None``
            for a role that is one of position, where the control is reported alone.
    """

    role: str
    threshold: float
    source: str
    over_baseline: float = 1.0
    margin: float | None = 0.1


@dataclass(frozen=True)
class Result:
    """What a measure found.

    Arrays are ``(N, H)``; ``(N, 1)`` for a property of layers, or ``(N + 1, 1)`` of the states between them.

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
        raw: the share with the sink left in, where ``total`` has it taken out.
        notes: what a reader of the numbers has to know.
    """

    measure: str
    detail: str
    chosen: Interval
    scored: Interval
    total: Interval
    baseline: Numbers | float
    baseline_name: str
    unit: str
    claim: Claim | None = None
    raw: Numbers | None = None
    notes: tuple[str, ...] = field(default=())


class Measure(ABC):
    """Something that is measured of every head in one pass over texts.

    For each text `request` is called once, then `add` for every layer in order, then `finish`. Sums live in `Ratio`,
    `Shares`, `Offsets` and numpy arrays that are attributes of the measure: they do not grow with the corpus, and
    together they are its state.

    Args:
        subject: the model.

    Attributes:
        name: the name in tables.
        hidden: whether `finish` needs the hidden states.
        controlled: whether it also counts in texts whose tokens are shuffled, as a control.
    """

    name: str
    hidden: bool = False
    controlled: bool = True

    def __init__(self, subject: Subject) -> None:
        self.subject = subject

    @abstractmethod
    def request(self, sample: Sample) -> Request | None:
        """What to observe of a text; ``None`` where this measure has nothing to count in it."""

    @abstractmethod
    def add(self, sample: Sample, layer: int, seen: Part) -> None:
        """Count one layer of a text: ``seen`` holds what was requested, ``(H, ...)`` each, without a batch."""

    def finish(self, sample: Sample, run: Run) -> None:  # noqa: B027 - most measures have nothing to do here
        """Called after the last layer of a text; ``run.hidden`` holds the hidden states where `hidden` is true."""

    @abstractmethod
    def results(self) -> list[Result]:
        """What was found so far."""

    def without_intervals(self) -> Measure:
        """This measure, with nothing counted yet, as a control: of its scores the totals alone are of interest."""
        for value in vars(self).values():
            for ratio in (value, *vars(value).values()) if isinstance(value, Shares) else (value,):
                if isinstance(ratio, Ratio):
                    ratio.without_intervals()
        return self

    def state(self) -> State:
        """The sums as arrays, from which a run goes on."""
        found: State = {}
        for name, value in vars(self).items():
            if isinstance(value, np.ndarray):
                found[name] = value
            elif isinstance(value, (Ratio, Shares, Offsets)):
                found |= {f"{name}.{key}": array for key, array in value.state().items()}
        return found

    def restore(self, state: State) -> None:
        """Take over the sums of `state`."""
        for name, array in self.state().items():
            array[...] = state[name]

    def by_layer(self, sample: Sample, make: Callable[[Reach], Made]) -> list[Made]:
        """What follows for each layer from how far its queries see in a text; layers of one reach share it."""
        reaches = reaches_of(self.subject, len(sample))
        made = {reach: make(reach) for reach in dict.fromkeys(reaches)}
        return [made[reach] for reach in reaches]

    def share(self, shares: Shares, detail: str, column: int = 0, *, best: float = 0.0, **facts: Any) -> Result:
        """The `Result` of one column of `Shares`: its baseline is an even spread, or the ``best`` fixed offset."""
        even = shares.even.interval(None, column).score
        if best > 0.0:
            facts = {"baseline_name": "the larger of an even spread and the best fixed offset"} | facts
        baseline = np.where(np.isfinite(even), np.maximum(even, best), np.nan)
        return self.result(shares.ratio, detail, column, baseline=baseline, raw=shares.ratio.per_case(column), **facts)

    def result(self, ratio: Ratio, detail: str, column: int = 0, *, baseline: Numbers | float, **facts: Any) -> Result:
        """The `Result` of one column of a ratio; ``facts`` are its other fields."""
        chosen, scored, total = (ratio.interval(half, column) for half in (0, 1, None))
        facts = {"measure": self.name, "unit": "share", "baseline_name": "even spread"} | facts
        return Result(detail=detail, chosen=chosen, scored=scored, total=total, baseline=baseline, **facts)


@dataclass(frozen=True)
class Probe:
    """A source of texts, and what is measured on them.

    Args:
        name: in tables and in the progress bar.
        samples: the texts from the first on, the same at every call.
        measures: new measures; called a second time for those of the control.
        tokens: how many tokens there are about, for the progress bar.
        control_every: of how many pairs of texts (one of each half) one is run a second time with its tokens shuffled;
            0 for no control.
        samples_per_text: how many samples in a row are of one text.
        reads: how often the model reads each sample.
    """

    name: str
    samples: Callable[[], Iterator[Sample]]
    measures: Callable[[], list[Measure]]
    tokens: int
    control_every: int = 4
    samples_per_text: int = 1
    reads: int = 1

    def controlled(self, sample: Sample) -> bool:
        """Whether a text is also run with its tokens shuffled."""
        return self.control_every > 0 and (sample.number // 2) % self.control_every == 0
