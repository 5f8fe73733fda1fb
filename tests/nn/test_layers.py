"""Layers against their formulas and against PyTorch's own."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

import limelight
from limelight.nn import (
    Block,
    FeedForward,
    ForwardContext,
    GatedFeedForward,
    LinearScaling,
    Llama3Scaling,
    MultiHead,
    PostNorm,
    PreNorm,
    RMSNorm,
    Rotary,
)

F64 = torch.float64
LENGTH = torch.tensor([[100]])


def context(B, L, layout=None):
    return ForwardContext(layout, torch.arange(L)[None].expand(B, L))


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def peer_of(ours, width, heads):
    """PyTorch's layer with the weights of ours."""
    theirs = nn.MultiheadAttention(width, heads, batch_first=True, dtype=F64)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([p.weight for p in (ours.query, ours.key, ours.value)]))
        theirs.in_proj_bias.copy_(torch.cat([p.bias for p in (ours.query, ours.key, ours.value)]))
        theirs.out_proj.weight.copy_(ours.output.weight)
        theirs.out_proj.bias.copy_(ours.output.bias)
    return theirs


@pytest.mark.parametrize("causal", [False, True])
def test_multihead_is_that_of_pytorch(causal):
    pattern = limelight.Causal() if causal else None
    ours = MultiHead(24, query_heads=4, key_value_heads=4, head_width=6, pattern=pattern).to(F64)
    states, lengths = torch.randn(3, 7, 24, dtype=F64), torch.tensor([7, 2, 5])
    absent = torch.arange(7) >= lengths[:, None]
    mask = torch.ones(7, 7, dtype=torch.bool).triu(1) if causal else None
    expected, _ = peer_of(ours, 24, 4)(states, states, states, key_padding_mask=absent, attn_mask=mask)
    got = ours(states, context(3, 7, limelight.Padded(lengths)))
    torch.testing.assert_close(got[~absent], expected[~absent])


def test_grouped_heads_are_repeated_heads():
    grouped = MultiHead(16, query_heads=4, key_value_heads=2, head_width=8, rotary=Rotary(8)).to(F64)
    plain = MultiHead(16, query_heads=4, key_value_heads=4, head_width=8, rotary=Rotary(8)).to(F64)
    with torch.no_grad():
        for name in ("query", "output"):
            getattr(plain, name).load_state_dict(getattr(grouped, name).state_dict())
        for name in ("key", "value"):
            for kind in ("weight", "bias"):
                values = getattr(getattr(grouped, name), kind)
                repeated = values.unflatten(0, (2, 8)).repeat_interleave(2, 0).flatten(0, 1)
                getattr(getattr(plain, name), kind).copy_(repeated)
    states = torch.randn(2, 5, 16, dtype=F64)
    torch.testing.assert_close(grouped(states, context(2, 5)), plain(states, context(2, 5)))


def test_a_layer_is_seen_by_its_name():
    layer = MultiHead(8, query_heads=2, key_value_heads=2, head_width=4, name="layers.7.attention").requires_grad_(
        False
    )
    with limelight.watching(limelight.Observe(entropy=True)) as seen:
        layer(torch.randn(1, 3, 8), context(1, 3))
        layer(torch.randn(1, 3, 8), context(1, 3))
    assert [o.entropy.shape for o in seen.calls("layers.7.attention")] == [(1, 2, 3)] * 2


@given(start=st.integers(0, 100_000), distance=st.integers(-50, 50))
def test_a_rotated_score_depends_on_the_distance_alone(start, distance):
    query, key = torch.randn(2, 1, 1, 1, 16, dtype=F64)
    rotary = Rotary(16, theta=100.0)

    def score(p, j):
        a, b = (rotary.at(torch.tensor([[x]]), F64).rotate(y) for x, y in ((p, query), (j, key)))
        return (a * b).sum()

    torch.testing.assert_close(score(start, start + distance), score(0, distance), rtol=1e-8, atol=1e-8)


