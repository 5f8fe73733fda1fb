"""A run: killed and resumed it gives the same losses bit for bit; its model loads; what is wrong is reported."""

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import limelight
from limelight.tensors.shapes import ArgumentError
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
batch_tokens = 64
max_length = 24
accumulation_steps = 2
evaluate_every = 4
save_every = 3
keep_checkpoints = 2
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
    message = []
    return output, train(read_settings(config), output, log=message.append), message


def losses(output):
    """All that is measured but time, as written."""
    return [row[:-1] for row in csv.reader((output / "losses.csv").read_text().splitlines())]


def test_it_learns_and_leaves_a_model(whole):
    output, done, message = whole
    rows = losses(output)
    assert [row[0] for row in rows[1:]] == [str(n) for n in range(1, 12)]
    assert float(rows[-1][1]) < float(rows[1][1])
    assert [row[0] for row in rows[1:] if row[2]] == ["4", "8", "11"]
    assert done.stopped == "finished"
    assert done.evaluation == min(float(row[2]) for row in rows[1:] if row[2])
    assert any("bits per character" in line for line in message)
    assert sorted(path.name for path in (output / "checkpoints").iterdir()) == ["step-00000009", "step-00000011"]
    assert not [path.name for path in output.iterdir() if path.name.startswith(".")]
    assert (output / "curve.svg").read_text().startswith("<svg")
    model = limelight.load(output)
    assert model.special_token_ids == {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
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

        done = train(read_settings(config, [f"run.steps={stop}"] if stop == 1 else []), output, log=interrupt)
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
    with pytest.raises(ArgumentError, match=r"was written with other learning\.rate\."):
        train(read_settings(config, ["learning.rate=0.5", "run.keep_checkpoints=3"]), output, resume=True)
    (tmp_path / "text.txt").write_text("other\n\ntext " * 400)
    with pytest.raises(ArgumentError, match=r"with other .*data\.train, train"):
        train(read_settings(config, [f"data.train={tmp_path / 'text.txt'}"]), output, resume=True)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "training.json", "SHA256SUMS"])
def test_a_flipped_bit_is_seen_and_the_older_checkpoint_named(config, whole, tmp_path, name):
    output = tmp_path / "run"
    shutil.copytree(whole[0], output)
    older, newest = sorted((output / "checkpoints").iterdir())
    content = bytearray((newest / name).read_bytes())
    content[len(content) // 2] ^= 1
    (newest / name).write_bytes(content)
    with pytest.raises(ArgumentError, match=rf"is damaged.*Remove {newest} to resume from {older}\."):
        train(read_settings(config), output, resume=True)
    shutil.rmtree(newest)
    train(read_settings(config), output, resume=True)
    assert losses(output) == losses(whole[0])
    assert subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=newest).returncode == 0


@pytest.mark.parametrize("name", ["optimizer.safetensors", "training.json", "SHA256SUMS"])
def test_a_file_that_is_missing_from_the_only_checkpoint(config, whole, tmp_path, name):
    output = tmp_path / "run"
    shutil.copytree(whole[0], output)
    older, newest = sorted((output / "checkpoints").iterdir())
    shutil.rmtree(older)
    (newest / name).unlink()
    with pytest.raises(ArgumentError, match=rf"{name} is damaged.*There is no older checkpoint"):
        train(read_settings(config), output, resume=True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda lines: lines[:5], r"must reach step 11, .* its last step is 4\. .*remove it"),
        (lambda lines: [*lines[:4], "4,garbage,,0,0,0", *lines[5:]], r"line 5 is '4,garbage"),
        (lambda lines: [*lines[:4], *lines[5:]], r"each step in order, but line 5 is '5,"),
        (lambda lines: [*lines[:4], "", *lines[5:]], r"line 5 is ''"),
        (lambda lines: [*lines[:4], lines[4] + ",1", *lines[5:]], r"line 5 is"),
    ],
)
def test_losses_that_are_not_those_of_every_step(config, whole, tmp_path, change, words):
    output = tmp_path / "run"
    shutil.copytree(whole[0], output)
    table = output / "losses.csv"
    table.write_text("".join(f"{line}\n" for line in change(table.read_text().splitlines())))
    more = read_settings(config, ["run.steps=12"])
    with pytest.raises(ArgumentError, match=words):
        train(more, output, resume=True)
    table.unlink()
    assert train(more, output, resume=True).steps == 12
    assert [row[0] for row in losses(output)] == ["step", "12"]


def test_resuming_wants_a_run(config, tmp_path):
    with pytest.raises(ArgumentError, match=r"`--resume` needs a run to resume, but .*typo holds none"):
        train(read_settings(config), tmp_path / "typo", resume=True)
    assert not (tmp_path / "typo").exists()
    # a run that was killed before its first checkpoint starts again
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "losses.csv").write_text(
        "step,loss,evaluation_loss,learning_rate,gradient_norm,seconds\n1,2.0,,0.1,0.1,0.1\n"
    )
    message = []
    done = train(read_settings(config, ["run.steps=1"]), tmp_path / "run", resume=True, log=message.append)
    assert (done.steps, len(losses(tmp_path / "run"))) == (1, 2)
    assert "starting again" in message[0]


