"""Importance by ablation: what changes when the output of one head is set to zero (Michel et al. 2019, section 3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ....forms.observations import Observe, Seen, watching
from ...subjects import Run, Subject
from ..measure import Probe, Result
from ..sample import Sample
from ..sums import Numbers, Ratio
from .states import OfStates

CONTEXT = 128  # tokens of a text, at most: few tokens in more texts, over which the interval is taken
ROWS = 16  # heads silenced in one run, each in a row of its own


class Silenced(Seen):
    """Sets another head of one layer to zero in each row of a batch.

    Args:
        layer: the name of the layer.
        heads: ``(B,)`` int64: the head of each row.

    Attributes:
        existing: how many heads the layer has, after a run.
    """

    def __init__(self, layer: str, heads: Tensor) -> None:
        super().__init__(Observe())
        self.layer, self.heads, self.existing = layer, heads, 0

    def replace(self, name: str | None, query: Tensor, key: Tensor, value: Tensor, output: Tensor) -> Tensor:
        if name != self.layer:
            return output
        self.existing = output.shape[1]
        heads = self.heads.to(output.device)
        rows = torch.arange(len(heads), device=output.device)[heads < self.existing]
        return output.index_put((rows, heads[rows]), output.new_zeros(()))


class Ablation(OfStates):
    """The change when a head is silenced: of a decoder's mean next-token loss, or of the last states of other models.

    The change of the states is ``1 - cosine`` of the states with and without the head, over all tokens of a text.
    ``labels["layer"]`` of a sample names the layer of which all heads are silenced, one at a time.
    """

    name = "ablation"

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.change = Ratio(subject.layers, subject.heads, common_whole=True)
        self.whole = np.zeros(2)  # the loss of the whole model and its tokens, each as often as there are layers

    def finish(self, sample: Sample, run: Run) -> None:
        states, layer = run.hidden[-1], int(sample.labels["layer"])
        before = self._losses(states, sample)
        change = np.full(self.subject.heads, np.nan)
        for start in range(0, self.subject.heads, ROWS):
            heads = torch.arange(start, min(start + ROWS, self.subject.heads), device="cpu")
            silenced = Silenced(self.subject.attention_names[layer], heads)
            with watching(silenced):
                after = _last_states(self.subject, sample.ids.expand(len(heads), -1))
            for head, row in zip(heads.tolist(), after, strict=True):
                if head < silenced.existing:
                    change[head] = self._changed(states, row[None], sample, before)
        count = len(sample) if before is None else len(before)
        self.change.add(sample.number, layer, change, count, count)
        if before is not None:
            self.whole += [float(before.sum()), count]

    def _changed(self, states: Tensor, after: Tensor, sample: Sample, before: Numbers | None) -> float:
        """The sum over the tokens of a text."""
        losses = None if before is None else self._losses(after, sample)
        if before is None or losses is None:
            similar = functional.cosine_similarity(states.double(), after.double(), dim=-1)
            return float((1.0 - similar).sum())
        return float((losses - before).sum())

    def _losses(self, states: Tensor, sample: Sample) -> Numbers | None:
        """The loss of each token but the first, in nats; ``None`` for an encoder, or without an output embedding."""
        logits = self.subject.lens(states, self.subject.layers) if self.subject.causal else None
        if logits is None:
            return None
        scores = logits[0, :-1].float()
        losses = functional.cross_entropy(scores, sample.ids[0, 1:].to(scores.device), reduction="none")
        found: Numbers = losses.double().cpu().numpy()
        return found

    def results(self) -> list[Result]:
        if not self.change.interval().n:
            return []
        of_loss = self.whole[1] > 0
        notes = ["The output of the head is set to zero at every token, and nothing is trained anew."]
        if of_loss:
            notes.append(f"The loss of the whole model on these tokens is {self.whole[0] / self.whole[1]:.3f} nats.")
        return [
            self.result(
                self.change,
                "loss" if of_loss else "last states",
                baseline=0.0,
                baseline_name="no change",
                unit="loss" if of_loss else "1 - cosine",
                notes=tuple(notes),
            )
        ]


def _last_states(subject: Subject, ids: Tensor) -> Tensor:
    last: list[Tensor] = []

    def keep(depth: int, states: Tensor) -> None:
        last[:] = [states]

    subject.follow(ids, keep)
    return last[0]


def ablation_probe(subject: Subject, texts: Callable[[], Iterator[Sample]], tokens: int) -> Probe:
    """Every text once for each layer, whose heads are silenced one by one.

    Args:
        subject: the model.
        texts: a few texts of at most `CONTEXT` tokens.
        tokens: how many they have, about.
    """

    def samples() -> Iterator[Sample]:
        for text in texts():
            for layer in range(subject.layers):
                yield replace(text, labels={"layer": layer})

    return Probe(
        "ablation", samples, lambda: [Ablation(subject)], tokens * subject.layers, 0, subject.layers, subject.heads + 1
    )
