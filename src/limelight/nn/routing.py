"""Routers of mixtures: which expert or head is computed for which token, and the losses that balance them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from ..tensors.shapes import describe, whole_number, wrong
from .checks import checked, of_width, unreadable
from .dropout import drawn

#: Adds up a tensor over processes, without a gradient.
Total: TypeAlias = "Callable[[Tensor], Tensor]"


def shares(logits: Tensor) -> Tensor:
    """The softmax over the experts, at least in float32."""
    return logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))


class Routing(NamedTuple):
    """The choice of ``k`` among ``E`` experts (or heads) for each token; ``...`` is ``(B, L)``."""

    logits: Tensor  # (..., E)
    chosen: Tensor  # (..., k) int64, -1 where the expert was full
    weights: Tensor  # (..., k), the weight of the result of each; 0 where it was full


_seen: ContextVar[list[tuple[str | None, Routing]] | None] = ContextVar("routings", default=None)


@contextmanager
def routings() -> Iterator[list[tuple[str | None, Routing]]]:
    """Collect the choices of every router inside, as ``(name of the layer, Routing)``, for the losses of training.

    >>> import torch
    >>> from limelight.nn import MixtureOfExperts, balance_loss, routings
    >>> layer = MixtureOfExperts(8, inner=16, activation="silu", experts=4)
    >>> with routings() as seen:
    ...     output = layer(torch.randn(2, 5, 8))
    >>> loss = output.square().mean() + 0.01 * sum(balance_loss(routing) for _, routing in seen)
    """
    found: list[tuple[str | None, Routing]] = []
    token = _seen.set(found)
    try:
        yield found
    finally:
        _seen.reset(token)


def report(name: str | None, routing: Routing) -> None:
    """Add a routing to the `routings` around the call."""
    found = _seen.get()
    if found is not None:
        found.append((name, routing))


def balance_loss(routing: Routing, exists: Tensor | None = None, total: Total | None = None) -> Tensor:
    """``E * sum_e f_e P_e`` (Fedus et al. 2021, arXiv:2101.03961, eqs. 4 to 6; for heads arXiv:2410.11842, eq. 6).

    ``f_e`` is how often expert ``e`` is among the ``k`` choices of a token, ``P_e`` its share of the softmax, both as
    means over the tokens. The loss is ``k`` when all are chosen equally often; its gradient goes through ``P``. The
    choices count as the router made them, whether or not the expert was full, and are read from the logits.

    Args:
        routing: of one layer.
        exists: ``(B, L)`` bool, which tokens count; ``None`` for all.
        total: adds up a tensor over the processes among which the tokens of a text are divided. The loss is then the
            part of this process: the sum over the processes is the loss of the whole text.
    """
    share, k = shares(routing.logits), routing.chosen.shape[-1]
    first = torch.zeros_like(share).scatter(-1, share.topk(k).indices, 1.0)
    if exists is not None:
        share, first = share[exists], first[exists]
    share, first = share.flatten(0, -2), first.flatten(0, -2)
    often, tokens = first.sum(0), len(share) if total is None else total(first.new_tensor(len(first)))
    often = often if total is None else total(often)
    return share.shape[-1] * (often / tokens * (share.sum(0) / tokens)).sum()


def z_loss(routing: Routing, exists: Tensor | None = None, total: Total | None = None) -> Tensor:
    """``mean(logsumexp(logits) ** 2)``: keeps logits small (Zoph et al. 2022, arXiv:2202.08906, eq. 5).

    Args:
        routing: of one layer.
        exists: ``(B, L)`` bool, which tokens count; ``None`` for all.
        total: as in `balance_loss`.
    """
    logits = routing.logits if exists is None else routing.logits[exists]
    squares = logits.to(torch.promote_types(logits.dtype, torch.float32)).logsumexp(-1).square()
    return squares.mean() if total is None else squares.sum() / total(squares.new_tensor(squares.numel()))


@checked
class TopK(nn.Module):
    """The ``k`` experts of the largest share: ``softmax(W x)``, renormalised over them (Mixtral, arXiv:2401.04088).

    Args:
        width: features per token (``d_model``).
        experts: ``E``.
        k: how many are computed for a token.
        normalise: whether the weights of the chosen are divided by their sum (Shazeer et al. 2017, arXiv:1701.06538).
        jitter: in training states are multiplied with random factors from ``1 - jitter`` to ``1 + jitter``.
    """

    def __init__(self, width: int, *, experts: int, k: int = 2, normalise: bool = True, jitter: float = 0.0) -> None:
        super().__init__()
        if whole_number("k", k, at_least=1) > experts:
            raise wrong("k", f"must be at most the {experts} experts there are", f"it is {k}", f"Use k <= {experts}.")
        self.k, self.normalise, self.jitter = k, normalise, jitter
        self.weight = nn.Parameter(torch.empty(experts, width))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)  # as PyTorch begins its linear layers

    def forward(self, states: Tensor) -> Routing:
        """``(B, L, width)`` to its `Routing`.

        Raises:
            ArgumentError: states of another width, dtype or device, or without a batch.
        """
        logits = _logits(states, self)
        weights, chosen = shares(logits).topk(self.k, dim=-1)
        if self.normalise:
            weights = weights / weights.sum(-1, keepdim=True)
        return Routing(logits, chosen, weights)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]} experts, k={self.k}, normalise={self.normalise}, jitter={self.jitter}"


@checked
class Switch(nn.Module):
    """One expert a token, weighted by its share, until the expert is full (Fedus et al. 2021, arXiv:2101.03961).

    In each row of the batch an expert takes at most ``capacity`` tokens, the first ones; the others have the result 0,
    and the residual connection passes them on. Counting by row keeps a text independent of its neighbours.

    Args:
        width: features per token (``d_model``).
        experts: ``E``.
        capacity: tokens of a row that an expert takes: an int, or a float that is multiplied with the even share
            ``L / E`` and rounded up; ``None`` for no limit.
        jitter: in training states are multiplied with random factors from ``1 - jitter`` to ``1 + jitter``.
    """

    def __init__(self, width: int, *, experts: int, capacity: int | float | None = 1.25, jitter: float = 0.0) -> None:
        super().__init__()
        if capacity is not None and capacity <= 0:
            raise wrong("capacity", "must be above 0", f"it is {capacity}", "None sets no limit.")
        self.capacity, self.jitter = capacity, jitter
        self.weight = nn.Parameter(torch.empty(experts, width))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)

    @property
    def reads_other_tokens(self) -> str | None:
        """Why the tokens of a text must lie in one process; ``None`` without a capacity."""
        return None if self.capacity is None else "an expert is full after a number of tokens of the whole text"

    def forward(self, states: Tensor) -> Routing:
        """``(B, L, width)`` to its `Routing`.

        Raises:
            ArgumentError: states of another width, dtype or device, or without a batch.
        """
        logits = _logits(states, self)
        weights, chosen = shares(logits).max(-1, keepdim=True)
        if self.capacity is not None:
            L, experts = states.shape[-2], len(self.weight)
            most = self.capacity if isinstance(self.capacity, int) else -int(-self.capacity * L // experts)
            taken = nn.functional.one_hot(chosen[..., 0], experts).cumsum(-2).gather(-1, chosen)  # this one included
            full = taken > most
            chosen, weights = chosen.masked_fill(full, -1), torch.where(full, 0.0, weights)
        return Routing(logits, chosen, weights)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]} experts, capacity={self.capacity}, jitter={self.jitter}"


def _logits(states: Tensor, router: TopK | Switch) -> Tensor:
    width = router.weight.shape[1]
    if not of_width(states, width, router.weight):
        raise unreadable(states, width, router.weight)
    if states.dim() < 2:
        got = f"they are {describe(states)}"
        raise wrong("states", "must be (B, L, width)", got, "One token is a text of one: states[None, None].")
    if router.training and router.jitter:
        states = states * drawn(states, lambda whole: whole.uniform_(1 - router.jitter, 1 + router.jitter))
    return nn.functional.linear(states, router.weight)
