"""The multi-head layer against the four nested loops, and against transformers' own layers."""

import pytest
import torch
import transformers
from support.oracles import loops
from torch import nn
from transformers.models.bart.modeling_bart import BartAttention
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssAttention
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention
from transformers.models.t5.modeling_t5 import T5Attention
from transformers.models.whisper.modeling_whisper import WhisperAttention

import limelight
from limelight import Causal, CosineSimilarity
from limelight.nn import (
    SSRU,
    AdditiveAttention,
    Block,
    Cache,
    DecoderBlock,
    DistanceBias,
    FeedForward,
    ForwardContext,
    LinearBias,
    MixtureOfHeads,
    MultiHead,
    PreNorm,
    RMSNorm,
    Rotary,
)

F64 = torch.float64


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def at(L, layout=None, **more):
    return ForwardContext(layout, torch.arange(L)[None], **more)


def copy(ours, theirs, names):
    """Their weights, made large enough to matter, given to our layer."""
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5)
    state = {}
    for mine, other in names.items():
        value = dict(theirs.named_modules()).get(other)
        if isinstance(value, nn.Module):
            state |= {f"{mine}.{name}": p for name, p in value.named_parameters()}
        else:
            state[mine] = dict(theirs.named_parameters())[other]
    ours.load_state_dict(state)
    return ours


def by_loops(layer, states, source, layout=None, scores=()):
    """The layer written out: projections by einsum, attention by loops."""

    def heads(x, linear, width):
        y = torch.einsum("bld,ed->ble", x, linear.weight)
        y = y if linear.bias is None else y + linear.bias
        return y.reshape(*y.shape[:2], -1, width).permute(0, 2, 1, 3)

    query = heads(states, layer.query, layer.head_width)
    key, value = heads(source, layer.key, layer.head_width), heads(source, layer.value, layer.value_width)
    mixed = loops.attention(
        query, key, value, layout=layout, pattern=layer.pattern, scores=scores, sink=layer.sink, scale=layer.scale
    )[0]
    mixed = torch.from_numpy(mixed).permute(0, 2, 1, 3).reshape(*states.shape[:2], -1)
    return mixed @ layer.output.weight.T + (0 if layer.output.bias is None else layer.output.bias)


def test_cross_attention_of_different_widths_with_every_option():
    rules = (limelight.SoftCap(3.0), DistanceBias(4, limelight.T5Buckets(8, 20)), LinearBias(4))
    layer = MultiHead(
        12, query_heads=4, key_value_heads=2, head_width=5, value_width=3, source_width=7,
        pattern=limelight.Window(3, 2), scores=rules, scale=0.7, sink=True, key_bias=False, output_bias=False,
    ).to(F64)  # fmt: skip
    with torch.no_grad():
        layer.sink.copy_(torch.randn(4))
    states, source = torch.randn(3, 6, 12, dtype=F64), torch.randn(3, 9, 7, dtype=F64)
    layout = limelight.Padded(torch.tensor([6, 1, 4]), torch.tensor([9, 5, 2]))
    layer.requires_grad_(False)
    got = layer(states, at(6, layout, source=source))
    plain = (rules[0], rules[1](), limelight.ALiBi.standard(4))
    exists = torch.arange(6) < torch.tensor([6, 1, 4])[:, None]
    torch.testing.assert_close(got[exists], by_loops(layer, states, source, layout, plain)[exists])
    assert layer.key.bias is None
    assert layer.query.bias is not None
    assert tuple(layer.output.weight.shape) == (12, 12)


def test_the_padding_of_a_source_may_be_anything():
    layer = MultiHead(8, query_heads=2, key_value_heads=2, head_width=4, source_width=6).to(F64)
    states, source = torch.randn(2, 3, 8, dtype=F64), torch.randn(2, 5, 6, dtype=F64)
    layout = limelight.KeyMask(torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]).bool())
    clean = layer(states, at(3, layout, source=source))
    source[1, 2:] = torch.nan
    torch.testing.assert_close(layer(states, at(3, layout, source=source)), clean, rtol=0, atol=0)


