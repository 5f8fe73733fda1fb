"""A maliciously written configuration: a model or a clear error, at once, whatever it says."""

import json
import os
import random
import time
import tracemalloc
from contextlib import contextmanager

import pytest
from support.peers import EVERY

from limelight import ArgumentError
from limelight.checkpoints.load import outline
from limelight.formats.errors import CheckpointError
from limelight.models.families import FAMILIES, Published

NESTED = [[[]]]
for _ in range(200):
    NESTED = [NESTED]
VALUES = [
    *(None, True, False, -1, 0, 1, 3, 2**31 - 1, 2**31, 2**63, 10**400),
    *(-0.5, 0.5, 1e-300, 1e308, float("inf"), float("nan")),
    *("", "x" * 5000, "0", "\ud800", [], [1], ["x", None], NESTED, {}, {"0": 5}, {"a": {"b": {}}}),
]
CASES = 100_000 if os.environ.get("LIMELIGHT_TESTS") == "long" else 80  # of each family
SECONDS = 2.0


def configurations(family):
    """Whole configurations of a family, every field written out."""
    for shape, make_config, values in EVERY.values():
        if make_config.model_type == family:
            written = json.loads(make_config(**values).to_json_string(use_diff=False))
            yield written | {"architectures": [shape.__name__]}


def outlined(path, values):
    """The network, or the error; anything else than a clear error is raised."""
    path.write_text(json.dumps(values))
    begin = time.process_time()
    try:
        found = outline(path)
    except CheckpointError as error:
        found = str(error)
        assert str(path) in found
        assert len(found) < 2000
    assert time.process_time() - begin < SECONDS, values
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_any_value_of_any_field(tmp_path, family):
    whole = list(configurations(family))
    cases = [(number, key, value) for number, message in enumerate(whole) for key in message for value in VALUES]
    for number, key, value in random.Random(family).sample(cases, min(CASES, len(cases))):
        try:
            outlined(tmp_path / "config.json", whole[number] | {key: value})
        except ArgumentError as error:
            raise AssertionError(f"{key} = {value!r:.80}: no checkpoint error") from error
        except Exception as error:
            raise AssertionError(f"{key} = {value!r:.80}: {type(error).__name__}") from error


SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "max_position_embeddings", "head_dim")
SIZES += ("d_model", "d_ff", "d_kv", "num_heads", "encoder_ffn_dim", "n_embd", "n_positions", "num_labels", "n_heads")
SIZES += (
    "dim",
    "hidden_dim",
    "type_vocab_size",
    "embedding_size",
    "image_size",
    "num_mel_bins",
    "max_source_positions",
)


CLASSIFYING = {"architectures": ["BertForSequenceClassification"]}


@pytest.mark.parametrize("size", [2**20, 2**31 - 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_all_sizes_at_once(tmp_path, family, size):
    """Parameters have no memory before they are read, whatever their sizes; sizes whose product is none are refused."""
    message = next(configurations(family))
    large = {key: size for key in SIZES if key in message}
    with memory_below(100):
        outlined(tmp_path / "config.json", message | large)


@pytest.mark.parametrize(
    ("family", "changes", "rule"),
    [
        ("bert", CLASSIFYING | {"num_labels": 2**31, "id2label": None}, "num_labels"),
        ("bert", CLASSIFYING | {"id2label": "ab"}, "id2label"),
        ("mixtral", {"num_local_experts": 2**31}, "num_local_experts"),
        ("mixtral", {"num_local_experts": 1000, "num_hidden_layers": 1000}, "num_local_experts"),
        ("llama", {"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ("bart", {"encoder_layers": 10**9}, "encoder_layers"),
        ("t5", {"num_decoder_layers": 10**9}, "num_decoder_layers"),
        ("llama", {"rope_parameters": "x"}, "rope_parameters"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 1e308}}, "factor"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": float("inf")}}, "factor"),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "beta_fast": float("inf")}}, "beta_fast"),
    ],
)
def test_what_would_take_all_time_or_memory(tmp_path, family, changes, rule):
    with memory_below(100):
        assert f"{rule} = " in outlined(tmp_path / "config.json", next(configurations(family)) | changes)


@contextmanager
def memory_below(most):
    """What is asked of Python's allocator at once, in MiB."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "1" * 5000, '{"model_type": "\\ud800"}', "\xff"])
def test_json_that_is_none(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        outline(tmp_path / "config.json")


def test_json_that_is_too_large(tmp_path):
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(CheckpointError, match="1,099,511,627,776 bytes"):
        outline(tmp_path / "config.json")


ID, IDS, PAIRS = "the id of a token, or a list", "a list of the ids", "a list of pairs"


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        *(("eos_token_id", value, ID) for value in (-2, 2**31, True, 1.0, "2", [1, -2], [[1]], {})),
        *(("suppress_tokens", value, IDS) for value in (1, [-2], [2**40], "12", [None], [True])),
        *(("forced_decoder_ids", value, PAIRS) for value in (1, [1], [[1]], [[1, -1]], [[1, 2, 3]], [["a", 1]])),
        *(("bad_words_ids", value, "a list of lists") for value in (1, [1], [[]], [[-1]], [["a"]], "a")),
    ],
)
def test_special_tokens_that_are_none(key, value, rule):
    with pytest.raises(CheckpointError, match=f"generation_config.json says {key} = .*{rule}"):
        Published("generation_config.json", {key: value}).special_token_ids()


def test_special_tokens():
    message = {
        "pad_token_id": -1,  # as some published files write that there is none
        "bos_token_id": None,
        "eos_token_id": [2, 3],
        "decoder_start_token_id": 0,
        "suppress_tokens": [],
        "begin_suppress_tokens": [220, 50256],
        "forced_decoder_ids": [[1, None], [2, 50359]],
        "bad_words_ids": [[5], [6, 7]],
        "temperature": 0.6,
    }
    left_out = {"pad_token_id", "bos_token_id", "suppress_tokens", "temperature"}
    assert Published("config.json", message).special_token_ids() == {
        key: message[key] for key in message.keys() - left_out
    }
