"""The reference against four nested loops, in float64: output, logsumexp, every observation."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.oracles import loops
from support.strategies import examples, sizes

import limelight
from limelight import Additive, Observe

SMALL = sizes(lengths=st.integers(0, 7), widths=st.integers(1, 4))


def close(a, b):
    np.testing.assert_allclose(a.detach().numpy(), b, rtol=1e-11, atol=1e-12)


@given(examples(SMALL))
def test_output_and_statistics(example):
    s, q, k, v = example.sizes, example.query, example.key, example.value
    everything = Observe(
        logsumexp=True, max_score=True, max_weight=True, entropy=True, distance=True, top=3, received=True,
        features=torch.arange(2.0 * s.Lk, dtype=torch.float64).reshape(s.Lk, 2), rows=tuple(range(s.Lq)),
        pairs=tuple((i, j) for i in range(s.Lq) for j in range(s.Lk)), blocks=(2, 3),
    )  # fmt: skip
    out, seen = limelight.attention(q, k, v, observe=everything, backend="reference", **example.settings)
    truth, weights, lse, scores = loops.attention(q, k, v, **example.settings)
    close(out, truth)
    close(seen.logsumexp, lse)
    close(seen.rows, weights)
    close(seen.pairs, weights.reshape(s.B, s.Hq, -1))
    close(seen.received, weights.sum(2))
    close(seen.max_weight, weights.max(3, initial=0))
    close(seen.max_score, scores.max(3, initial=-np.inf))
    close(seen.entropy, -np.where(weights > 0, weights * np.log(np.where(weights > 0, weights, 1)), 0).sum(3))
    close(seen.features, weights @ everything.features.numpy())
    visible = loops.visible(example.settings["pattern"], example.settings["layout"], s.B, s.Hq, s.Lq, s.Lk)
    assert (seen.received_by.numpy() == visible.sum(2)).all()
    check_top(seen, weights, scores, 3)
    nq, nk = seen.blocks.shape[2:]
    padded = np.zeros((s.B, s.Hq, nq * 2, nk * 3))
    padded[:, :, : s.Lq, : s.Lk] = weights
    close(seen.blocks, padded.reshape(s.B, s.Hq, nq, 2, nk, 3).sum((3, 5)))
    distances = np.zeros_like(weights)
    for b, (queries, keys) in enumerate(loops.places(example.settings["layout"], s.B, s.Lq, s.Lk)):
        for i, query in enumerate(queries):
            for j, key in enumerate(keys):
                if query and key:
                    distances[b, :, i, j] = abs(query[0] - key[0])
    close(seen.distance, (weights * distances).sum(3))


def check_top(seen, weights, scores, k):
    B, Hq, Lq, Lk = weights.shape
    for b, h, i in np.ndindex(B, Hq, Lq):
        there = [j for j in range(Lk) if scores[b, h, i, j] > -np.inf]
        keys = [j for j in seen.top_keys[b, h, i].tolist() if j >= 0]
        assert len(keys) == min(k, len(there)) == len(set(keys))
        close(seen.top_weights[b, h, i, : len(keys)], sorted(weights[b, h, i, there], reverse=True)[:k])
        close(seen.top_weights[b, h, i, : len(keys)], weights[b, h, i, keys])
        assert not seen.top_weights[b, h, i, len(keys) :].any()


@given(examples(SMALL, dropout=False), st.booleans())
def test_additive(example, per_head):
    example.settings.pop("scale")
    s = example.sizes
    vector = torch.randn(*((s.Hq,) if per_head else ()), s.D, dtype=torch.float64)
    out = limelight.attention(example.query, example.key, example.value, compare=Additive(vector), **example.settings)
    truth = loops.attention(example.query, example.key, example.value, compare=Additive(vector), **example.settings)[0]
    close(out, truth)


def test_low_precision_accumulates_in_float32():
    q, k, v = (torch.randn(1, 2, 50, 16).bfloat16() for _ in range(3))
    out = limelight.attention(q, k, v, backend="reference")
    truth = limelight.attention(q.double(), k.double(), v.double(), backend="reference")
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, limelight.attention(q.float(), k.float(), v.float(), backend="reference").bfloat16())
    assert (out.double() - truth).abs().max() <= truth.abs().max() * 2**-8
