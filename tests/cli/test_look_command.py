"""``limelight look`` from the outside."""

import json
import sys

import pytest

from limelight.cli import main

SENTENCE = "The bank is near the river."


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys, "argv", ["limelight", "look", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    captured = capsys.readouterr()
    return stop.value.code or 0, captured.out, captured.err


@pytest.fixture
def look(monkeypatch, capsys):
    return lambda *arguments: run(monkeypatch, capsys, *arguments)


def test_the_summary_names_the_relation_and_its_baseline(look):
    code, out, _ = look(SENTENCE, "--word", "bank", "--compare", "She deposited money at the bank.")
    assert code == 0
    row = next(line for line in out.splitlines() if "river" in line and "0.4" in line)
    assert row.split()[:5] == ["river", "0.638", "0.111", "5.7x", "0.4"]
    assert "cosine of bank with bank" in out
    assert "0.96" in out
    assert "0.84" in out
    assert "not an explanation" in out


def test_json_is_the_report_and_nothing_else(look):
    code, out, _ = look(SENTENCE, "--json")
    report = json.loads(out)
    assert code == 0
    assert (report["format"], report["version"]) == ("limelight.report", 1)
    assert report["texts"] == [SENTENCE]


def test_the_page_is_written_from_a_file(look, tmp_path):
    source, page = tmp_path / "text.txt", tmp_path / "page.html"
    source.write_text("Markup such as [bold] and </b> is text.", "utf-8")
    code, out, _ = look("--file", str(source), "--output", str(page), "--word", "bold")
    assert code == 0
    assert "bold" in out
    assert page.read_text("utf-8").startswith("<!doctype html>")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.html", "text.txt"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "must name one text"),
        (["a", "--file", "b"], "both were given"),
        (["--file", "/nowhere/at/all.txt"], "No such file"),
        (["a text", "--output", "/nowhere/page.html"], "folder that exists"),
        (["a text", "--output", "/tmp"], "is a folder"),
        (["a text", "--word", "shore"], "'shore' does not"),
        (["a text", "--model", "/nowhere"], "/nowhere"),
        (["river " * 600], "512"),
    ],
)
def test_mistakes_end_in_one_paragraph(look, arguments, message):
    code, out, err = look(*arguments)
    assert code == 2
    assert message in err
    assert "Traceback" not in err + out
    assert len([line for line in err.splitlines() if line.startswith("error")]) == 1


def test_a_file_that_is_no_text(look, tmp_path):
    (tmp_path / "binary").write_bytes(b"abc\xff\xfe")
    code, _, err = look("--file", str(tmp_path / "binary"))
    assert (code, "byte 3" in err) == (2, True)


def test_a_file_that_is_not_there(look):
    code, _, said = look("--file", "nowhere.txt")
    assert code == 2
    assert "`--file`" in said
    assert "nowhere.txt" in said
