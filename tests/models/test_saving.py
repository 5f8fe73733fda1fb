"""What is saved is read again, by us and by transformers, bit for bit; whole or not at all; without a second copy."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

import limelight
from limelight import ArgumentError
from limelight.checkpoints.load import load
from limelight.models import saving

SIZES = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40}
IDS = torch.arange(22).reshape(2, 11)


@pytest.fixture
def llama(tmp_path):
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, bos_token_id=3, eos_token_id=[4, 5]))
    theirs.eval().save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs"


def test_the_same_bits_come_back(llama, tmp_path):
    ours = load(llama)
    assert ours.save(tmp_path / "ours") == tmp_path / "ours"
    before, after = (load_file(folder / "model.safetensors") for folder in (llama, tmp_path / "ours"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    again = load(tmp_path / "ours")
    assert again.config == ours.config
    assert again.special_token_ids == ours.special_token_ids == {"bos_token_id": 3, "eos_token_id": [4, 5]}
    assert torch.equal(again(IDS).logits, ours(IDS).logits)
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "ours")
    assert theirs.dtype == torch.float32
    assert torch.equal(theirs(IDS).logits, transformers.LlamaForCausalLM.from_pretrained(llama)(IDS).logits)
    assert theirs.config.eos_token_id == [4, 5]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_stored_in_another_dtype(llama, tmp_path, dtype):
    ours = load(llama)
    ours.save(tmp_path / "ours", dtype=dtype)
    stored = load_file(tmp_path / "ours" / "model.safetensors")
    assert {values.dtype for values in stored.values()} == {dtype}
    assert torch.equal(load(tmp_path / "ours", dtype=dtype)(IDS).logits, load(llama, dtype=dtype)(IDS).logits)
    assert transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype="auto").dtype == dtype
    assert ours.network.embedding.tokens.weight.dtype == torch.float32


def test_shards(llama, tmp_path):
    load(llama).save(tmp_path / "ours", shard_bytes=10_000)
    shards = sorted((tmp_path / "ours").glob("model-*.safetensors"))
    assert len(shards) > 3
    assert all(sum(t.nbytes for t in load_file(path).values()) <= 10_000 for path in shards)
    index = json.loads((tmp_path / "ours" / "model.safetensors.index.json").read_text())
    whole = load_file(llama / "model.safetensors")
    assert index["metadata"]["total_size"] == sum(values.nbytes for values in whole.values())
    assert set(index["weight_map"]) == set(whole)
    assert torch.equal(load(tmp_path / "ours")(IDS).logits, load(llama)(IDS).logits)
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "ours")
    assert torch.equal(theirs(IDS).logits, transformers.LlamaForCausalLM.from_pretrained(llama)(IDS).logits)


def test_what_stands_beside_the_weights_is_copied(llama, tmp_path):
    (llama / "vocab.txt").write_text("a\nb\n")
    (llama / "modeling_custom.py").write_text("raise SystemExit")
    load(llama).save(tmp_path / "ours")
    names = {path.name for path in (tmp_path / "ours").iterdir()}
    assert names == {"config.json", "model.safetensors", "generation_config.json", "vocab.txt"}
    assert (tmp_path / "ours" / "vocab.txt").read_text() == "a\nb\n"


def test_a_new_network_is_saved_too(llama, tmp_path):
    network = limelight.models.DecoderOnly(load(llama).config).eval()
    model = limelight.Pretrained("new", network, tmp_path / "nowhere", (), "it has none yet")
    model.save(tmp_path / "deep" / "ours")
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "deep" / "ours")
    torch.testing.assert_close(theirs(IDS).logits, model(IDS).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shared", [True, False])
def test_a_tensor_with_two_names_is_stored_once(shared):
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    if shared:
        network[1] = network[0]
    assert list(saving.named_once(network)) == ["0.weight", "0.bias"] + (["1.weight", "1.bias"] if not shared else [])


def test_a_folder_that_holds_something_is_left_alone(llama, tmp_path):
    before = {path.name: path.stat().st_mtime_ns for path in llama.iterdir()}
    with pytest.raises(ArgumentError, match=r"`folder` must be a new or an empty folder.*theirs holds something"):
        load(llama).save(llama)
    assert {path.name: path.stat().st_mtime_ns for path in llama.iterdir()} == before
    (tmp_path / "empty").mkdir()
    load(llama).save(tmp_path / "empty")
    load(tmp_path / "empty")


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("disk full")])
@pytest.mark.parametrize("exists", [True, False])
def test_an_interrupt_leaves_nothing(llama, tmp_path, monkeypatch, error, exists):
    def interrupted(tensors, path, **_):
        Path(path).write_bytes(b"half")
        raise error

    target = tmp_path / "ours"
    if exists:
        target.mkdir()
    model = load(llama)
    monkeypatch.setattr(saving, "save_file", interrupted)
    with pytest.raises(ArgumentError if isinstance(error, Exception) else error):  # which says that the disk is full
        model.save(target)
    assert sorted(path.name for path in tmp_path.iterdir()) == (["ours", "theirs"] if exists else ["theirs"])
    assert not exists or not list(target.iterdir())


@pytest.mark.parametrize("how", [{"dtype": torch.int8}, {"shard_bytes": 0}, {"shard_bytes": 1.5}])
def test_what_cannot_be_meant(llama, tmp_path, how):
    with pytest.raises(ArgumentError, match=f"`{next(iter(how))}` must be"):
        load(llama).save(tmp_path / "ours", **how)
    assert not (tmp_path / "ours").exists()


def test_a_parameter_that_no_rule_knows(llama, tmp_path):
    model = load(llama)
    model.network.layers[0].extra = torch.nn.Linear(2, 2)
    with pytest.raises(ArgumentError, match=r"layers.0.extra.weight is none of them"):
        model.save(tmp_path / "ours")


MEMORY = """
import sys, threading, time, torch, limelight
from limelight.checkpoints.load import load

