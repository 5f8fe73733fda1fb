"""Sharded parameters, gradients and optimizer state: FSDP2 by layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from ..nn import Block, DecoderBlock
from ..nn.experts import ExpertElsewhere
from .experts import RanksOfExperts, mixtures_of


def shard(network: nn.Module, mesh: DeviceMesh, *, experts: DeviceMesh | None = None) -> nn.Module:
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
        experts: the ranks that hold the same experts, where experts are divided (`divide_experts`); likewise. Their
            gradients are those of other parameters: sums over all ranks of ``mesh``, divided by their number.

    Returns:
        The same module, whose parameters are ``DTensor``.
    """
    layers = [part for part in network.modules() if isinstance(part, (Block, DecoderBlock))]
    for part in mixtures_of(network):
        part.runs_all = True
        if isinstance(part.ranks, RanksOfExperts) and experts is not None:
            part.ranks.gradient_factor = experts.size() / mesh.size()
            own = [expert for expert in part.experts if not isinstance(expert, ExpertElsewhere)]
            fully_shard(own[0] if len(own) == 1 else own, mesh=experts)
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


def clip_gradients(network: nn.Module, maximum: float) -> float:
    """Scale gradients so that their norm over all ranks is at most ``maximum``, and return it as it was before.

    As ``torch.nn.utils.clip_grad_norm_``, for parameters that are divided among different meshes. All ranks call it.

    Args:
        network: sharded or not.
        maximum: may be infinite.
    """
    groups = {
        id(one): part.ranks.group
        for part in mixtures_of(network)
        if isinstance(part.ranks, RanksOfExperts)
        for one in part.experts.parameters()
    }
    together: dict[tuple[DeviceMesh | None, Any], list[nn.Parameter]] = {}
    for parameter in network.parameters():
        if parameter.grad is not None:
            together.setdefault((mesh_of(parameter.grad), groups.get(id(parameter))), []).append(parameter)
    norms = [
        _over_experts(_whole(get_total_norm([p.grad for p in some if p.grad is not None])), group)
        for (_, group), some in together.items()
    ]
    total = torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())
    if math.isfinite(maximum):
        for some in together.values():
            clip_grads_with_norm_(some, maximum, total)
    return float(total)


def _over_experts(norm: Tensor, group: Any) -> Tensor:
    """The norm over the experts of all ranks of a group, from that of this rank's."""
    if group is None:
        return norm
    squared = norm.square()
    dist.all_reduce(squared, group=group)
    return squared.sqrt()


def mesh_of(tensor: Tensor) -> DeviceMesh | None:
    """Return the mesh over which a tensor is divided; ``None`` for a plain tensor."""
    return tensor.device_mesh if isinstance(tensor, DTensor) else None


def _whole(norm: Tensor) -> Tensor:
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
