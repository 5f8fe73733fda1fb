"""Observations: what is asked for, what is returned, and what a watcher gathers.

Their numbers are compared with the definition in tests/test_reference.py, and in the tests of each backend.
"""

import math

import pytest
import torch

import limelight
from limelight import Observe

q, k = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 6, 8)


def test_ties_take_the_lowest_key():
    q, k = torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 5, 2)
    _, seen = limelight.attention(q, k, k, observe=Observe(top=3))
    assert seen.top_keys.flatten().tolist() == [0, 1, 2]


def test_heads_are_chosen_in_order():
    q = torch.randn(1, 4, 3, 2)
    _, all_heads = limelight.attention(q, q, q, observe=Observe(entropy=True, received=True))
    _, some = limelight.attention(q, q, q, observe=Observe(entropy=True, received=True, heads=(3, 1)))
    assert torch.equal(some.entropy, all_heads.entropy[:, [3, 1]])
    assert torch.equal(some.received, all_heads.received[:, [3, 1]])


@pytest.mark.parametrize("score", [-torch.finfo(torch.float32).max, -1e30, -1e10, 1e10, 1e30])
def test_the_entropy_of_even_weights_is_the_logarithm_of_their_number_however_large_the_scores(score):
    query, key = torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 600, 4)
    bias = torch.full((1, 600), score, requires_grad=True)
    _, seen = limelight.attention(
        query, key, key, scores=(limelight.forms.scores.Bias(bias),), observe=Observe(entropy=True), backend="reference"
    )
    torch.testing.assert_close(seen.entropy, torch.full((1, 1, 2), math.log(600)))
    (gradient,) = torch.autograd.grad(seen.entropy.sum(), bias)  # the entropy is at its largest
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-6, rtol=0)


def test_watching_names_layers_and_gives_way():
    with limelight.watching(Observe(entropy=True)) as seen:
        limelight.attention(q, k, k, name="first")
        _, own = limelight.attention(q, k, k, observe=Observe(top=2))
        limelight.attention(q, k, k, name="first")
    limelight.attention(q, k, k, name="late")
    assert list(seen.layers) == ["first", "attention.1"]
    assert len(seen.layers["first"]) == 2
    assert seen["first"].entropy.shape == (2, 4, 5)
    assert own.top_keys.shape == (2, 4, 5, 2)
    with pytest.raises(KeyError, match="first"):
        seen["late"]
