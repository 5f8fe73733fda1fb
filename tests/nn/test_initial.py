"""How parameters begin, against the published rules and against models of transformers."""

import pytest
import torch
import transformers
from torch import nn

import limelight
from limelight.models import recipe
from limelight.nn import (
    Block,
    DistanceBias,
    FanIn,
    FeedForward,
    GatedFeedForward,
    LearnedPositions,
    MixtureOfExperts,
    MultiHead,
    Normal,
    PreNorm,
    RMSNorm,
    SummedEmbedding,
    Xavier,
)

WIDTH, LAYERS = 128, 3


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def model(feed_forward=FeedForward, **attention):
    embedding = SummedEmbedding(500, WIDTH, positions=recipe(LearnedPositions, count=90), norm=nn.LayerNorm)
    layers = [
        Block(
            PreNorm(
                MultiHead(WIDTH, query_heads=4, key_value_heads=4, head_width=32, **attention), nn.LayerNorm(WIDTH)
            ),
            PreNorm(feed_forward(WIDTH, inner=4 * WIDTH, activation="gelu_new"), nn.LayerNorm(WIDTH)),
        )
        for _ in range(LAYERS)
    ]
    return nn.ModuleDict({"embedding": embedding, "layers": nn.ModuleList(layers)})


def deviations(module, *ends):
    """Of the numbers of all parameters whose names end so, together."""
    numbers = torch.cat([p.flatten() for name, p in module.named_parameters() if name.endswith(ends)])
    return numbers.std().item()


def test_gpt2():
    config = transformers.GPT2Config(n_embd=WIDTH, n_layer=LAYERS, n_head=4, vocab_size=500, n_positions=90)
    theirs = transformers.GPT2Model(config)
    ours = model()
    Normal(layers=LAYERS)(ours)
    for mine, other in (
        (("tokens.weight",), ("wte.weight",)),
        (("positions.weight",), ("wpe.weight",)),
        (("query.weight", "key.weight", "value.weight"), ("c_attn.weight",)),
        (("output.weight",), ("attn.c_proj.weight",)),
        (("up.weight",), ("c_fc.weight",)),
        (("down.weight",), ("mlp.c_proj.weight",)),
    ):
        assert deviations(ours, *mine) == pytest.approx(deviations(theirs, *other), rel=0.05)
    assert deviations(ours, "output.weight") == pytest.approx(0.02 / 6**0.5, rel=0.05)


def test_t5():
    config = transformers.T5Config(
        d_model=WIDTH, d_kv=32, num_heads=4, d_ff=4 * WIDTH, num_layers=LAYERS, vocab_size=500,
        relative_attention_num_buckets=64,
    )  # fmt: skip
    theirs = transformers.T5EncoderModel(config)
    bias = DistanceBias(4, limelight.T5Buckets(64))
    ours = nn.ModuleList([model(scale=1.0, bias=False, output_bias=False), bias])
    FanIn(WIDTH)(ours)
    for mine, other in (
        ("tokens.weight", "shared.weight"),
        ("query.weight", ".q.weight"),
        ("key.weight", ".k.weight"),
        ("value.weight", ".v.weight"),
        ("output.weight", ".o.weight"),
        ("up.weight", ".wi.weight"),
        ("down.weight", ".wo.weight"),
    ):
        assert deviations(ours, mine) == pytest.approx(deviations(theirs, other), rel=0.05)
    assert bias.weight.std().item() == pytest.approx(WIDTH**-0.5, rel=0.15)
    assert deviations(theirs, "relative_attention_bias.weight") == pytest.approx(WIDTH**-0.5, rel=0.15)


def test_xavier():
    ours = model(GatedFeedForward)
    Xavier()(ours)
    up = ours["layers"][0].feed_forward.inner.up.weight
    bound = (6 / (5 * WIDTH)) ** 0.5
    assert 0.99 * bound < up.abs().max().item() <= bound
    assert deviations(ours, "tokens.weight") == pytest.approx(WIDTH**-0.5, rel=0.05)


def test_a_cut():
    layer = nn.Linear(200, 200)
    Normal(0.1, truncation=2.0)(layer)
    assert 0.19 < layer.weight.abs().max().item() <= 0.2
    assert layer.bias.abs().max() == 0


def test_offsets_norms_and_routers():
    ours = nn.ModuleList(
        [model(), RMSNorm(8), RMSNorm(8, offset=1.0), MixtureOfExperts(64, inner=16, activation="silu", experts=40)]
    )
    Normal(0.5)(ours)
    assert all((p == 0).all() for name, p in ours.named_parameters() if name.endswith(("query.bias", "down.bias")))
    assert all((p == 1).all() for name, p in ours.named_parameters() if name.endswith("norm.weight"))
    assert (ours[1].weight == 1).all()
    assert (ours[2].weight == 0).all()
    assert ours[3].router.weight.std().item() == pytest.approx(0.5, rel=0.1)


def test_the_same_seed_begins_alike():
    first, second = model(), model()
    for each in (first, second):
        torch.manual_seed(7)
        Normal()(each)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
