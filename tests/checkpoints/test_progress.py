"""A bar for what takes long, silence for what does not."""

import time

from limelight.formats import progress


def test_silence(capsys):
    with progress.counted("reading", 10) as report:
        report(10)
    assert capsys.readouterr() == ("", "")


def test_one_line_where_there_is_no_terminal(capsys, monkeypatch):
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    with progress.downloaded("fetching it", 2_000_000) as report:
        time.sleep(0.001)
        report(5)
        report(5_000_000)  # more than was promised is no error
    assert capsys.readouterr() == ("", "fetching it (2.0 MB) ...\n")


def test_a_bar_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with progress.counted("reading it", 10) as report:
        time.sleep(0.001)
        report(5)
    assert "reading it" in capsys.readouterr().err
