"""Runs a model over the texts of its probes, once, and lets every measure count what was observed."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...forms.observations import Observations, Observe, Seen, watching
from ..subjects import Subject
from .measure import Measure, Probe, Union
from .sample import Sample

NOTHING = Observe()


class _Watch(Seen):
    """Hands each layer's observations to the measures that requested them."""

    def __init__(self, subject: Subject, sample: Sample, measures: list[Measure]) -> None:
        super().__init__(NOTHING)
        requests = [(measure, measure.request(sample)) for measure in measures]
        self.measures = [measure for measure, request in requests if request is not None]
        self.union = Union([request for _, request in requests if request is not None], sample)
        self.layers = {name: layer for layer, name in enumerate(subject.attention_names)}
        self.sample, self.heads = sample, subject.heads
        self.observed = Observations()  # of the call that is being made

    def request(self, name: str | None, query: Tensor, key: Tensor) -> Observe:
        return self.union.on(query.device) if name in self.layers else NOTHING

    def add(self, name: str | None, observations: Observations) -> None:
        self.observed = observations

    def replace(self, name: str | None, query: Tensor, key: Tensor, value: Tensor, output: Tensor) -> Tensor:
        if name in self.layers and self.measures:
            layer = self.layers[name]
            parts = self.union.parts(self.observed, value, self.heads)
            for measure, part in zip(self.measures, parts, strict=True):
                measure.add(self.sample, layer, part)
        return output


def measure_sample(subject: Subject, sample: Sample, measures: list[Measure], ids: Tensor | None = None) -> None:
    """Run a model once over a text and let measures count.

    Args:
        subject: the model.
        sample: the text.
        measures: which of them are to count.
        ids: ``(1, L)`` the tokens that the model reads instead of those of the sample: the control.
    """
    watch = _Watch(subject, sample, measures)
    hidden = [measure for measure in measures if measure.hidden]
    if not watch.measures and not hidden:
        return
    source = None if sample.source is None else torch.tensor([sample.source], dtype=torch.int64, device="cpu")
    with watching(watch):
        run = subject.run(sample.ids if ids is None else ids, source=source, hidden=bool(hidden))
    for measure in dict.fromkeys([*watch.measures, *hidden]):
        measure.finish(sample, run)


@dataclass
class Progress:
    """How far the pass over one probe has come.

    Args:
        probe: the texts.
        measures: what has been counted on them.
        controls: the same, counted on the texts whose tokens were shuffled.
        samples: how many texts were read.
        tokens: how many tokens these have.
        ended: whether there are no more.
    """

    probe: Probe
    measures: list[Measure] = field(default_factory=list)
    controls: list[Measure] = field(default_factory=list)
    samples: int = 0
    tokens: int = 0
    ended: bool = False

    def __post_init__(self) -> None:
        self.measures = self.measures or self.probe.measures()
        if self.probe.control_every and not self.controls:
            self.controls = [one.without_intervals() for one in self.probe.measures() if one.controlled]

    @property
    def expected(self) -> int:
        """How many tokens the model reads in all for this probe, about; those of the control included."""
        return self._with_control(max(self.probe.tokens, self.tokens))

    @property
    def read(self) -> int:
        """How many of them it has read, about."""
        return self.expected if self.ended else self._with_control(self.tokens)

    @property
    def size(self) -> dict[str, int]:
        """How many ``texts`` were read, and how many ``tokens`` these have."""
        each = self.probe.samples_per_text
        return {"texts": -(-self.samples // each), "tokens": -(-self.tokens // each)}

    def _with_control(self, tokens: int) -> int:
        return tokens * self.probe.reads + (tokens // self.probe.control_every if self.probe.control_every else 0)


def run_probe(
    subject: Subject,
    progress: Progress,
    stop: threading.Event,
    report: Callable[[], None],
    save: Callable[[], None],
    every: float = 60.0,
) -> None:
    """Go on with one probe from where it stands to its last text.

    Args:
        subject: the model.
        progress: where the probe stands; it is brought up to date after every text.
        stop: set to end after the text that is being read.
        report: called after every text.
        save: called between two texts, when ``every`` seconds have passed.
        every: seconds.
    """
    saved = time.monotonic()
    for sample in itertools.islice(progress.probe.samples(), progress.samples, None):
        measure_sample(subject, sample, progress.measures)
        if progress.probe.controlled(sample):
            measure_sample(subject, sample, progress.controls, sample.shuffled)
        progress.samples += 1
        progress.tokens += len(sample)
        report()
        if stop.is_set():
            return
        if time.monotonic() - saved > every:
            save()
            saved = time.monotonic()
    progress.ended = True
