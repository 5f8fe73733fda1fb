"""Experts and routers against transformers' own, and against loops over tokens."""

import math

import pytest
import torch
import transformers
from transformers.models.mixtral import modeling_mixtral as mixtral
from transformers.models.switch_transformers import modeling_switch_transformers as switch

from limelight.models import recipe
from limelight.nn import FeedForward, GatedFeedForward, MixtureOfExperts, Switch, TopK, balance_loss, routings, z_loss

F64 = torch.float64


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def mixtral_pair(experts=5, k=2):
    config = transformers.MixtralConfig(
        hidden_size=8, intermediate_size=12, num_local_experts=experts, num_experts_per_tok=k, hidden_act="silu"
    )
    theirs = mixtral.MixtralSparseMoeBlock(config).to(F64)
    for parameter in theirs.parameters():
        parameter.data = torch.randn_like(parameter)
    ours = MixtureOfExperts(8, inner=12, activation="silu", experts=experts, router=recipe(TopK, k=k)).to(F64)
    with torch.no_grad():
        ours.router.weight.copy_(theirs.gate.weight)
        stored = zip(theirs.experts.gate_up_proj, theirs.experts.down_proj, strict=True)
        for mine, (gate_up, down) in zip(ours.experts, stored, strict=True):
            mine.gate.weight.copy_(gate_up[:12])
            mine.up.weight.copy_(gate_up[12:])
            mine.down.weight.copy_(down)
    return ours, theirs


def test_mixtral(monkeypatch):
    ours, theirs = mixtral_pair()
    # theirs rounds the weights to float32, whatever the dtype
    monkeypatch.setattr(torch.Tensor, "float", lambda x: x)
    x, y = (torch.randn(2, 7, 8, dtype=F64).requires_grad_() for _ in range(2))
    y.data = x.data.clone()
    got, expected = ours(x), theirs(y)
    torch.testing.assert_close(got, expected)
    got.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    torch.testing.assert_close(ours.router.weight.grad, theirs.gate.weight.grad)
    torch.testing.assert_close(ours.experts[3].down.weight.grad, theirs.experts.down_proj.grad[3])


def test_an_expert_sees_its_own_tokens_only():
    ours, _ = mixtral_pair(experts=6)
    seen = dict.fromkeys(range(6), 0)
    for number, expert in enumerate(ours.experts):
        expert.register_forward_hook(lambda _, inputs, __, n=number: seen.__setitem__(n, len(inputs[0])))
    with routings() as found:
        ours(torch.randn(2, 9, 8, dtype=F64))
    ((_, routing),) = found
    assert seen == {n: int((routing.chosen == n).sum()) for n in range(6)}
    assert sum(seen.values()) == 2 * 2 * 9
    seen |= dict.fromkeys(range(6), 0)
    ours(torch.randn(1, 1, 8, dtype=F64))
    assert sorted(seen.values()) == [0, 0, 0, 0, 1, 1]  # one token: two experts run


@pytest.mark.parametrize("capacity", [1, 2, 50])
def test_switch(capacity):
    config = transformers.SwitchTransformersConfig(
        d_model=8, d_ff=12, num_experts=3, expert_capacity=capacity, dropout_rate=0.0
    )
    theirs = switch.SwitchTransformersSparseMLP(config).to(F64).eval()
    theirs.router.dtype = F64  # float32 otherwise, whatever the model
    for parameter in theirs.parameters():
        parameter.data = torch.randn_like(parameter)
    plain = recipe(FeedForward, bias=False)
    ours = MixtureOfExperts(
        8, inner=12, activation="relu", experts=3, expert=plain, router=recipe(Switch, capacity=capacity)
    ).to(F64)
    with torch.no_grad():
        ours.router.weight.copy_(theirs.router.classifier.weight)
        for mine, other in zip(ours.experts, theirs.experts.values(), strict=True):
            mine.up.weight.copy_(other.wi.weight)
            mine.down.weight.copy_(other.wo.weight)
    x = torch.randn(2, 7, 8, dtype=F64)
    with routings() as found:
        got = ours(x)
    torch.testing.assert_close(got, theirs(x.clone()))
    chosen, shares, logits = theirs.router(x)
    routing = found[0][1]
    torch.testing.assert_close(z_loss(routing), switch.router_z_loss_func(logits))
    assert torch.equal(torch.nn.functional.one_hot(routing.chosen[..., 0] + 1, 4)[..., 1:], chosen)
    full = (routing.chosen < 0)[..., 0]
    assert full.any() == (capacity < 50)
    assert (got[full] == 0).all()
    torch.testing.assert_close(shares[~full], routing.weights[~full])


