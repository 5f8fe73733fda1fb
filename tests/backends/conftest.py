"""Shared by the tests of Triton's kernels."""

import numpy as np
import pytest

from limelight.backends.gpu import plans


@pytest.fixture
def interpreter(monkeypatch):
    """Kernels run in Triton's interpreter, which is looked for when they are first imported."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    plans.clear()  # made with what other tests have replaced
    with np.errstate(all="ignore"):  # numpy, unlike a GPU, speaks of log(0)
        yield
