"""Additive and multiplicative attention against their formulas, token by token."""

import pytest
import torch

import limelight
from limelight.nn import AdditiveAttention, Cache, ForwardContext, MultiplicativeAttention, dot_attention

F64 = torch.float64
LAYOUTS = {
    "whole": None,
    "padded": limelight.Padded(torch.tensor([5, 2]), torch.tensor([7, 3])),
    "mask": limelight.KeyMask(torch.tensor([[1, 1, 0, 1, 1, 1, 1], [0, 0, 1, 0, 1, 0, 0]]).bool()),
}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def by_formula(layer, states, source, allowed):
    """Each query, each head and each key by itself."""
    B, L, _ = states.shape
    rows = []
    for b in range(B):
        for i in range(L):
            for h in range(layer.heads):
                keys = [j for j in range(source.shape[1]) if allowed[b, i, j]]
                scores = torch.stack([score(layer, h, states[b, i], source[b, j]) for j in keys])
                weights = scores.exp() / scores.exp().sum()
                rows.append(sum(w * value(layer, h, source[b, j]) for w, j in zip(weights, keys, strict=True)))
    return torch.stack(rows).reshape(B, L, -1)


def score(layer, head, q, k):
    if isinstance(layer, MultiplicativeAttention):
        return q @ (layer.key.weight[head * layer.width : (head + 1) * layer.width] @ k)
    rows = slice(head * layer.inner, (head + 1) * layer.inner)
    both = layer.query.weight[rows] @ q + layer.key.weight[rows] @ k + layer.key.bias[rows]
    return layer.vector[head] @ torch.tanh(both)


def value(layer, head, k):
    if layer.value is None:
        return k
    return layer.value.weight[head * layer.value_width : (head + 1) * layer.value_width] @ k


def make(kind, **settings):
    if kind == "additive":
        return AdditiveAttention(6, source_width=4, inner=5, **settings).to(F64)
    return MultiplicativeAttention(6, source_width=4, **settings).to(F64)


@pytest.mark.parametrize("kind", ["additive", "multiplicative"])
@pytest.mark.parametrize(("heads", "value_width"), [(1, None), (3, None), (2, 7)])
@pytest.mark.parametrize("which", list(LAYOUTS))
def test_the_formula(kind, heads, value_width, which):
    layer = make(kind, heads=heads, value_width=value_width, pattern=limelight.Window(4, 3))
    states, source = torch.randn(2, 5, 6, dtype=F64), torch.randn(2, 7, 4, dtype=F64)
    layout = LAYOUTS[which]
    got = layer(states, ForwardContext(layout, torch.arange(5)[None], source=source))
    at = (layout or limelight.Aligned()).coordinates(2, 5, 7, states.device)
    distance = at.key_position[:, None, :] - at.query_position[:, :, None]
    allowed = at.together()[:, 0] & (distance >= -4) & (distance <= 3)
    allowed = allowed.expand(2, 5, 7)
    some = allowed.any(-1)
    allowed = allowed | ~some[..., None]  # any answer, for the formula has none for a query that sees nothing
    assert got.shape == (2, 5, heads * (value_width or 4))
    torch.testing.assert_close(got[some], by_formula(layer, states, source, allowed)[some])
    assert (got[~some] == 0).all()


@pytest.mark.parametrize("kind", ["additive", "multiplicative"])
def test_gradients_of_everything(kind):
    layer = make(kind, heads=2, value_width=3)
    names = [name for name, _ in layer.named_parameters()]

    def run(states, source, *parameters):
        here = ForwardContext(None, torch.arange(3)[None], source=source)
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (states, here))

    inputs = [torch.randn(1, 3, 6, dtype=F64), torch.randn(1, 2, 4, dtype=F64)]
    inputs += [p.detach().clone() for p in layer.parameters()]
    assert torch.autograd.gradcheck(run, [x.requires_grad_() for x in inputs])


@pytest.mark.parametrize("make", [AdditiveAttention, MultiplicativeAttention])
def test_it_is_seen_and_cached_like_any_other(make):
    more = {"inner": 5} if make is AdditiveAttention else {}
    layer = make(6, **more, pattern=limelight.Causal(), heads=2, name="here").to(F64).requires_grad_(False)
    states = torch.randn(2, 6, 6, dtype=F64)
    with limelight.watching(limelight.Observe(entropy=True, top=2)) as seen:
        whole = layer(states, ForwardContext(None, torch.arange(6)[None]))
    assert seen["here"].top_keys.shape == (2, 2, 6, 2)
    cache, out = Cache(), []
    for token in states.split(1, dim=1):
        step = cache.step(2, 1)
        out.append(layer(token, ForwardContext(None, step.positions, cache=step)))
        cache.close(step)
    torch.testing.assert_close(torch.cat(out, 1), whole)


def test_nothing_learned():
    x, y = torch.randn(2, 5, 4, dtype=F64), torch.randn(2, 7, 4, dtype=F64)
    torch.testing.assert_close(dot_attention(x), torch.einsum("bij,bjd->bid", (x @ x.mT).softmax(-1), x))
    torch.testing.assert_close(dot_attention(x, y), (x @ y.mT).softmax(-1) @ y)
    first = dot_attention(x, pattern=limelight.Causal())[:, 0]
    torch.testing.assert_close(first, x[:, 0])


def test_dropout_only_in_training():
    layer = AdditiveAttention(6, inner=5, dropout=0.5).requires_grad_(False)
    states, here = torch.randn(1, 9, 6), ForwardContext(None, torch.arange(9)[None])
    assert not torch.equal(layer(states, here), layer(states, here))
    layer.eval()
    assert torch.equal(layer(states, here), layer(states, here))


@pytest.mark.parametrize("source", [torch.randn(1, 4, 5), torch.randn(4, 7), torch.randn(1, 4, 7).double()])
def test_a_source_that_a_layer_cannot_read(source):
    states = torch.randn(1, 3, 6)
    for layer in (AdditiveAttention(6, source_width=7, inner=8), MultiplicativeAttention(6, source_width=7)):
        context = ForwardContext(None, torch.arange(3)[None], source=source)
        with pytest.raises(limelight.ArgumentError, match="`source`"):
            layer(states, context)
