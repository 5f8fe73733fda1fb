"""GGUF: read as the gguf package reads it; anything damaged is an error and nothing worse."""

import json
import math
import random
import shutil
import struct
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from limelight import ArgumentError
from limelight.checkpoints.load import load
from limelight.formats.errors import CheckpointError
from limelight.formats.gguf_files import GGUFFile
from limelight.formats.tokenizer_files import tokenizer_of
from limelight.models.families.llama import GGUF_NEUTRAL, GGUF_SCALING, LLAMA
from limelight.models.families.published import Published
from limelight.nn.positions import Llama3Scaling

KINDS = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]
LETTERS = [*"abcdefghijklmnopqrstuvwxyz", "Ġ", "th", "the", "Ġthe", "<end>", "added"]


def numbers(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


# A Llama of one layer, as small as GGUF's blocks of 32 allow, as a published configuration says it.
SIZES = {
    "max_position_embeddings": 16, "num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 64,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip


def kind_of(value):
    """GGUF's type of a value; of a list, that of its first entry behind it."""
    kinds = {bool: "BOOL", int: "INT64", float: "FLOAT64", str: "STRING", list: "ARRAY"}
    found = gguf.GGUFValueType[kinds[type(value)]]
    return (found, kind_of(value[0])[0]) if isinstance(value, list) else (found,)


def write(path, kind="F32", *, tokens=LETTERS, own_head=True, **fields):
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(SIZES["num_hidden_layers"])
    writer.add_context_length(SIZES["max_position_embeddings"])
    writer.add_embedding_length(SIZES["hidden_size"])
    writer.add_feed_forward_length(SIZES["intermediate_size"])
    writer.add_head_count(SIZES["num_attention_heads"])
    writer.add_head_count_kv(SIZES["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(fields.get("theta", 1000.0))
    writer.add_tokenizer_model(fields.get("model", "gpt2"))
    writer.add_tokenizer_pre(fields.get("pre", "smollm"))
    for key, value in fields.get("more", {}).items():
        writer.add_key_value(key, value, *kind_of(value))
    writer.add_token_list(tokens)
    writer.add_token_types([3 if t == "<end>" else 4 if t == "added" else 1 for t in tokens])
    writer.add_token_merges(["t h", "th e", "Ġ the"])
    writer.add_eos_token_id(tokens.index("<end>"))
    writer.add_add_eos_token(fields.get("eos", False))
    shapes = {"token_embd": (len(tokens), 32), "output_norm": (32,), "blk.0.attn_norm": (32,), "blk.0.ffn_norm": (32,)}
    shapes |= {
        "blk.0.attn_q": (32, 32),
        "blk.0.attn_k": (16, 32),
        "blk.0.attn_v": (16, 32),
        "blk.0.attn_output": (32, 32),
    }
    shapes |= {"blk.0.ffn_gate": (64, 32), "blk.0.ffn_up": (64, 32), "blk.0.ffn_down": (32, 64)}
    shapes |= {"output": (len(tokens), 32)} if own_head else {}
    if "divisors" in fields:
        writer.add_tensor("rope_freqs.weight", np.asarray(fields["divisors"], np.float32))
    if "scaling" in fields:
        writer.add_rope_scaling_type(gguf.RopeScalingType(fields["scaling"]))
        writer.add_rope_scaling_factor(4.0)
        writer.add_rope_scaling_orig_ctx_len(16)
    for number, (name, shape) in enumerate(shapes.items()):
        if number not in fields.get("only", range(99)):
            continue
        stored = getattr(gguf.GGMLQuantizationType, kind if len(shape) == 2 else "F32")
        writer.add_tensor(f"{name}.weight", gguf.quantize(numbers(*shape), stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return write(tmp_path_factory.mktemp("gguf") / "small.gguf")


@pytest.mark.parametrize("kind", KINDS)
def test_read_as_the_gguf_package_reads(tmp_path, kind):
    path = write(tmp_path / "model.gguf", kind)
    ours, theirs = GGUFFile(path), gguf.GGUFReader(str(path))
    assert ours.keys() == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        assert ours.shape(tensor.name) == values.shape
        assert np.array_equal(ours.read(tensor.name).numpy(), values)
    for name, field in theirs.fields.items():
        if not name.startswith("GGUF."):
            assert ours.fields[name] == field.contents()


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_of_every_kind_runs(tmp_path, kind):
    model = load(write(tmp_path / "model.gguf", kind))
    assert model.config.key_value_heads == 2
    assert model.config.limit == 16
    assert model("the cat").logits.shape == (1, 5, len(LETTERS))  # the, Ġ, c, a, t
    assert load(tmp_path).config == model.config  # a folder with one such file


def test_a_head_of_its_own_or_tied(tmp_path):
    own, tied = load(write(tmp_path / "own.gguf")), load(write(tmp_path / "tied.gguf", own_head=False))
    assert "head.linear.weight" in own.network.state_dict()
    assert not any(name.startswith("head") for name in tied.network.state_dict())
    ids = torch.arange(4)[None]
    torch.testing.assert_close(tied(ids).logits, tied(ids).states @ tied.network.embedding.tokens.weight.T)


PHI3 = {
    "vocab_size": 40, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 8,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "original_max_position_embeddings": 10, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "sliding_window": 5, "attn_implementation": "eager",
    "rope_parameters": {
        "rope_type": "longrope", "rope_theta": 500.0, "short_factor": [1.0, 1.25, 1.5, 2.0],
        "long_factor": [1.0, 2.5, 8.0, 17.0],
    },
}  # fmt: skip


def test_phi3_as_llama_cpp_writes_it(tmp_path):
    """Tensors under the names of the gguf package, projections fused: the same model as from safetensors."""
    torch.manual_seed(0)
    theirs = transformers.Phi3ForCausalLM(transformers.Phi3Config(**PHI3)).eval()
    theirs.save_pretrained(tmp_path / "published")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.PHI3, PHI3["num_hidden_layers"])
    writer = gguf.GGUFWriter(str(tmp_path / "phi3.gguf"), "phi3")
    writer.add_block_count(PHI3["num_hidden_layers"])
    writer.add_context_length(PHI3["max_position_embeddings"])
    writer.add_embedding_length(PHI3["hidden_size"])
    writer.add_feed_forward_length(PHI3["intermediate_size"])
    writer.add_head_count(PHI3["num_attention_heads"])
    writer.add_head_count_kv(PHI3["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(500.0)
    writer.add_rope_dimension_count(8)
    writer.add_sliding_window(PHI3["sliding_window"])
    writer.add_rope_scaling_orig_ctx_len(10)
    writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(6.4) / math.log(10)))
    for kind in ("short", "long"):
        factors = np.asarray(PHI3["rope_parameters"][f"{kind}_factor"], np.float32)
        writer.add_tensor(f"rope_factors_{kind}.weight", factors)
    for name, values in theirs.state_dict().items():
        writer.add_tensor(f"{names.get_name(name.removesuffix('.weight'))}.weight", values.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    ours, published = (load(tmp_path / name, dtype=torch.float64) for name in ("phi3.gguf", "published"))
    weights = published.network.state_dict()
    assert all(torch.equal(values, weights.pop(name)) for name, values in ours.network.state_dict().items())
    assert not weights
    ids = torch.arange(3, 36).reshape(3, 11)
    for length in (9, 11):  # numbers of the configuration are float32 in GGUF
        logits = published(ids[:, :length]).logits
        torch.testing.assert_close(ours(ids[:, :length]).logits, logits, rtol=1e-6, atol=1e-7)
        with torch.no_grad():
            torch.testing.assert_close(theirs(ids[:, :length]).logits.double(), logits, rtol=1e-4, atol=1e-5)


def rotation(theta=1000.0, **scaling):
    """That of the same model where a published configuration describes it."""
    values = SIZES | {"vocab_size": len(LETTERS), "rope_theta": theta, "rope_scaling": scaling}
    return LLAMA.configure(Published(Path("config.json"), values)).attentions[0]["rotary"]


def test_long_waves(tmp_path):
    """Llama 3.1 and later: only what the frequency of each pair is divided by is in the file."""
    rule = Llama3Scaling(8.0, 8192)
    plain = 500_000.0 ** -(torch.arange(4).double() / 4)
    divisors = (plain / rule.frequencies(plain, torch.tensor([[1]]))).tolist()
    assert divisors[:2] == [1.0, 1.0]
    assert 1.0 < divisors[2] < divisors[3] == 8.0
    found = load(write(tmp_path / "model.gguf", theta=500_000.0, divisors=divisors))
    scaling = {"factor": 8.0, "original_max_position_embeddings": 8192, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    assert found.config.attentions[0]["rotary"] == rotation(500_000.0, rope_type="llama3", **scaling)
    assert [name for name, _ in found.unused] == ["rope_freqs.weight"]
    with pytest.raises(CheckpointError, match=r"rope_freqs.weight must follow Llama 3.1's rule .*safetensors"):
        load(write(tmp_path / "other.gguf", theta=500_000.0, divisors=[1.0, 2.0, 1.0, 8.0]))


def test_other_scalings(tmp_path):
    for kind in ("linear", "yarn"):
        found = load(write(tmp_path / f"{kind}.gguf", scaling=kind)).config.attentions[0]["rotary"]
        assert found == rotation(rope_type=kind, factor=4.0, original_max_position_embeddings=16)
    assert load(write(tmp_path / "none.gguf", scaling="none")).config.attentions[0]["rotary"] == rotation()
    with pytest.raises(CheckpointError, match=r"rope_type.*'longrope'"):
        load(write(tmp_path / "long.gguf", scaling="longrope"))


def test_the_tokenizer_of_a_file(tmp_path):
    tokenizer = tokenizer_of(GGUFFile(write(tmp_path / "model.gguf", eos=True)))
    read = tokenizer.read("the the<end>added")
    assert read.tokens == ("the", "Ġthe", "<end>", "added", "<end>")
    assert read.special == (False, False, True, False, True)
    assert read.pieces == ("the", "the", "<end>", "added", "<end>")
    assert tokenizer.write(read.ids) == "the theadded"


@pytest.mark.parametrize(("field", "message"), [({"model": "llama"}, "kind 'llama'"), ({"pre": "viking"}, "'viking'")])
def test_a_tokenizer_of_another_kind_is_no_obstacle_to_the_model(tmp_path, field, message):
    model = load(write(tmp_path / "model.gguf", **field))
    assert model(torch.arange(4)[None]).states.shape == (1, 4, 32)
    with pytest.raises(ValueError, match=message):
        model("text")


def cut(path, tmp_path, data):
    target = tmp_path / "cut.gguf"
    target.write_bytes(data)
    return target


@settings(max_examples=150)
@given(data=st.data())
def test_a_file_cut_short_is_an_error(small, tmp_path_factory, data):
    whole = small.read_bytes()
    size = data.draw(st.integers(0, len(whole) - 1))
    target = tmp_path_factory.mktemp("cut") / "cut.gguf"
    target.write_bytes(whole[:size])
    with pytest.raises(CheckpointError, match="damaged"):
        GGUFFile(target)


@settings(max_examples=300)
@given(data=st.data())
def test_a_damaged_byte_is_an_error_or_changes_values(small, tmp_path_factory, data):
    """Whatever stands in the file: no crash, no endless loop, no memory beyond its size."""
    broken = bytearray(small.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        broken[data.draw(st.integers(0, 2200))] = data.draw(st.sampled_from([0, 1, 9, 127, 128, 255]))
    target = tmp_path_factory.mktemp("broken") / "broken.gguf"
    target.write_bytes(broken)
    try:
        model = load(target)
    except ValueError as error:  # CheckpointError and ArgumentError are kinds of it
        assert len(str(error)) > 30  # noqa: PT017
    else:
        assert sum(p.numel() for p in model.network.parameters()) < 20_000


def header(tensors=0, fields=0, version=3):
    return b"GGUF" + struct.pack("<IQQ", version, tensors, fields)


def text(value):
    return struct.pack("<Q", len(value)) + value


def entry(name, dimensions, kind, offset=0):
    return text(name) + struct.pack(f"<I{len(dimensions)}QIQ", len(dimensions), *dimensions, kind, offset)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it is empty"),
        (b"PK\x03\x04" + bytes(40), "begins with"),
        (header(version=1), "version 1"),
        (header(version=1 << 24), "big-endian"),
        (header(tensors=2**60), "1,152,921,504,606,846,976 entries"),
        (header(fields=2**63), "entries, more than the file can hold"),
        (
            header(fields=1) + text(b"key") + struct.pack("<IQ", 8, 2**62),
            "promises 4,611,686,018,427,387,904 more bytes",
        ),
        (header(fields=1) + text(b"key") + struct.pack("<IIQ", 9, 4, 2**61), "entries, more than"),
        (header(fields=1) + text(b"key") + struct.pack("<IIQ", 9, 9, 1), "array of the unsupported type 9"),
        (header(fields=1) + text(b"key") + struct.pack("<I", 77), "unknown type 77"),
        (header(fields=1) + text(b"\xff\xfe") + struct.pack("<IB", 0, 1), "not UTF-8"),
        (header(tensors=1) + entry(b"w", (2**40, 2**40), 0), "should end at byte"),
        (header(tensors=1) + entry(b"w", (2**63, 2), 0), "should end at byte"),
        (header(tensors=1) + entry(b"w", (33,), 2) + bytes(64), "does not divide into the 32-number blocks of Q4_0"),
        (header(tensors=1) + entry(b"w", (1,) * 5, 0) + bytes(64), "claims 5 dimensions"),
        (header(tensors=1) + entry(b"w", (1,), 999) + bytes(64), "unknown type number 999"),
        (header(tensors=1) + entry(b"w", (4,), 0, offset=2**62) + bytes(64), "should end at byte"),
        (header(tensors=2) + entry(b"w", (4,), 0) * 2 + bytes(64), "the same name"),
        (header(fields=1) + text(b"general.alignment") + struct.pack("<II", 4, 3), "not a power of two"),
    ],
)
def test_hostile_files(tmp_path, data, message):
    path = tmp_path / "hostile.gguf"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=message):
        GGUFFile(path)


def test_other_families(tmp_path):
    path = tmp_path / "other.gguf"
    for architecture, message in ((b"mamba", "'mamba'.*bert,.* llama"), (b"bert", "safetensors only")):
        path.write_bytes(header(fields=1) + text(b"general.architecture") + struct.pack("<I", 8) + text(architecture))
        with pytest.raises(CheckpointError, match=message):
            load(path)
    path.write_bytes(header())
    with pytest.raises(CheckpointError, match=r"general.architecture = None"):
        load(path)


LLAMA3_LETTERS = [*LETTERS, "hello", "Ġworld", "<start>"]


def test_the_tokenizer_of_llama_3(tmp_path):
    """Words of the vocabulary stay whole whatever the merges are, and the beginning-of-text token comes first."""
    start, usual = LLAMA3_LETTERS.index("<start>"), {"tokenizer.ggml.bos_token_id": LLAMA3_LETTERS.index("<start>")}

    def read(number, **how):
        how = {"tokens": LLAMA3_LETTERS, "pre": "llama-bpe", "more": usual} | how
        return tokenizer_of(GGUFFile(write(tmp_path / f"{number}.gguf", **how))).read("hello world").tokens

    assert read(1) == ("<start>", "hello", "Ġworld")
    assert read(2, more=usual | {"tokenizer.ggml.add_bos_token": False}) == ("hello", "Ġworld")
    assert read(3, more={}) == ("hello", "Ġworld")
    assert read(4, more={"tokenizer.ggml.bos_token_id": -1}) == ("hello", "Ġworld")
    assert read(5, pre="smollm") == (*"hello", "Ġ", *"world")
    assert LLAMA3_LETTERS[start] == "<start>"


@pytest.mark.parametrize(
    ("more", "ends"),
    [
        ({}, 30),
        ({"tokenizer.ggml.eot_token_id": 3}, [30, 3]),
        ({"tokenizer.ggml.eot_token_id": 30}, 30),
        ({"tokenizer.ggml.eot_token_id": 3, "tokenizer.ggml.eom_token_id": 5}, [30, 3, 5]),
        ({"tokenizer.ggml.eot_token_id": 2**32 - 1, "tokenizer.ggml.padding_token_id": -1}, 30),
    ],
)
def test_all_that_ends_a_turn_ends_a_text(tmp_path, more, ends):
    assert LETTERS.index("<end>") == 30
    model = load(write(tmp_path / "model.gguf", more=more))
    assert model.special_token_ids == {"eos_token_id": ends}


def test_a_saved_tokenizer_names_its_special_tokens(tmp_path):
    more = {"tokenizer.ggml.bos_token_id": 27, "tokenizer.ggml.eot_token_id": 3}
    more["tokenizer.chat_template"] = "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}"
    model = load(write(tmp_path / "model.gguf", more=more))
    model.save(tmp_path / "saved")
    message = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())
    assert (message["bos_token"], message["eos_token"]) == (LETTERS[27], "<end>")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert (theirs.bos_token, theirs.eos_token) == (LETTERS[27], "<end>")
    written = theirs.apply_chat_template([{"role": "user", "content": "the cat"}], tokenize=False)
    assert written == model.conversation("the cat").texts[0].text == f"{LETTERS[27]}the cat<end>"


def split(folder, parts, **fields):
    """A model of 12 tensors in several files."""
    for number, tensors in enumerate(parts):
        message = {"split.no": number, "split.count": len(parts), "split.tensors.count": 12} | fields
        write(folder / f"m-{number + 1:05}-of-{len(parts):05}.gguf", only=tensors, more=message)
    return folder


def test_a_model_in_several_files(tmp_path):
    whole = load(write(tmp_path / "whole.gguf"))
    (tmp_path / "parts").mkdir()
    folder = split(tmp_path / "parts", [range(5), range(5, 6), range(6, 12)])
    for named in (folder, *sorted(folder.iterdir())):
        found = load(named)
        assert found.config == whole.config
        assert found.network.state_dict().keys() == whole.network.state_dict().keys()
        assert all(torch.equal(a, b) for a, b in zip(found.parameters(), whole.parameters(), strict=True))
    write(folder / "other.gguf")
    with pytest.raises(CheckpointError, match=r"4 .gguf files"):
        load(folder)


@pytest.mark.parametrize(
    ("parts", "change", "message"),
    [
        ([range(5), range(5, 12)], lambda folder: (folder / "m-00002-of-00002.gguf").unlink(), "part 2 of 2.*copy it"),
        ([range(5), range(4, 12)], lambda folder: None, "is also in m-00001-of-00002"),
        ([range(5), range(6, 12)], lambda folder: None, "split.tensors.count is 12.*hold 11"),
        (
            [range(5), range(5, 12)],
            lambda folder: (folder / "m-00001-of-00002.gguf").rename(folder / "renamed.gguf"),
            "(part 1 of 2.*copy it|2 .gguf files)",
        ),
        (
            [range(5), range(5, 12)],
            lambda folder: shutil.copy(folder / "m-00001-of-00002.gguf", folder / "m-00002-of-00002.gguf"),
            "does not say that it is part 2 of 2",
        ),
    ],
)
def test_parts_that_do_not_fit(tmp_path, parts, change, message):
    change(split(tmp_path, parts))
    for named in (tmp_path, *tmp_path.iterdir()):
        with pytest.raises(
            CheckpointError, match=f"({message}|its name does not say which|it does not say that it is)"
        ):
            load(named)


def test_the_attention_factor_of_yarn(tmp_path):
    """llama.cpp multiplies what YaRN multiplies queries and keys with."""
    for factor in (1.0, 0.5):
        path = write(tmp_path / f"{factor}.gguf", scaling="yarn", more={"llama.rope.scaling.attn_factor": factor})
        magnitude = load(path).config.attentions[0]["rotary"].scaling.attention_factor
        assert magnitude == pytest.approx(factor * (0.1 * math.log(4.0) + 1), rel=1e-12)
    path = write(tmp_path / "linear.gguf", scaling="linear", more={"llama.rope.scaling.attn_factor": 0.5})
    with pytest.raises(CheckpointError, match=r"attn_factor = 0\.5"):
        load(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("llama.rope.dimension_count", 4),
        ("llama.attention.sliding_window", 8),
        ("llama.logit_scale", 0.5),
        ("llama.embedding_scale", 12.0),
        ("llama.expert_count", 8),
        ("llama.attention.causal", False),
        ("llama.rope.scale_linear", 4.0),
    ],
)
def test_what_another_model_of_the_same_name_has(tmp_path, key, value):
    with pytest.raises(CheckpointError, match=f"{key} = {value}.*safetensors"):
        load(write(tmp_path / "model.gguf", more={key: value}))
    load(write(tmp_path / "plain.gguf", more={"llama.rope.dimension_count": 8, "llama.logit_scale": 1.0}))


HOSTILE = [True, -1, 0, 3, 2**31, 2**63 - 1, -0.5, 1e308, math.inf, math.nan, "", "x" * 5000, [1], [-1], ["a"], [True]]
FIELDS = [
    *("general.architecture", "tokenizer.ggml.model", "tokenizer.ggml.pre", "tokenizer.ggml.tokens"),
    *("tokenizer.ggml.merges", "tokenizer.ggml.token_type", "tokenizer.ggml.bos_token_id", "tokenizer.chat_template"),
    *("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.padding_token_id", "split.count"),
    *("tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token", "split.no", "split.tensors.count"),
    *("general.alignment", *(f"llama.{key}" for key in LLAMA.gguf.fields), "llama.vocab_size"),
    *(f"llama.rope.{key}" for key in GGUF_SCALING),
    *(f"llama.{key}" for key in GGUF_NEUTRAL),
]


@pytest.mark.parametrize("field", dict.fromkeys(FIELDS))
def test_any_value_of_any_field(small, tmp_path, field):
    """A model that can be used, or a clear error."""
    for value in random.Random(field).sample(HOSTILE, 6):
        path = rewritten(small, tmp_path / "hostile.gguf", {field: value})
        begin = time.process_time()
        try:
            model = load(path)
            model.save(tmp_path / "saved")
            shutil.rmtree(tmp_path / "saved")
            model.generate([1, 2], tokens=1)
        except ArgumentError as error:
            message = str(error)
        else:
            message = ""
        assert len(message) < 2000
        assert time.process_time() - begin < 2.0


def rewritten(source, target, changes):
    """The same file with other fields, which may be of any type."""
    file, before = GGUFFile(source), gguf.GGUFReader(str(source))
    writer = gguf.GGUFWriter(str(target), "llama")
    writer.kv_data[0].clear()
    for key, value in (file.fields | changes).items():
        writer.add_key_value(key, value, *kind_of(value))
    for tensor in before.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def test_layers_that_the_file_does_not_hold(small, tmp_path):
    begin = time.process_time()
    with pytest.raises(CheckpointError, match=r"num_hidden_layers = 1000.*as many layers as.*12"):
        load(rewritten(small, tmp_path / "model.gguf", {"llama.block_count": 1000}))
    assert time.process_time() - begin < 2.0


def test_tensors_without_elements(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(header(tensors=1) + entry(b"w", (0, 4), 0) + bytes(64))
    assert GGUFFile(path).read("w").shape == (4, 0)
    path.write_bytes(header(tensors=1) + entry(b"w", (0, 2**62), 0) + bytes(64))
    with pytest.raises(CheckpointError, match="claims the shape"):
        GGUFFile(path)


def test_more_tensors_than_any_model_has(tmp_path):
    path, number = tmp_path / "model.gguf", 1 << 20
    path.write_bytes(header(tensors=number) + bytes(8 * number))
    with pytest.raises(CheckpointError, match="claims 1,048,576 tensors"):
        GGUFFile(path)
