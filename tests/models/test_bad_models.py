"""Models and inputs that cannot be run: the error names the argument, the rule, the values and the fix."""

import json

import pytest
import torch
import transformers
from test_tiny_models import BERT, LLAMA, saved

import limelight
from limelight import ArgumentError
from limelight.checkpoints.load import load
from limelight.formats.errors import CheckpointError


@pytest.fixture
def bert(tmp_path):
    config = transformers.BertConfig(**BERT, max_position_embeddings=8)
    saved(transformers.BertModel(config), tmp_path / "bert")
    return tmp_path / "bert"


@pytest.fixture
def llama(tmp_path):
    saved(transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)), tmp_path / "llama")
    return tmp_path / "llama"


def edit(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def test_a_text_longer_than_the_positions(bert, llama):
    for folder, limit in ((bert, 8), (llama, 64)):
        model = load(folder)
        model(torch.zeros(1, limit, dtype=torch.int64))
        with pytest.raises(
            ArgumentError, match=f"`tokens` must fit the {limit} positions.*{limit + 1} tokens.*Split it"
        ):
            model(torch.zeros(1, limit + 1, dtype=torch.int64))


def test_padding_and_packing_do_not_count_as_length(bert):
    model = load(bert)
    ids = torch.arange(12)[None]
    assert model(ids, layout=limelight.Packed([6, 6])).states.shape == (1, 12, 24)
    assert model(ids, layout=limelight.Padded(torch.tensor([8]), side="left")).states.isfinite().all()
    with pytest.raises(ArgumentError, match="has 9 tokens"):
        model(ids, layout=limelight.Packed([9, 3]))


def test_the_query_and_the_key_of_a_token_have_one_position(bert):
    model = load(bert)
    for layout in (limelight.Aligned(query_start=2), limelight.Padded(2, 3)):
        with pytest.raises(ArgumentError, match=r"`layout` must give .*place 0.*key_start"):
            model(torch.zeros(1, 4, dtype=torch.int64), layout=layout)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.zeros(3, dtype=torch.int64), "shape \\(3,\\)"),
        (torch.zeros(1, 3), "torch.float32"),
        (torch.tensor([[0, 50]]), "from 0 to 50"),
        (torch.tensor([[-1, 3]]), "from -1 to 3"),
    ],
)
def test_invalid_tokens(bert, tokens, message):
    with pytest.raises(ArgumentError, match=f"`tokens` must .*{message}"):
        load(bert)(tokens)


def test_empty_input_is_no_error(bert):
    model = load(bert)
    assert model(torch.zeros(0, 4, dtype=torch.int64)).states.shape == (0, 4, 24)
    assert model(torch.zeros(2, 0, dtype=torch.int64)).states.shape == (2, 0, 24)


def test_logits_need_a_head(bert):
    model = load(bert)
    with pytest.raises(ArgumentError, match="output head"):
        model.network.head_on(torch.zeros(1, 24))


def test_text_needs_a_tokenizer(bert):
    with pytest.raises(ArgumentError, match=r"`tokenizer` must .*tokenizer.json does not exist.*token ids"):
        load(bert)("text")


def test_a_layout_cannot_be_given_with_texts(minilm):
    with pytest.raises(ArgumentError, match="`layout`"):
        minilm("text", layout=limelight.Padded(2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mamba"}, "model_type = 'mamba'.*bert,.* llama"),
        ({"model_type": None}, "model_type = None"),
        ({"hidden_size": -4}, "hidden_size = -4.*whole number"),
        ({"hidden_size": "24"}, "hidden_size = '24'"),
        ({"num_attention_heads": 5}, "num_attention_heads = 5.*divisor"),
        ({"hidden_act": "mish"}, "hidden_act = 'mish'.*gelu"),
        ({"position_embedding_type": "relative_key"}, "relative_key.*absolute"),
        ({"layer_norm_eps": 0}, "layer_norm_eps = 0"),
        ({"is_decoder": True}, "is_decoder = True"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers = 1000000000.*at most 1000"),
        ({"num_hidden_layers": 3}, "lacks encoder.layer.2.*16 missing, 0 surplus"),
        ({"num_hidden_layers": 1}, "holds encoder.layer.1.*0 missing, 16 surplus"),
        ({"hidden_size": 12}, "with shape .*should be"),
        ({"vocab_size": 10**12}, "vocab_size = 1000000000000.*at most 2147483647"),
        ({"vocab_size": 10**9}, "with shape .*should be"),
        ({"architectures": ["BertForMaskedLM"]}, "lacks cls.predictions"),
    ],
)
def test_bert_configurations_that_do_not_fit(bert, changes, message):
    with pytest.raises(CheckpointError, match=message):
        load(edit(bert, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_parameters": {"rope_type": "proportional", "rope_theta": 1e4}}, "rope_type = 'proportional'.*llama3"),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, "short_factor = None.*4 numbers above 0"),
        (
            {"rope_parameters": {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [1.0, 2.0]}},
            r"long_factor = \[1.0, 2.0\].*4 numbers above 0",
        ),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor = 0.5"),
        ({"num_key_value_heads": 3}, "`query_heads` must be a multiple"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings = 'yes'"),
        ({"rms_norm_eps": None, "num_hidden_layers": 0}, "num_hidden_layers = 0"),
    ],
)
def test_llama_configurations_that_do_not_fit(llama, changes, message):
    with pytest.raises(ArgumentError, match=message):
        load(edit(llama, **changes))


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00"])
def test_a_configuration_that_is_not_a_json_object(bert, text):
    (bert / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config.json is damaged"):
        load(bert)


def test_an_invalid_tokenizer_file(bert):
    (bert / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer.json is damaged"):
        load(bert)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("minilmm", "did you mean 'minilm'.*Packaged models: minilm, smollm2"),
        ("./nowhere", "nowhere does not exist"),
        ("/nowhere/at/all", "does not exist"),
        ("model.gguf", "model.gguf does not exist"),
        (__file__, "begins with"),
    ],
)
def test_unknown_model_names(name, message):
    with pytest.raises(ArgumentError, match=message):
        load(name)


def test_weights_without_a_config(bert):
    with pytest.raises(CheckpointError, match="Name its folder"):
        load(bert / "model.safetensors")


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(CheckpointError, match=r"config.json does not exist"):
        load(tmp_path)
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"2 .gguf files.*a.gguf, b.gguf"):
        load(tmp_path)


@pytest.mark.parametrize("dtype", [torch.int64, "float32", None])
def test_invalid_dtypes(dtype):
    with pytest.raises(ArgumentError, match="`dtype` must be one of"):
        load("minilm", dtype=dtype)
