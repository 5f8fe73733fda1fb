"""`limelight heads --output`: the page of the atlas, alone or beside another one."""

from types import SimpleNamespace

import pytest
from support.atlas_made_up import mock_atlas
from typer.testing import CliRunner

from limelight.cli import app
from limelight.microscope import Atlas


@pytest.fixture
def measured(monkeypatch):
    """Stands for the measuring of models: atlases made up from a formula, named as the model."""

    def heads(model, corpus, **settings):
        name = getattr(model, "name", model)
        return Atlas.from_dict(mock_atlas(4, 6, name=name, seed=len(name)))

    monkeypatch.setattr("limelight.microscope.heads.heads", heads)
    monkeypatch.setattr(
        "limelight.microscope.subjects.subject_of",
        lambda name: SimpleNamespace(name=name, kind="encoder", layers=4, heads=6),
    )


def run(*arguments):
    return CliRunner().invoke(app, ["heads", *map(str, arguments)])


def test_the_page_is_written(measured, tmp_path):
    path = tmp_path / "atlas.html"
    result = run("--output", path)
    assert result.exit_code == 0, result.output
    assert "Written:" in result.output
    assert '"other":null' in path.read_text("utf-8")


def test_two_models_stand_in_one_page(measured, tmp_path):
    path = tmp_path / "atlas.html"
    result = run("--model", "base", "--compare", "tuned", "--output", path)
    assert result.exit_code == 0, result.output
    assert '"other":{"name":"tuned"' in path.read_text("utf-8")


def test_a_page_ends_in_html(measured, tmp_path):
    result = run("--output", tmp_path / "atlas.txt")
    assert result.exit_code != 0
    assert not list(tmp_path.iterdir())
