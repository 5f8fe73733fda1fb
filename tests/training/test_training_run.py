"""A run: killed and resumed it gives the same losses bit for bit; what it leaves loads; what is wrong is said."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import limelight
from limelight.shapes import ArgumentError
from limelight.training import Settings, read_settings
from limelight.training.loop import train
from limelight.training.settings import from_json

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = """
task = "language"
[data]
train = "text.txt"
separator = "\\n\\n"
held_out = 0.1
[tokenizer]
kind = "characters"
[model]
model_type = "llama"
hidden_size = 16
intermediate_size = 24
num_hidden_layers = 2
num_attention_heads = 2
attention_dropout = 0.1
tie_word_embeddings = true
[learning]
schedule = "constant"
warmup = 3
rate = 1e-2
[run]
steps = 11
tokens = 64
length = 24
accumulation = 2
evaluate_every = 4
save_every = 3
keep = 2
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("config")
    words = random.Random(0)
    lines = ["".join(words.choice("abcdefgh ") for _ in range(60)) for _ in range(30)]
    (folder / "text.txt").write_text("\n\n".join(lines))
    (folder / "tiny.toml").write_text(CONFIG)
    return folder / "tiny.toml"


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """A run that nothing disturbed."""
    output = tmp_path_factory.mktemp("whole") / "run"
    said = []
    return output, train(read_settings(config), output, say=said.append), said


def losses(output):
    """All that is measured but time, as written."""
    return [row[:-1] for row in csv.reader((output / "losses.csv").read_text().splitlines())]


