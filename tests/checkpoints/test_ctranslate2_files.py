"""CTranslate2's format: a Whisper loaded from it gives the original's results; damaged files are errors."""

import json
import struct

import pytest
import tokenizers
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from limelight.checkpoints.load import load
from limelight.formats.ctranslate2_files import TYPES, CTranslate2File
from limelight.formats.errors import CheckpointError

SIZES = {"vocab_size": 20, "d_model": 16, "num_mel_bins": 4, "max_source_positions": 6, "max_target_positions": 9}
SIZES |= {"encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 12, "decoder_layers": 1}
SIZES |= {"decoder_attention_heads": 4, "decoder_ffn_dim": 20}
SIZES |= {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 2}


def text(value):
    return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"


def variable(name, values):
    data = values.contiguous().flatten().view(torch.uint8).numpy().tobytes() if values.dim() else _scalar(values)
    head = struct.pack(f"<B{values.dim()}I", values.dim(), *values.shape)
    return text(name) + head + struct.pack("<BI", TYPES.index(values.dtype), len(data)) + data


def _scalar(values):
    return struct.pack({torch.int8: "<b", torch.int16: "<h"}[values.dtype], values.item())


def file_of(variables, *, version=6, specification="WhisperSpec", aliases=()):
    head = struct.pack("<I", version) + text(specification) + struct.pack("<II", 3, len(variables))
    body = b"".join(variable(name, values) for name, values in variables.items())
    return head + body + struct.pack("<I", len(aliases)) + b"".join(text(name) for pair in aliases for name in pair)


def converted(theirs):
    """The weights of a Whisper of transformers under CTranslate2's names, in its order."""
    stored = {key.removeprefix("model."): values.half() for key, values in theirs.state_dict().items()}
    c = theirs.config
    found = {
        "decoder/embeddings/weight": stored["decoder.embed_tokens.weight"],
        **{f"encoder/conv{n}/{p}": stored[f"encoder.conv{n}.{p}"] for n in (1, 2) for p in ("weight", "bias")},
    }
    for side in ("encoder", "decoder"):
        heads = getattr(c, f"{side}_attention_heads")
        found[f"{side}/num_heads"] = torch.tensor(heads, dtype=torch.int16)
        choices = {"pre_norm": 1, "activation": 3}
        found |= {f"{side}/{name}": torch.tensor(value, dtype=torch.int8) for name, value in choices.items()}
        found[f"{side}/position_encodings/encodings"] = stored[f"{side}.embed_positions.weight"]
        norms = {f"{side}/layer_norm": f"{side}.layer_norm"}
        for n in range(getattr(c, f"{side}_layers")):
            block, layer = f"{side}/layer_{n}", f"{side}.layers.{n}"
            norms |= {
                f"{block}/self_attention/layer_norm": f"{layer}.self_attn_layer_norm",
                f"{block}/ffn/layer_norm": f"{layer}.final_layer_norm",
            }
            linears = {
                "self_attention/linear_0": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
                "self_attention/linear_1": ("self_attn.out_proj",),
                "ffn/linear_0": ("fc1",),
                "ffn/linear_1": ("fc2",),
            }
            if side == "decoder":
                norms[f"{block}/attention/layer_norm"] = f"{layer}.encoder_attn_layer_norm"
                linears |= {
                    "attention/linear_0": ("encoder_attn.q_proj",),
                    "attention/linear_1": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
                    "attention/linear_2": ("encoder_attn.out_proj",),
                }
            for name, parts in linears.items():
                weights = [stored[f"{layer}.{part}.weight"] for part in parts]
                zeros = torch.zeros(c.d_model).half()
                found[f"{block}/{name}/weight"] = torch.cat(weights)
                found[f"{block}/{name}/bias"] = torch.cat([stored.get(f"{layer}.{p}.bias", zeros) for p in parts])
        for theirs_name, name in norms.items():
            found |= {f"{theirs_name}/gamma": stored[f"{name}.weight"], f"{theirs_name}/beta": stored[f"{name}.bias"]}
    return found


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(0)
    model = transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(**SIZES)).eval()
    for parameter in model.parameters():
        parameter.data = (torch.randn(parameter.shape) * 0.3).half().float()
    return model


