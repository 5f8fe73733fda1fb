"""The self-attention of an encoder over parts of a sound, against loops in float64 and the weights of a real model."""

import numpy as np
import pytest
import torch

from limelight.forms.observations import Observations, Observe, watching
from limelight.microscope import look
from limelight.microscope.reading.record import even_distance
from limelight.microscope.reading.relations import uniform
from limelight.microscope.reading.sound import PARTS, SoundGatherer, _joined
from limelight.microscope.subjects import subject_of


def gathered(rows, length):
    """The reading of weights ``(N, H, S, S)``, and of states that are the numbers of the parts."""
    layers, heads, states = rows.shape[:3]
    gatherer = SoundGatherer(length, 0.02, layers, heads)
    for layer in rows:
        gatherer.add(Observations(rows=layer[None, :, :length].float()))
    paths = gatherer.paths(True)
    generator = torch.Generator().manual_seed(1)
    vectors = torch.randn(layers + 1, 1, states, 8, generator=generator)
    for one in vectors:
        paths.add(one)
    return gatherer, gatherer.reading(paths, None), vectors[:, 0, :length].double().numpy()


@pytest.mark.parametrize(("length", "states", "join"), [(7, 20, 1), (99, 99, 1), (300, 330, 5), (298, 330, 5)])
def test_parts_are_sums_over_keys_and_means_over_queries(length, states, join):
    generator = torch.Generator().manual_seed(length)
    scores = torch.randn(2, 3, states, states, generator=generator, dtype=torch.float64)
    weights = (2 * scores).softmax(-1)
    gatherer, reading, vectors = gathered(weights, length)
    assert gatherer.join == join
    parts, keys = -(-length // join), -(-states // join)
    assert (reading.length, reading.keys) == (parts, keys)
    exact = np.zeros((2, 3, parts, keys))
    for query in range(parts):
        for key in range(keys):
            rows = slice(query * join, min((query + 1) * join, length))
            columns = slice(key * join, (key + 1) * join)
            exact[:, :, query, key] = weights[:, :, rows, columns].sum(-1).mean(-1)
    np.testing.assert_allclose(reading.shares, exact[..., :parts], atol=1e-6)
    np.testing.assert_allclose(reading.heads.apart, exact[..., parts:].sum(-1).mean(-1), atol=1e-6)
    np.testing.assert_allclose(reading.heads.entropy, -(exact * np.log(exact)).sum(-1).mean(-1), atol=1e-5)
    np.testing.assert_allclose(reading.heads.strongest, exact.max(-1).mean(-1), atol=1e-6)
    away = np.abs(np.arange(parts)[:, None] - np.arange(keys))
    np.testing.assert_allclose(reading.heads.distance, (exact * away).sum(-1).mean(-1), atol=1e-4)
    np.testing.assert_allclose(reading.received, exact[..., :parts].sum(2).mean(1), atol=1e-5)
    assert even_distance(reading) == pytest.approx(away.mean())
    assert uniform(reading, 0, 1) == pytest.approx(1 / keys)
    assert reading.expected == pytest.approx(np.full(parts, parts / keys))
    means = np.stack([vectors[:, at * join : (at + 1) * join].mean(1) for at in range(parts)], 1)
    means /= np.linalg.norm(means, axis=-1, keepdims=True)
    np.testing.assert_allclose(reading.path, (means * means[:1]).sum(-1), atol=1e-5)
    assert "silence" in gatherer.notes[-1] if keys > parts else len(gatherer.notes) == 1


def test_layers_with_fewer_heads_have_zeros():
    gatherer = SoundGatherer(4, 0.02, 1, 3)
    gatherer.add(Observations(rows=torch.full((1, 2, 4, 8), 0.125)))
    paths = gatherer.paths(False)
    paths.add(torch.randn(1, 8, 2))
    apart = gatherer.reading(paths, None).heads.apart
    np.testing.assert_allclose(apart, [[0.5, 0.5, 0.0]])


def test_names_are_the_seconds_when_parts_begin():
    assert SoundGatherer(3, 0.02, 1, 1).text.tokens == ("0.00 s", "0.02 s", "0.04 s")
    longer = SoundGatherer(500, 0.02, 4, 6)
    assert [word.text for word in longer.words[:2]] == ["0.0 s", "0.1 s"]
    assert longer.words[99].text == "9.9 s"
    assert all(longer.text.text[word.start : word.end] == word.text for word in longer.words)


@pytest.mark.parametrize("heads", [1, 24, 640, 10_000])
def test_the_size_is_bounded(heads):
    for length in (1, 50, 500, 1500, 6000, 100_000):
        parts = -(-length // _joined(length, heads))
        assert parts <= PARTS
        assert parts <= 64 or heads * parts**2 <= 1_200_000
        assert parts >= min(length, 32)


def test_the_encoder_of_whisper_is_shown(whisper, beckett):
    report = look(whisper, beckett, target=" Ever tried.").source
    (reading,) = report.readings
    assert (report.model.kind, report.model.layers, report.model.heads) == ("encoder", 4, 6)
    assert reading.shares.shape == (4, 6, 100, 100)
    assert reading.keys == 300
    subject = subject_of(whisper)
    with torch.inference_mode(), watching(Observe(rows=range(500))) as seen:
        whisper.network.encode(subject.read_source(beckett).input)
    rows = torch.stack([seen[name].rows[0] for name in subject.encoder_names]).double().numpy()
    exact = rows.reshape(4, 6, 100, 5, 300, 5).sum(-1).mean(3)
    np.testing.assert_allclose(reading.shares[:, :, :99], exact[:, :, :99, :100], atol=1e-6)  # 498 states: 99.6 parts
    np.testing.assert_allclose(reading.shares.sum(-1).mean(-1) + reading.heads.apart, 1.0, atol=1e-5)
    relation = report.tables["relations"][0]
    assert relation["word"].endswith(" s")
    assert relation["uniform"] == pytest.approx(1 / 300, rel=1e-5)
    assert "0.1 seconds (5 states" in " ".join(report.notes)
    assert "20.0 seconds of silence" in " ".join(report.notes)
