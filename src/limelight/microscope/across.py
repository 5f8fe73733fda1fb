"""Run an encoder-decoder over a source and a target under observation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..formats.progress import counted
from ..forms.observations import watching
from ..tensors.shapes import wrong
from .choosing import about, choose, facts
from .reading.gathering import Gatherer, Gathering, Watch
from .reading.record import Reading
from .reading.sound import SoundGatherer
from .report import ModelFacts, Report
from .sources.cross import Cross, CrossGatherer
from .subjects import Source, Subject
from .subjects.base import checked

HEARD = "parts of the sound whose vector moves most between the embedding and the last layer"


def look_across(subject: Subject, source: Any, target: str | None, words: Sequence[str], special: bool) -> Report:
    """The report of an encoder-decoder: what each token of the target looked at in the target and in the source.

    Args:
        subject: the model.
        source: a text, or a sound for a model that hears.
        target: what the decoder reads; ``None``: what the model writes.
        words: of the target, to report on.
        special: include special tokens, sinks, punctuation and the word itself in relations.

    Raises:
        ArgumentError: a source or target without a word, or a model without cross-attention that can be observed.
    """
    if not subject.cross_names:
        got = f"none of {subject.name} can be observed"
        raise wrong("model", "must have cross-attention", got, "limelight.watching observes what there is.")
    read = subject.read_source(source if subject.hears else checked(source))
    if target is None:
        with counted("Writing the target", 1) as progress:
            written = subject.write(read)
            progress(1)
    else:
        written = subject.read_target(checked(target, "target"))
    gatherer = Gatherer(written, True, len(subject.attention_names), subject.heads)
    cross = CrossGatherer(len(written), read.length, subject.heads)
    gatherers: dict[str, Gathering] = dict.fromkeys(subject.attention_names, gatherer)
    encoder = _of_encoder(subject, read)
    gatherers |= dict.fromkeys(subject.encoder_names, encoder)
    gatherers |= dict.fromkeys(subject.cross_names, cross)
    ids = torch.tensor([written.ids], dtype=torch.int64, device="cpu")
    with (
        counted(f"Reading {len(written):,} tokens", len(gatherers)) as progress,
        watching(Watch(gatherers, progress)),
    ):
        run = subject.run(ids, source=read.input, hidden=True)
    reading = _reading(subject, gatherer, run.hidden)
    chosen, chosen_by = choose((reading,), None, words)
    weights = np.stack(cross.layers)
    across = Cross(read, reading, weights, cross.states, subject.alignment_heads, subject.unknown_token)
    source_report = _of_source(subject, encoder, run.source_hidden, special)
    return Report(
        facts(subject), (reading,), chosen, chosen_by, None, special, about(subject), across, source=source_report
    )


def _of_encoder(subject: Subject, source: Source) -> Gatherer:
    """What gathers the encoder's self-attention over a source."""
    layers, heads = len(subject.encoder_names), subject.encoder_heads
    if source.text is not None:
        return Gatherer(source.text, False, layers, heads)
    assert source.seconds is not None
    return SoundGatherer(source.length, source.seconds, layers, heads)


def _reading(subject: Subject, gatherer: Gatherer, hidden: Sequence[Tensor]) -> Reading:
    paths = gatherer.paths(keep_vectors=False)
    for states in hidden:
        paths.add(states)
    return gatherer.reading(paths, subject.unknown_token)


def _of_source(subject: Subject, gatherer: Gatherer, hidden: Sequence[Tensor], special: bool) -> Report | None:
    """The report of the encoder's self-attention over a source; ``None`` where not every layer is observed."""
    if not subject.encoder_names or len(hidden) != len(subject.encoder_names) + 1:
        return None
    reading = _reading(subject, gatherer, hidden)
    model = ModelFacts(subject.name, "encoder", len(subject.encoder_names), subject.encoder_heads)
    chosen, chosen_by = choose((reading,), None, ())
    if not isinstance(gatherer, SoundGatherer):
        return Report(model, (reading,), chosen, chosen_by, None, special)
    return Report(model, (reading,), chosen, HEARD, None, special, gatherer.notes)
