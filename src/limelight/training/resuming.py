"""Resuming a run: whether a checkpoint belongs to it, and its state in the model and the optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..distributed.saving import read_parts
from ..models import Stack
from ..models.saving import named_once
from ..tensors.shapes import wrong
from .checkpoint import is_divided
from .optimizer import empty_state, restore, state_of
from .settings import RunSettings, differences

# Settings that may change when a run is resumed: its length and what is kept, not what it computes.
CHANGEABLE = tuple(
    f"run.{key}"
    for key in ("steps", "evaluate_every", "save_every", "keep_checkpoints", "patience", "bleu_samples", "timeout")
)
# Those that divide the work of a divided model; the batches of a step stay the same.
DIVISION = ("processes", "run.accumulation_steps", "run.shard", "run.context", "run.experts", "run.tensor")


def check_same_run(metadata: Mapping[str, Any], now: Mapping[str, Any], last: Path, *, divided: bool) -> None:
    """Check that a checkpoint belongs to a run.

    Args:
        metadata: of the checkpoint.
        now: of the run.
        last: the checkpoint.
        divided: whether the run divides its model.

    Raises:
        ArgumentError: settings or data differ that a resumed run must keep.
    """
    settings = metadata.get("settings")
    if isinstance(settings, Mapping) and isinstance(settings.get("run"), Mapping):  # a newer setting has its default
        metadata = {**metadata, "settings": {**settings, "run": {**asdict(RunSettings()), **settings["run"]}}}
    divided = divided or is_divided(last)
    changeable = (*CHANGEABLE, *DIVISION) if divided else CHANGEABLE
    found = [key for key in differences(metadata, now) if key.removeprefix("settings.") not in changeable]
    if found:
        names = ", ".join(key.removeprefix("settings.") for key in found)
        way_out = f"Name another --output, or correct them; {', '.join(CHANGEABLE)} may change."
        got = f"{last} was written with other {names}"
        raise wrong("--resume", "must keep the settings and data of the run", got, way_out)
    before, after = _batches_of_step(metadata), _batches_of_step(now)
    if before != after:
        ranks = now["processes"]
        fits = before % ranks == 0
        way_out = f"Set run.accumulation_steps={before // ranks}." if fits else "Start another number of processes."
        got = f"it is {after // ranks} on {ranks} data-parallel ranks, and a step had {before} batches"
        raise wrong("run.accumulation_steps", "must keep the number of batches of a step", got, way_out)


def restore_from(
    last: Path, optimizer: torch.optim.Optimizer, network: Stack, state: Mapping[str, Tensor], *, divided: bool
) -> None:
    """Restore an optimizer that has made no step from a checkpoint, and the weights where the checkpoint is divided.

    Args:
        last: the checkpoint.
        optimizer: of the network.
        network: has the weights already if the checkpoint holds a whole model.
        state: the optimizer's state, as it was read from a whole checkpoint.
        divided: whether the network is divided among processes.
    """
    if not (divided or is_divided(last)):
        restore(optimizer, network, state)
        return
    empty_state(optimizer, network)
    parts = state_of(optimizer, network)
    if is_divided(last):
        parts |= weights_of(network)
    read_parts(last, parts)


def weights_of(network: Stack) -> dict[str, Tensor]:
    """Return the parameters of a divided network under the names that they have in its checkpoints."""
    return {f"weight.{name}": values.detach() for name, values in named_once(network).items()}


def _batches_of_step(metadata: Mapping[str, Any]) -> int:
    """Return the number of batches of an optimizer step, from the metadata of a run."""
    return int(metadata["processes"]) * int(metadata["settings"]["run"]["accumulation_steps"])
