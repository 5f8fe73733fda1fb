"""Observations: what is requested, what is returned, and what `watching` collects.

Their values are compared with the definition in tests/test_reference.py, and in the tests of each backend.
"""

import math
from collections.abc import Mapping

import pytest
import torch

import limelight
from limelight import Observations, Observe, Seen

q, k = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 6, 8)


def test_ties_take_the_lowest_key():
    q, k = torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 5, 2)
    _, seen = limelight.attention(q, k, k, observe=Observe(top=3))
    assert seen.top_keys.flatten().tolist() == [0, 1, 2]


def test_observed_heads_keep_their_order():
    q = torch.randn(1, 4, 3, 2)
    _, all_heads = limelight.attention(q, q, q, observe=Observe(entropy=True, received=True))
    _, some = limelight.attention(q, q, q, observe=Observe(entropy=True, received=True, heads=(3, 1)))
    assert torch.equal(some.entropy, all_heads.entropy[:, [3, 1]])
    assert torch.equal(some.received, all_heads.received[:, [3, 1]])


@pytest.mark.parametrize("score", [-torch.finfo(torch.float32).max, -1e30, -1e10, 1e10, 1e30])
def test_the_entropy_of_even_weights_is_the_logarithm_of_their_count_at_any_scores(score):
    query, key = torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 600, 4)
    bias = torch.full((1, 600), score, requires_grad=True)
    _, seen = limelight.attention(
        query, key, key, scores=(limelight.forms.scores.Bias(bias),), observe=Observe(entropy=True), backend="reference"
    )
    torch.testing.assert_close(seen.entropy, torch.full((1, 1, 2), math.log(600)))
    (gradient,) = torch.autograd.grad(seen.entropy.sum(), bias)  # the entropy is at its maximum
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-6, rtol=0)


def test_seen_is_a_mapping_of_the_last_calls():
    with limelight.watching(Observe(entropy=True)) as seen:
        for length in (2, 3):
            for name in ("b", "a", None):
                limelight.attention(q[:, :, :length], k, k, name=name)
    assert isinstance(seen, Mapping)
    assert list(seen) == list(seen.keys()) == ["b", "a", "attention.2", "attention.3"]
    assert len(seen) == 4
    assert "a" in seen
    assert "c" not in seen
    assert seen.get("c") is None
    assert [call.entropy.shape[-1] for call in seen.calls("b")] == [2, 3]
    assert seen["b"] is seen.calls("b")[-1]
    assert dict(seen.items()).keys() == seen.keys()
    with pytest.raises(KeyError, match=r"no layer 'c' was seen; the layers seen are: b, a, attention\.2, attention\.3"):
        seen.calls("c")
    with pytest.raises(TypeError):
        seen["a"] = Observations()
    assert repr(seen) == "<Seen: 4 layers, 6 calls>"


def test_a_subclass_of_seen_takes_each_call_as_it_ends():
    class Shapes(Seen):
        def __init__(self):
            super().__init__(Observe(max_weight=True))
            self.shapes = []

        def add(self, name, observations):
            self.shapes.append((name, tuple(observations.max_weight.shape)))

    with limelight.watching(Shapes()) as inner, limelight.watching(Shapes()) as watch:
        limelight.attention(q, k, k, name="only")
    assert watch.shapes == [("only", (2, 4, 5))]
    assert inner.shapes == []  # the innermost watcher takes the call
    assert watch != inner
    assert len(watch) == 0
    with pytest.raises(limelight.ArgumentError, match="must be an Observe, or a Seen"), limelight.watching("entropy"):
        pass


def test_a_field_that_was_not_requested_is_none():
    _, seen = limelight.attention(q, k, k, observe=Observe(entropy=True, top=2))
    assert sorted(seen.seen()) == ["entropy", "top_keys", "top_weights"]
    assert seen.received is None
    doubled = seen.map(lambda tensor: 2 * tensor)
    assert torch.equal(doubled.entropy, 2 * seen.entropy)
    assert repr(seen) == "Observations(entropy: (2, 4, 5), top_weights: (2, 4, 5, 2), top_keys: (2, 4, 5, 2))"


def test_watching_names_layers_and_leaves_explicit_observations_alone():
    with limelight.watching(Observe(entropy=True)) as seen:
        limelight.attention(q, k, k, name="first")
        _, own = limelight.attention(q, k, k, observe=Observe(top=2))
        limelight.attention(q, k, k, name="first")
    limelight.attention(q, k, k, name="late")
    assert list(seen) == ["first", "attention.1"]
    assert len(seen.calls("first")) == 2
    assert seen["first"].entropy.shape == (2, 4, 5)
    assert own.top_keys.shape == (2, 4, 5, 2)
    with pytest.raises(KeyError, match="first"):
        seen["late"]
