"""What all commands share: help, version, interruptions, and words that are safe to print."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
from typer.testing import CliRunner

from limelight import __version__
from limelight.cli import app, main
from limelight.cli.options import dtype_of, echo_json, fitting
from limelight.tensors.shapes import ArgumentError

run = CliRunner()
COMMANDS = ("look", "heads", "generate", "models", "explain", "bench", "cost", "train")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_and_whole_paragraphs(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    result = run.invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert f"Example: limelight {command}" in result.output
    described = result.output.partition("Usage")[2].partition("╭")[0]
    lines = [line.rstrip() for line in described.splitlines()[1:]]
    for line, after in pairwise(lines):
        first = after.split(" ")[1] if after.startswith(" ") else ""
        assert not line or not first or len(line) + 1 + len(first) > 79, f"{line!r} breaks before {first!r}"


def test_version():
    assert run.invoke(app, ["--version"]).output == f"limelight {__version__}\n"


def test_training_keys():
    result = run.invoke(app, ["train", "--keys"])
    assert result.exit_code == 0
    for word in ("data.train", "run.steps", "1000", "learning.betas", "Peak learning rate"):
        assert word in result.output


def test_a_library_leaves_ctrl_c_alone():
    code = "import signal, limelight.cli; assert signal.getsignal(signal.SIGINT) is signal.default_int_handler"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    default = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # which a job in the background does not inherit
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, preexec_fn=default)


def reads_torch(process):
    """Whether a process has begun to load PyTorch's libraries."""
    try:
        return "libtorch" in Path(f"/proc/{process.pid}/maps").read_text()
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="what a process loads is read from /proc")
@pytest.mark.parametrize("after", [0.0, 0.3])
def test_a_ctrl_c_while_everything_is_imported(after):
    process = subprocess.Popen(
        [sys.executable, "-m", "limelight", "models"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not reads_torch(process) and process.poll() is None:
        time.sleep(0.01)
    time.sleep(after)
    process.send_signal(signal.SIGINT)
    _, message = process.communicate(timeout=60)
    assert message == b"interrupted\n"
    assert process.returncode == 130


def test_errors_never_steer_the_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["limelight", "look", "text", "--word", "\x1b]0;owned\x07\x9b31m\u202e"])
    with pytest.raises(SystemExit):
        main()
    message = capsys.readouterr().err
    assert "owned" in message
    assert not {*"\x1b\x07\x9b\u202e"} & {*message}


def test_json_is_the_same_without_what_steers_a_terminal(capsys):
    import json

    value = "a\x7fb\x9bc\u202ed\u2066é"
    echo_json(json.dumps(value, ensure_ascii=False))
    out = capsys.readouterr().out
    assert json.loads(out) == value
    assert not {*"\x7f\x9b\u202e\u2066"} & {*out}
    assert "é" in out


@pytest.mark.parametrize("columns", [50, 80])
@pytest.mark.parametrize("arguments", [("models",), ("cost", "smollm2")])
def test_tables_show_whole_numbers_or_none(arguments, columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    result = run.invoke(app, [*arguments])
    assert result.exit_code == 0
    assert "…" not in result.output
    assert max(map(len, result.output.splitlines())) <= columns


def test_columns_that_fit():
    columns = {"name": ["a"], "size": ["12.5 MB"], "more": ["never"]}
    assert [*fitting(columns, 99, ["more", "size"])] == ["name", "size", "more"]
    assert [*fitting(columns, 20, ["more", "size"])] == ["name", "size"]
    assert [*fitting(columns, 5, ["more", "size"])] == ["name"]


def test_dtypes():
    import torch

    assert dtype_of("bfloat16") == torch.bfloat16
    with pytest.raises(ArgumentError, match=r"`--dtype` must be one of float32, .*'int8'"):
        dtype_of("int8")
