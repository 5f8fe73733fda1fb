"""The processes of a run: one, or several started by ``torchrun``, on accelerators or on CPUs.

`Replicas` hold the whole model each; accelerate connects them. `MeshRanks` divide it (`limelight.distributed`).
"""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, parse_flag_from_env
from torch import Tensor
from torch.distributed.tensor.parallel import parallelize_module

from ..distributed import divide_experts, expert_mesh, make_mesh, parameter_mesh, shard, tensor_plan
from ..distributed.experts import check_experts, is_of_expert
from ..distributed.failures import failures_by_rank
from ..distributed.mesh import indivisible
from ..distributed.saving import whole_state
from ..distributed.sharded import clip_gradients
from ..models import Config
from ..models.families import FAMILIES
from ..pretrained import Pretrained
from ..tensors.shapes import ArgumentError, wrong
from ..tensors.torch_internals import set_group_timeout
from .data import Batch
from .dividing import BatchDivision, check_divisible
from .objective import Objective
from .settings import RunSettings

SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")  # of torchrun and of MPI

PRODUCT = ("shard", "context", "tensor")  # settings whose product divides the number of processes

# Which settings arguments of `limelight.distributed` are made of.
SETTINGS = {name: f"run.{name}" for name in (*PRODUCT, "experts")} | {
    "mesh.size()": "run.experts",
    "size": "run.tensor",
}


