"""Reports of a translation, a sound and a picture, made up from a formula, so that their pages need no model."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from limelight.forms.observations import Observations
from limelight.microscope.reading.pictures import Picture
from limelight.microscope.reading.sound import SoundGatherer
from limelight.microscope.report import ModelFacts, Report
from limelight.microscope.sources.cross import Cross
from limelight.microscope.subjects import Source
from limelight.microscope.subjects.patches import Patches
from limelight.text import Text

from .made_up import mock_reading, mock_report, split

FRAME = 0.02  # seconds of a state
STATES = 1500


def _text(text: str) -> Text:
    pieces, offsets, special = split(text, special=True)
    words = (*(None if one else number for number, one in enumerate(special)),)
    return Text(text, (0,) * len(pieces), tuple(pieces), tuple(offsets), words, tuple(special))


def _weights(layers: int, heads: int, queries: int, keys: int, sharp: float) -> np.ndarray:
    """Head 1.0 goes along both; the others are random."""
    random = np.random.default_rng(queries * 1000 + keys)
    scores = 1.5 * random.standard_normal((layers, heads, queries, keys))
    at = np.arange(queries)[:, None] * (keys - 1) / max(1, queries - 1)
    scores[min(1, layers - 1), 0] -= sharp * np.abs(np.arange(keys) - at)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return (weights / weights.sum(-1, keepdims=True)).astype(np.float32)


def mock_translation(source: str, target: str, layers: int = 2, heads: int = 3, encoder: bool = True) -> Report:
    """A translation whose head 1.0 aligns."""
    read = _text(source)
    reading = mock_reading(target, layers, heads)
    weights = _weights(layers, heads, reading.length, len(read), 6.0)
    ids = torch.zeros(1, len(read), dtype=torch.int64)
    cross = Cross(Source(ids, read, len(read)), reading, weights, len(read), ((min(1, layers - 1), 0),))
    chosen = ((0,),)
    own = mock_report((source,), layers, heads) if encoder else None
    facts = ModelFacts("made-up", "encoder-decoder", layers, heads)
    return Report(facts, (reading,), chosen, "the first", cross=cross, source=own)


def mock_listening(seconds: float = 4.0, layers: int = 2, heads: int = 3) -> Report:
    """The self-attention of an encoder over a sound, whose head 1.0 looks back a little."""
    length = round(seconds / FRAME)
    gatherer = SoundGatherer(length, FRAME, layers, heads)
    for layer in 0.8 * _weights(layers, heads, length, length, 1.0):  # the rest is on the silence
        rows = np.concatenate([layer, np.full((heads, length, STATES - length), 0.2 / (STATES - length))], -1)
        gatherer.add(Observations(rows=torch.from_numpy(rows[None].astype(np.float32))))
    paths = gatherer.paths(False)
    for states in torch.randn(layers + 1, 1, STATES, 8, generator=torch.Generator().manual_seed(0)):
        paths.add(states)
    facts = ModelFacts("made-up", "encoder", layers, heads)
    return Report(facts, (gatherer.reading(paths, None),), ((0, 1),), "the first", about=gatherer.notes)


def mock_speech(
    target: str, seconds: float = 4.0, layers: int = 2, heads: int = 3, encoder: Report | None = None
) -> Report:
    """A sound whose words follow one another evenly."""
    reading = mock_reading(target, layers, heads)
    length = round(seconds / FRAME)
    weights = 0.9 * _weights(layers, heads, reading.length, length, 1.0)  # the rest is on the silence
    random = np.random.default_rng(0)
    bands = np.linspace(0, 3, 80)[:, None]
    time = np.arange(2 * STATES) / 100
    spectrum = np.exp(-bands) * np.abs(np.sin(3 * time)) + 0.05 * random.random((80, 2 * STATES))
    sound = Source(torch.from_numpy(spectrum[None].astype(np.float32)), None, length, FRAME)
    cross = Cross(sound, reading, weights, STATES, ((min(1, layers - 1), 0),))
    facts = ModelFacts("made-up", "encoder-decoder", layers, heads)
    return Report(facts, (reading,), ((0,),), "the first", cross=cross, source=encoder)


def without_words(report: Report) -> Report:
    """The same report of a target that has special tokens alone, so that no head aligns."""
    (reading,) = report.readings
    assert report.cross is not None
    tokens = tuple(dataclasses.replace(token, word=-1) for token in reading.tokens)
    reading = dataclasses.replace(reading, words=(), tokens=tokens)
    cross = dataclasses.replace(report.cross, target=reading, named=())
    return dataclasses.replace(report, readings=(reading,), cross=cross, chosen=((),))


def mock_picture(rows: int = 4, columns: int = 5, layers: int = 2, heads: int = 3, before: int = 1) -> Report:
    """A picture of colours that change from left to right and from top to bottom."""
    patches = Patches(3, rows * 8, columns * 8, 8, before)
    names = patches.text.text
    reading = mock_reading(names, layers, heads)
    reading = dataclasses.replace(
        mock_reading(names, layers, heads, causal=True) if before == 0 else reading, causal=False
    )
    y, x = np.mgrid[0 : rows * 8, 0 : columns * 8]
    pixels = np.stack([255 * x / x.max(), 255 * y / y.max(), np.full_like(x, 90)], -1).astype(np.uint8)
    length = before + rows * columns
    if before == 1:  # without the token at the end
        tokens = reading.tokens[:length]
        keep = slice(0, length)
        shares = reading.shares[..., keep, keep]
        shares = shares / shares.sum(-1, keepdims=True)
        reading = dataclasses.replace(
            reading,
            tokens=tokens,
            shares=shares,
            apart=(0,),
            apart_shares=np.where(np.arange(length) == 0, shares, 0.0),
            received=shares.sum(2).mean(1),
            path=reading.path[:, :-1],
            steps=reading.steps[:, :-1],
            vectors=None,
        )
    picture = Picture(pixels, rows, columns, before, 1, reading.shares)
    facts = ModelFacts("made-up", "encoder", layers, heads)
    return Report(facts, (reading,), ((0, 1),), "the first", pictures=(picture,))