def own_bytes():  # memory of this process alone; pages of a mapped file belong to the file
    with open("/proc/self/status") as status:
        return 1024 * next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))

most, running = 0, True
def watch():
    global most
    while running:
        most = max(most, own_bytes())
        time.sleep(0.0005)

folder, target, read, written = sys.argv[1], sys.argv[2], getattr(torch, sys.argv[3]), sys.argv[4]
load(sys.argv[5])  # imports and buffers of the libraries
import limelight.models.saving
before = own_bytes()
thread = threading.Thread(target=watch)
thread.start()
model = load(folder, dtype=read)
size = sum(p.numel() for p in model.network.parameters())
loaded = most - before
most = 0
model.save(target, dtype=getattr(torch, written), shard_bytes=8_000_000)
saved = most - before
running = False
thread.join()
print(size, loaded, saved)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells mapped from own memory")
@pytest.mark.parametrize(
    ("stored", "read", "written", "loaded", "saved"),
    [
        # bytes a parameter: nothing when the file is used as it is, and the new numbers alone when they are converted
        (torch.float32, "float32", "float32", 0, 0),
        (torch.bfloat16, "float32", "float32", 4, 4),
        (torch.float32, "bfloat16", "float32", 2, 2),
    ],
)
def test_no_second_copy_of_the_weights(llama, tmp_path, stored, read, written, loaded, saved):
    config = transformers.LlamaConfig(**SIZES | {"vocab_size": 4000, "hidden_size": 512, "intermediate_size": 1536})
    with torch.device("meta"):
        empty = transformers.LlamaForCausalLM(config)
    empty.to(stored).to_empty(device="cpu").save_pretrained(tmp_path / "large")
    command = [sys.executable, "-c", MEMORY, tmp_path / "large", tmp_path / "again", read, written, llama]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    size, while_loading, while_saving = map(int, done.stdout.split())
    assert size > 10_000_000
    slack = 20_000_000  # the largest tensor, one shard, and what threads and allocators keep
    assert while_loading < loaded * size + slack
    assert while_saving < saved * size + slack
    assert while_saving >= saved * size  # the measure measures


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask of files")
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_files_follow_the_umask(tmp_path, mask):
    before = os.umask(mask)
    try:
        with saving.in_one_step(tmp_path / "model") as folder:
            saving.save_file({"a": torch.ones(3)}, folder / "model.safetensors")
            (folder / "config.json").write_text("{}")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "model").iterdir()} == {0o666 & ~mask}