def test_keys_of_a_source_are_rotated_by_their_own_positions():
    layer = MultiHead(8, query_heads=2, key_value_heads=2, head_width=4, rotary=Rotary(4)).to(F64)
    states, source = torch.randn(1, 3, 8, dtype=F64), torch.randn(1, 5, 8, dtype=F64)
    moved = [
        layer(
            states,
            ForwardContext(None, by + torch.arange(3)[None], source=source, source_positions=torch.arange(5) + by),
        )
        for by in (0, 40)
    ]
    torch.testing.assert_close(*moved)
    with pytest.raises(limelight.ArgumentError, match="source_positions"):
        layer(states, at(3, source=source))


class LearnedCosine(nn.Module):
    """The scaled cosine attention of Swin Transformer V2: a temperature for each head."""

    def __init__(self, heads):
        super().__init__()
        self.logarithm = nn.Parameter(torch.linspace(-2, 0, heads, dtype=F64))

    def forward(self, query):
        return CosineSimilarity(self.logarithm.exp())


def cosine_layer(compare):
    sizes = {"query_heads": 4, "key_value_heads": 2, "head_width": 4, "pattern": Causal(), "rotary": Rotary(4)}
    return MultiHead(16, compare=compare, **sizes).double().eval()


@pytest.mark.parametrize("compare", [CosineSimilarity(0.1), LearnedCosine(4)], ids=["number", "module"])
def test_a_comparison_is_a_setting_of_the_layer(compare):
    layer, states = cosine_layer(compare), torch.randn(2, 7, 16, dtype=F64)
    query = layer.rotated_heads(layer.query(states), None, at(7).rotation)
    key, value = layer.keys_and_values(states, at(7))
    temperature = compare.logarithm.exp()[:, None, None] if isinstance(compare, nn.Module) else 0.1
    query, key = (x / x.norm(dim=-1, keepdim=True) for x in (query, key))
    scores = query @ key.repeat_interleave(2, dim=1).mT / temperature
    weights = scores.masked_fill(torch.ones(7, 7).triu(1).bool(), -torch.inf).softmax(-1)
    truth = layer.output((weights @ value.repeat_interleave(2, dim=1)).transpose(1, 2).flatten(2))
    torch.testing.assert_close(layer(states), truth)
    layer(states).square().sum().backward()
    assert all(bool(p.grad.any()) for name, p in layer.named_parameters() if name != "key.bias")
    learned = {"compare.logarithm"} if isinstance(compare, nn.Module) else set()
    assert {*layer.state_dict()} == {*cosine_layer(None).state_dict()} | learned


@pytest.mark.parametrize("compare", [CosineSimilarity(0.1), LearnedCosine(4)], ids=["number", "module"])
def test_a_comparison_writes_as_it_reads(compare):
    """Token by token through a cache, after a prompt."""
    layer, states, cache = cosine_layer(compare), torch.randn(2, 7, 16, dtype=F64), Cache()
    with torch.no_grad():
        parts = []
        for part in states.split([4, 1, 1, 1], dim=1):
            step = cache.step(2, part.shape[1])
            parts.append(layer(part, ForwardContext(None, step.positions, cache=step)))
            cache.close(step)
        torch.testing.assert_close(torch.cat(parts, dim=1), layer(states))


def test_what_a_comparison_excludes():
    with pytest.raises(limelight.ArgumentError, match=r"`compare` must be a comparison, a module"):
        cosine_layer("cosine")
    with pytest.raises(limelight.ArgumentError, match=r"`scale` must be None where `compare` is given"):
        MultiHead(16, query_heads=2, key_value_heads=2, head_width=4, compare=CosineSimilarity(), scale=0.5)
    sizes = {"query_heads": 4, "key_value_heads": 2, "head_width": 4, "shared": 2, "k": 1}
    with pytest.raises(limelight.ArgumentError, match=r"`compare` must be the same for every head"):
        MixtureOfHeads(16, **sizes, compare=LearnedCosine(4))
    assert MixtureOfHeads(16, **sizes, compare=CosineSimilarity(0.1))(torch.randn(1, 5, 16)).shape == (1, 5, 16)


def test_score_rules_that_layers_share_come_last():
    bias = limelight.Bias(torch.randn(1, 2, 4, 4, dtype=F64))
    cap = limelight.SoftCap(0.5)
    apart, together = (
        MultiHead(8, query_heads=2, key_value_heads=2, head_width=4, scores=rules).to(F64)
        for rules in ((cap,), (cap, bias))
    )
    together.load_state_dict(apart.state_dict())
    states = torch.randn(1, 4, 8, dtype=F64)
    torch.testing.assert_close(apart(states, at(4, scores=(bias,))), together(states, at(4)))


