"""The state of divided models: gathered to be published, or written and read in parts, without pickle."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save


def whole_state(network: nn.Module) -> dict[str, Any]:
    """Gather the parameters of a divided network in the memory of rank 0; all ranks call it.

    Returns:
        On rank 0 the state dict of whole tensors on the CPU, one parameter gathered at a time; empty on the others.
    """
    return get_model_state_dict(network, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def write_parts(folder: Path, state: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors files, of which each rank writes the parts that it holds; all ranks call it.

    Args:
        folder: exists, and all ranks see the same one.
        state: the tensors by name, divided or the same on all ranks.
    """
    save(dict(state), storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))


def read_parts(folder: Path, state: Mapping[str, Tensor]) -> None:
    """Read what `write_parts` wrote into tensors, which may be divided among another number of ranks.

    Args:
        folder: with the safetensors files; every rank reads the parts that it holds.
        state: the tensors by name; their values are replaced.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process is meant
        load(dict(state), storage_reader=HuggingFaceStorageReader(str(folder)))
