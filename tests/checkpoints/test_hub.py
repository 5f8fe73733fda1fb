"""The hub: the requests to it, and the errors when it does not answer."""

import fnmatch
import socket

import huggingface_hub
import pytest
import torch
import transformers
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from limelight.checkpoints import fetching, hub, packaged
from limelight.checkpoints.load import load
from limelight.formats.errors import CheckpointError


def test_a_repository_becomes_a_model(tmp_path, monkeypatch):
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    transformers.BertModel(config).save_pretrained(tmp_path)
    asked = {}

    def download(repository, allow_patterns, local_files_only):
        asked.update(repository=repository, patterns=allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    model = load("somebody/some-model.v1")
    assert asked["repository"] == "somebody/some-model.v1"
    assert model.name == "somebody/some-model.v1"
    assert model(torch.zeros(1, 2, dtype=torch.int64)).states.shape == (1, 2, 8)


@pytest.mark.parametrize(
    ("proxies", "known", "local"), [({}, True, False), ({}, False, True), ({"https": "http://proxy"}, False, False)]
)
def test_a_hub_far_away_is_not_asked_again_and_again(tmp_path, monkeypatch, proxies, known, local):
    def address(host, port):
        assert host == "huggingface.co"
        if not known:
            raise socket.gaierror("Temporary failure in name resolution")

    def download(repository, allow_patterns, local_files_only):
        assert local_files_only == local
        return str(tmp_path)

    monkeypatch.setattr(hub, "getproxies", lambda: proxies)
    monkeypatch.setattr(socket, "getaddrinfo", address)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "https://huggingface.co")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert hub.snapshot("somebody/model") == tmp_path


def test_only_data_is_asked_for():
    def wanted(name):
        return any(fnmatch.fnmatch(name, pattern) for pattern in hub.DATA_FILES)

    for name in ("config.json", "model.safetensors", "model-00001-of-00003.safetensors", "tokenizer.json"):
        assert wanted(name)
    for name in (
        "modeling_custom.py",
        "pytorch_model.bin",
        "onnx/model.onnx",
        "model.fp16.safetensors",
        "training_args.bin",
    ):
        assert not wanted(name)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (LocalEntryNotFoundError("no network"), "does not answer.*Check the network"),
        (OSError("401 Client Error."), "refused it: 401 Client Error.*hf auth login"),
    ],
)
def test_no_answer(monkeypatch, error, message):
    def download(repository, allow_patterns, local_files_only):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(CheckpointError, match=message):
        load("somebody/model")


def test_a_packaged_model_from_the_hub(tmp_path, monkeypatch):
    model = packaged.PACKAGED["minilm"]
    asked = []

    def download(repository, name, revision, local_dir, etag_timeout):
        asked.append((repository, revision))
        if name == "tokenizer.json":
            raise LocalEntryNotFoundError("gone")
        local_dir.mkdir(parents=True, exist_ok=True)
        (local_dir / name).write_text(name)
        return str(local_dir / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    (tmp_path / "files").mkdir()
    with pytest.raises(
        CheckpointError, match=r"all-MiniLM-L6-v2/tokenizer.json did not come \(LocalEntryNotFoundError\)"
    ):
        fetching.SOURCES["Hugging Face hub"](model, tmp_path / "files")
    assert set(asked) == {("sentence-transformers/all-MiniLM-L6-v2", "main")}
    assert sorted(path.name for path in (tmp_path / "files").iterdir()) == ["config.json", "model.safetensors"]


def test_what_looks_like_a_hub_name():
    assert hub.looks_like_hub_name("HuggingFaceTB/SmolLM2-135M")
    for name in ("minilm", "a/b/c", "a/", "/a", "a b/c", "https://hub/model"):
        assert not hub.looks_like_hub_name(name)


assert issubclass(HfHubHTTPError, OSError)  # what `hub.snapshot` relies on
