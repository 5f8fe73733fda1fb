"""Every Python example of the README runs, one after the other."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)


def test_readme_examples(capsys):
    names: dict[str, object] = {}
    assert len(EXAMPLES) >= 5
    for example in EXAMPLES:
        exec(compile(example, "README.md", "exec"), names)
    assert "backend:" in capsys.readouterr().out


@pytest.mark.parametrize("module", ["limelight.patterns", "limelight.attention"])
def test_docstring_examples(module):
    import doctest
    import importlib

    failures, tried = doctest.testmod(importlib.import_module(module))
    assert tried > 0
    assert failures == 0
