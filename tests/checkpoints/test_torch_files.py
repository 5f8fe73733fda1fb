"""Pickled tensors: read for a packaged model alone, and nothing but tensors."""

import pickle

import pytest
import torch

from limelight.checkpoints.load import load
from limelight.checkpoints.packaged import PACKAGED
from limelight.formats.errors import CheckpointError
from limelight.formats.torch_files import TorchFile


class Hostile:
    def __reduce__(self):
        return (exec, ("raise SystemExit('it was run')",))


@pytest.mark.parametrize("legacy", [False, True])
def test_tensors(tmp_path, legacy):
    stored = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.float16)}
    torch.save(stored, tmp_path / "model.bin", _use_new_zipfile_serialization=not legacy)
    file = TorchFile(tmp_path / "model.bin")
    assert file.keys() == ["a", "b"]
    assert file.shape("a") == (2, 3)
    assert all(torch.equal(file.read(key), stored[key]) for key in stored)


@pytest.mark.parametrize("content", [Hostile(), {"a": Hostile()}, [torch.ones(2)], {"a": 3}, None])
def test_anything_else_is_refused_and_not_run(tmp_path, content):
    (tmp_path / "plain.bin").write_bytes(pickle.dumps(content))
    torch.save(content, tmp_path / "model.bin")
    for name in ("plain.bin", "model.bin"):
        with pytest.raises(CheckpointError, match="damaged"):
            TorchFile(tmp_path / name)


def test_no_folder_of_a_user(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "albert"}')
    torch.save({"a": torch.ones(2)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pickled weights .* are not read"):
        load(tmp_path)
    assert [name for name, model in PACKAGED.items() if model.pickled] == ["rxnmapper"]
