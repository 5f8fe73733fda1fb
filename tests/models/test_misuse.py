"""What cannot be meant says so: names that are no model's, folders that cannot be, methods that are elsewhere."""

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.peers import made

from limelight import ArgumentError
from limelight.checkpoints.load import load, outline
from limelight.formats.errors import CheckpointError


@pytest.fixture
def folder(tmp_path):
    made("llama-tied").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("door", [load, outline])
@pytest.mark.parametrize("name", [None, 5, b"", b"minilm", ["minilm"], "", "  ", "a\0b", 1.5])
def test_names_that_are_no_names(door, name):
    with pytest.raises(ArgumentError, match=r"`name_or_path` must be a text or a path.*Packaged models: minilm"):
        door(name)


@pytest.mark.parametrize("door", [load, outline])
@pytest.mark.parametrize("name", ["x" * 5000, "/" + "x" * 300, "~nobody_of_this_name/model"])
def test_paths_that_cannot_be_looked_at(door, name):
    with pytest.raises(CheckpointError, match="is no path that can be looked at") as raised:
        door(name)
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("config.json", "config.json describes a model.*Name its folder"),
        ("model.safetensors", "model.safetensors holds weights alone. Name its folder"),
        ("pytorch_model.bin", "looks like pickled weights .*convert them once: python -c"),
        ("model.pt", "looks like pickled weights"),
    ],
)
def test_a_file_in_place_of_its_folder(folder, name, message):
    (folder / name).touch()
    with pytest.raises(CheckpointError, match=message):
        load(folder / name)


def test_the_command_that_converts_pickled_weights(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]  # pickled files hold tied weights twice
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError) as raised:
        load(folder / "pytorch_model.bin")
    code, paths = str(raised.value).split('python -c "')[1].split('" ')
    before, after = paths.split(", and name")[0].split()
    with pytest.raises(CheckpointError, match=r"model.safetensors does not exist.*convert them once: python -c"):
        load(folder)  # says it too
    subprocess.run([sys.executable, "-c", code, before, after], check=True)
    assert torch.equal(load(folder).network.embedding.tokens.weight, tensors["model.embed_tokens.weight"].float())


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a folder in which no process can write")
def test_places_where_nothing_can_be_saved(folder):
    model = load(folder)
    for place in ("/proc/x", "~nobody_of_this_name/x", "a\0b", "/" + "x" * 300):
        with pytest.raises(ArgumentError, match="`folder` must be where a folder can be written"):
            model.save(place)
    for place in (5, None, b"x", ["x"]):
        with pytest.raises(ArgumentError, match="`folder` must be a text or a path"):
            model.save(place)


@pytest.mark.parametrize("where", ["nope", None, [1], 1.5, torch.int8, torch.complex64, "nope:0"])
def test_devices_that_are_none(folder, where):
    with pytest.raises(ArgumentError, match="`where` must be"):
        load(folder).to(where)


def test_what_a_module_has(folder):
    model = load(folder)
    assert model.device == torch.device("cpu")
    assert model.dtype is torch.float32
    assert model.to(torch.bfloat16).dtype is torch.bfloat16
    assert model.train() is model
    assert model.network.training
    assert model.eval() is model
    assert not model.network.training
    assert [*model.parameters()] == [*model.network.parameters()]
    with pytest.raises(AttributeError, match=r"'state_dict' .*model\.network\.state_dict"):
        model.state_dict()
    with pytest.raises(AttributeError, match=r"'nothing_of_this_name'$"):
        model.nothing_of_this_name  # noqa: B018


@pytest.mark.parametrize("tokens", [None, 5, [1, 2], [[1, 2]], b"text", ["a", 1], 1.5, {"a": 1}])
def test_what_is_no_text(folder, tokens):
    model = load(folder)
    with pytest.raises(ArgumentError, match=r"`tokens` must be a text, several, .* tensor of token ids"):
        model(tokens)
    with pytest.raises(ArgumentError, match="`texts` must be a text, or several"):
        model.read(tokens)


def test_a_default_device_of_pytorch_changes_nothing(folder):
    """Weights are read on the CPU, whatever new tensors are made on."""
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with torch.device("meta"):
        model = load(folder)
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    assert model(torch.tensor([[5, 6]])).logits.isfinite().all()