def test_it_learns_and_leaves_a_model(whole):
    output, done, said = whole
    rows = losses(output)
    assert [row[0] for row in rows[1:]] == [str(n) for n in range(1, 12)]
    assert float(rows[-1][1]) < float(rows[1][1])
    assert [row[0] for row in rows[1:] if row[2]] == ["4", "8", "11"]
    assert done.stopped == "finished"
    assert done.evaluation == min(float(row[2]) for row in rows[1:] if row[2])
    assert any("bits per character" in line for line in said)
    assert sorted(path.name for path in (output / "checkpoints").iterdir()) == ["step-00000009", "step-00000011"]
    assert not [path.name for path in output.iterdir() if path.name.startswith(".")]
    assert (output / "curve.svg").read_text().startswith("<svg")
    model = limelight.load(output)
    assert model.marks == {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    logits = model("abc").logits
    assert logits.shape == (1, 4, model.tokenizer.size)
    assert done.best_step == 11
    assert torch.equal(limelight.load(output / "checkpoints" / "step-00000011")("abc").logits, logits)


def test_the_evaluation_is_that_of_the_model_it_leaves(config, whole):
    output, done, _ = whole
    model = limelight.load(output)
    documents = (config.parent / "text.txt").read_text().split("\n\n")
    kept = [document for number, document in enumerate(documents) if (number + 1) % 10 == 0]
    nats = count = 0
    for document in kept:
        ids = [1, *model.tokenizer.backend.encode(document, add_special_tokens=False).ids, 2]
        for start in range(0, len(ids) - 1, 24):
            piece = torch.tensor(ids[start : start + 25])
            logits = model(piece[None, :-1]).logits[0]
            nats += torch.nn.functional.cross_entropy(logits, piece[1:], reduction="sum").item()
            count += len(piece) - 1
    assert done.evaluation == pytest.approx(nats / count, rel=1e-5)
    bits = nats / torch.tensor(2.0).log().item() / sum(map(len, kept))
    assert done.bits_per_character == pytest.approx(bits, rel=1e-5)


def test_killed_and_resumed_it_gives_the_same_losses_bit_for_bit(config, whole, tmp_path):
    output = tmp_path / "run"
    command = [sys.executable, "-m", "limelight", "train", str(config), "--output", str(output)]
    child = subprocess.Popen(
        [*command, "--set", "run.steps=100000"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    table = output / "losses.csv"
    deadline = time.monotonic() + 120
    while not (table.is_file() and len(table.read_text().splitlines()) > 6):
        assert child.poll() is None, child.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stderr.close()
    reached = len(table.read_text().splitlines()) - 1
    settings = read_settings(config, [f"run.steps={max(11, reached + 2)}"])
    half = output / "checkpoints" / ".step-00000099.1234"  # as a kill in the midst of writing leaves it
    half.mkdir()
    done = train(settings, output, resume=True)
    assert done.steps >= 11
    rows = [row for row in losses(output) if row[0] == "step" or int(row[0]) <= 11]
    undisturbed = losses(whole[0])
    # the longer run evaluates its last step at another place
    assert [row[:2] + row[3:] for row in rows] == [row[:2] + row[3:] for row in undisturbed]
    assert rows[:11] == undisturbed[:11]
    assert not half.exists()


def test_interrupted_and_resumed_from_another_step(config, whole, tmp_path):
    settings = read_settings(config)
    for stop in (1, 4):
        output = tmp_path / str(stop)

        def interrupt(words):
            if words.startswith("step 4"):
                signal.raise_signal(signal.SIGINT)

        done = train(read_settings(config, [f"run.steps={stop}"] if stop == 1 else []), output, say=interrupt)
        assert (done.stopped, done.steps) == ("interrupted" if stop == 4 else "finished", stop)
        train(settings, output, resume=True)
        rows = [row[:2] + row[3:] for row in losses(output)]
        assert rows == [row[:2] + row[3:] for row in losses(whole[0])]
        final = [load_file(run / "checkpoints" / "step-00000011" / "model.safetensors") for run in (output, whole[0])]
        assert all(torch.equal(final[0][name], final[1][name]) for name in final[1])


def test_resuming_wants_the_same_run(config, whole, tmp_path):
    output = whole[0]
    with pytest.raises(ArgumentError, match="must hold no run yet"):
        train(read_settings(config), output)
    with pytest.raises(ArgumentError, match=r"has other learning\.rate\."):
        train(read_settings(config, ["learning.rate=0.5", "run.keep=3"]), output, resume=True)
    (tmp_path / "text.txt").write_text("other\n\ntext " * 400)
    with pytest.raises(ArgumentError, match=r"has other .*data\.train, train"):
        train(read_settings(config, [f"data.train={tmp_path / 'text.txt'}"]), output, resume=True)


def test_a_damaged_checkpoint_is_told(config, whole, tmp_path):
    import shutil

    shutil.copytree(whole[0], tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints" / "step-00000011"
    (folder / "optimizer.safetensors").write_bytes(b"no")
    with pytest.raises(ArgumentError, match=r"optimizer.safetensors"):
        train(read_settings(config), tmp_path / "run", resume=True)
    (folder / "training.json").write_text("[]")
    with pytest.raises(ArgumentError, match=r"training.json"):
        train(read_settings(config), tmp_path / "run", resume=True)


def test_early_stopping_bfloat16_and_byte_pairs(config, tmp_path):
    over = ["run.patience=1", "run.evaluate_every=1", "learning.rate=0.0", "run.precision=bfloat16"]
    over += ["tokenizer.kind=byte-pair", "tokenizer.size=300", "learning.smoothing=0.1"]
    done = train(read_settings(config, over), tmp_path / "run")
    assert (done.stopped, done.steps, done.best_step) == ("patience", 2, 1)  # a rate of 0 makes nothing better
    assert {values.dtype for values in load_file(tmp_path / "run" / "model.safetensors").values()} == {torch.float32}


def test_a_loss_that_is_not_finite_stops_the_run(config, tmp_path):
    with pytest.raises(ArgumentError, match=r"learning.rate.*finite"):
        train(read_settings(config, ["learning.rate=1e30", "learning.warmup=0"]), tmp_path / "run")


@pytest.mark.parametrize(
    ("over", "words"),
    [
        ("run.stepps=3", r"may have the keys .*run.steps.*run.stepps"),
        ("speed=3", "may have the keys task"),
        ("run.steps=many", "`run.steps` must be int"),
        ("run.steps=true", "`run.steps` must be int"),
        ("run.steps=0", "`run.steps` must be at least 1"),
        ("learning.schedule=linear", "must be one of cosine"),
        ("learning.betas=[0.9]", "`learning.betas` must be"),
        ("data.held_out=1.0", "below 1"),
        ("run.tokens=8", "at least run.length"),
        ("task.name=x", "names a table"),
        ("run", "must be key=value"),
        ("data={}", "must say data.train"),
    ],
)
def test_settings_that_mean_nothing(config, over, words):
    with pytest.raises(ArgumentError, match=words):
        read_settings(config, [over])


@pytest.mark.parametrize(
    ("over", "words"),
    [
        ("model.hidden_sice=16", r"may have the keys .*hidden_size.*hidden_sice"),
        ("model.vocab_size=16", "vocab_size"),
        ("model.model_type=bert", "must be one of llama"),
        ("model.hidden_size=15", "num_attention_heads"),
    ],
)
def test_models_that_mean_nothing(config, over, words, tmp_path):
    with pytest.raises(ArgumentError, match=words):
        train(read_settings(config, [over]), tmp_path / "run")


def test_settings_read_back(config):
    settings = read_settings(config, ["learning.betas=[0.9, 0.98]", "learning.rate=1", "data.evaluation=other.txt"])
    assert settings.learning.betas == (0.9, 0.98)
    assert settings.learning.rate == 1.0
    assert settings.data.train == config.parent / "text.txt"
    assert settings.data.evaluation == Path("other.txt")
    assert isinstance(settings, Settings)
    assert from_json(json.loads(json.dumps(settings.as_json()))) == settings
