"""float16 and bfloat16 as the published code has them: what is clamped, what stays float32, what is rounded first."""

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support.peers import BART, LLAMA, MARIAN, T5, WHISPER

from limelight.checkpoints.load import load
from limelight.nn import PostNorm, PreNorm, RMSNorm, TokenEmbedding
from limelight.nn.blocks import clamped, clamped_if_infinite

FLOAT16_MAX = 65_504.0
END = 64_512.0  # of float16, the next to 65,504 - 1,000


class Given(torch.nn.Module):
    """A step whose result is given."""

    def __init__(self, result):
        super().__init__()
        self.result = result

    def forward(self, states, *places):
        return self.result


def test_clamped():
    x = torch.tensor([[1.0, FLOAT16_MAX, -FLOAT16_MAX], [torch.inf, 2.0, torch.nan], [3.0, -torch.inf, FLOAT16_MAX]])
    half = x.half()
    want = torch.tensor([[1.0, END, -END], [END, 2.0, torch.nan], [3.0, -END, END]])
    torch.testing.assert_close(clamped(half), want.half(), rtol=0, atol=0, equal_nan=True)
    want[0] = x[0]  # a vector without infinity stays
    torch.testing.assert_close(clamped_if_infinite(half), want.half(), rtol=0, atol=0, equal_nan=True)
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        for clamp in (clamped, clamped_if_infinite):
            assert torch.equal(clamp(x.to(dtype)).nan_to_num(7.0), x.to(dtype).nan_to_num(7.0))


@pytest.mark.parametrize("make", [PreNorm, PostNorm])
def test_a_step_that_overflows(make):
    states = torch.full((1, 2, 4), 40_000.0, dtype=torch.float16)
    step = make(Given(states.clone()), torch.nn.Identity(), clamp=clamped_if_infinite)
    assert torch.equal(step(states), torch.full_like(states, END))
    assert make(Given(states.clone()), torch.nn.Identity())(states).isinf().all()


def large(name, config, change, tmp_path, **values):
    """A model with some weights made large, saved."""
    torch.manual_seed(0)
    made = getattr(transformers, config)(**values)
    model = getattr(transformers, name)._from_config(made, attn_implementation="eager").eval()
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape) * 0.1
    model.tie_weights()
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(
        {k: change(k, v).contiguous() for k, v in tensors.items()}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    read = getattr(transformers, name).from_pretrained
    return (read(tmp_path, dtype=dtype, attn_implementation="eager").eval() for dtype in (torch.float16, torch.float32))


def agree(ours, half, wide):
    """Finite, and not farther from the float32 model than the published float16 one, on average."""
    assert half.isfinite().all(), "the case does not test what it should"
    assert ours.dtype == half.dtype == torch.float16
    assert ours.isfinite().all()
    error, theirs = (ours.float() - wide).square().mean().sqrt(), (half.float() - wide).square().mean().sqrt()
    assert error <= 1.5 * theirs


IDS = torch.randint(5, 50, (2, 9), generator=torch.Generator().manual_seed(0))
WRITTEN = torch.tensor([[0, 5, 6, 7], [0, 8, 9, 10]])


@pytest.mark.parametrize("more", [{}, {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}])
def test_t5_beyond_the_range_of_float16(tmp_path, more):
    def change(key, values):
        factors = {"DenseReluDense.wi": 90.0, "DenseReluDense.wo": 2e4}
        grown = [factor for name, factor in factors.items() if key.startswith("encoder") and name in key]
        return values * grown[0] if grown else values

    half, wide = large("T5ForConditionalGeneration", "T5Config", change, tmp_path, **(T5 | more))
    how = {"input_ids": IDS, "decoder_input_ids": WRITTEN}
    with torch.no_grad():
        results = half(**how), wide(**how, output_hidden_states=True)
        ours = load(tmp_path, dtype=torch.float16)
        got = ours.network(WRITTEN, source=IDS).logits
    assert max(states.abs().max() for states in results[1].encoder_hidden_states) > FLOAT16_MAX
    agree(got, results[0].logits, results[1].logits)
    kept = {name for name, values in ours.network.named_parameters() if values.dtype is torch.float32}
    assert kept == {
        name for name, _ in ours.network.named_parameters() if name.endswith("feed_forward.inner.down.weight")
    }
    assert {values.dtype for values in load(tmp_path, dtype=torch.bfloat16).parameters()} == {torch.bfloat16}
    with torch.no_grad():  # all in float16: sums are clamped, as published code does
        got = ours.to(torch.float16).network(WRITTEN, source=IDS, hidden=True)
    assert all(states.isfinite().all() for states in got.encoded.hidden)


@pytest.mark.parametrize(
    ("name", "config", "values", "clamps"),
    [
        ("BartModel", "BartConfig", BART, clamped_if_infinite),
        ("MarianModel", "MarianConfig", MARIAN, clamped_if_infinite),
        ("WhisperModel", "WhisperConfig", WHISPER, clamped),
    ],
)
def test_encoders_that_end_a_layer_beyond_the_range_of_float16(tmp_path, name, config, values, clamps):
    def change(key, tensor):
        grown = {"final_layer_norm.weight": 1e6} if name != "WhisperModel" else {"fc1.weight": 30.0, "fc2.weight": 1e5}
        factors = [factor for end, factor in grown.items() if key.startswith("encoder.layers.0") and end in key]
        return tensor * factors[0] if factors else tensor

    half, _ = large(name, config, change, tmp_path, **values)
    source = IDS if name != "WhisperModel" else torch.randn(2, 6, 20, generator=torch.Generator().manual_seed(2))
    source = source if source.dtype is torch.int64 else source.half()
    ours = load(tmp_path, dtype=torch.float16).network.encoder
    assert [block.feed_forward.clamp for block in ours.layers] == [clamps] * len(ours.layers)
    with torch.no_grad():
        theirs = half.get_encoder()(source, output_hidden_states=True).hidden_states
        mine = ours(source, hidden=True).hidden
    assert float(theirs[1].abs().max()) == END, "the case does not test what it should"
    assert float(mine[1].abs().max()) == END
    assert torch.equal(mine[1].isfinite(), theirs[1].isfinite())


def test_the_scale_of_an_embedding_is_rounded_to_its_dtype():
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        layer = TokenEmbedding(7, 6, scale=6**0.5).to(dtype)
        ids = torch.arange(7)[None]
        scale = torch.tensor(6**0.5, dtype=torch.float64).to(dtype)
        assert torch.equal(layer(ids), layer.tokens.weight[None] * scale)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_first_vectors_of_gemma(tmp_path, dtype):
    values = LLAMA | {"hidden_size": 96, "head_dim": 8, "sliding_window": 4, "num_hidden_layers": 1}
    theirs = transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**values))
    theirs.save_pretrained(tmp_path)
    with torch.no_grad():
        first = theirs.to(dtype)(IDS, output_hidden_states=True).hidden_states[0]
        assert torch.equal(load(tmp_path, dtype=dtype).network(IDS, hidden=True).hidden[0], first)


def test_float32_states_meet_a_float16_weight():
    norm = RMSNorm(8, epsilon=1e-6).half()
    states = torch.randn(3, 8) * 1e5
    want = states.double() * (states.double().square().mean(-1, keepdim=True) + 1e-6).rsqrt() * norm.weight.double()
    assert norm(states).dtype is torch.float16
    torch.testing.assert_close(norm(states).double(), want, rtol=2**-10, atol=0)
