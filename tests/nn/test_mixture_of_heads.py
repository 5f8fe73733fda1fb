"""Heads that are skipped against the same layer with all heads, masked afterwards."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.oracles import loops

import limelight
from limelight.models import recipe
from limelight.nn import (
    Cache,
    DistanceBias,
    ForwardContext,
    LinearBias,
    MixtureOfHeads,
    QueryNorm,
    RMSNorm,
    Rotary,
    TwoStage,
    balance_loss,
    mixture_of_heads,
    routings,
)

F64 = torch.float64


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def at(L, layout=None, **more):
    return ForwardContext(layout, torch.arange(L)[None], **more)


def gates(layer, states):
    """``(B, L, Hq)``: how much each head counts, a reimplementation of the published code."""
    B, L, _ = states.shape
    shared, heads, k = layer.shared, layer.query_heads, layer.k
    result = torch.zeros(B, L, heads, dtype=F64)
    for b in range(B):
        for t in range(L):
            x = states[b, t]
            if isinstance(layer.router, TwoStage):
                soft = torch.softmax(layer.router.routed.weight @ x, 0)
                best = soft.argsort(descending=True)[:k]
                result[b, t, shared + best] = k * soft[best] / soft[best].sum()
                if shared:
                    a = 2 * torch.softmax(layer.router.balance.weight @ x, 0)
                    result[b, t] *= a[1]
                    result[b, t, :shared] = a[0] * shared * torch.softmax(layer.router.shared.weight @ x, 0)
            else:
                query = layer.query(x).reshape(heads, layer.head_width)
                best = query[shared:].square().sum(-1).argsort(descending=True)[:k]
                result[b, t, shared + best] = 1.0
                result[b, t, :shared] = 1.0
    return result


def all_heads(layer, states, layout=None, rules=(), rotary=None):
    """Every head for every token by the loops, and the gates afterwards."""

    def heads(linear, count, width, norm=None):
        x = linear(states).view(*states.shape[:2], count, width).transpose(1, 2)
        return x if norm is None else norm(x)

    groups = layer.query_heads // layer.group
    query = heads(layer.query, layer.query_heads, layer.head_width, layer.query_norm)
    key = heads(layer.key, groups, layer.head_width, layer.key_norm)
    value = heads(layer.value, groups, layer.value_width)
    if rotary is not None:
        turn = rotary.at(places_of(layout, states), F64).rotate
        query, key = turn(query), turn(key)
    mixed = loops.attention(
        query, key, value, layout=layout, pattern=layer.pattern, scores=rules, sink=layer.sink, scale=layer.scale
    )[0]
    mixed = torch.from_numpy(mixed) * gates(layer, states).permute(0, 2, 1)[..., None]
    return layer.output(mixed.transpose(1, 2).flatten(2))


def places_of(layout, states):
    B, L, _ = states.shape
    if layout is None:
        return torch.arange(L)[None]
    return layout.coordinates(B, L, L, states.device).query_position.clamp(min=0)


@settings(max_examples=settings().max_examples // 3)
@given(
    router=st.sampled_from([TwoStage, QueryNorm]),
    heads=st.sampled_from([(6, 6, 0, 2), (6, 6, 3, 1), (6, 3, 2, 3), (6, 3, 4, 2), (4, 1, 0, 3), (3, 3, 2, 1)]),
    layout=st.sampled_from(["none", "left", "packed", "mask"]),
    pattern=st.sampled_from([None, limelight.Causal(), limelight.Window(3, 1), limelight.Keys(2) | limelight.Causal()]),
    position=st.sampled_from(["none", "rotary", "alibi", "t5"]),
    B=st.integers(1, 3),
    L=st.integers(1, 12),
)
def test_skipped_heads_are_masked_heads(router, heads, layout, pattern, position, B, L):
    query_heads, key_value_heads, shared, k = heads
    rotary = Rotary(2) if position == "rotary" else None
    bias = DistanceBias(query_heads, limelight.T5Buckets(8, 10))
    scores = {"alibi": (LinearBias(query_heads),), "t5": (bias, limelight.SoftCap(2.0))}.get(position, ())
    layer = MixtureOfHeads(
        8, query_heads=query_heads, key_value_heads=key_value_heads, head_width=4, shared=shared, k=k,
        router=router, pattern=pattern, rotary=rotary, scores=scores, value_width=3, head_norm=RMSNorm, sink=True,
    ).to(F64).requires_grad_(False)  # fmt: skip
    layer.sink.copy_(torch.randn(query_heads))
    layouts = {
        "none": None,
        "left": limelight.Padded(torch.tensor([L, max(L - 3, 0), 1])[:B], side="left"),
        "packed": limelight.Packed((L // 2, L - L // 2)),
        "mask": limelight.KeyMask(torch.rand(B, L) < 0.7),
    }
    layout = layouts[layout]
    states = torch.randn(B, L, 8, dtype=F64)
    got = layer(states, ForwardContext(layout, places_of(layout, states)))
    rules = tuple(limelight.ALiBi.standard(query_heads) if isinstance(rule, LinearBias) else rule for rule in scores)
    rules = tuple(rule() if isinstance(rule, DistanceBias) else rule for rule in rules)
    expected = all_heads(layer, states, layout, rules, rotary)
    exists = torch.ones(B, L, dtype=torch.bool) if layout is None else layout.coordinates(B, L, L, "cpu").query_exists
    exists = exists.expand(B, L)
    torch.testing.assert_close(got[exists], expected[exists])


@pytest.mark.parametrize("router", [TwoStage, QueryNorm])
def test_what_is_not_chosen_is_not_computed(router, monkeypatch):
    layer = MixtureOfHeads(
        32, query_heads=8, key_value_heads=4, head_width=4, shared=2, k=2, router=router, pattern=limelight.Causal()
    ).requires_grad_(False)
    asked = []
    plain = limelight.attention

    def counted(query, key, value, **settings):
        asked.append(query.shape[1] * query.shape[2])
        return plain(query, key, value, **settings)

    monkeypatch.setattr(mixture_of_heads, "attention", counted)
    layer(torch.randn(1, 50, 32), at(50))
    assert sum(asked) == 50 * (2 + 2)
    asked.clear()
    layer(torch.randn(1, 1, 32), at(1))
    assert sorted(asked) == [1, 1, 2]


@pytest.mark.parametrize("router", [TwoStage, QueryNorm])
def test_with_a_cache(router):
    layer = MixtureOfHeads(
        16, query_heads=4, key_value_heads=2, head_width=4, shared=2, k=1, router=router,
        pattern=limelight.Causal(), rotary=Rotary(4),
    ).to(F64).requires_grad_(False)  # fmt: skip
    lengths = torch.tensor([5, 3])
    texts = [torch.randn(1, n + 4, 16, dtype=F64) for n in lengths]
    batch = torch.zeros(2, 5, 16, dtype=F64)
    for row, text, n in zip(batch, texts, lengths, strict=True):
        row[5 - n :] = text[0, :n]
    cache, out = Cache(), []
    pieces = [batch, *torch.stack([text[0, -4:] for text in texts]).split(1, dim=1)]
    for number, piece in enumerate(pieces):
        step = cache.step(2, piece.shape[1], None if number else limelight.Padded(lengths, side="left"))
        out.append(layer(piece, ForwardContext(step.layout, step.positions, cache=step)))
        cache.close(step)
    for row, text in zip(torch.cat(out[1:], 1), texts, strict=True):
        torch.testing.assert_close(row, layer(text, at(text.shape[1]))[0, -4:])


@pytest.mark.parametrize("router", [TwoStage, QueryNorm])
def test_gradients_by_finite_differences(router):
    layer = MixtureOfHeads(
        4,
        query_heads=5,
        key_value_heads=5,
        head_width=2,
        shared=2,
        k=2,
        router=router,
        pattern=limelight.Causal(),
        rotary=Rotary(2),
    )
    layer.to(F64)
    states = torch.randn(1, 3, 4, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: layer(x, at(3)), (states,))
    layer(states, at(3)).square().sum().backward()
    if router is TwoStage:
        assert all(p.grad.abs().sum() > 0 for p in layer.router.parameters())


@pytest.mark.parametrize("router", [TwoStage, QueryNorm])
def test_the_balance_loss_of_the_authors(router):
    layer = MixtureOfHeads(
        16, query_heads=6, key_value_heads=6, head_width=4, shared=2, k=2, router=router, name="here"
    ).to(F64)
    states = torch.randn(3, 9, 16, dtype=F64)
    with routings() as found:
        layer(states, at(9))
    ((name, routing),) = found
    assert name == "here"
    if router is TwoStage:
        logits = states.flatten(0, 1) @ layer.router.routed.weight.T
    else:
        norms = layer.query(states).reshape(27, 6, 4)[:, 2:].norm(dim=-1)
        logits = norms / norms.std(dim=1, keepdim=True)
    share = logits.softmax(1)
    taken = torch.nn.functional.one_hot(share.topk(2, dim=1).indices, 4).sum(1)
    expected = (share.mean(0) * taken.double().mean(0)).mean() * 4 * 4
    torch.testing.assert_close(balance_loss(routing), expected)
    balance_loss(routing).backward()
    source = layer.router.routed.weight if router is TwoStage else layer.query.weight
    assert source.grad.abs().sum() > 0


def test_a_router_that_does_not_know_leaves_plain_attention():
    layer = (
        MixtureOfHeads(8, query_heads=4, key_value_heads=4, head_width=2, shared=2, k=2).to(F64).requires_grad_(False)
    )
    for parameter in layer.router.parameters():
        parameter.zero_()
    plain = limelight.nn.MultiHead(8, query_heads=4, key_value_heads=4, head_width=2).to(F64)
    plain.load_state_dict(layer.state_dict(), strict=False)
    states = torch.randn(2, 5, 8, dtype=F64)
    torch.testing.assert_close(layer(states, at(5)), plain(states, at(5)))


def test_an_observer_sees_every_head():
    layer = MixtureOfHeads(
        8, query_heads=4, key_value_heads=4, head_width=2, shared=2, k=1, name="layers.0.attention"
    ).requires_grad_(False)
    with limelight.watching(limelight.Observe(entropy=True)) as seen:
        layer(torch.randn(1, 40, 8), at(40))
    assert set(seen) == {f"layers.0.attention.{part}" for part in ("shared", "head2", "head3")}


def test_what_it_refuses():
    with pytest.raises(limelight.ArgumentError, match="multiple of 2"):
        MixtureOfHeads(8, query_heads=4, key_value_heads=2, head_width=2, shared=1, k=1)
    with pytest.raises(limelight.ArgumentError, match="at most the 2 heads"):
        MixtureOfHeads(8, query_heads=4, key_value_heads=2, head_width=2, shared=2, k=3)
    layer = MixtureOfHeads(
        8, query_heads=2, key_value_heads=2, head_width=4, shared=0, k=1, scores=(limelight.Bias(torch.zeros(3, 3)),)
    )
    with pytest.raises(limelight.ArgumentError, match="MixtureOfHeads must be"):
        layer(torch.randn(1, 3, 8), at(3))


def test_a_recipe_like_that_of_any_attention():
    make = recipe(MixtureOfHeads, shared=2, k=1, router=QueryNorm)
    assert make(8, query_heads=4, key_value_heads=4, head_width=2, name="x").router.k == 1
