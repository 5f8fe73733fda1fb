"""The mesh of a run: its processes as a box of named dimensions."""

from __future__ import annotations

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from ..tensors.shapes import whole_number, wrong

DIMENSIONS = ("data", "shard", "context", "tensor")


def make_mesh(device: str, *, shard: int = 1, context: int = 1, tensor: int = 1) -> DeviceMesh:
    """Return all processes as a mesh of the dimensions ``data``, ``shard``, ``context`` and ``tensor``.

    Ranks that differ in ``tensor`` alone are neighbours, so they lie in one machine where they fit; then those of a
    context, then those of a shard. What is left over is ``data``: whole replicas.

    ===========  ==========================================  =================
    dimension    its ranks hold                              its ranks read
    ===========  ==========================================  =================
    ``data``     the same parameters                         different batches
    ``shard``    different parts of each parameter           different batches
    ``context``  the same parameters                         parts of a batch
    ``tensor``   different heads, features and token rows    the same batch
    ===========  ==========================================  =================

    Args:
        device: the type of the devices, such as ``"cuda"`` or ``"cpu"``.
        shard: ranks among which parameters, gradients and optimizer state are divided (FSDP).
        context: ranks among which the positions of a text are divided.
        tensor: ranks among which heads, features and vocabulary are divided.

    Raises:
        ArgumentError: the sizes do not divide the number of processes.
    """
    sizes = {"shard": shard, "context": context, "tensor": tensor}
    for name, size in sizes.items():
        whole_number(name, size, at_least=1)
    processes, wanted = dist.get_world_size(), shard * context * tensor
    if processes % wanted:
        named = " * ".join(f"run.{name}" for name, size in sizes.items() if size > 1)
        product = " * ".join(str(size) for size in sizes.values() if size > 1)
        got = f"{product}{f' = {wanted}' if '*' in product else ''} does not divide {processes}"
        way_out = f"Start a multiple of {wanted} processes, or lower a size."
        raise wrong(named, "must divide the number of processes", got, way_out)
    return init_device_mesh(device, (processes // wanted, shard, context, tensor), mesh_dim_names=DIMENSIONS)
