"""The fast paths that a model is said to take are those that it takes."""

import pytest
import torch

from limelight import models
from limelight.backends import native
from limelight.fused import CapturedCalls
from limelight.models.fast_paths import CALLED, CAPTURED, PYTORCH, fast_paths
from limelight.nn import Cache
from limelight.tensors.shapes import ArgumentError

SIZES = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
GPT2 = {"vocab_size": 50, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
FAMILIES = {
    "llama": SIZES,
    "mistral": {**SIZES, "num_key_value_heads": 2, "sliding_window": 8},
    "qwen3": {**SIZES, "num_key_value_heads": 2, "head_dim": 8},
    "gemma2": {**SIZES, "num_key_value_heads": 2, "head_dim": 8},
    "mixtral": {**SIZES, "num_local_experts": 2, "num_experts_per_tok": 1, "num_key_value_heads": 2},
    "gpt2": GPT2,
}


def part(found, name):
    return next(one for one in found if one.part == name)


@pytest.mark.parametrize("family", FAMILIES)
def test_capture_is_said_where_it_happens(family, monkeypatch):
    if not native.available():
        pytest.skip(native.why_missing())
    network = models.new(family, **FAMILIES[family]).eval().requires_grad_(False)
    runs = []
    run = CapturedCalls.replay
    monkeypatch.setattr(CapturedCalls, "replay", lambda self, now: (runs.append(1), run(self, now))[1])
    cache, tokens = Cache(), torch.randint(50, (1, 12))
    network(tokens[:, :10], cache=cache)
    for n in (10, 11):
        network(tokens[:, n : n + 1], cache=cache)
    layers = part(fast_paths(network, 10), "whole layer")
    assert layers.count == 2
    assert layers.token.taken == (CAPTURED if runs else CALLED)
    assert (layers.token.reasons == {}) == bool(runs)
    assert bool(runs) == (family not in ("mixtral", "gpt2"))


def test_reasons_name_the_part():
    paths = fast_paths(models.new("gpt2", **GPT2), 10)
    assert part(paths, "norm").prompt.reasons["native"][0] == "LayerNorm has no fused step"
    assert "LayerNorm does not declare `capturable`" in part(paths, "whole layer").token.reasons[CAPTURED]
    assert (part(paths, "norm").count, part(paths, "attention").count) == (5, 2)


def test_a_layer_that_cannot_be_captured_keeps_the_others_from_it():
    network = models.new("llama", **SIZES)
    network.layers[1].feed_forward.inner.activation = torch.nn.functional.relu
    kinds = [one for one in fast_paths(network, 10) if one.part == "whole layer"]
    assert sum(one.count for one in kinds) == 2
    assert all(one.token.taken == CALLED and one.token.reasons for one in kinds)


def test_without_the_library_everything_is_pytorch(monkeypatch):
    monkeypatch.setattr(native.library, "_library", None)
    monkeypatch.setattr(native.library, "_missing", "the native library was not built: install a C++ compiler")
    for one in fast_paths(models.new("llama", **SIZES), 10):
        if one.part not in ("attention", "whole layer"):
            assert one.prompt.taken == one.token.taken == PYTORCH
            assert "the native library was not built: install a C++ compiler" in one.prompt.reasons["native"]
    assert part(fast_paths(models.new("llama", **SIZES), 10), "attention").prompt.taken == "reference"


def test_encoders_write_nothing_and_shared_score_rules_are_seen():
    found = fast_paths(models.new("t5", vocab_size=50, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4), 9)
    assert all((one.token is None) == one.part.startswith("encoder ") for one in found)
    kinds = {one.kind: one.count for one in found if one.part == "attention"}
    assert kinds == {
        "MultiHead, Causal(), 4 / 4 heads of 8, RelativeBias": 2,
        "MultiHead, Full(), 4 / 4 heads of 8": 2,  # to the encoder, where there is no bias
    }
    assert part(found, "whole layer").token.taken == CALLED


def test_a_length_beyond_the_positions():
    with pytest.raises(ArgumentError, match=r"must be at most the model's 64 positions, but it is 65\. Use 64\."):
        fast_paths(models.new("gpt2", **GPT2), 65)