def test_a_rotation_turns_pairs_by_the_angle_of_the_paper():
    rotated = Rotary(4, theta=100.0).at(torch.tensor([[3]]), F64).rotate(torch.eye(4, dtype=F64)[:, None, None])
    for pair, angle in ((0, 3.0), (1, 3.0 / 10.0)):
        a, b = rotated[pair, 0, 0], rotated[pair + 2, 0, 0]
        assert a[pair].item() == pytest.approx(math.cos(angle))
        assert a[pair + 2].item() == pytest.approx(math.sin(angle))
        assert b[pair].item() == pytest.approx(-math.sin(angle))
        assert b[pair + 2].item() == pytest.approx(math.cos(angle))


def test_stretched_frequencies_are_those_of_transformers():
    scaling = {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    config = LlamaConfig(hidden_size=2048, num_attention_heads=32, rope_parameters=scaling)
    plain = 500_000.0 ** (-torch.arange(0, 64, 2, dtype=F64) / 64)
    theirs, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    torch.testing.assert_close(Llama3Scaling(32.0, 8192).frequencies(plain, LENGTH), theirs.to(F64), rtol=1e-6, atol=0)
    torch.testing.assert_close(LinearScaling(4.0).frequencies(plain, LENGTH), plain / 4)


def test_layers_that_share_a_rotation_compute_it_once():
    here = context(1, 4)
    assert here.rotation(Rotary(8), F64) is here.rotation(Rotary(8), F64)
    assert here.rotation(Rotary(8), F64) is not here.rotation(Rotary(8, theta=5.0), F64)
    assert here.rotation(Rotary(8), torch.float32).cosine.dtype == torch.float32


@pytest.mark.parametrize("dtype", [F64, torch.float32, torch.bfloat16, torch.float16])
def test_rms_norm(dtype):
    norm = RMSNorm(6, epsilon=1e-3).to(dtype)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(6))
    states = (100 * torch.randn(2, 3, 6)).to(dtype)  # squares of some do not fit into float16
    exact = states.double() / (states.double().square().mean(-1, keepdim=True) + 1e-3).sqrt() * norm.weight.double()
    got = norm(states)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), exact, rtol=4 * torch.finfo(dtype).eps, atol=1e-6)


def test_feed_forward_formulas():
    states = torch.randn(2, 3, 8, dtype=F64)
    plain, gated = (
        FeedForward(8, inner=12, activation="relu").to(F64),
        GatedFeedForward(8, inner=12, activation="silu").to(F64),
    )
    torch.testing.assert_close(plain(states), plain.down(plain.up(states).clamp(min=0)))
    gate = gated.gate(states)
    torch.testing.assert_close(gated(states), gated.down(gate * gate.sigmoid() * gated.up(states)))
    assert gated.gate.bias is None


def test_the_order_of_the_norm_is_an_object():
    step, norm = nn.Linear(4, 4), nn.LayerNorm(4)
    x = torch.randn(2, 4)
    torch.testing.assert_close(PreNorm(step, norm)(x), x + step(norm(x)))
    torch.testing.assert_close(PostNorm(step, norm)(x), norm(x + step(x)))


def test_a_block_is_its_two_steps():
    attention = PreNorm(MultiHead(8, query_heads=2, key_value_heads=2, head_width=4), RMSNorm(8))
    feed_forward = PreNorm(FeedForward(8, inner=16, activation="gelu"), RMSNorm(8))
    x, here = torch.randn(1, 3, 8), context(1, 3)
    torch.testing.assert_close(Block(attention, feed_forward)(x, here), feed_forward(attention(x, here)))


def test_gradients_by_finite_differences():
    layer = MultiHead(
        4, query_heads=2, key_value_heads=1, head_width=2, pattern=limelight.Causal(), rotary=Rotary(2)
    ).to(F64)
    states = torch.randn(2, 3, 4, dtype=F64, requires_grad=True)
    layout = limelight.Padded(torch.tensor([3, 2]))
    assert torch.autograd.gradcheck(lambda x: layer(x, context(2, 3, layout)), (states,))