def test_dropout_only_in_training_and_by_the_seed():
    layer = MultiHead(8, query_heads=2, key_value_heads=2, head_width=4, dropout=0.5).requires_grad_(False)
    states = torch.randn(2, 6, 8)
    torch.manual_seed(1)
    first = layer(states, at(6))
    torch.manual_seed(1)
    assert torch.equal(layer(states, at(6)), first)
    assert not torch.allclose(layer(states, at(6)), first)
    layer.eval()
    assert torch.equal(layer(states, at(6)), layer(states, at(6)))


def test_gradients_of_everything():
    layer = MultiHead(
        4, query_heads=2, key_value_heads=1, head_width=2, value_width=3, source_width=3, head_norm=RMSNorm, sink=True,
        scores=(DistanceBias(2, limelight.T5Buckets(4, 8)),),
    ).to(F64)  # fmt: skip
    names = [name for name, _ in layer.named_parameters()]
    assert {"sink", "query_norm.weight", "score_modules.0.weight"} <= set(names)

    def run(states, source, *parameters):
        return torch.func.functional_call(
            layer, dict(zip(names, parameters, strict=True)), (states, at(3, source=source))
        )

    inputs = [torch.randn(1, 3, 4, dtype=F64), torch.randn(1, 2, 3, dtype=F64)]
    inputs += [p.detach().clone() + 0.1 for p in layer.parameters()]
    assert torch.autograd.gradcheck(run, [x.requires_grad_() for x in inputs])


def test_what_it_refuses():
    with pytest.raises(limelight.ArgumentError, match="multiple of `key_value_heads`"):
        MultiHead(8, query_heads=4, key_value_heads=3, head_width=2)
    with pytest.raises(limelight.ArgumentError, match="at most the 2 features"):
        MultiHead(8, query_heads=4, key_value_heads=2, head_width=2, rotary=Rotary(4))
    layer = DecoderBlock(
        MultiHead(8, query_heads=4, key_value_heads=2, head_width=2),
        MultiHead(8, query_heads=4, key_value_heads=2, head_width=2),
        torch.nn.Identity(),
    )
    with pytest.raises(limelight.ArgumentError, match="cross"):
        layer(torch.zeros(1, 3, 8), at(3))


# --- Layers of transformers ------------------------------------------------------------------------------------------


def test_t5_across_and_to_itself():
    config = transformers.T5Config(
        d_model=12, d_kv=5, num_heads=3, relative_attention_num_buckets=8, relative_attention_max_distance=20,
        is_decoder=True, dropout_rate=0.0, attn_implementation="eager",
    )  # fmt: skip
    theirs = T5Attention(config, has_relative_attention_bias=True, layer_idx=0).to(F64)
    bias = DistanceBias(3, limelight.T5Buckets(8, 20, bidirectional=False))
    ours = MultiHead(
        12,
        query_heads=3,
        key_value_heads=3,
        head_width=5,
        pattern=limelight.Causal(),
        scores=(bias,),
        scale=1.0,
        bias=False,
        output_bias=False,
    )
    names = {"query": "q", "key": "k", "value": "v", "output": "o", "score_modules.0": "relative_attention_bias"}
    copy(ours.to(F64), theirs, names)
    states, source = torch.randn(2, 30, 12, dtype=F64), torch.randn(2, 4, 12, dtype=F64)
    above = torch.full((30, 30), -torch.inf, dtype=F64).triu(1)[None, None]
    torch.testing.assert_close(ours(states, at(30)), theirs(states, mask=above)[0])

    cross = MultiHead(12, query_heads=3, key_value_heads=3, head_width=5, scale=1.0, bias=False, output_bias=False).to(
        F64
    )
    theirs = T5Attention(config, layer_idx=0).to(F64)
    names.pop("score_modules.0")
    copy(cross, theirs, names)
    torch.testing.assert_close(cross(states, at(30, source=source)), theirs(states, key_value_states=source)[0])


