"""The Hugging Face hub, for people with a network: data files only, safetensors only."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from ..formats.errors import CheckpointError

# What a model folder needs, and nothing that could be run. Weights under other names are other variants of the same.
DATA_FILES = (
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*-of-*.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
    "special_tokens_map.json",
    "generation_config.json",
    "preprocessor_config.json",
)


def looks_like_hub_name(name: str) -> bool:
    """Whether ``name`` has the form ``owner/model``."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None


def snapshot(repository: str) -> Path:
    """The folder of a hub repository's data files, in the hub's own cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, allow_patterns=list(DATA_FILES), local_files_only=_far_away()))
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{repository!r} is no local folder, the Hugging Face hub does not answer, and its cache has none. "
            "Check the network, or name a folder that holds config.json, safetensors weights and tokenizer.json."
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(
            f"{repository!r} is no local folder, and the Hugging Face hub refused it: {reason[0]} "
            "Check the spelling; a private or gated model needs `hf auth login` first."
        ) from error


def _far_away() -> bool:
    """Whether there is no way to the hub; then its cache answers at once. Asking again and again takes 23 seconds."""
    from huggingface_hub import constants

    if getproxies():  # a proxy may resolve an address that this machine does not
        return False
    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, None)
    except OSError:
        return True
    return False