class Ranks(ABC):
    """The processes of a run, as one of them sees them.

    Attributes:
        device: of this process.
        rank: its number; 0 writes files.
        replicas: the number of data-parallel ranks, which read different batches.
        replica: which of them this process belongs to.
        averaged: the number of ranks over which gradients are averaged; those of a context compute parts of a batch.
        divided: whether parameters are divided among ranks.
    """

    device: torch.device
    rank: int
    replicas: int
    replica: int
    averaged: int
    divided: bool

    @property
    def main(self) -> bool:
        """Whether this process writes files and messages."""
        return self.rank == 0

    @property
    def sharing(self) -> tuple[int, int]:
        """This process and the number of processes where they share the reading of a checkpoint; else 0 and 1."""
        return (self.rank, dist.get_world_size()) if self.divided else (0, 1)

    @abstractmethod
    def check(self, config: Config) -> None:
        """Check that a model can be divided, before it is made.

        Raises:
            ArgumentError: it cannot; the setting is named.
        """

    @abstractmethod
    def divide(self, objective: Objective) -> None:
        """Divide the parameters of an objective, before its optimizer is made."""

    @abstractmethod
    def own(self, batch: Batch) -> Batch:
        """Return the part of a batch of this `replica` that this process computes."""

    @abstractmethod
    def prepare(self, objective: Objective, optimizer: torch.optim.Optimizer) -> tuple[Any, Any]:
        """Return what is called in place of the objective and of the optimizer."""

    @abstractmethod
    def accumulating(self, wrapped: Any) -> AbstractContextManager[Any]:
        """A context in which gradients stay on their ranks, for all but the last batch of a step."""

    @abstractmethod
    def backward(self, loss: Tensor) -> None:
        """Compute gradients; they are averaged over the data-parallel ranks."""

    @abstractmethod
    def clip(self, objective: Objective, maximum: float) -> float:
        """Scale gradients so that their norm is at most ``maximum``, and return what it was."""

    @abstractmethod
    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of a number over the ranks that have computed different tokens."""

    @abstractmethod
    def any(self, flag: bool) -> bool:
        """Whether a flag is set in any process."""

    @abstractmethod
    def wait(self) -> None:
        """Return when all processes have called it."""

    @abstractmethod
    def whole(self, model: Pretrained) -> Pretrained | None:
        """Return the model with all of its parameters, to be written by the main process; ``None`` on others."""


class Replicas(Ranks):
    """Processes that hold the whole model each, connected by accelerate."""

    divided = False

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator, self.device = accelerator, accelerator.device
        self.rank = self.replica = accelerator.process_index
        self.replicas = self.averaged = accelerator.num_processes

    def check(self, config: Config) -> None:
        pass

    def divide(self, objective: Objective) -> None:
        pass

    def own(self, batch: Batch) -> Batch:
        return batch

    def prepare(self, objective: Objective, optimizer: torch.optim.Optimizer) -> tuple[Any, Any]:
        return self.accelerator.prepare(objective, optimizer)  # type: ignore[no-any-return]

    def accumulating(self, wrapped: Any) -> AbstractContextManager[Any]:
        return self.accelerator.no_sync(wrapped)  # type: ignore[no-any-return]

    def backward(self, loss: Tensor) -> None:
        self.accelerator.backward(loss)

    def clip(self, objective: Objective, maximum: float) -> float:
        return float(self.accelerator.clip_grad_norm_(objective.parameters(), maximum))

    def sum(self, tensor: Tensor) -> Tensor:
        return self.accelerator.reduce(tensor, "sum")  # type: ignore[no-any-return]

    def any(self, flag: bool) -> bool:
        return bool(self.sum(torch.tensor(flag, device=self.device).int()))

    def wait(self) -> None:
        self.accelerator.wait_for_everyone()

    def whole(self, model: Pretrained) -> Pretrained | None:
        return model if self.main else None


class MeshRanks(Ranks):
    """Processes of a mesh, among which ``run.shard`` and its like divide the model and its batches.

    Gradients are exchanged for each batch of a step, so that none is held whole.
    """

    divided = True

    def __init__(self, device: torch.device, run: RunSettings) -> None:
        self.device, self.rank = device, dist.get_rank()
        with named_as_settings():
            self.mesh = make_mesh(device.type, shard=run.shard, context=run.context, tensor=run.tensor)
            self.parameters = parameter_mesh(self.mesh)
            self.experts = expert_mesh(self.mesh, run.experts) if run.experts > 1 else None
        meshes = [mesh for mesh in (self.mesh, self.parameters, self.experts) if mesh is not None]
        for group in {group for mesh in meshes for group in mesh.get_all_groups()}:
            set_group_timeout(group, timedelta(seconds=run.timeout))
        data, shards, context = self.mesh["data"], self.mesh["shard"], self.mesh["context"]
        self.replicas = data.size() * shards.size()
        self.replica = data.get_local_rank() * shards.size() + shards.get_local_rank()
        self.averaged = self.replicas * context.size()
        self.division: BatchDivision | None = None

    def check(self, config: Config) -> None:
        with torch.device("meta"):
            network = FAMILIES[config.family].shape(config)
        if self.mesh["context"].size() > 1:
            check_divisible(network)
        with named_as_settings():
            if self.experts is not None:
                check_experts(network, self.experts["experts"].size())
            if (size := self.mesh["tensor"].size()) > 1:
                tensor_plan(network, size)

    def divide(self, objective: Objective) -> None:
        network, tensor, context = objective.network, self.parameters["tensor"], self.mesh["context"]
        if context.size() > 1:
            self.division = BatchDivision(network, context)
        experts = self.experts
        if experts is not None:
            divide_experts(network, experts["experts"])
        if tensor.size() > 1:
            plan = tensor_plan(network, tensor.size())
            of_experts = {name: plan.pop(name) for name in list(plan) if is_of_expert(name, network)}
            mesh = tensor if experts is None else experts["tensor"]
            for part, over in ((plan, tensor), (of_experts, mesh)):
                if part:
                    parallelize_module(network, over, part, src_data_rank=None)  # all ranks drew the same weights
        shared = None if experts is None else experts["data", "shard"]
        shard(objective, self.parameters["data", "shard"], experts=shared)

    def own(self, batch: Batch) -> Batch:
        return batch if self.division is None else self.division.own(batch)

    def prepare(self, objective: Objective, optimizer: torch.optim.Optimizer) -> tuple[Any, Any]:
        return objective, optimizer

    def accumulating(self, wrapped: Any) -> AbstractContextManager[Any]:
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]

    def clip(self, objective: Objective, maximum: float) -> float:
        return clip_gradients(objective, maximum)

    def sum(self, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        for name in ("data", "shard", "context"):  # ranks of one tensor dimension have computed the same
            dist.all_reduce(total, group=self.mesh.get_group(name))
        return total

    def any(self, flag: bool) -> bool:
        found = torch.tensor(flag, device=self.device).int()
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return bool(found)

    def wait(self) -> None:
        dist.barrier()

    def whole(self, model: Pretrained) -> Pretrained | None:
        state = whole_state(model.network)
        if not self.main:
            return None
        with torch.device("meta"):
            network = FAMILIES[model.config.family].shape(model.config)
        network.to_empty(device="cpu").load_state_dict(state)
        return replace(model, network=network)


def connect(run: RunSettings) -> Ranks:
    """Connect the processes of a run, each on a device of its own.

    Raises:
        ArgumentError: more processes were started than find each other, or more than there are accelerators;
            ``run.shard``, ``run.context``, ``run.experts`` and ``run.tensor`` do not divide their number.
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
    together = 1
    if not (alone and processes > 1):
        if divides(run) and processes > 1:
            return _mesh_ranks(None if on_cpus else device, run)
        handlers = [InitProcessGroupKwargs(timeout=timedelta(seconds=run.timeout))]
        accelerator = Accelerator(cpu=on_cpus, kwargs_handlers=handlers)
        together = accelerator.num_processes
    if together != processes:
        named = ", ".join(f"{name}={size}" for name, size in sizes.items())
        way_out = "Unset it to train in one process, or start all with torchrun --nproc_per_node N."
        raise wrong(named, "says how many processes train together", f"this one sees {together}", way_out)
    if divides(run):
        sizes_wanted = {name: getattr(run, name) for name in PRODUCT if getattr(run, name) > 1}
        with named_as_settings():
            raise indivisible(sizes_wanted or {"experts": run.experts}, 1)
    return Replicas(accelerator)


@contextmanager
def named_as_settings() -> Iterator[None]:
    """Name the setting of a run in the error of an argument that was made of it."""
    try:
        yield
    except ArgumentError as error:
        names, text = str(error).removeprefix("`").split("`", 1)
        settings = " * ".join(SETTINGS.get(name, name) for name in names.split(" * "))
        text = text.replace("/ tensor", "/ run.tensor")
        raise ArgumentError(f"`{settings}`{text}") from None


def divides(run: RunSettings) -> bool:
    """Whether settings divide the model or its batches among processes."""
    return any(getattr(run, name) > 1 for name in (*PRODUCT, "experts"))


def _mesh_ranks(device: torch.device | None, run: RunSettings) -> MeshRanks:
    if device is None:
        device = torch.device("cpu")
    else:
        device = torch.device(device.type, int(os.environ.get("LOCAL_RANK", 0)))
        torch.accelerator.set_device_index(device.index)
    # DTensor warns of norms and gathers over two dimensions, one after the other, which are small or rare here.
    logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)
    if not dist.is_initialized():
        dist.init_process_group(timeout=timedelta(seconds=run.timeout))
    with failures_by_rank():
        return MeshRanks(device, run)