@pytest.fixture
def folder(tmp_path, theirs):
    alias = [("decoder/projection/weight", "decoder/embeddings/weight")]
    (tmp_path / "model.bin").write_bytes(file_of(converted(theirs), aliases=alias))
    (tmp_path / "config.json").write_text(json.dumps({"suppress_ids": [3, 4], "suppress_ids_begin": [5]}))
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a"))
    backend.add_special_tokens(["<|endoftext|>", "<|startoftranscript|>"])
    backend.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_a_converted_whisper_gives_the_same_logits(folder, theirs, tmp_path):
    ours = load(folder)
    assert ours.special_token_ids == {
        "decoder_start_token_id": 2, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 1,
        "suppress_tokens": [3, 4], "begin_suppress_tokens": [5],
    }  # fmt: skip
    sound, ids = torch.randn(2, 4, 12, generator=torch.Generator().manual_seed(0)), torch.tensor([[2, 5, 7], [2, 1, 0]])
    with torch.no_grad():
        truth = theirs(input_features=sound, decoder_input_ids=ids).logits
        torch.testing.assert_close(ours(sound, target=ids).logits, truth, rtol=1e-4, atol=1e-4)
        ours.save(tmp_path / "saved")
        again = transformers.WhisperForConditionalGeneration.from_pretrained(tmp_path / "saved")
        assert torch.equal(again(input_features=sound, decoder_input_ids=ids).logits, truth)


def test_variables_and_numbers(folder, theirs):
    file, expected = CTranslate2File(folder / "model.bin"), converted(theirs)
    assert file.specification == "WhisperSpec"
    assert file.numbers["decoder/num_heads"] == 4
    assert file.aliases == {"decoder/projection/weight": "decoder/embeddings/weight"}
    assert set(file.keys()) == {name for name, values in expected.items() if values.dim()}
    for name in file.keys():  # noqa: SIM118
        assert file.shape(name) == expected[name].shape
        assert torch.equal(file.read(name), expected[name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoder/activation": torch.tensor(0, dtype=torch.int8)}, "decoder/activation = 0, and Whisper has 3"),
        ({"encoder/alibi": torch.tensor(1, dtype=torch.int8)}, "encoder/alibi = 1"),
        ({"encoder/layer_0/self_attention/linear_0/bias": torch.ones(48).half()}, "a bias for keys"),
        ({"decoder/layer_0/attention/linear_1/bias": torch.ones(32).half()}, "a bias for keys"),
        ({"encoder/conv1/weight": None}, "lacks encoder/conv1/weight"),
        ({"encoder/num_heads": torch.tensor(5, dtype=torch.int16)}, "encoder_attention_heads = 5.*divisor"),
        ({"decoder/layer_0/ffn/linear_0/bias": None}, r"lacks decoder/layer_0/ffn/linear_0/bias.*1 missing"),
        ({"decoder/layer_0/ffn/linear_0/weight_scale": torch.ones(20)}, "weight_scale, which this model has no place"),
        ({"decoder/embeddings/weight": torch.ones(20).half()}, "lacks decoder/embeddings/weight, or not all"),
    ],
)
def test_weights_that_do_not_fit(folder, theirs, change, message):
    variables = {name: values for name, values in (converted(theirs) | change).items() if values is not None}
    (folder / "model.bin").write_bytes(file_of(variables))
    with pytest.raises(CheckpointError, match=message):
        load(folder)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it is empty"),
        (b"\0\0", "promises 4 more bytes"),
        (file_of({}, version=5), "version 5.*reads version 6"),
        (file_of({}, specification="TransformerSpec"), "'TransformerSpec', and Limelight reads WhisperSpec"),
        (file_of({}) + b"\0", "1 bytes follow its end"),
        (file_of({"a": torch.zeros(2)})[:-8], "more bytes"),
        (file_of({"a": torch.zeros(2)}).replace(struct.pack("<I", 8), struct.pack("<I", 9)), r"9 bytes are no"),
        (struct.pack("<I", 6) + text("W") + struct.pack("<II", 3, 1) + text("a") + b"\x09", "claims 9 dimensions"),
        (struct.pack("<I", 6) + text("W") + struct.pack("<II", 3, 1) + text("a") + b"\0\x09", "type number 9"),
        (struct.pack("<I", 6) + struct.pack("<H", 2) + b"\xff\xfe" + bytes(12), "not UTF-8"),
    ],
)
def test_hostile_files(folder, data, message):
    (folder / "model.bin").write_bytes(data)
    with pytest.raises(CheckpointError, match=message):
        load(folder)


@settings(max_examples=100)
@given(data=st.data())
def test_a_damaged_byte_is_an_error_or_changes_values(tmp_path_factory, data):
    whole = bytearray(
        file_of({"a": torch.zeros(3), "b/c": torch.zeros(2, 2).half(), "d": torch.tensor(1).to(torch.int8)})
    )
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.sampled_from([0, 1, 9, 127, 128, 255]))
    size = data.draw(st.integers(1, len(whole)))
    path = tmp_path_factory.mktemp("broken") / "model.bin"
    path.write_bytes(whole[:size])
    try:
        file = CTranslate2File(path)
    except CheckpointError as error:
        assert len(str(error)) > 30  # noqa: PT017
    else:
        assert sum(file.read(name).numel() for name in file.keys()) < 100  # noqa: SIM118
