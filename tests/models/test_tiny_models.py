"""Random weights, as transformers saves them: every variant of the two families that is built here."""

import json

import pytest
import torch
import transformers
from support.agreement import assert_equal, float64_throughout

import limelight
from limelight.checkpoints.load import load

BERT = {"vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}
LLAMA = BERT | {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LENGTHS = [7, 1, 11]


def saved(model, folder):
    """A model with weights large enough to matter, saved as its users would find it."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3
    model.tie_weights()
    model.to(torch.float64).eval().save_pretrained(folder)
    return model


def batch(side):
    ids = torch.randint(0, 50, (3, 11), generator=torch.Generator().manual_seed(1))
    place = torch.arange(11)
    lengths = torch.tensor(LENGTHS)
    exists = place < lengths[:, None] if side == "right" else place >= 11 - lengths[:, None]
    return ids, limelight.Padded(lengths, side=side), exists


def compare(theirs, folder, side, **more):
    ours = load(folder, dtype=torch.float64)
    ids, layout, exists = batch(side)
    positions = (exists.long().cumsum(-1) - 1).clamp(min=0)
    with float64_throughout(theirs):
        truth = theirs(
            ids, attention_mask=exists.long(), position_ids=positions, output_hidden_states=True, **more
        )  # fmt: skip
    got = ours(ids, layout=layout, hidden=True, segments=more.get("token_type_ids"))
    for mine, other in zip(got.hidden, truth.hidden_states, strict=True):
        assert_equal(mine[exists], other[exists])
    if got.logits is not None:
        assert_equal(got.logits[exists], getattr(truth, "logits", truth[0])[exists])
    return ours, got


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
def test_bert(tmp_path, side, activation):
    config = transformers.BertConfig(**BERT, hidden_act=activation, layer_norm_eps=1e-5, attn_implementation="eager")
    theirs = saved(transformers.BertModel(config), tmp_path)
    segments = torch.arange(33).reshape(3, 11) % 2
    ours, got = compare(theirs, tmp_path, side, token_type_ids=segments)
    assert got.logits is None
    assert [key for key, _ in ours.unused] == ["pooler.dense.bias", "pooler.dense.weight"]


@pytest.mark.parametrize("shape", [transformers.BertForMaskedLM, transformers.BertForPreTraining])
def test_bert_with_its_head(tmp_path, shape):
    theirs = saved(shape(transformers.BertConfig(**BERT, attn_implementation="eager")), tmp_path)
    ours = load(tmp_path, dtype=torch.float64)
    ids, layout, exists = batch("right")
    truth = theirs(ids, attention_mask=exists.long())
    truth = truth.logits if hasattr(truth, "logits") else truth.prediction_logits
    assert_equal(ours(ids, layout=layout).logits[exists], truth[exists])


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"tie_word_embeddings": True},
        {"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True},
        {"num_key_value_heads": 4, "head_dim": 6, "hidden_act": "gelu"},
        {"rope_parameters": LLAMA3},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 300.0, "factor": 4.0}},
    ],
    ids=lambda variant: ",".join(variant) or "plain",
)
def test_llama(tmp_path, side, variant):
    config = transformers.LlamaConfig(**LLAMA | variant, attn_implementation="eager")
    compare(saved(transformers.LlamaForCausalLM(config), tmp_path), tmp_path, side)


@pytest.mark.parametrize("stretched", [False, True])
def test_llama_as_older_files_describe_it(tmp_path, stretched):
    rope = LLAMA3 if stretched else {"rope_type": "default", "rope_theta": 500.0}
    config = transformers.LlamaConfig(**LLAMA, rope_parameters=rope, attn_implementation="eager")
    theirs = saved(transformers.LlamaForCausalLM(config), tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    scaling = values.pop("rope_parameters")
    values["rope_theta"] = scaling.pop("rope_theta")
    values["rope_scaling"] = scaling if stretched else None
    path.write_text(json.dumps(values))
    compare(theirs, tmp_path, "right")


def test_shards(tmp_path):
    config = transformers.LlamaConfig(**LLAMA, attn_implementation="eager")
    theirs = saved(transformers.LlamaForCausalLM(config), tmp_path / "whole")
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    compare(theirs, tmp_path / "shards", "right")


def test_names_of_the_first_checkpoints(tmp_path):
    from safetensors.torch import load_file, save_file

    theirs = saved(transformers.BertModel(transformers.BertConfig(**BERT, attn_implementation="eager")), tmp_path)
    path = tmp_path / "model.safetensors"
    old = {
        "bert." + key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): values
        for key, values in load_file(path).items()
    }
    save_file(old, path)
    compare(theirs, tmp_path, "right")


def test_gradients(tmp_path):
    config = transformers.LlamaConfig(**LLAMA, attn_implementation="eager")
    theirs = saved(transformers.LlamaForCausalLM(config), tmp_path)
    ours = load(tmp_path, dtype=torch.float64)
    ids = batch("right")[0]
    assert not ours(ids).logits.requires_grad
    ours.network.train().requires_grad_()
    ours(ids).logits.square().mean().backward()
    with float64_throughout(theirs):
        theirs(ids).logits.square().mean().backward()
    assert_equal(ours.network.embedding.tokens.weight.grad, theirs.model.embed_tokens.weight.grad)
    query = ours.network.layers[0].attention.inner.query.weight
    assert_equal(query.grad, theirs.model.layers[0].self_attn.q_proj.weight.grad)


def test_chosen_logits_and_none(tmp_path):
    saved(transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)), tmp_path)
    ours = load(tmp_path)
    ids = batch("right")[0]
    whole, without = ours(ids), ours(ids, logits=False)
    assert without.logits is None
    assert without.hidden is None
    torch.testing.assert_close(ours.network.head_on(without.states[:, -1]), whole.logits[:, -1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(tmp_path, dtype):
    saved(transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)), tmp_path)
    ids = batch("right")[0]
    half, whole = load(tmp_path, dtype=dtype)(ids).logits, load(tmp_path)(ids).logits
    assert half.dtype == dtype
    assert (half.float() - whole).norm() < 0.1 * whole.norm()


def test_a_recipe_made_twice_is_the_same(tmp_path):
    saved(transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)), tmp_path)
    first, second = load(tmp_path).config, load(tmp_path).config
    assert first == second
    assert repr(first.norm) == "RMSNorm(epsilon=1e-06)"
    network = limelight.models.DecoderOnly(first)  # with fresh parameters, to train from nothing
    assert network(batch("right")[0]).logits.shape == (3, 11, 50)


@pytest.mark.parametrize(
    "theirs",
    [
        lambda: transformers.BertModel(transformers.BertConfig(**BERT)),
        lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)),
    ],
    ids=["bert", "llama"],
)
def test_compiled_whole_and_exported(tmp_path, theirs):
    saved(theirs(), tmp_path)
    network = load(tmp_path).network
    compiled = torch.compile(network, fullgraph=True, dynamic=True, backend="eager")
    for length in (5, 9):
        ids = torch.arange(2 * length).reshape(2, length)
        layout = limelight.Padded(torch.tensor([length, 3]))
        for how in ({}, {"layout": layout}):
            torch.testing.assert_close(compiled(ids, **how).states, network(ids, **how).states)
    torch.export.save(torch.export.export(network, (ids,)), tmp_path / "network.pt2")
    exported = torch.export.load(tmp_path / "network.pt2").module()
    torch.testing.assert_close(exported(ids), network(ids))
