"""Models from scratch, of every family."""

import subprocess
import sys

import pytest
import torch
import transformers

import limelight
from limelight import models
from limelight.checkpoints.load import load
from limelight.models.families import FAMILIES
from limelight.models.families.published import SPECIAL_TOKEN_KEYS
from limelight.tensors.shapes import ArgumentError

DECODER = {
    "vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 64, "max_position_embeddings": 64, "head_dim": 8,
}  # fmt: skip
ENCODER = {
    "vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "max_position_embeddings": 64,
}  # fmt: skip
BOTH = {
    "vocab_size": 50, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 64,
}  # fmt: skip


def without(sizes, *names):
    return {key: value for key, value in sizes.items() if key not in (*names, "max_position_embeddings")}


SIZES = {
    "llama": DECODER, "mistral": DECODER, "qwen3": DECODER, "gemma2": DECODER, "phi3": DECODER,
    "mixtral": DECODER | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "gpt2": {"vocab_size": 50, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "bert": ENCODER, "roberta": ENCODER,
    "albert": ENCODER | {"embedding_size": 16},
    "distilbert": {"vocab_size": 50, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
    "t5": {"vocab_size": 50, "d_model": 32, "num_layers": 2, "num_heads": 4, "d_kv": 8, "d_ff": 64},
    "bart": BOTH, "marian": BOTH,
    "vit": without(ENCODER, "vocab_size") | {"image_size": 8, "patch_size": 4, "num_channels": 3},
    "whisper": without(BOTH) | {"num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 16},
}  # fmt: skip


@pytest.mark.parametrize("family", SIZES)
def test_every_family_runs(family):
    torch.manual_seed(0)
    model = models.new(family, **SIZES[family])
    ids = torch.randint(3, 50, (2, 7))
    inputs = {"vit": torch.randn(2, 3, 8, 8), "whisper": torch.randn(2, 8, 32)}.get(family, ids)
    out = model(inputs) if model.config.encoder is None else model(ids, source=inputs)
    assert out.states.shape[-1] == 32
    assert bool(out.states.isfinite().all())
    assert 2_000 < sum(p.numel() for p in model.parameters()) < 200_000
    torch.manual_seed(0)
    again = models.new(family, **SIZES[family])
    assert all(torch.equal(x, y) for x, y in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("family", SIZES)
def test_transformers_opens_what_is_saved_of_a_few_tokens(family, tmp_path):
    """Its default ids of special tokens may lie beyond the vocabulary; those of the model are kept."""
    vocabulary, eos = ({}, {}) if family == "vit" else ({"vocab_size": 3}, {"eos_token_id": 1})
    network = models.new(family, **SIZES[family] | vocabulary)
    limelight.Pretrained("new", network, tmp_path / "nowhere", (), "it has none", eos).save(tmp_path / "saved")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "saved")
    tokens = {key: value for key, value in vars(config).items() if key.endswith(SPECIAL_TOKEN_KEYS)}
    assert all(value is None or value < 3 for value in tokens.values()), tokens
    assert tokens.get("eos_token_id") == eos.get("eos_token_id")
    make = getattr(transformers, config.architectures[0])
    _, report = make.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not report["unexpected_keys"]
    assert load(tmp_path / "saved").special_token_ids == eos | ({"pad_token_id": 1} if family == "roberta" else {})


@pytest.mark.parametrize("family", SIZES)
def test_default_tokens_are_those_of_transformers(family):
    theirs = vars(transformers.AutoConfig.for_model(family))
    tokens = {key: x for key, x in theirs.items() if key.endswith(SPECIAL_TOKEN_KEYS) and x is not None}
    ours = FAMILIES[family].default_tokens
    assert {key: [*x] if isinstance(x, (list, tuple)) else x for key, x in tokens.items()} == {
        key: [*x] if isinstance(x, tuple) else x for key, x in ours.items()
    }


def test_what_is_wrong_is_named():
    with pytest.raises(ArgumentError, match=r"`family`.*llama.*'lama'"):
        models.new("lama")
    with pytest.raises(ArgumentError, match="hidden_width"):
        models.new("llama", **DECODER, hidden_width=3)
    with pytest.raises(ValueError, match="hidden_size"):
        models.new("llama", **(DECODER | {"hidden_size": "a"}))


def test_texts_become_means_of_their_tokens(minilm):
    model = minilm
    texts = ["A river.", "The bank of the river was covered with flowers and the water was cold.", "No."]
    found = model.embed(texts, batch=2)
    assert found.shape == (3, 384)
    for text, vector in zip(texts, found, strict=True):
        mean = model(text).states[0].mean(0)
        torch.testing.assert_close(vector, mean / mean.norm(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model.embed(text, normalise=False)[0], mean, rtol=1e-4, atol=1e-5)
    with pytest.raises(ArgumentError, match="`texts`"):
        model.embed([5])
    for texts in (None, 3, 2.5, object(), b"text", torch.tensor(3)):
        with pytest.raises(ArgumentError, match="`texts` must be a string or a sequence of strings"):
            model.embed(texts)


def test_packages_are_there_once_limelight_is_imported():
    program = "import limelight as l; l.models.new, l.nn.MultiHead, l.generation.Sample, l.compat.flash_attn_func"
    subprocess.run([sys.executable, "-c", program], check=True)
