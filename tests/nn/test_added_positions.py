"""Position vectors against the formulas and against transformers' own."""

import math

import pytest
import torch
from transformers.models.bart.modeling_bart import BartLearnedPositionalEmbedding
from transformers.models.marian.modeling_marian import MarianSinusoidalPositionalEmbedding
from transformers.models.whisper.modeling_whisper import sinusoids

import limelight
from limelight.nn import LearnedPositions, Sinusoids, SplitHalves

F64 = torch.float64


def test_waves_of_the_paper():
    got = Sinusoids(6)(torch.tensor([[0, 3, 1000]]), F64)
    for place, p in enumerate((0, 3, 1000)):
        for i in range(3):
            angle = p / 10_000 ** (2 * i / 6)
            assert got[0, place, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-12)
            assert got[0, place, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-12)


def test_waves_of_marian():
    theirs = MarianSinusoidalPositionalEmbedding(50, 16).create_weight()
    torch.testing.assert_close(Sinusoids(16, pairing=SplitHalves())(torch.arange(50)[None])[0], theirs)


def test_waves_of_whisper():
    ours = Sinusoids(16, steps=7, pairing=SplitHalves())(torch.arange(50)[None])[0]
    torch.testing.assert_close(ours, sinusoids(50, 16), rtol=1e-5, atol=1e-5)  # their angles are rounded


def test_learned_positions_of_bart():
    theirs = BartLearnedPositionalEmbedding(10, 4)
    ours = LearnedPositions(4, count=10, offset=2)
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours(torch.arange(10)[None]), theirs(torch.zeros(1, 10)).reshape(1, 10, 4))
    torch.testing.assert_close(ours(torch.tensor([[-3]])), ours(torch.tensor([[0]])))


def test_odd_widths_are_refused():
    with pytest.raises(limelight.ArgumentError, match="even"):
        Sinusoids(5)