def test_a_capacity_by_its_share():
    router = Switch(4, experts=3, capacity=1.25)
    with torch.no_grad():
        router.weight.zero_()
        router.weight[1] = 1.0
    routing = router(torch.ones(2, 10, 4))
    assert (routing.chosen >= 0).sum(1).tolist() == [[math.ceil(1.25 * 10 / 3)]] * 2


@pytest.mark.parametrize("masked", [False, True])
def test_the_balance_loss_of_mixtral(masked):
    router = TopK(8, experts=5, k=2).to(F64)
    routing = router(torch.randn(2, 7, 8, dtype=F64))
    exists = torch.arange(7) < torch.tensor([[7], [3]]) if masked else None
    mask = None if exists is None else exists.long()
    expected = mixtral.load_balancing_loss_func((routing.logits.flatten(0, 1),), 5, 2, mask)
    torch.testing.assert_close(balance_loss(routing, exists), expected.to(F64), rtol=1e-6, atol=0)


def test_an_even_choice_costs_k_and_the_loss_pulls_at_the_router():
    router = TopK(4, experts=4, k=1).to(F64)
    with torch.no_grad():
        router.weight.copy_(1e-6 * torch.eye(4))
    torch.testing.assert_close(balance_loss(router(torch.eye(4, dtype=F64)[None])), torch.tensor(1.0, dtype=F64))
    with torch.no_grad():
        router.weight.copy_(torch.randn(4, 4))
    balance_loss(router(torch.randn(1, 9, 4, dtype=F64))).backward()
    assert router.weight.grad.abs().sum() > 0


def test_shared_experts_and_weights_as_they_are():
    router = recipe(TopK, k=2, normalise=False)
    shared = recipe(GatedFeedForward, inner=6, activation="silu")
    layer = MixtureOfExperts(8, inner=12, activation="gelu", experts=4, router=router, shared=shared).to(F64)
    x = torch.randn(1, 5, 8, dtype=F64)
    expected = layer.shared(x)
    shares = (x @ layer.router.weight.T).softmax(-1)
    for t in range(5):
        for e in shares[0, t].argsort(descending=True)[:2].tolist():
            expected[0, t] = expected[0, t] + shares[0, t, e] * layer.experts[e](x[0, t])
    torch.testing.assert_close(layer(x), expected)


def test_gradients_by_finite_differences():
    layer = MixtureOfExperts(3, inner=4, activation="silu", experts=3, router=recipe(Switch, capacity=2)).to(F64)
    x = torch.randn(1, 5, 3, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))


def test_no_tokens():
    layer = MixtureOfExperts(3, inner=4, activation="silu", experts=3)
    assert layer(torch.zeros(2, 0, 3)).shape == (2, 0, 3)


def test_jitter_only_in_training():
    layer = MixtureOfExperts(8, inner=12, activation="silu", experts=4, router=recipe(TopK, jitter=0.5))
    x = torch.randn(1, 3, 8)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_half_precision_routes_in_float32():
    layer = MixtureOfExperts(8, inner=12, activation="silu", experts=4).bfloat16()
    with routings() as found:
        assert layer(torch.randn(1, 3, 8).bfloat16()).dtype == torch.bfloat16
    assert found[0][1].weights.dtype == torch.float32
