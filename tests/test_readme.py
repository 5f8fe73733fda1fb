"""The README is one screen and a little more; its commands are those that users copy, and its examples run."""

from pathlib import Path

import pytest
from pages import examples
from support import real_models

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
COMMANDS = (
    'pip install -c constraints.txt . && limelight look "The bank is near the river."',
    'pip install -c constraints.txt -e ".[test]" && pytest',
)

pytestmark = pytest.mark.usefixtures("one_thread")


def test_it_is_short():
    assert len(README.read_text("utf-8").splitlines()) <= 120


def test_the_commands_stand_in_it_word_for_word():
    lines = README.read_text("utf-8").splitlines()
    assert all(command in lines for command in COMMANDS)
    contributing = (ROOT / "CONTRIBUTING.md").read_text("utf-8").splitlines()
    assert all(command in contributing for command in COMMANDS)


def test_readme_examples():
    real_models.fetched("smollm2")
    names, printed = {}, ""
    in_python = [example for example in examples(README) if example.language == "python"]
    assert len(in_python) >= 2
    for example in in_python:
        printed += example.run(names)
    assert "backend:" in printed
    assert " Paris." in printed
