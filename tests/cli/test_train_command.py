"""``limelight train`` on the command line: the examples run, an interruption is reported, an error is one paragraph."""

import signal
from pathlib import Path

import pytest
from typer.testing import CliRunner

import limelight
from limelight.cli import app
from limelight.tensors.shapes import ArgumentError

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parent.parent.parent
SMALL = {
    "austen": {
        "data.train": "TEXT",
        "data.evaluation": "TEXT",
        "model.hidden_size": "32",
        "model.intermediate_size": "32",
    },
    "english-spanish": {
        "data.train": "PAIRS",
        "model.d_model": "32",
        "model.encoder_ffn_dim": "32",
        "run.bleu_samples": "2",
    },
}


def command(name, output, *more):
    files = {"TEXT": str(ROOT / "CONTRIBUTING.md"), "PAIRS": str(output.parent / "pairs.tsv")}
    Path(files["PAIRS"]).write_text("In the beginning was the word.\tEn el principio era la palabra.\n" * 40)
    over = [f"{key}={files.get(value, value)}" for key, value in SMALL[name].items()]
    over += [
        "tokenizer.vocab_size=300",
        "run.steps=3",
        "run.batch_tokens=128",
        "run.max_length=64",
        "run.evaluate_every=2",
    ]
    sets = [part for one in over for part in ("--set", one)]
    return ["train", str(ROOT / "examples" / f"{name}.toml"), "--output", str(output), *sets, *more]


@pytest.mark.parametrize("name", SMALL)
def test_examples_run(name, tmp_path):
    assert {path.stem for path in (ROOT / "examples").glob("*.toml")} == {*SMALL}
    result = CliRunner().invoke(app, command(name, tmp_path / "run"))
    assert result.exit_code == 0, result.output
    assert "bits per character" in result.output
    assert ("BLEU" in result.output) == (name == "english-spanish")
    assert limelight.load(tmp_path / "run").tokenizer.size <= 300
    assert len((tmp_path / "run" / "losses.csv").read_text().splitlines()) == 4


def test_an_interruption_says_how_to_go_on(tmp_path, monkeypatch):
    from limelight.training import data

    batch = data.Texts.batch

    def interrupt(corpus, number):
        if number == 1:
            signal.raise_signal(signal.SIGINT)
        return batch(corpus, number)

    monkeypatch.setattr(data.Texts, "batch", interrupt)
    result = CliRunner().invoke(app, command("austen", tmp_path / "run"))
    assert result.exit_code == 130
    assert "Interrupted after step 2; saved. Resume with: limelight train" in result.output
    assert result.output.rstrip().endswith("--resume")
    monkeypatch.undo()
    result = CliRunner().invoke(app, command("austen", tmp_path / "run", "--resume"))
    assert result.exit_code == 0
    assert "Resuming from" in result.output


def test_a_file_that_is_not_there(tmp_path):
    result = CliRunner().invoke(app, ["train", str(tmp_path / "no.toml")])
    assert isinstance(result.exception, ArgumentError)
    assert "does not exist" in str(result.exception)


def test_a_text_that_is_too_short_leaves_no_folder(tmp_path):
    (tmp_path / "text.txt").write_text("word other thing. " * 60, "utf-8")
    example = Path(__file__).parents[2] / "examples" / "austen.toml"
    given = ["train", str(example), "--set", f"data.train={tmp_path / 'text.txt'}"]
    result = CliRunner().invoke(app, [*given, "--output", str(tmp_path / "runs" / "short")])
    assert result.exit_code
    assert "must be no more than the tokens of the text" in str(result.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]
