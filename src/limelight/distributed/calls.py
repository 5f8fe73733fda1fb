"""The calls that a rank makes for a call of the whole text: for all heads, or for some at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..tensors.tracing import is_transformed, seen_by
from .exchange import Pending, begin, exchanged
from .observing import of_heads, own_observe, selected
from .plan import Plan


@dataclass(eq=False)
class OwnCall:
    """A rank's own call for consecutive heads, whose keys are gathered when it is computed.

    Args:
        query: ``(B, Hq, Lq, D)``, the rank's own, of the call's heads.
        key: ``(B, Hkv, Lk, D)``, the rank's own, not yet exchanged.
        value: ``(B, Hkv, Lk, Dv)``.
        settings: of the own call, over the gathered keys.
        plan: who needs which keys.
        group: the process group.
        following: the next call, whose exchange begins when this call's has ended.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    settings: Any
    plan: Plan
    group: Any
    following: OwnCall | None = None
    pending: Pending | None = None

    @torch.compiler.disable(reason="plans are made outside of the graph")  # type: ignore[untyped-decorator, no-untyped-call]
    def gathered(self) -> tuple[Tensor, Tensor]:
        """Keys and values of the call. The exchange of the following call begins, to go on while this is computed."""
        pending, self.pending = self.pending, None
        found = exchanged(self.key, self.value, self.plan, self.group, pending)
        if self.following is not None and not seen_by(self.key) and not is_transformed():
            one = self.following
            one.pending = begin(one.key.detach(), one.value.detach(), self.plan, self.group)
        return found


def own_calls(
    query: Tensor, key: Tensor, value: Tensor, settings: Any, plan: Plan, index: Tensor, group: Any, at_once: int | None
) -> list[OwnCall]:
    """The calls of a rank in place of one of the whole text, in the order in which every rank makes them.

    Args:
        query: ``(B, Hq, Lq, D)``, the rank's own.
        key: ``(B, Hkv, Lk, D)``.
        value: ``(B, Hkv, Lk, Dv)``.
        settings: of the whole call.
        plan: who needs which keys.
        index: of the rank's queries in the whole text.
        group: the process group.
        at_once: key heads of a call; ``None`` for all.
    """
    if at_once is None or exchanges(key.shape[1], at_once, bool(settings.dropout)) == 1:
        return [OwnCall(query, key, value, own_settings(settings, plan, index, group), plan, group)]
    observe = own_observe(settings.observe, plan, group)
    shared = query.shape[1] // key.shape[1]  # query heads of a key head
    calls: list[OwnCall] = []
    parts = zip(
        torch.split(query, at_once * shared, 1),
        torch.split(key, at_once, 1),
        torch.split(value, at_once, 1),
        strict=True,
    )
    for n, (q, k, v) in enumerate(parts):
        heads = slice(n * at_once * shared, n * at_once * shared + q.shape[1])
        own = own_settings(settings.for_heads(heads), plan, index, group).replace(observe=of_heads(observe, heads))
        calls.append(OwnCall(q, k, v, own, plan, group))
    for one, following in pairwise(calls):
        one.following = following
    return calls


def exchanges(key_heads: int, at_once: int | None, dropout: bool) -> int:
    """How many exchanges, each of some key heads, a call makes.

    Dropout numbers the heads of a kernel's call from 0, so under it all heads are computed at once: other weights would
    be dropped.
    """
    return 1 if at_once is None or dropout else -(-key_heads // at_once)


def own_settings(
    settings: Any,
    plan: Plan,
    index: Tensor,
    group: Any,
    exchange: Callable[..., tuple[Tensor, Tensor]] = exchanged,
) -> Any:
    """The settings of a rank's own call.

    Args:
        settings: of the whole call.
        plan: who needs which keys.
        index: of the rank's queries in the whole text.
        group: the process group.
        exchange: how features of keys are gathered.
    """
    pattern = settings.pattern and settings.pattern.select(index, plan.columns)
    scores = tuple([selected(rule, plan.columns) for rule in settings.scores])
    observe = own_observe(settings.observe, plan, group, exchange)
    return settings.replace(layout=plan.layout, pattern=pattern, scores=scores, observe=observe)
