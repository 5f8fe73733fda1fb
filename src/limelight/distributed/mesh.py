"""The mesh of a run: its processes as a box of named dimensions."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from ..tensors.shapes import ArgumentError, whole_number, wrong

DIMENSIONS = ("stages", "data", "shard", "context", "tensor")


def make_mesh(device: str, *, stages: int = 1, shard: int = 1, context: int = 1, tensor: int = 1) -> DeviceMesh:
    """Return all processes as a mesh of the dimensions ``stages``, ``data``, ``shard``, ``context`` and ``tensor``.

    Ranks that differ in ``tensor`` alone are neighbours, so they lie in one machine where they fit; then those of a
    context, then those of a shard. What is left over is ``data``: whole replicas. Stages of a pipeline are farthest
    apart, since they exchange least.

    ===========  ==============================================  =================
    dimension    its ranks hold                                  its ranks read
    ===========  ==============================================  =================
    ``stages``   different layers                                the same batch
    ``data``     the same parameters                             different batches
    ``shard``    different parts of each parameter               different batches
    ``context``  different parts too, in `parameter_mesh`        parts of a batch
    ``tensor``   different heads, features and token rows        the same batch
    ===========  ==============================================  =================

    Args:
        device: the type of the devices, such as ``"cuda"`` or ``"cpu"``.
        stages: ranks among which the layers are divided (`limelight.distributed.stages`).
        shard: ranks among which parameters, gradients and optimizer state are divided (FSDP).
        context: ranks among which the positions of a text are divided.
        tensor: ranks among which heads, features and vocabulary are divided.

    Raises:
        ArgumentError: the sizes do not divide the number of processes.
    """
    sizes = {"stages": stages, "shard": shard, "context": context, "tensor": tensor}
    for name, size in sizes.items():
        whole_number(name, size, at_least=1)
    processes, wanted = dist.get_world_size(), math.prod(sizes.values())
    if processes % wanted:
        raise indivisible(sizes, processes)
    return init_device_mesh(device, (stages, processes // wanted, shard, context, tensor), mesh_dim_names=DIMENSIONS)


def indivisible(sizes: Mapping[str, int], processes: int) -> ArgumentError:
    """The error of sizes whose product does not divide the number of processes, by their names."""
    given = {name: size for name, size in sizes.items() if size > 1}
    wanted, several = math.prod(given.values()), len(given) > 1
    product = " * ".join(map(str, given.values()))
    got = f"{product}{f' = {wanted}' if several else ''} does not divide {processes}"
    way_out = f"Start a multiple of {wanted} processes, or lower a size."
    if processes == 1:
        got = f"{f'their product is {wanted}' if several else f'it is {wanted}'}, and there is 1 process"
        way_out = f"Start it with torchrun --nproc_per_node {wanted}."
    return wrong(" * ".join(given), "must divide the number of processes", got, way_out)


def parameter_mesh(mesh: DeviceMesh) -> DeviceMesh:
    """Return the processes of `make_mesh` without ``context``, for what divides parameters.

    Its dimensions are ``stages``, ``data``, ``shard`` and ``tensor``. Ranks of a context compute gradients from
    different tokens with the same parameters, as ranks of ``shard`` do. So they are ranks of ``shard`` here, and
    parameters, gradients and optimizer state are divided among all of them. Without a context it is the mesh itself.

    Args:
        mesh: of `make_mesh`.
    """
    if mesh["context"].size() == 1:
        return mesh
    names = ("stages", "data", "shard", "tensor")
    return DeviceMesh(mesh.device_type, mesh.mesh.flatten(2, 3), mesh_dim_names=names)


def expert_mesh(mesh: DeviceMesh, experts: int) -> DeviceMesh:
    """Return the processes of `make_mesh` with ``experts`` in the place of ``context``, for mixtures of experts.

    Its dimensions are ``stages``, ``data``, ``shard``, ``experts`` and ``tensor``. The ranks of ``experts`` are
    neighbours among those that read different tokens: ranks of a context, of a shard, or replicas. So attention is
    computed once for each token, and each rank sends its tokens to the ranks of their experts. Ranks that hold the same
    experts are ``data`` and ``shard``; their parameters are divided among as many as the parameters of other layers
    where their number permits (by the greatest common divisor).

    Args:
        mesh: of `make_mesh`.
        experts: ranks among which the experts of each mixture are divided.

    Raises:
        ArgumentError: ``experts`` does not divide the number of ranks that read different tokens.
    """
    stages, data, shard, context, tensor = mesh.mesh.shape
    ranks = data * shard * context
    if ranks % whole_number("experts", experts, at_least=1):
        got = f"{experts} does not divide {ranks}"
        rule = "must divide the number of processes" + (" / tensor" if tensor > 1 else "")
        fits = [n for n in range(1, ranks + 1) if ranks % n == 0]
        raise wrong("experts", rule, got, f"Use {', '.join(map(str, fits[:12]))}.")
    parts = math.gcd(ranks // experts, shard * context)
    processes = mesh.mesh.reshape(stages, ranks // experts // parts, parts, experts, tensor)
    return DeviceMesh(mesh.device_type, processes, mesh_dim_names=("stages", "data", "shard", "experts", "tensor"))
