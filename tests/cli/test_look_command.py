"""``limelight look`` from the outside."""

import io
import json
import re
import sys

import pytest

from limelight.cli import main

SENTENCE = "The bank is near the river."


def run(monkeypatch, capsys, *arguments, columns=100):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys, "argv", ["limelight", "look", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    captured = capsys.readouterr()
    return stop.value.code or 0, captured.out, captured.err


@pytest.fixture
def look(monkeypatch, capsys):
    return lambda *arguments, **how: run(monkeypatch, capsys, *arguments, **how)


def test_the_summary_names_the_relation_and_its_baseline(look):
    code, out, _ = look(SENTENCE, "--word", "bank", "--compare", "She deposited money at the bank.")
    assert code == 0
    row = next(line for line in out.splitlines() if "river" in line and "0.4" in line)
    assert row.split()[:6] == ["river", "0.638", "0.111", "0.097", "6.6x", "0.4"]
    assert "cosine of bank with bank" in out
    assert "0.96" in out
    assert "0.84" in out
    assert "not an explanation" in out
    given = out.partition("looks at")[2]
    rows = [line.split()[0] for line in given.partition("is looked at by")[0].splitlines() if line.strip()]
    assert rows[0] == "river"
    assert rows[-1] == "The"  # what a previous-token head sees, whatever it is
    assert "0.2*" in out
    assert "*: a head that mostly looks at the previous, own or next token" in out


@pytest.mark.parametrize("columns", [50, 80])
def test_numbers_stay_whole_in_a_narrow_terminal(look, columns):
    text = "The bank is near the unbelievably wide riverbankside."
    code, out, _ = look(text, "--word", "bank", "--compare", "She deposited money at the bank.", columns=columns)
    assert code == 0
    numbers = r"[0-9]+\.[0-9]+\*?|\[0-9]+"
    assert not re.search(r"[0-9]\.?…", out), out
    river = next(line for line in out.splitlines() if line.strip().startswith("river"))
    assert len(re.findall(numbers, river)) >= 3
    assert max(map(len, out.splitlines())) <= columns
    cosines = next(line for line in out.splitlines() if "cosine with embedding" in line)
    assert len(re.findall(r"\b[01]\.[0-9]{2}\b", cosines)) >= 4


def test_unknown_tokens_are_reported(look):
    code, out, _ = look("x" * 300 + " bank 🌊 river")
    assert code == 0
    assert "2 of 6 tokens are unknown ([UNK])" in " ".join(out.split())


def test_the_terminal_is_not_steered_by_a_text(look, tmp_path):
    (tmp_path / "text.txt").write_text("the\x1b]0;owned\x07bank\x1b[31mred\x1b[0m \x9b31m \u202eriver\x7f \r", "utf-8")
    for more in ((), ("--json",), ("--output", str(tmp_path / "a\x1b[31m.html"))):
        code, out, _ = look("--file", str(tmp_path / "text.txt"), *more)
        assert code == 0, more
        assert not {*"\x1b\x07\x9b\x7f\u202e\r"} & {*out}, more


def test_standard_input(look, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(SENTENCE.encode() + b"\n")))
    code, out, _ = look("-", "--json")
    assert code == 0
    assert json.loads(out)["texts"] == [SENTENCE]


def test_where_a_word_stands_in_a_longer_text(look):
    text = "Money lies in the bank of a town. " * 4 + SENTENCE
    code, out, _ = look(text, "--word", "near", "--word", "bank")
    assert code == 0
    assert "near word 40 of 43: … . The bank is near the river. …" in " ".join(out.split())
    assert "bank word 5 of 43: … Money lies in the bank of a town. …" in " ".join(out.split())


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
        ([], "must name one text, but neither was"),
        ([], "; - reads standard input."),
        (["a", "--file", "b"], "both were given"),
        (["--file", "/nowhere/at/all.txt"], "No such file"),
        (["a text", "--output", "/nowhere/page.html"], "folder that exists"),
        (["a text", "--output", "/tmp"], "is a folder"),
        (["a text", "--word", "shore"], "`--word` must be in the text, but 'shore' is not"),
        (["a text", "--model", "/nowhere"], "/nowhere"),
        (["river " * 600], "`TEXT` must fit the 512 positions of minilm"),
        (["a text", "--compare", " "], "`--compare` must hold at least one word"),
        (["a text", "--model", "missing"], "`--model` must be a packaged model"),
        (["a text", "--output", "page.txt"], "`--output` must end in .html"),
        (["a text", "--output", "page.html", "--atlas", "missing.json"], "`--atlas` must name an atlas"),
        (["a text", "--model", "whisper-tiny-en"], "`TEXT` must name a WAV file"),
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


def test_words_of_a_translation_are_aligned(look, tmp_path):
    sentence = "The bank of the river was covered with flowers."
    code, out, _ = look(sentence, "--model", "marian-en-pt", "--target", "A margem do rio estava coberta de flores.")
    assert code == 0
    assert re.search(r"rio +→ river +0\.\d+ +0\.091", out)
    assert "1.0" in out
    code, out, _ = look(sentence, "--model", "marian-en-pt", "--output", str(tmp_path / "page.html"))
    assert code == 0
    assert "opens in any browser" in out
    assert '"aligning":[8]' in (tmp_path / "page.html").read_text("utf-8")
    code, _, err = look(sentence, "--target", "A margem.")
    assert code == 2
    assert "`--target` is for an encoder-decoder, but minilm is an encoder" in err


def test_the_terminal_is_not_steered_by_a_source_or_a_target(look):
    odd = "The \x1b[2J<b>bank\u202e \x07"
    code, out, _ = look(odd, "--model", "marian-en-pt", "--target", "A \x1b]0;owned\x07 [bold]margem\u202e")
    assert code == 0
    assert not {*out} & {*"\x1b\x07\u202e"}
    assert "bold" in out
    code, _, err = look("The bank.", "--model", "marian-en-pt", "--target", "\udcff")
    assert code == 2
    assert "half of a surrogate pair" in err
