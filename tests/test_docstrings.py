"""Docstrings are complete in themselves, and the examples in them run."""

import ast
import doctest
import importlib
from pathlib import Path

import pytest

import limelight

ROOT = Path(limelight.__file__).parent
SOURCES = {
    str(path.relative_to(ROOT).with_suffix("")).replace("/", "."): path.read_text("utf-8")
    for path in ROOT.rglob("*.py")
}
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
MIN_WORDS = 5  # words; ruff sees to it that there is a docstring at all
POINTERS = ("See ", "The same", "And back")  # a tooltip shows what stands there, not what it points at


@pytest.mark.parametrize("name", [name for name, source in SOURCES.items() if ">>>" in source])
def test_examples_run(name):
    module = importlib.import_module(f"limelight.{name}".removesuffix(".__init__"))
    failures, tried = doctest.testmod(module)
    assert tried > 0
    assert failures == 0


def public_docstrings(node, prefix=""):
    """Names and docstrings of the public functions, classes and methods in a syntax tree."""
    for part in ast.iter_child_nodes(node):
        if isinstance(part, DEFINITIONS) and not part.name.startswith("_"):
            if docstring := ast.get_docstring(part):
                yield prefix + part.name, docstring
            if isinstance(part, ast.ClassDef):
                yield from public_docstrings(part, f"{prefix}{part.name}.")
        elif isinstance(part, (ast.If, ast.Try)):
            yield from public_docstrings(part, prefix)


def incomplete(source):
    """Docstrings that say too little by themselves."""
    found = public_docstrings(ast.parse(source))
    return [(name, text) for name, text in found if len(text.split()) < MIN_WORDS or text.startswith(POINTERS)]


def test_what_is_incomplete():
    assert incomplete('def f():\n    """See g."""') == [("f", "See g.")]
    assert incomplete('class A:\n    def f(self):\n        """And back: from B to A again."""')[0][0] == "A.f"
    assert not incomplete('def f():\n    """The sum of both, as a tensor."""')
    assert not incomplete('def _f():\n    """See g."""')


@pytest.mark.parametrize("name", SOURCES)
def test_docstrings_are_complete(name):
    assert incomplete(SOURCES[name]) == []
