"""What a checkpoint holds decides whether a head is tied, as in transformers; the configuration alone does not."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.agreement import assert_equal, float64_throughout
from support.peers import EVERY, made
from test_families import compared

from limelight.checkpoints.load import load
from limelight.formats.errors import CheckpointError
from limelight.models.families import FAMILIES
from limelight.models.families.heads import is_tied

# A model of each family with a tied head: what files call the head, and the embedding.
HEADS = {
    "llama-tied": ("lm_head.weight", "model.embed_tokens.weight"),
    "mistral": ("lm_head.weight", "model.embed_tokens.weight"),
    "mixtral": ("lm_head.weight", "model.embed_tokens.weight"),
    "qwen3": ("lm_head.weight", "model.embed_tokens.weight"),
    "gemma2": ("lm_head.weight", "model.embed_tokens.weight"),
    "phi3": ("lm_head.weight", "model.embed_tokens.weight"),
    "gpt2": ("lm_head.weight", "transformer.wte.weight"),
    "t5": ("lm_head.weight", "shared.weight"),
    "bart": ("lm_head.weight", "model.shared.weight"),
    "marian": ("lm_head.weight", "model.shared.weight"),
    "whisper": ("proj_out.weight", "model.decoder.embed_tokens.weight"),
    "bert-masked": ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
    "roberta-masked": ("lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight"),
    "albert-masked": ("predictions.decoder.weight", "albert.embeddings.word_embeddings.weight"),
    "distilbert-masked": ("vocab_projector.weight", "distilbert.embeddings.word_embeddings.weight"),
}
CASES = {name: (*case[:2], case[2] | {"tie_word_embeddings": True}) for name, case in EVERY.items() if name in HEADS}


def test_every_family_with_a_head_is_here():
    assert {EVERY[name][1].model_type for name in HEADS} == FAMILIES.keys() - {"vit"}


def stored(name, folder, change):
    """A tied model, saved with another set of tensors, and as transformers reads it."""
    theirs = made(name, CASES)
    theirs.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    head, table = HEADS[name]
    source = tensors[table]
    tensors[head] = torch.randn(source.shape, dtype=source.dtype) if change == "another" else source.clone()
    if change == "alone":
        del tensors[table]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return again(type(theirs), name, folder)


def again(shape, name, folder):
    model = shape.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
    if "mixtral" in name:
        model.set_experts_implementation("eager")
    for key, values in model.named_parameters():
        if key.endswith("embed_positions.weight") and "marian" in name:  # rounded when they are made
            values.data = made(name, CASES if name in CASES else EVERY).get_parameter(key).data
    return model


def logits_equal(name, ours, theirs):
    with float64_throughout(theirs):
        mine, other = compared(name, ours, theirs)[-1]
        assert_equal(mine, other)


@pytest.mark.parametrize("change", ["another", "alone", "the same"])
@pytest.mark.parametrize("name", HEADS)
def test_as_transformers_reads_it(tmp_path, name, change):
    theirs = stored(name, tmp_path, change)
    ours = load(tmp_path, dtype=torch.float64)
    assert is_tied(ours.config.head) == (change != "another")
    logits_equal(name, ours, theirs)


@pytest.mark.parametrize("name", HEADS)
def test_an_untied_head_is_saved_and_read_again(tmp_path, name):
    theirs = stored(name, tmp_path, "another")
    ours = load(tmp_path, dtype=torch.float64)
    ours.save(tmp_path / "ours")
    logits_equal(name, load(tmp_path / "ours", dtype=torch.float64), theirs)
    logits_equal(name, ours, again(type(theirs), name, tmp_path / "ours"))


# What files call the embeddings of an encoder, of a decoder, and the one that both share.
TABLES = {
    "t5": ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "shared.weight"),
    "t5-1.1": ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "shared.weight"),
    "t5-body": ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "shared.weight"),
    "bart": ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "model.shared.weight"),
    "bart-scaled": ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "shared.weight"),
    "marian": ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "model.shared.weight"),
}


@pytest.mark.parametrize("which", ["encoder", "decoder", "both"])
@pytest.mark.parametrize("name", TABLES)
def test_embeddings_with_different_values(tmp_path, name, which):
    """Each of encoder, decoder and head has its own where the file has one with other values, else the shared one."""
    made(name).save_pretrained(tmp_path / "theirs")
    tensors = load_file(tmp_path / "theirs" / "model.safetensors")
    encoder, decoder, shared = TABLES[name]
    changed = {"encoder": [encoder], "decoder": [decoder], "both": [encoder, decoder]}[which]
    for number, key in enumerate(changed):
        tensors[key] = torch.randn(tensors[shared].shape, dtype=torch.float64, generator=seeded(number))
    save_file(tensors, tmp_path / "theirs" / "model.safetensors", metadata={"format": "pt"})
    shape = EVERY[name][0]
    ours, theirs = load(tmp_path / "theirs", dtype=torch.float64), again(shape, name, tmp_path / "theirs")
    assert not ours.config.one_table
    all_equal(name, ours, theirs)
    ours.save(tmp_path / "ours")
    all_equal(name, load(tmp_path / "ours", dtype=torch.float64), theirs)
    all_equal(name, ours, again(shape, name, tmp_path / "ours"))


def seeded(number):
    return torch.Generator().manual_seed(number)


def all_equal(name, ours, theirs):
    with float64_throughout(theirs):
        for mine, other in compared(name, ours, theirs):
            assert_equal(mine, other)


def test_a_shared_embedding_stands_in_for_those_that_are_missing(tmp_path):
    made("bart-untied").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.encoder.embed_tokens.weight"], tensors["model.decoder.embed_tokens.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    network = load(tmp_path, dtype=torch.float64).network
    encoder, decoder = network.encoder.embedding.tokens.weight, network.embedding.tokens.weight
    assert torch.equal(encoder, tensors["model.shared.weight"])
    assert torch.equal(decoder, tensors["model.shared.weight"])
    assert encoder.data_ptr() != decoder.data_ptr()
    assert torch.equal(network.head.linear.weight, tensors["lm_head.weight"])


def test_names_of_one_embedding_with_different_values(tmp_path):
    """Without the shared one, no name says what the others are tied to."""
    made("bart").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.decoder.embed_tokens.weight"] = tensors.pop("model.shared.weight")
    tensors["model.encoder.embed_tokens.weight"] = tensors["model.decoder.embed_tokens.weight"] + 1
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"encoder.embed_tokens.weight and model.decoder.* one tensor"):
        load(tmp_path)
