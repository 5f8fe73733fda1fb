"""Shared by the tests of Triton's kernels."""

import numpy as np
import pytest
import torch
from support.launches import Compiled

from limelight.backends.gpu import launching, plans


@pytest.fixture
def interpreter(monkeypatch):
    """Kernels run in Triton's interpreter, which is looked for when they are first imported."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    plans.clear()  # made with what other tests have replaced
    with np.errstate(all="ignore"):  # numpy, unlike a GPU, speaks of log(0)
        yield


@pytest.fixture
def logged(monkeypatch):
    """Launches are logged and done by nothing; those of plans directly, as on a GPU."""
    log = []

    def dispatch(launched):
        grid = (*launched.grid, *(1,) * (3 - len(launched.grid)))
        log.append((launched.kernel, grid, launched.arguments, launched.settings))
        return Compiled(log, launched.kernel, launched.arguments, launched.settings)

    monkeypatch.setattr(launching.Launched, "dispatch", dispatch)
    monkeypatch.setattr(launching, "driver", lambda: launching.Driver(lambda device: 7, lambda: False))
    return log


@pytest.fixture
def poisoned():
    """Memory that is allocated and not yet written holds NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
