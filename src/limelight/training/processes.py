"""The devices of a run: one process, or several started by ``torchrun``, on accelerators or on CPUs."""

from __future__ import annotations

import os

import torch
from accelerate import Accelerator
from accelerate.utils import parse_flag_from_env

from ..tensors.shapes import wrong

SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")  # of torchrun and of MPI


def make_accelerator() -> Accelerator:
    """Connect the processes of a run, each on a device of its own.

    Raises:
        ArgumentError: more processes were started than find each other, or more than there are accelerators.
    """
    sizes = {name: os.environ[name] for name in SIZES if os.environ.get(name, "").isdecimal()}
    processes, here = max(map(int, sizes.values()), default=1), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    # Accelerate connects processes on CPUs only if `cpu` is set. Apple's GPU serves a single process.
    device = torch.accelerator.current_accelerator(check_available=True)
    on_cpus = processes > 1 and (device is None or device.type == "mps" or parse_flag_from_env("ACCELERATE_USE_CPU"))
    if processes > 1 and not on_cpus and here > torch.accelerator.device_count():
        got = f"there are {torch.accelerator.device_count()} for {here} processes"
        way_out = "Start fewer processes, or set ACCELERATE_USE_CPU=true to train on CPUs."
        raise wrong("--nproc_per_node", "must leave each process an accelerator of its own", got, way_out)
    alone = "WORLD_SIZE" in sizes and "RANK" not in os.environ  # other processes, if any, cannot be found
    accelerator = None if alone and processes > 1 else Accelerator(cpu=on_cpus)
    together = 1 if accelerator is None else accelerator.num_processes
    if accelerator is None or together != processes:
        named = ", ".join(f"{name}={size}" for name, size in sizes.items())
        way_out = "Unset it to train in one process, or start all with torchrun --nproc_per_node N."
        raise wrong(named, "says how many processes train together", f"this one sees {together}", way_out)
    return accelerator
