"""``limelight heads`` from the outside, on few texts."""

import json
import os
import signal
import sys

import pytest

import limelight
from limelight import ArgumentError
from limelight.cli import main
from limelight.microscope import load_atlas
from limelight.microscope.heads import measuring
from limelight.microscope.heads.measures import induction

TEXT = "\n\n".join(
    f"The bank is near the river. She deposited {n} coins at the bank, and went home." for n in range(30)
)


@pytest.fixture
def heads(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(induction, "TEXTS", 8)
    monkeypatch.setattr(measuring, "labelled", lambda subject, **files: [])
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["limelight", "heads", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        return stop.value.code or 0, captured.out, captured.err

    return run


def test_roles_are_printed_and_everything_is_written(heads, tmp_path):
    paths = {option: tmp_path / f"atlas.{option}" for option in ("json", "csv", "parquet")}
    files = [word for option, path in paths.items() for word in (f"--{option}", str(path))]
    page = tmp_path / "atlas.html"
    code, out, _ = heads("--corpus", "text.txt", "--context", "64", "--ablate", "64", "--output", str(page), *files)
    assert code == 0
    assert "Change of the last states (1 - cosine) when a head is silenced, over 1" in " ".join(out.split())
    row = next(line for line in out.splitlines() if line.startswith("previous token"))
    assert row.split()[2] in ("0.2", "1.9", "2.11")
    assert "no role found for" in out
    assert "not an explanation" in out
    atlas = load_atlas(paths["json"])
    assert len(atlas.tables["heads"]) == 72
    assert len(paths["csv"].read_text().splitlines()) == 1 + len(atlas.tables["measures"])
    assert paths["parquet"].stat().st_size > 1000
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "atlas.csv", "atlas.html", "atlas.json", "atlas.parquet", "text.txt"
    ]  # fmt: skip
    code, out, _ = heads("--corpus", "text.txt", "--context", "64", "--compare", str(paths["json"]))
    assert code == 0
    assert "0 of 72 heads changed clearly; 72 have the same role in both." in out


@pytest.mark.parametrize(
    ("typed", "ablate"),
    [([], 0), (["--ablate"], 512), (["--ablate", "64"], 64), (["--ablate", "0"], 0), (["--ablate", "--csv"], 512)],
)
def test_ablate_has_a_number_of_its_own(heads, monkeypatch, typed, ablate):
    given = []

    def measured(*_, **settings):
        given.append(settings["ablate"])
        raise ArgumentError("enough")

    monkeypatch.setattr("limelight.microscope.heads.heads", measured)
    heads(*typed, *(["atlas.csv"] if typed[-1:] == ["--csv"] else []))
    assert given == [ablate]


def test_an_interrupted_run_is_written_and_resumed(heads, tmp_path, monkeypatch):
    original = measuring.run_probe

    def interrupted(subject, progress, *others):
        if progress.probe.name == "text":
            os.kill(os.getpid(), signal.SIGINT)
        return original(subject, progress, *others)

    command = ("--corpus", "text.txt", "--context", "64", "--json", "atlas.json")
    monkeypatch.setattr(measuring, "run_probe", interrupted)
    code, out, _ = heads(*command)
    assert code == 130
    assert "--resume" in out
    assert "Interrupted" in out
    assert not json.loads((tmp_path / "atlas.json").read_text())["corpus"]["complete"]
    assert (tmp_path / "atlas.json.state").is_file()
    monkeypatch.setattr(measuring, "run_probe", original)
    code, _, err = heads(*command, "--model", "smollm2", "--resume")
    assert code == 2
    assert "`--resume` needs a run of the same model" in err
    code, out, _ = heads(*command, "--resume")
    assert code == 0
    assert json.loads((tmp_path / "atlas.json").read_text())["corpus"]["complete"]
    assert not (tmp_path / "atlas.json.state").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--corpus", "missing.txt"], "`--corpus` must be a file or folder that exists, but missing.txt does not"),
        (["--tokens", "0"], "`--tokens` must"),
        (["--context", "3"], "`--context` must"),
        (["--ablate", "-1"], "`--ablate` must"),
        (["--json", "atlas.txt"], "`--json` must end in .json"),
        (["--output", "no/atlas.html"], "`--output` must lie in a folder that exists"),
        (["--resume"], "`--resume` needs the file"),
        (["--resume", "--json", "atlas.json"], "`--resume` needs the file of an interrupted run, but"),
        (["--compare", "missing.json"], "`--compare` must name an atlas"),
        (["--compare", "missing"], "`--compare` must be a packaged model"),
        (["--model", "missing"], "`--model` must be a packaged model"),
        (["--model", "marian-en-pt"], "`--model` must be an encoder or a decoder"),
    ],
)
def test_mistakes_are_named_by_their_options(heads, arguments, message):
    code, _, err = heads(*arguments)
    assert code == 2
    assert " ".join(message.split()) in " ".join(err.split())


def test_models_that_differ_in_size_are_refused_before_anything_is_measured(heads, monkeypatch, tmp_path):
    limelight.heads("rxnmapper", "C C O . C C N . " * 20, tokens=20).write(tmp_path / "atlas.json")
    monkeypatch.setattr(measuring, "run_probe", None)  # fails where it is called
    for other in ("rxnmapper", "atlas.json"):
        code, _, err = heads("--compare", other)
        assert code == 2
        assert "`--compare` must have as many layers and heads" in " ".join(err.split())


def test_files_of_labels_reach_the_probes(heads, monkeypatch):
    def stop(subject, **files):
        raise limelight.ArgumentError(str({name: str(path) for name, path in files.items()}))

    monkeypatch.setattr(measuring, "labelled", stop)
    options = [word for name in ("conllu", "gap", "winogender", "senses") for word in (f"--{name}", f"{name}.x")]
    _, _, err = heads(*options)
    assert "'conllu': 'conllu.x', 'gap': 'gap.x', 'winogender': 'winogender.x', 'senses': 'senses.x'" in " ".join(
        err.split()
    )
