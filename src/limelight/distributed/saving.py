"""The state of divided models: gathered to be published, or written and read in parts, without pickle."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor

from ..nn import MixtureOfExperts
from ..nn.experts import ExpertElsewhere
from .experts import RanksOfExperts


def whole_state(network: nn.Module) -> dict[str, Any]:
    """Gather the parameters of a divided network in the memory of rank 0; all ranks call it.

    Returns:
        On rank 0 the state dict of whole tensors on the CPU, one parameter gathered at a time; empty on the others.
    """
    state = get_model_state_dict(network, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    for name, part in network.named_modules(remove_duplicate=False):
        if isinstance(part, MixtureOfExperts) and isinstance(part.ranks, RanksOfExperts):
            state |= {f"{name}.experts.{inner}": values for inner, values in _experts_elsewhere(part, part.ranks.group)}
    return state


def _experts_elsewhere(mixture: MixtureOfExperts, group: Any) -> Iterator[tuple[str, Tensor]]:
    """The parameters of experts that other ranks hold, sent to rank 0 by those that share a group with it."""
    ranks = dist.get_process_group_ranks(group)
    for number, expert in enumerate(mixture.experts):
        if not isinstance(expert, ExpertElsewhere):
            for _, parameter in sorted(expert.named_parameters()):
                whole = parameter.detach()
                whole = whole.full_tensor() if isinstance(whole, DTensor) else whole
                if 0 in ranks and dist.get_rank() != 0:
                    dist.send(whole.contiguous(), 0, group=group)
        elif dist.get_rank() == 0:
            for name, (shape, dtype) in sorted(expert.shapes.items()):
                values = torch.empty(shape, dtype=dtype, device=_device_of(group))
                dist.recv(values, ranks[expert.owner], group=group)
                yield f"{number}.{name}", values.cpu()


def _device_of(group: Any) -> torch.device:
    """Where tensors lie that a process group sends."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return torch.device("cpu") if accelerator is None or dist.get_backend(group) == "gloo" else accelerator


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
