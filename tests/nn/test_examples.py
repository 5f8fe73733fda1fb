"""The examples in the docstrings of the layers run."""

import doctest
import importlib
import pkgutil

import pytest

import limelight.nn

MODULES = [module.name for module in pkgutil.iter_modules(limelight.nn.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    assert doctest.testmod(importlib.import_module(f"limelight.nn.{name}")).failed == 0
