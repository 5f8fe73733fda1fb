"""Shared by all tests: two profiles of hypothesis, Triton's interpreter, a browser."""

import importlib
import os
from contextlib import suppress
from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, settings

pytest_plugins = ["support.browser"]

quiet = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]
settings.register_profile("short", max_examples=100, deadline=None, derandomize=True, suppress_health_check=quiet)
settings.register_profile("long", max_examples=2000, deadline=None, suppress_health_check=quiet)
settings.load_profile(os.environ.get("LIMELIGHT_TESTS", "short"))
torch.set_num_threads(min(2, os.cpu_count() or 1))

# Whether Triton's own functions are interpreted is settled when it is imported, by whichever test comes first; whether
# a kernel is, when the kernel is. With the former interpreted both kinds of tests can run in one process.
with mock.patch.dict(os.environ, TRITON_INTERPRET="1"), suppress(ImportError):
    importlib.import_module("triton.language")


@pytest.fixture(scope="module")
def one_thread():
    """PyTorch computes with one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