def test_another_model_is_not_overwritten(config, whole, tmp_path):
    limelight.load(whole[0]).save(tmp_path / "model")
    with pytest.raises(ArgumentError, match="must hold no other model"):
        train(read_settings(config), tmp_path / "model")


def test_one_run_at_a_time_in_a_folder(config, tmp_path):
    settings, met = read_settings(config, ["run.steps=1"]), []

    def meanwhile(words):
        if not met:
            with pytest.raises(ArgumentError, match="one run at a time") as error:
                train(settings, tmp_path / "run")
            met.append(error)

    assert train(settings, tmp_path / "run", log=meanwhile).steps == 1
    assert met


def test_a_disk_that_is_full(config, tmp_path):
    """A limit on the size of files stands for it: the system refuses the write in the same place."""
    output = tmp_path / "run"
    code = (
        "import resource, signal, sys\nfrom limelight.cli import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (15_000, 15_000))\n"
        f"sys.argv = ['limelight', 'train', {str(config)!r}, '--output', {str(output)!r}, '--set', 'data.held_out=0']\n"
        "main()"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert "could not be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert list((output / "checkpoints").iterdir()) == [] if (output / "checkpoints").exists() else True
    again = train(read_settings(config, ["data.held_out=0"]), output, resume=True)
    assert again.steps == 11


def test_early_stopping_bfloat16_and_byte_pairs(config, tmp_path):
    over = ["run.patience=1", "run.evaluate_every=1", "learning.rate=0.0", "run.precision=bfloat16"]
    over += ["tokenizer.kind=byte-pair", "tokenizer.vocab_size=300", "learning.label_smoothing=0.1"]
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
        ("run.steps=many", "`run.steps` must be a whole number"),
        ("run.steps=true", "`run.steps` must be a whole number"),
        ("run.steps=0", "`run.steps` must be at least 1"),
        ("learning.schedule=linear", "must be one of cosine"),
        ("learning.betas=[0.9]", "`learning.betas` must be"),
        ("data.held_out=1.0", "below 1"),
        ("run.batch_tokens=8", "at least run.max_length"),
        ("learning.rate=nan", "`learning.rate` must be at least 0 and finite, but it is nan"),
        ("learning.rate=inf", "and finite"),
        ("learning.weight_decay=-1", "`learning.weight_decay` must be at least 0"),
        ("learning.betas=[1, 1]", r"`learning.betas` must be at least 0 and below 1, but it is \(1.0, 1.0\)"),
        ("learning.epsilon=-1e-8", "`learning.epsilon` must be at least 0"),
        ("run.seed=1e20", "`run.seed` must be a whole number"),
        ("run.seed=100000000000000000000", "`run.seed` must be at least 0 and below"),
        (f"learning.clip=1{'0' * 400}", "`learning.clip` must be at least 0 and finite"),
        ("data=3", r"`data` must be a table.*\[data\]"),
        ("task.name=x", "names a table"),
        ("run", "must be key=value"),
        ("data={}", "must have the keys data.train"),
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
        ("model.hidden_size=-4", r"`model.hidden_size` must be a whole number .*it is -4.*--set model.hidden_size="),
        (
            "model.max_position_embeddings=23",
            "`run.max_length` must be no more than the model's 23 positions, but it is 24",
        ),
        ("data.train=nowhere.txt", r"`data.train` must be a file .*nowhere.txt: No such file.*--set data.train=FILE"),
        ("data.evaluation=.", r"`data.evaluation` must be a file"),
        ("data.train=empty.txt", r"`data.train` must hold text to train on"),
        ("data.train=latin.txt", r"`data.train` must be UTF-8 text, but byte 3 of .* 0xe9.*iconv"),
        ("data.evaluation=empty.txt", r"`data.evaluation` must hold text"),
    ],
)
def test_what_no_model_can_be_trained_with_is_found_at_once(config, over, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("latin.txt").write_bytes("café".encode("latin-1"))
    Path("empty.txt").write_text(" \n")
    with pytest.raises(ArgumentError, match=words):
        train(read_settings(config, [over]), Path("runs") / "tiny")
    assert not Path("runs").exists()


def test_settings_read_back(config):
    settings = read_settings(config, ["learning.betas=[0.9, 0.98]", "learning.rate=1", "data.evaluation=other.txt"])
    assert settings.learning.betas == (0.9, 0.98)
    assert settings.learning.rate == 1.0
    assert settings.data.train == config.parent / "text.txt"
    assert settings.data.evaluation == Path("other.txt")
    assert isinstance(settings, Settings)
    assert from_json(json.loads(json.dumps(settings.as_json()))) == settings
