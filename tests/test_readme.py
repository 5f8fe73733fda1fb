"""Every Python example of the README runs, one after the other."""

from pathlib import Path

import pytest
from pages import examples

README = Path(__file__).parent.parent / "README.md"


def test_readme_examples():
    names, printed = {}, ""
    in_python = [example for example in examples(README) if example.language == "python"]
    assert len(in_python) >= 5
    for example in in_python:
        printed += example.run(names)
    assert "backend:" in printed


@pytest.mark.parametrize("module", ["limelight.forms.patterns", "limelight.operator.attention"])
def test_docstring_examples(module):
    import doctest
    import importlib

    failures, tried = doctest.testmod(importlib.import_module(module))
    assert tried > 0
    assert failures == 0
