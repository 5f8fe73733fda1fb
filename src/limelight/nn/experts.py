"""Mixtures of experts: several feed-forward networks, of which a few are computed for each token."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from ..tensors.shapes import whole_number
from .checks import checked, refuse_recorders
from .feed_forward import GatedFeedForward
from .routing import Routing, TopK, report


class ExpertRanks(Protocol):
    """The processes among which the experts of a mixture are divided (`limelight.distributed.divide_experts`)."""

    def computed(
        self, run: Callable[[Tensor, list[int]], list[Tensor]], tokens: Tensor, counts: list[int]
    ) -> list[Tensor]:
        """Send tokens to the processes of their experts, compute there, and bring the results back.

        Args:
            run: computes the tokens of the experts of this process, given as these are.
            tokens: ``(n, width)`` of this process, sorted by expert.
            counts: how many of them each expert gets.

        Returns:
            The results, which end to end are in the order of ``tokens``.
        """


class ExpertElsewhere(nn.Module):
    """An expert whose parameters another process holds.

    Args:
        owner: the rank of that process among those of the experts.
        shapes: shape and dtype of each of its parameters.
    """

    def __init__(self, owner: int, shapes: dict[str, tuple[torch.Size, torch.dtype]]) -> None:
        super().__init__()
        self.owner, self.shapes = owner, shapes


@checked
class MixtureOfExperts(nn.Module):
    """``sum over the chosen e of weight_e(x) * expert_e(x)``, plus the shared experts, computed for every token.

    (Shazeer et al. 2017, arXiv:1701.06538; shared experts Dai et al. 2024, arXiv:2401.06066.) Tokens are sorted by
    expert, and an expert sees its own tokens and no other: the cost is that of ``k`` experts, however many there are.
    The routing is reported to `limelight.nn.routings`, for `balance_loss` and `z_loss`.

    Args:
        width: features per token (``d_model``).
        inner: features between the two matrices of an expert.
        activation: that of an expert, a name of `limelight.nn.ACTIVATIONS`.
        experts: ``E``, the number of experts to choose from.
        expert: makes one from ``(width, inner=..., activation=...)``.
        router: makes the router from ``(width, experts=...)``: `limelight.nn.TopK` or `limelight.nn.Switch`.
        shared: makes, from the width, a feed-forward that is added for every token; ``None`` for none.
        balance: weight of `limelight.nn.balance_loss` in the loss of training (`limelight.training.Objective` adds it,
            the layer itself does not); 0 for none.
        z: weight of `limelight.nn.z_loss` in the loss of training; 0 for none.
        name: of this layer in `limelight.nn.routings`.
    """

    #: Whether experts without tokens run too, so that each process of several has a gradient of every expert.
    runs_all = False
    #: The processes among which the experts are divided; ``None`` where this one holds all.
    ranks: ExpertRanks | None = None

    def __init__(
        self,
        width: int,
        *,
        inner: int,
        activation: str,
        experts: int,
        expert: Callable[..., nn.Module] = GatedFeedForward,
        router: Callable[..., nn.Module] = TopK,
        shared: Callable[[int], nn.Module] | None = None,
        balance: float = 0.0,
        z: float = 0.0,
        name: str | None = None,
    ) -> None:
        super().__init__()
        self.name, self.balance, self.z = name, balance, z
        self.router = router(width, experts=whole_number("experts", experts, at_least=1))
        self.experts = nn.ModuleList(expert(width, inner=inner, activation=activation) for _ in range(experts))
        self.shared = None if shared is None else shared(width)

    def forward(self, states: Tensor) -> Tensor:
        """``(B, L, width)`` to ``(B, L, width)``.

        Raises:
            BackendError: PyTorch records the operations for other states, as ``torch.jit.trace`` does.
        """
        refuse_recorders(self, states, "which expert reads which token")
        routing: Routing = self.router(states)
        report(self.name, routing)
        flat = states.flatten(0, -2)
        k = routing.chosen.shape[-1]
        chosen = routing.chosen.reshape(-1)  # (N * k)
        order = chosen.argsort(stable=True)  # the choices of full experts, -1, first; then by expert, then by token
        counts = torch.bincount(chosen + 1, minlength=len(self.experts) + 1).tolist()
        unread, tokens = torch.split(flat[order // k], [counts[0], len(order) - counts[0]])
        compute = self._results if self.ranks is None else partial(self.ranks.computed, self._results)
        results = [torch.zeros_like(unread), *compute(tokens, counts[1:])]
        back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        each = torch.cat(results)[back].view(len(flat), k, flat.shape[-1])
        mixed = (each * routing.weights.reshape(-1, k, 1).to(each.dtype)).sum(-2).view_as(states)
        return mixed if self.shared is None else mixed + self.shared(states)

    def _results(self, tokens: Tensor, counts: list[int]) -> list[Tensor]:
        """The results of the experts of this process for their tokens ``(n, width)``."""
        own = [expert for expert in self.experts if not isinstance(expert, ExpertElsewhere)]
        chosen_by = zip(own, torch.split(tokens, counts), strict=True)
        return [expert(mine) for expert, mine in chosen_by if len(mine) or self.runs_all]
