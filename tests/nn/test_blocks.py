"""Layers as sums of steps, against transformers' whole layers."""

import pytest
import torch
import transformers
from torch import nn
from transformers.models.bart.modeling_bart import BartDecoderLayer

import limelight
from limelight.nn import DecoderBlock, FeedForward, ForwardContext, MultiHead, PostNorm, PreNorm, RMSNorm, Sandwich

F64 = torch.float64


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_a_decoder_layer_is_that_of_bart():
    config = transformers.BartConfig(
        d_model=12, decoder_attention_heads=3, decoder_ffn_dim=20, dropout=0.0, attn_implementation="eager"
    )
    theirs = BartDecoderLayer(config, layer_idx=0).to(F64)
    for parameter in theirs.parameters():
        parameter.data = torch.randn_like(parameter) * 0.5
    attention = MultiHead(12, query_heads=3, key_value_heads=3, head_width=4, pattern=limelight.Causal())
    steps = (
        attention,
        MultiHead(12, query_heads=3, key_value_heads=3, head_width=4),
        FeedForward(12, inner=20, activation="gelu"),
    )
    ours = DecoderBlock(*(PostNorm(step, nn.LayerNorm(12)) for step in steps)).to(F64)
    names = {
        "attention.inner": "self_attn", "attention.norm": "self_attn_layer_norm", "cross.inner": "encoder_attn",
        "cross.norm": "encoder_attn_layer_norm", "feed_forward.norm": "final_layer_norm",
        "feed_forward.inner.up": "fc1", "feed_forward.inner.down": "fc2",
        "query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "out_proj",
    }  # fmt: skip
    state = {}
    for name, _ in ours.named_parameters():
        other = name
        for mine, published in names.items():
            other = other.replace(mine, published)
        state[name] = theirs.state_dict()[other]
    ours.load_state_dict(state)
    states, source = torch.randn(2, 5, 12, dtype=F64), torch.randn(2, 7, 12, dtype=F64)
    here = ForwardContext(None, torch.arange(5)[None], cross=ForwardContext(None, torch.arange(5)[None], source=source))
    above = torch.full((5, 5), -torch.inf, dtype=F64).triu(1)[None, None]
    expected = theirs(states, attention_mask=above, encoder_hidden_states=source)
    torch.testing.assert_close(ours(states, here), expected if isinstance(expected, torch.Tensor) else expected[0])


def test_a_norm_on_both_sides():
    step, norm = nn.Linear(4, 4).to(F64), RMSNorm(4).to(F64)
    wrapped = Sandwich(step, norm).to(F64)
    with torch.no_grad():
        wrapped.after.weight.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    x = torch.randn(2, 4, dtype=F64)

    def rms(y, weight):
        return weight * y / (y.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    expected = x + rms(step(rms(x, torch.ones(4))), torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=F64))
    torch.testing.assert_close(wrapped(x), expected)
    assert set(wrapped.state_dict()) == {"inner.weight", "inner.bias", "norm.weight", "after.weight"}


@pytest.mark.parametrize("residual", [PreNorm, PostNorm, Sandwich])
def test_dropout_of_a_step_only_in_training(residual):
    wrapped = residual(nn.Linear(64, 64), nn.Identity(), dropout=0.25)
    x = torch.randn(50, 64)
    torch.manual_seed(3)
    kept = wrapped(x) - x
    torch.manual_seed(3)
    assert torch.equal(wrapped(x) - x, kept)
    share = (kept == 0).double().mean()
    assert 0.2 < share < 0.3
    wrapped.eval()
    torch.testing.assert_close(wrapped(x), x + wrapped.inner(x))
