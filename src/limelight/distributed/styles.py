"""Parallel styles of our layers, beside PyTorch's ``ColwiseParallel`` and ``RowwiseParallel`` of their matrices.

Each says what becomes of the parameters of one module, and where its input or output changes between the whole tensor
that every rank holds and the part of one rank. The layers themselves are unchanged: they compute with fewer heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ParallelStyle

from ..forms.scores import ScoreRule
from ..nn import DistanceBias, MultiHead
from ..nn.heads import TokenHead
from ..nn.projection import Projection
from ..tensors.shapes import ArgumentError, wrong


def uneven(name: str, what: str, count: int, size: int, argument: str = "mesh.size()") -> ArgumentError:
    """The error of a number of heads or features that ranks cannot share evenly, by the argument that has the ranks."""
    fits = [n for n in range(1, count + 1) if count % n == 0]
    got = f"{size} does not divide the {count} {what} of {name}"
    return wrong(argument, f"must divide the {what} of every layer", got, f"Use {', '.join(map(str, fits[:12]))}.")


class Divided(ParallelStyle):
    """A module between a ``ColwiseParallel`` and a ``RowwiseParallel`` matrix, which computes with a part of them.

    Its states become a replicated ``DTensor`` once, so that the gradients of all matrices that read them are added
    before they are exchanged: one all-reduce instead of one a matrix.

    Args:
        name: of the module, for errors.
        what: the features or heads that are divided.
        count: their number.
    """

    def __init__(self, name: str, what: str, count: int) -> None:
        super().__init__()
        self.name, self.what, self.count = name, what, count

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        if self.count % device_mesh.size():
            raise uneven(self.name, self.what, self.count, device_mesh.size())

        def replicate(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            return replicated(inputs[0], device_mesh), *inputs[1:]

        module.register_forward_pre_hook(replicate)
        return module


class Heads(Divided):
    """Multi-head attention of which each rank computes neighbouring query heads and their key-value heads.

    Sinks are cut with their heads, as are score rules that have a number for each head.
    """

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        super()._apply(module, device_mesh)
        assert isinstance(module, MultiHead)
        heads = part_of(module.query.out_features // module.head_width, device_mesh)
        module.scores = tuple(rule.for_heads(heads) if isinstance(rule, ScoreRule) else rule for rule in module.scores)
        if module.sink is not None:
            distribute(module, {"sink": Shard(0)}, device_mesh, self.src_data_rank)
        return module


class ScoresOfHeads(Divided):
    """A module that makes a score rule for all heads: each rank takes the rule of its own heads."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        if self.count % device_mesh.size():
            raise uneven(self.name, self.what, self.count, device_mesh.size())
        if isinstance(module, DistanceBias):  # its table (buckets, heads) makes the rule of the local heads
            distribute(module, {"weight": Shard(1)}, device_mesh, self.src_data_rank)
            return module
        heads = part_of(self.count, device_mesh)

        def cut(module: nn.Module, inputs: tuple[Any, ...], rule: ScoreRule) -> ScoreRule:
            return rule.for_heads(heads)

        module.register_forward_hook(cut)
        return module


class NormOfHeads(ParallelStyle):
    """A norm of each query or key ``(B, L, H, D)``: heads are divided, the weight is whole, its gradients are added."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        names = dict.fromkeys((name for name, _ in module.named_parameters(recurse=False)), Replicate())
        distribute(module, names, device_mesh, self.src_data_rank)

        def divide(module: nn.Module, inputs: tuple[Tensor, ...]) -> DTensor:
            return DTensor.from_local(inputs[0], device_mesh, [Shard(2)], run_check=False)

        module.register_forward_pre_hook(divide)
        module.register_forward_hook(lambda module, inputs, output: output.to_local())
        return module


class Vocabulary(ParallelStyle):
    """An output head of which each rank computes the logits of neighbouring tokens; its result is whole again."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        for part in module.modules():
            of_tokens = isinstance(part, (TokenHead, Projection))  # a row for each token
            placement = Shard(0) if of_tokens else Replicate()
            placements = {one: placement for one, _ in part.named_parameters(recurse=False)}
            distribute(part, placements, device_mesh, self.src_data_rank)

        def replicate(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return replicated(inputs[0], device_mesh), *inputs[1:]

        def gather(module: nn.Module, inputs: tuple[Tensor, ...], logits: DTensor) -> Tensor:
            return logits.redistribute(placements=[Replicate()]).to_local()

        module.register_forward_pre_hook(replicate)
        module.register_forward_hook(gather)
        return module


def part_of(count: int, mesh: DeviceMesh) -> slice:
    """Return which of ``count`` heads this rank has."""
    each = count // mesh.size()
    return slice(each * mesh.get_local_rank(), each * (mesh.get_local_rank() + 1))


def replicated(tensor: Tensor, mesh: DeviceMesh) -> Tensor:
    """Return a tensor that all ranks hold as a ``DTensor``, whose gradient is added over them."""
    return tensor if isinstance(tensor, DTensor) else DTensor.from_local(tensor, mesh, [Replicate()], run_check=False)


def distribute(module: nn.Module, placements: Mapping[str, Placement], mesh: DeviceMesh, source: int | None) -> None:
    """Make parameters of a module ``DTensor``; the gradients of replicated ones are added over the ranks.

    Args:
        module: the module.
        placements: of each parameter, by its name.
        mesh: of one dimension.
        source: the rank whose values are taken; ``None`` for those of each rank.
    """
    for name, placement in placements.items():
        whole = getattr(module, name)
        if isinstance(whole, DTensor):
            continue
        made = nn.Parameter(
            distribute_tensor(whole.detach(), mesh, [placement], src_data_rank=source), whole.requires_grad
        )
        if isinstance(placement, Replicate) and made.requires_grad:
            made.register_hook(_added)  # type: ignore[no-untyped-call]
        module.register_parameter(name, made)


def _added(gradient: torch.Tensor) -> torch.Tensor:
    if not isinstance(gradient, DTensor):
        return gradient
    return gradient.redistribute(placements=[Replicate()] * gradient.device_mesh.ndim)
