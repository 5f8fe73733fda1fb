"""`scripts/check_api.py` finds what of the public interface is gone or has changed, and nothing else."""

import importlib.util

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("griffe") is None, reason="griffe is not installed (pip install '.[site]')"
)

BEFORE = """
from ._inside import helper
from .other import moved

__all__ = ["attend", "gone", "moved"]


def attend(query, key, scale=None): ...
def gone(): ...
def not_listed(): ...
"""
AFTER = """
from .elsewhere import moved

__all__ = ["attend", "moved", "new"]


def attend(query, scale=1.0): ...
def new(): ...
"""


def write(folder, text, place):
    package = folder / "limelight"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(text)
    (package / "_inside.py").write_text("def helper(): ...\n")
    (package / place).write_text("def moved(a): ...\n")
    return folder


def test_what_is_found(tmp_path):
    import check_api

    before, after = write(tmp_path / "a", BEFORE, "other.py"), write(tmp_path / "b", AFTER, "elsewhere.py")
    found = check_api.broken(before, after)
    assert found == [
        "limelight: attend(key): Parameter was removed",
        "limelight: attend(scale): Positional parameter was moved",
        "limelight: attend(scale): Parameter default was changed: None -> 1.0",
        "limelight: gone: Public object was removed",
    ]
    assert check_api.broken(before, before) == []


def test_a_module_that_is_gone(tmp_path):
    import check_api

    before, after = write(tmp_path / "a", "", "compat.py"), write(tmp_path / "b", "", "other.py")
    assert check_api.broken(before, after) == ["limelight.compat: the module is gone"]


def test_every_module_of_the_reference_is_read():
    import check_api

    sources = check_api.ROOT / "src"
    package = check_api.griffe.load("limelight", search_paths=[sources], resolve_aliases=True)
    for name in check_api.public_modules():
        assert check_api.interface(package, name).members, name
