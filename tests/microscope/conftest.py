"""Real models for the microscope, and reports made up from a formula."""

import os

import pytest
from support.made_up import OTHER, SENTENCE, mock_report
from support.real_models import fetched

from limelight.checkpoints.load import load
from limelight.formats.errors import CheckpointError


def _load(name):
    try:
        return load(name)
    except CheckpointError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"{name} cannot be fetched: {error}")


@pytest.fixture(scope="session")
def minilm():
    return _load("minilm")


@pytest.fixture(scope="session")
def smollm2():
    return _load("smollm2")


@pytest.fixture(scope="session")
def whisper():
    return _load("whisper-tiny-en")


@pytest.fixture(scope="session")
def translator():
    return _load("marian-en-pt")


@pytest.fixture(scope="session")
def beckett():
    return fetched("beckett") / "beckett.wav"


@pytest.fixture(scope="session")
def made_up():
    """Two short texts, 3 layers x 4 heads."""
    return mock_report((SENTENCE, OTHER), 3, 4)


@pytest.fixture(scope="session")
def rxnmapper():
    return _load("rxnmapper")
