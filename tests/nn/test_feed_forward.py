"""Activations and gated forms against their formulas."""

import math

import pytest
import torch
from transformers.activations import ACT2FN

from limelight.nn import ACTIVATIONS, FeedForward, GatedFeedForward, projection

F64 = torch.float64


@pytest.mark.parametrize("name", [name for name in ACTIVATIONS if name in ACT2FN])
def test_every_activation_is_that_of_transformers(name):
    x = torch.linspace(-6, 6, 101, dtype=F64)
    torch.testing.assert_close(ACTIVATIONS[name](x), ACT2FN[name](x), rtol=1e-7, atol=1e-7)


def test_the_formulas():
    x = torch.linspace(-3, 3, 31, dtype=F64)
    torch.testing.assert_close(ACTIVATIONS["gelu"](x), x * (1 + torch.erf(x / math.sqrt(2))) / 2)
    tanh = torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    torch.testing.assert_close(ACTIVATIONS["gelu_new"](x), x * (1 + tanh) / 2)
    torch.testing.assert_close(ACTIVATIONS["quick_gelu"](x), x / (1 + torch.exp(-1.702 * x)))
    torch.testing.assert_close(ACTIVATIONS["relu2"](x), torch.where(x > 0, x * x, 0))


@pytest.mark.parametrize("gate", ["sigmoid", "gelu", "silu"])
def test_gated_forms(gate):
    layer = GatedFeedForward(6, inner=10, activation=gate, bias=True).to(F64)
    x = torch.randn(2, 6, dtype=F64)
    g, u = (x @ m.weight.T + m.bias for m in (layer.gate, layer.up))
    bent = {"sigmoid": 1 / (1 + torch.exp(-g)), "gelu": g * (1 + torch.erf(g / 2**0.5)) / 2, "silu": g * g.sigmoid()}
    torch.testing.assert_close(layer(x), (bent[gate] * u) @ layer.down.weight.T + layer.down.bias)


@pytest.mark.parametrize("make", [FeedForward, GatedFeedForward])
def test_dropout_between_the_matrices(make):
    layer = make(8, inner=400, activation="relu", bias=False, dropout=0.5)
    seen = []
    layer.down.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x = torch.randn(3, 8)
    layer(x), layer.eval()(x)
    kept = seen[0] != 0
    assert 0.4 < kept[seen[1] != 0].double().mean() < 0.6
    torch.testing.assert_close(seen[0][kept], 2 * seen[1][kept])


@pytest.mark.parametrize("make", [FeedForward, GatedFeedForward])
def test_a_long_text_goes_through_in_pieces_unless_somebody_looks(make, monkeypatch):
    monkeypatch.setattr(projection, "_PIECE", 400)
    monkeypatch.setattr(projection, "_LEAST_TOKENS", 3)
    torch.manual_seed(0)
    layer, x = make(6, inner=10, activation="silu").to(F64), torch.randn(2, 11, 6, dtype=F64).transpose(0, 1)
    seen = []
    step = layer._step
    monkeypatch.setattr(layer, "_step", lambda states: (seen.append(states.shape), step(states))[1])
    whole = layer(x)  # a gradient is wanted: all at once
    assert seen == [x.shape]
    assert whole.grad_fn is not None
    with torch.no_grad():
        seen.clear()
        torch.testing.assert_close(layer(x), whole)
        assert len(seen) == 5
        assert max(seen) == (5, 6)
        seen.clear()
        torch.testing.assert_close(torch.func.vmap(layer)(x), whole)
        layer.float()
        with torch.autocast("cpu", torch.bfloat16):
            layer(x.float())
        layer.down.register_forward_hook(lambda *_: None)
        layer(x.float())
    assert len(seen) == 3
