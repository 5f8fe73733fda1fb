"""The packaged models, and the same weights in transformers."""

import os

import gguf
import pytest
import torch
import transformers
from support.real_models import fetched

from limelight.checkpoints.load import load
from limelight.formats.ctranslate2_files import CTranslate2File

os.environ["HF_HUB_OFFLINE"] = "1"  # transformers looks for newer files of a local folder otherwise
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


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


@pytest.fixture(scope="session")
def rxnmapper():
    fetched("rxnmapper")
    return load("rxnmapper")


@pytest.fixture(scope="session")
def their_rxnmapper():
    folder = fetched("rxnmapper")
    config = transformers.AlbertConfig.from_json_file(folder / "config.json")
    config._attn_implementation = "eager"
    model = transformers.AlbertForMaskedLM(config)
    stored = torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
    stored = {key: values for key, values in stored.items() if "pooler" not in key}
    model.load_state_dict(stored)
    return model.eval()


@pytest.fixture(scope="session")
def whisper():
    fetched("whisper-tiny-en")
    return load("whisper-tiny-en")


@pytest.fixture(scope="session")
def translator():
    fetched("marian-en-pt")
    return load("marian-en-pt")


@pytest.fixture(scope="session")
def beckett():
    return fetched("beckett") / "beckett.wav"


@pytest.fixture(scope="session")
def their_whisper():
    """Transformers' Whisper with the variables of the file under its own names."""
    file = CTranslate2File(fetched("whisper-tiny-en") / "model.bin")
    sizes = {"vocab_size": 51864, "d_model": 384, "encoder_attention_heads": 6, "decoder_attention_heads": 6}
    config = transformers.WhisperConfig(**sizes, encoder_layers=4, decoder_layers=4, attn_implementation="eager")
    model = transformers.WhisperForConditionalGeneration(config)
    weights = {}
    for key in file.keys():  # noqa: SIM118
        name = f"model.{key}"
        for theirs, others in RENAMED:
            name = name.replace(theirs, others)
        parts = next((LINEARS[linear] for linear in LINEARS if f"/{linear}/" in name), [""])
        fused = next((linear for linear in LINEARS if f"/{linear}/" in name), "")
        for piece, part in zip(file.read(key).float().chunk(len(parts)), parts, strict=True):
            one = name.replace(fused, part) if fused else name
            if not one.endswith("k_proj/bias"):
                weights[one.replace("/", ".")] = piece
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert missing == ["proj_out.weight"]
    assert not unexpected
    model.tie_weights()
    return model.eval()


RENAMED = [
    ("embeddings/weight", "embed_tokens/weight"),
    ("position_encodings/encodings", "embed_positions/weight"),
    ("layer_norm/gamma", "layer_norm/weight"),
    ("layer_norm/beta", "layer_norm/bias"),
    *((f"layer_{n}", f"layers/{n}") for n in range(4)),
    ("self_attention/layer_norm", "self_attn_layer_norm"),
    ("/attention/layer_norm", "/encoder_attn_layer_norm"),
    ("ffn/layer_norm", "final_layer_norm"),
    ("ffn/linear_0", "fc1"),
    ("ffn/linear_1", "fc2"),
]
LINEARS = {
    "self_attention/linear_0": [f"self_attn/{letter}_proj" for letter in "qkv"],
    "self_attention/linear_1": ["self_attn/out_proj"],
    "attention/linear_0": ["encoder_attn/q_proj"],
    "attention/linear_1": ["encoder_attn/k_proj", "encoder_attn/v_proj"],
    "attention/linear_2": ["encoder_attn/out_proj"],
}
