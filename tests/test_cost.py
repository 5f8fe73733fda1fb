"""The predicted cost of a model is that of a run: products as counted by PyTorch, pairs and memory as counted here."""

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

import limelight
from limelight import Observe
from limelight.checkpoints.load import outline
from limelight.cli import app
from limelight.models import EncoderDecoder
from limelight.models.cost import cost
from limelight.models.families import FAMILIES, Published
from limelight.nn import Cache
from limelight.tensors.shapes import ArgumentError

LLAMA = {
    "model_type": "llama", "vocab_size": 50, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True,
}  # fmt: skip
MODELS = {
    "llama": LLAMA,
    "mistral": {**LLAMA, "sliding_window": 5, "tie_word_embeddings": False},
    "mixtral": {**LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    "gemma2": {**LLAMA, "sliding_window": 4, "head_dim": 8},
    "gpt2": {"vocab_size": 50, "n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "bert": {
        "vocab_size": 50, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 64, "architectures": ["BertForMaskedLM"],
    },
    "albert": {
        "vocab_size": 50, "hidden_size": 24, "embedding_size": 12, "intermediate_size": 40, "num_hidden_layers": 3,
        "num_attention_heads": 4, "max_position_embeddings": 64, "architectures": ["AlbertForMaskedLM"],
    },
    "t5": {"vocab_size": 50, "d_model": 24, "d_kv": 6, "d_ff": 40, "num_layers": 2, "num_heads": 4},
    "marian": {
        "vocab_size": 50, "d_model": 24, "encoder_layers": 2, "decoder_layers": 3, "encoder_ffn_dim": 40,
        "decoder_ffn_dim": 40, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    },
}  # fmt: skip
B, N = 2, 11
PRODUCTS = ("embedding", "projections", "feed-forward", "recurrence", "head")


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    return {
        name: FAMILIES[name].shape(FAMILIES[name].configure(Published("test", values))).eval()
        for name, values in MODELS.items()
    }


def run(network, **more):
    tokens = torch.randint(50, (B, N))
    if isinstance(network, EncoderDecoder):
        more["source"] = tokens
    with torch.no_grad():
        return network(tokens, **more)


@pytest.mark.parametrize("name", MODELS)
def test_products_are_those_of_a_run(networks, name):
    network = networks[name]
    with FlopCounterMode(display=False) as counted:
        run(network)
    found = cost(network, N, batch=B)
    # PyTorch's way to count attention takes every pair; the next test counts those that are seen.
    attention = counted.get_flop_counts()["Global"][torch.ops.limelight.attention]
    assert sum(found.part(part).flop for part in PRODUCTS) == counted.get_total_flops() - attention


@pytest.mark.parametrize("name", MODELS)
def test_pairs_are_those_of_a_run(networks, name):
    network = networks[name]
    with limelight.watching(Observe(received=True)) as seen:
        run(network)
    heads = network.config.query_heads
    calls = [call for name in seen for (call,) in (seen.calls(name),)]  # one of each layer
    pairs = sum(int(call.received_by.expand(B, heads, N).sum()) for call in calls)
    found = cost(network, N, batch=B)
    assert found.pairs == pairs
    D = network.config.head_width
    assert found.part("scores").flop == found.part("values").flop == 2 * D * pairs
    assert found.part("softmax").flop == 5 * pairs


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "gpt2"])
def test_the_cache_is_what_the_next_token_looks_at(networks, name):
    network, cache = networks[name], Cache()
    run(network, cache=cache)
    with limelight.watching(Observe(received=True)) as seen, torch.no_grad():
        network(torch.randint(50, (B, 1)), cache=cache)
    keys = sum(int(call.received_by[0, 0].sum()) for call in seen.values())
    config = network.config
    found = cost(network, N + 1, batch=B).cache_elements
    assert found["here"] == B * keys * config.key_value_heads * 2 * config.head_width
    share = next(heads for heads in (4, 3, 2, 1) if config.query_heads % heads == 0)
    assert found["MHA"] == config.query_heads * found["MQA"] == share * found["GQA"]


def test_memory(networks):
    found = cost(networks["llama"], N, batch=B, itemsize=2)
    memory = found.memory()
    assert memory["weights"] == 2 * sum(parameter.numel() for parameter in networks["llama"].parameters())
    assert memory["scores of one layer"] == 2 * B * 4 * N * N
    assert memory["scores of all layers"] == 2 * memory["scores of one layer"]
    assert memory["cache, MHA"] == 2 * memory["cache, here"] == 4 * memory["cache, MQA"]
    assert found.bytes == 2 * cost(networks["llama"], N, batch=B, itemsize=1).bytes


def test_it_grows_as_it_says(networks):
    short, long = (cost(networks["gpt2"], length) for length in (16, 64))
    for name, times in {"projections": 4, "feed-forward": 4, "head": 4, "scores": 64 * 65 / (16 * 17)}.items():
        assert long.part(name).flop / short.part(name).flop == times


def test_wrong(networks):
    with pytest.raises(ArgumentError, match="64 positions"):
        cost(networks["gpt2"], 65)
    vit = FAMILIES["vit"].shape(FAMILIES["vit"].configure(Published("test", {
        "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 8,
        "patch_size": 4,
    })))  # fmt: skip
    with pytest.raises(ArgumentError, match="must read tokens"):
        cost(vit, 4)


def test_command(tmp_path, monkeypatch):
    from limelight.benchmark import timing

    monkeypatch.setattr(timing, "peak", lambda dtype, threads: 100.0)
    monkeypatch.setattr(timing, "bandwidth", lambda: 10.0)
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    assert next(outline(tmp_path).parameters()).is_meta
    given = ["cost", str(tmp_path / "config.json"), "--length", "64", "--dtype", "bfloat16"]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 0, result.output
    assert "N² d" in result.output
    assert "100 GFLOP/s, 10.0 GB/s" in result.output
    values = json.loads(CliRunner().invoke(app, [*given, "--json"]).output)
    scores = next(part for part in values["parts"] if part["name"] == "scores")
    assert scores["flop"] == 2 * 2 * 4 * 6 * 64 * 65 // 2
    assert scores["seconds"] == max(scores["flop"] / 100e9, scores["bytes"] / 10e9)
    assert values["memory"]["cache, here"] == 2 * 2 * 2 * 64 * 2 * 6
    with pytest.raises(ArgumentError, match="--dtype"):
        CliRunner().invoke(app, [*given[:-1], "int8"], catch_exceptions=False)


def test_the_length_is_at_most_that_of_the_model():
    result = CliRunner().invoke(app, ["cost", "minilm", "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.output)["length"] == 512
