"""transformers logs at its own will and asks no network."""

import os

import pytest
import torch
import transformers

from limelight.integrations.transformers import enable

os.environ["HF_HUB_OFFLINE"] = "1"
transformers.logging.set_verbosity_error()


@pytest.fixture(autouse=True, scope="session")
def _enabled():
    enable()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the models are tiny
    yield
    torch.set_num_threads(threads)
