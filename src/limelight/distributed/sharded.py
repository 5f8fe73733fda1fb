"""Sharded parameters, gradients and optimizer state: FSDP2 by layer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from ..nn import Block, DecoderBlock, MixtureOfExperts


def shard(network: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Divide the parameters of a network among the ranks of a mesh, layer by layer, by PyTorch's ``fully_shard``.

    A layer is gathered when it is computed, forward and backward, and freed after it; its gradients are averaged over
    the ranks, and each rank keeps the part of its parameters (Rajbhandari et al. 2019, ZeRO, arXiv:1910.02054; Zhao et
    al. 2023, FSDP, arXiv:2304.11277). Embedding, last norm and head belong to the network as a whole. Layers
    that share parameters (ALBERT) are one group. In a mixture of experts an expert that no token of a rank has chosen
    runs with no tokens, since ranks exchange the gradients of all parameters: its gradient is 0 instead of ``None``.

    Call it after ``parallelize_module`` and before the optimizer is made: parameters are replaced. A loss that reads
    parameters of the network, as `limelight.training.Objective` does, is sharded in its place.

    Args:
        network: a model of this library, or a module around one, such as `limelight.training.Objective`.
        mesh: of one dimension; or of two, of which the first holds replicas and the second shards.

    Returns:
        The same module, whose parameters are ``DTensor``.
    """
    layers = [part for part in network.modules() if isinstance(part, (Block, DecoderBlock))]
    for part in network.modules():
        if isinstance(part, MixtureOfExperts):
            part.runs_all = True
    for group in _groups(layers):
        fully_shard(group[0] if len(group) == 1 else group, mesh=mesh)
    fully_shard(network, mesh=mesh)
    return network


def _groups(layers: Sequence[nn.Module]) -> list[list[nn.Module]]:
    """Return the layers, those together that share parameters."""
    groups: list[tuple[set[int], list[nn.Module]]] = []
    for layer in layers:
        own = {id(parameter) for parameter in layer.parameters()}
        if groups and groups[-1][0] & own:
            groups[-1][0].update(own)
            groups[-1][1].append(layer)
        else:
            groups.append((own, [layer]))
    return [group for _, group in groups]


def clip_gradients(parameters: Iterable[nn.Parameter], maximum: float) -> float:
    """Scale gradients so that their norm over all ranks is at most ``maximum``, and return it as it was before.

    As ``torch.nn.utils.clip_grad_norm_``, for parameters that are divided among different meshes. All ranks call it.

    Args:
        parameters: those of a model, sharded or not.
        maximum: may be infinite.
    """
    together: dict[DeviceMesh | None, list[nn.Parameter]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            gradient = parameter.grad
            together.setdefault(mesh_of(gradient), []).append(parameter)
    norms = [_whole(get_total_norm([p.grad for p in some if p.grad is not None])) for some in together.values()]
    total = torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())
    if math.isfinite(maximum):
        for some in together.values():
            clip_grads_with_norm_(some, maximum, total)
    return float(total)


def mesh_of(tensor: Tensor) -> DeviceMesh | None:
    """Return the mesh over which a tensor is divided; ``None`` for a plain tensor."""
    return tensor.device_mesh if isinstance(tensor, DTensor) else None


def _whole(norm: Tensor) -> Tensor:
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
