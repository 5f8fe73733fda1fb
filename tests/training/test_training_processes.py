"""Several processes on CPUs: their steps are those of one process that accumulates, and one of them writes."""

import csv
import json
import os
import subprocess
import sys

import pytest

import limelight
from limelight.tensors.shapes import ArgumentError
from limelight.training import read_settings
from limelight.training.loop import train

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = """
[data]
train = "text.txt"
held_out = 0.2
[tokenizer]
kind = "characters"
[run]
steps = 4
batch_tokens = 96
max_length = 64
evaluate_every = 2
save_every = 2
"""
TASKS = {
    "language": """task = "language"
[model]
model_type = "llama"
hidden_size = 16
intermediate_size = 24
num_hidden_layers = 1
num_attention_heads = 2
attention_dropout = 0.1
""",
    "translation": """task = "translation"
[model]
model_type = "marian"
d_model = 16
encoder_layers = 1
decoder_layers = 1
encoder_attention_heads = 2
decoder_attention_heads = 2
encoder_ffn_dim = 16
decoder_ffn_dim = 16
""",
}
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
LINES = [f"line {number} goes on{' and on' * (number % 5)}" for number in range(40)]


def numbers(output):
    """Step, loss, evaluation, rate and gradient of each step."""
    rows = list(csv.reader((output / "losses.csv").read_text().splitlines()))[1:]
    return [[float(cell or "nan") for cell in row[:-1]] for row in rows]


@pytest.mark.parametrize("task", TASKS)
def test_two_processes_make_the_steps_of_one(task, tmp_path):
    separator = "\n" if task == "language" else ""
    text = [line if task == "language" else f"{line}\t{line[::-1]}" for line in LINES]
    (tmp_path / "text.txt").write_text("\n".join(text))
    config = tmp_path / "tiny.toml"
    config.write_text(TASKS[task] + CONFIG.replace("[data]", f"[data]\nseparator = {json.dumps(separator)}"))
    output = tmp_path / "two"
    done = subprocess.run(
        [*TORCHRUN, "-m", "limelight", "train", str(config), "--output", str(output)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Best after step") == 1
    train(read_settings(config, ["run.accumulation_steps=2"]), tmp_path / "one")
    for ours, theirs in zip(numbers(output), numbers(tmp_path / "one"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, nan_ok=True)
    assert sorted(path.name for path in (output / "checkpoints").iterdir()) == ["step-00000002", "step-00000004"]
    assert limelight.load(output).tokenizer.size == limelight.load(tmp_path / "one").tokenizer.size


def test_more_processes_than_this_one_sees(tmp_path, monkeypatch):
    (tmp_path / "text.txt").write_text("\n".join(LINES))
    (tmp_path / "tiny.toml").write_text(TASKS["language"] + CONFIG)
    settings = read_settings(tmp_path / "tiny.toml")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ArgumentError, match=r"`WORLD_SIZE=2` says how many .* this one sees 1\. .*torchrun"):
        train(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()
