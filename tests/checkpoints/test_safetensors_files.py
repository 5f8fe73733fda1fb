"""Safetensors folders: what is there is read, what is missing is reported."""

import json
import time

import pytest
import torch
from safetensors.torch import save_file

from limelight.checkpoints.fill import fill
from limelight.formats.errors import CheckpointError
from limelight.formats.rules import KeyRule, KeyRules
from limelight.formats.safetensors_files import SafetensorsFolder

A, B = torch.arange(6.0).reshape(2, 3), torch.ones(4, dtype=torch.bfloat16)


@pytest.fixture
def shards(tmp_path):
    save_file({"a": A}, tmp_path / "model-1-of-2.safetensors")
    save_file({"b": B}, tmp_path / "model-2-of-2.safetensors")
    index(tmp_path, {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"})
    return tmp_path


def index(folder, weight_map):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_one_file(tmp_path):
    save_file({"a": A, "b": B}, tmp_path / "model.safetensors")
    folder = SafetensorsFolder(tmp_path)
    assert sorted(folder.keys()) == ["a", "b"]
    assert folder.shape("a") == (2, 3)
    assert torch.equal(folder.read("a"), A)
    assert torch.equal(folder.read("b"), B)


def test_shards(shards):
    folder = SafetensorsFolder(shards)
    assert torch.equal(folder.read("a"), A)
    assert torch.equal(folder.read("b"), B)


def test_no_file_and_pickled_weights(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(CheckpointError, match=r"model.safetensors does not exist.*pickled weights.*not read"):
        SafetensorsFolder(tmp_path)


def test_a_shard_that_is_missing(shards):
    (shards / "model-2-of-2.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-2-of-2.safetensors does not exist.*copy the missing file"):
        SafetensorsFolder(shards)


@pytest.mark.parametrize("size", [0, 4, 60, 150])
def test_a_file_cut_short(tmp_path, size):
    path = tmp_path / "model.safetensors"
    save_file({"a": A, "b": B}, path)
    assert path.stat().st_size > size
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=rf"damaged or incomplete.*its {size} bytes.*sha256"):
        SafetensorsFolder(tmp_path)


def test_a_header_that_promises_more_than_there_is(tmp_path):
    head = json.dumps({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + bytes(64))
    with pytest.raises(CheckpointError, match="damaged"):
        SafetensorsFolder(tmp_path)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "model-1-of-2.safetensors", "b": "model-1-of-2.safetensors"}, "disagree about b in model-1-of-2"),
        ({"a": "model-1-of-2.safetensors"}, None),
        ({"a": "../../secret.safetensors"}, "no safetensors file beside it"),
        ({"a": "/etc/passwd"}, "no safetensors file beside it"),
        ({"a": "model.bin"}, "no safetensors file beside it"),
        ({"a": 3}, "does not map names to files"),
        ([], "does not map names to files"),
    ],
)
def test_indices_that_do_not_fit(shards, weight_map, message):
    index(shards, weight_map)
    if message is None:  # a shard that the index does not name is not opened
        assert SafetensorsFolder(shards).keys() == ["a"]
        return
    with pytest.raises(CheckpointError, match=message):
        SafetensorsFolder(shards)


@pytest.mark.parametrize("text", ["", "[]", "{}"])
def test_an_index_that_is_none(shards, text):
    (shards / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"index.json is damaged"):
        SafetensorsFolder(shards)


def test_a_shard_with_a_name_that_no_file_has(shards):
    index(shards, {"a": "x" * 5000 + ".safetensors"})
    with pytest.raises(CheckpointError, match=r"x \.\.\. cannot be read .*name"):
        SafetensorsFolder(shards)


def test_an_index_that_nests_without_end(shards):
    (shards / "model.safetensors.index.json").write_text('{"weight_map":' * 100_000)
    with pytest.raises(CheckpointError, match="nested too deep"):
        SafetensorsFolder(shards)


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = (
            torch.nn.Parameter(torch.empty_like(values, device="meta")) for values in (A.float(), B.float())
        )


RULES = KeyRules(KeyRule("a", "a"), KeyRule("b", "b"))


def filled(folder, tensors):
    save_file(tensors, folder / "model.safetensors")
    network = Net()
    fill(network, SafetensorsFolder(folder), RULES, where=folder, dtype=torch.float32)
    return network


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.bool, torch.complex64])
def test_weights_that_are_not_floating_point(tmp_path, dtype):
    message = str(dtype).removeprefix("torch.")
    with pytest.raises(CheckpointError, match=f"holds b as {message}, and weights are floating-point numbers.*GGUF"):
        filled(tmp_path, {"a": A.float(), "b": B.to(dtype)})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_weights_that_are(tmp_path, dtype):
    network = filled(tmp_path, {"a": A.float(), "b": B.to(dtype)})
    assert torch.equal(network.b, B.to(dtype).float())


def test_a_hundred_thousand_unknown_tensors(tmp_path):
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    head = json.dumps({f"x.{number}.weight": empty for number in range(100_000)}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head)
    begin = time.process_time()
    with pytest.raises(CheckpointError, match="holds 100,000 tensors, and the model of its configuration has 2"):
        fill(Net(), SafetensorsFolder(tmp_path), RULES, where=tmp_path, dtype=torch.float32)
    assert time.process_time() - begin < 2.0


HOSTILE = [
    None,
    True,
    -1,
    0,
    3,
    2**63,
    2**64,
    10**30,
    -0.5,
    1e308,
    "",
    "x" * 5000,
    "F32",
    "I64",
    "BOOL",
    "C64",
    "F8_E5M2",
]
HOSTILE += [[], [-1], [2**31] * 3, [0, 2**62], [0, 24], [24, 0], [8, 32], [0, 2**40], ["a"], [[]], {}, {"dtype": "F32"}]


@pytest.mark.parametrize("where", ["a", "a.dtype", "a.shape", "a.data_offsets", "b.shape", "__metadata__", "unknown"])
def test_any_value_in_a_header(tmp_path, where):
    """The right tensors, or a clear error, at once."""
    data = A.float().numpy().tobytes() + B.float().numpy().tobytes()
    for value in HOSTILE:
        header = {
            "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
            "b": {"dtype": "F32", "shape": [4], "data_offsets": [24, 40]},
        }
        owner, _, field = where.partition(".")
        header[owner] = header[owner] | {field: value} if field else value
        head = json.dumps(header).encode()
        (tmp_path / "model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + data)
        network, begin = Net(), time.process_time()
        try:
            fill(network, SafetensorsFolder(tmp_path), RULES, where=tmp_path, dtype=torch.float32)
        except CheckpointError as error:
            message = str(error)
        else:
            message = ""
            assert network.a.shape == (2, 3)
            assert torch.equal(network.b, B.float())
        assert len(message) < 8000
        assert time.process_time() - begin < 2.0
