"""``limelight models``."""

import json

import typer
from typer.testing import CliRunner

from limelight.checkpoints.packaged import PACKAGED
from limelight.cli.models import models

app = typer.Typer()
app.command()(models)


def test_the_table_names_every_model(tmp_path, monkeypatch):
    monkeypatch.setenv("LIMELIGHT_CACHE", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "160")
    result = CliRunner().invoke(app, [])
    assert result.exit_code == 0, result.output
    for word in ("minilm", "smollm2", "Apache-2.0", "83.5 MB", "98.4 MB", "no", "bert, roberta"):
        assert word in result.output


def test_json(tmp_path, monkeypatch):
    monkeypatch.setenv("LIMELIGHT_CACHE", str(tmp_path))
    values = json.loads(CliRunner().invoke(app, ["--json"]).output)
    assert (values["format"], values["version"]) == ("limelight.models", 1)
    listed = values["models"]
    assert [model["name"] for model in listed] == list(PACKAGED)
    assert set(PACKAGED) > {"minilm", "smollm2", "rxnmapper", "whisper-tiny-en", "marian-en-pt"}
    assert listed[0]["cached"] is False
    assert listed[0]["folder"].startswith(str(tmp_path))
