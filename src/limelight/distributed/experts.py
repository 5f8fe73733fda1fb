"""Experts over ranks: each rank holds some experts of every mixture, and tokens are sent to the ranks of theirs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from ..forms.layouts import Aligned
from ..nn import MixtureOfExperts
from ..nn.experts import ExpertElsewhere, ExpertRanks
from ..tensors.shapes import wrong
from .exchange import exchanged, returned
from .plan import Plan
from .runs import Runs, united


def divide_experts(network: nn.Module, mesh: DeviceMesh) -> None:
    """Divide the experts of each mixture of a network among ranks, which keep neighbouring ones (arXiv:2006.16668).

    In a forward pass each rank routes its own tokens, sends each to the ranks of its experts by one all-to-all of
    uneven sizes, computes its experts for the tokens that it got, and sends the results back; the backward pass goes
    the same way with the gradients. No token is dropped or padded. Every rank runs all of its experts in every pass,
    also without tokens, and all ranks make the same calls.

    The gradient of an expert is the sum over the tokens of all ranks of ``mesh``. `shard` with ``experts`` divides it
    further, as gradients of other parameters.

    ::

        mesh = make_mesh("cuda", shard=8)
        experts = expert_mesh(mesh, 4)
        divide_experts(network, experts["experts"])
        shard(network, parameter_mesh(mesh)["data", "shard"], experts=experts["data", "shard"])

    Call it before ``parallelize_module`` and `shard`. Parameters keep their names: each rank has those of its experts.

    Args:
        network: of `limelight.nn` layers; the same on every rank.
        mesh: of one dimension: the ranks among which experts are divided, which read different tokens.

    Raises:
        ArgumentError: there is no mixture, or the number of ranks does not divide the experts of one.
    """
    check_experts(network, mesh.size())
    for part in mixtures_of(network):
        each = len(part.experts) // mesh.size()
        part.ranks, part.runs_all = RanksOfExperts(mesh, each), True
        for number, expert in enumerate(part.experts):
            owner = number // each
            if owner != mesh.get_local_rank():
                shapes = {name: (one.shape, one.dtype) for name, one in expert.named_parameters()}
                part.experts[number] = ExpertElsewhere(owner, shapes)


def check_experts(network: nn.Module, size: int) -> None:
    """Check that ranks can share the experts of every mixture evenly.

    Raises:
        ArgumentError: there is no mixture, or ``size`` does not divide the experts of one.
    """
    mixtures = [(name, part) for name, part in network.named_modules() if isinstance(part, MixtureOfExperts)]
    if not mixtures:
        raise wrong("mesh.size()", "must be 1 for a model without mixtures of experts", f"it is {size}", "Remove it.")
    for name, part in mixtures:
        count = len(part.experts)
        if count % size:
            fits = [n for n in range(1, count + 1) if count % n == 0]
            got = f"{size} does not divide the {count} of {name}"
            way_out = f"Use {', '.join(map(str, fits[:12]))}."
            raise wrong("mesh.size()", "must divide the experts of every mixture", got, way_out)


def mixtures_of(network: nn.Module) -> Iterator[MixtureOfExperts]:
    """The mixtures of experts of a network."""
    return (part for part in network.modules() if isinstance(part, MixtureOfExperts))


def is_of_expert(name: str, network: nn.Module) -> bool:
    """Whether a module is one of the experts of a mixture or a part of one, by its name."""
    parents = name.split(".")
    return any(
        parents[n] == "experts" and isinstance(network.get_submodule(".".join(parents[:n])), MixtureOfExperts)
        for n in range(len(parents) - 1)
    )


class RanksOfExperts(ExpertRanks):
    """The ranks among which the experts of a mixture are divided.

    Args:
        mesh: of one dimension.
        each: experts that a rank holds.
    """

    #: Factor of the gradients of experts; `limelight.distributed.shard` sets it, since FSDP averages them over fewer
    #: ranks than those of other parameters.
    gradient_factor = 1.0

    def __init__(self, mesh: DeviceMesh, each: int) -> None:
        self.group, self.each = mesh.get_group(), each
        self.rank, self.size = mesh.get_local_rank(), mesh.size()

    def computed(
        self, run: Callable[[Tensor, list[int]], list[Tensor]], tokens: Tensor, counts: list[int]
    ) -> list[Tensor]:
        everywhere = self._counts(counts, tokens.device)
        plan = self._plan(everywhere)
        rows = tokens[None, None]
        here, _ = exchanged(rows, rows[..., :0], plan, self.group)
        here = _scaled(here, 1 / self.gradient_factor)
        own = range(self.rank * self.each, (self.rank + 1) * self.each)
        results = torch.cat(run(here[0, 0], [sum(some[expert] for some in everywhere) for expert in own]))[None, None]
        results = _scaled(results, self.gradient_factor)
        back, _ = returned(results, results[..., :0], plan, self.group)
        return [back[0, 0]]

    def _counts(self, own: list[int], device: torch.device) -> list[list[int]]:
        """The tokens that each rank has for each expert."""
        mine = torch.tensor(own, device=device)
        found = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(found, mine, group=self.group)
        return torch.stack(found).tolist()

    def _plan(self, counts: list[list[int]]) -> Plan:
        """Who sends which rows to whom, with the rows of all ranks end to end as the whole.

        The rows that a rank gets are sorted by expert, and those of an expert by the rank that sent them.
        """
        held: list[Runs] = []
        runs: list[list[tuple[int, int]]] = []  # of each rank the rows of each expert
        end = 0
        for some in counts:
            first, own = end, []
            for count in some:
                own.append((end, end + count))
                end += count
            held.append(united([(first, end)]))
            runs.append(own)
        experts = [range(rank * self.each, (rank + 1) * self.each) for rank in range(self.size)]
        needs = tuple(united([own[expert] for own in runs for expert in some]) for some in experts)
        pieces, gathered = [], 0
        for expert in experts[self.rank]:
            for own in runs:
                first, last = own[expert]
                if first < last:
                    pieces.append((first, last, gathered))
                    gathered += last - first
        return Plan(self.rank, needs, tuple(held), Aligned(), tuple(pieces), gathered)


def _scaled(tensor: Tensor, factor: float) -> Tensor:
    """The tensor itself, whose gradient is multiplied with a factor."""
    if factor != 1.0 and tensor.requires_grad:
        tensor.register_hook(lambda gradient: gradient * factor)  # type: ignore[no-untyped-call]
    return tensor