@pytest.mark.parametrize("kind", ["bart", "whisper"])
def test_bart_and_whisper_across(kind):
    config = transformers.BartConfig(attn_implementation="eager")
    make = BartAttention if kind == "bart" else WhisperAttention
    theirs = make(12, 3, is_decoder=True, layer_idx=0, config=config).to(F64).eval()
    ours = MultiHead(12, query_heads=3, key_value_heads=3, head_width=4, key_bias=None if kind == "bart" else False).to(
        F64
    )
    copy(ours, theirs, {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "out_proj"})
    states, source = torch.randn(2, 5, 12, dtype=F64), torch.randn(2, 7, 12, dtype=F64)
    torch.testing.assert_close(ours(states, at(5, source=source)), theirs(states, key_value_states=source)[0])


@pytest.mark.parametrize("kind", ["qwen3", "gpt_oss"])
def test_norms_of_heads_and_sinks(kind, monkeypatch):
    shape = {
        "hidden_size": 12, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6, "num_hidden_layers": 1,
        "attn_implementation": "eager",
    }  # fmt: skip
    rotary = Rotary(6)
    names = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj"}
    rotation = rotary.at(torch.arange(9)[None], F64)
    angles = [torch.cat((x, x), dim=-1)[:, 0] for x in (rotation.cosine, rotation.sine)]
    if kind == "qwen3":
        softmax = torch.nn.functional.softmax  # theirs rounds the weights to float32
        monkeypatch.setattr(torch.nn.functional, "softmax", lambda x, dim=None, dtype=None: softmax(x, dim=dim))
        theirs = Qwen3Attention(transformers.Qwen3Config(**shape), 0)
        monkeypatch.setattr(type(theirs.q_norm), "forward", exact_norm)
        ours = MultiHead(
            12,
            query_heads=4,
            key_value_heads=2,
            head_width=6,
            pattern=limelight.Causal(),
            rotary=rotary,
            head_norm=RMSNorm,
            bias=False,
            output_bias=False,
        )
        names |= {"query_norm": "q_norm", "key_norm": "k_norm"}
    else:
        theirs = GptOssAttention(transformers.GptOssConfig(**shape, attention_bias=True), 0)
        angles = [x[..., :3] for x in angles]
        ours = MultiHead(
            12, query_heads=4, key_value_heads=2, head_width=6, pattern=limelight.Causal(), rotary=rotary, sink=True
        )
        names |= {"sink": "sinks"}
    copy(ours.to(F64), theirs.to(F64).eval(), names)
    states = torch.randn(2, 9, 12, dtype=F64)
    above = torch.full((9, 9), -torch.inf, dtype=F64).triu(1)[None, None]
    torch.testing.assert_close(ours(states, at(9)), theirs(states, angles, above)[0])


def exact_norm(self, x):
    return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))


@pytest.mark.parametrize(
    "layer",
    [
        MultiHead(16, query_heads=2, key_value_heads=1, head_width=8, pattern=Causal(), rotary=Rotary(8)),
        MixtureOfHeads(16, query_heads=4, key_value_heads=4, head_width=8, shared=1, k=2, rotary=Rotary(8)),
        AdditiveAttention(16, inner=8),
        SSRU(16, query_heads=2, key_value_heads=2, head_width=8),
        Block(
            PreNorm(MultiHead(16, query_heads=2, key_value_heads=2, head_width=8), RMSNorm(16)),
            PreNorm(FeedForward(16, inner=32, activation="gelu"), RMSNorm(16)),
        ),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_without_places_texts_are_all_there(layer):
    states = torch.randn(2, 5, 16)
    with torch.no_grad():
        assert torch.equal(layer(states), layer(states, ForwardContext(None, torch.arange(5)[None])))


def test_without_places_a_source_begins_at_0_too():
    layer = MultiHead(16, query_heads=2, key_value_heads=2, head_width=8, source_width=12, rotary=Rotary(8))
    states, source = torch.randn(2, 5, 16), torch.randn(2, 7, 12)
    explicit = ForwardContext(None, torch.arange(5)[None], source=source, source_positions=torch.arange(7)[None])
    with torch.no_grad():
        assert torch.equal(layer(states, ForwardContext.of(states, source)), layer(states, explicit))


def test_states_without_a_batch():
    with pytest.raises(limelight.ArgumentError, match=r"`states` must be \(B, L, width\).*states\[None\]"):
        MultiHead(16, query_heads=2, key_value_heads=2, head_width=8)(torch.randn(5, 16))
