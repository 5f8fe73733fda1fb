"""Every Python example of the README runs, one after the other."""

from pathlib import Path

from pages import examples

README = Path(__file__).parent.parent / "README.md"


def test_readme_examples():
    names, printed = {}, ""
    in_python = [example for example in examples(README) if example.language == "python"]
    assert len(in_python) >= 5
    for example in in_python:
        printed += example.run(names)
    assert "backend:" in printed
