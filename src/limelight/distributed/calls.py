"""The calls that a rank makes for a call of the whole text: for all heads, or for some at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..forms.observations import Observations, Observe
from ..tensors.shapes import wrong
from ..tensors.tracing import is_transformed, seen_by
from .exchange import Pending, begin, exchanged, returned
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
        of_heads = own_settings(settings.for_heads(heads), plan, index, group)
        of_heads = of_heads.replace(observe=_of_heads(observe, heads))
        calls.append(OwnCall(q, k, v, of_heads, plan, group))
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
    scores = tuple([rule.select_keys(plan.columns.to(_device(rule))) for rule in settings.scores])
    observe = own_observe(settings.observe, plan, group, exchange)
    return settings.replace(layout=plan.layout, pattern=pattern, scores=scores, observe=observe)


def _device(rule: Any) -> torch.device:
    tensors = rule.tensors()
    return tensors[0].device if tensors else torch.device("cpu")


def own_observe(
    observe: Observe | None, plan: Plan, group: Any, exchange: Callable[..., tuple[Tensor, Tensor]] = exchanged
) -> Observe | None:
    """What to observe of a rank's own call.

    Raises:
        ArgumentError: `pairs` or `blocks` are asked for.
    """
    if observe is None:
        return None
    for name in ("pairs", "blocks"):
        if getattr(observe, name) is not None:
            way_out = "Observe rows, or received, or the text in one process."
            raise wrong("observe", f"must not hold `{name}` under ContextParallel", f"it is {observe!r}", way_out)
    changes: dict[str, Any] = {}
    if observe.top:
        changes["top"] = min(observe.top, max(plan.gathered, 1))
    if observe.features is not None:
        own = observe.features[None, None]
        changes["features"] = exchange(own, own[..., :0], plan, group)[0][0, 0]
    return replace(observe, **changes)


def _of_heads(observe: Observe | None, heads: slice) -> Observe | None:
    """What to observe of a call of these query heads; ``None`` where none of them is observed."""
    if observe is None or observe.heads is None:
        return observe
    every = _listed(observe.heads)
    some = tuple([head - heads.start for head in every if heads.start <= head < heads.stop])
    return replace(observe, heads=some) if some or not every else None


def _listed(heads: Sequence[int] | Tensor) -> list[int]:
    return [int(head) for head in heads]


def joined(found: Sequence[Observations | None], calls: Sequence[OwnCall], observe: Observe | None) -> Observations:
    """The observations of several calls of consecutive heads as those of one.

    Args:
        found: of each call; ``None`` where none of its heads is observed.
        calls: the calls.
        observe: of the whole call.
    """
    some = [one for one in found if one is not None]
    if len(calls) == 1:
        return some[0]
    made = {name: _joined([getattr(one, name) for one in some], name) for name in some[0].seen()}
    if observe is not None and observe.heads is not None:
        ends = [0]
        for call in calls:
            ends.append(ends[-1] + call.query.shape[1])
        wanted = _listed(observe.heads)
        places = [n for a, b in pairwise(ends) for n, head in enumerate(wanted) if a <= head < b]
        order = torch.tensor(places).argsort()
        made = {
            name: x.index_select(1, order.to(x.device)) if x.shape[1] == len(order) else x for name, x in made.items()
        }
    return Observations(**made)


def _joined(parts: Sequence[Tensor], name: str) -> Tensor:
    """A field of all heads. Numbers of queries that are the same for all heads stay in one dimension of size 1."""
    first = parts[0]
    if name == "received_by" and first.shape[1] == 1 and all(torch.equal(x, first) for x in parts[1:]):
        return first
    return torch.cat(list(parts), 1)


def in_whole(found: Observations, plan: Plan, length: int, group: Any) -> Observations:
    """Observations of a rank's own call, with keys numbered in the whole text and sums over all ranks.

    Args:
        found: of the own call.
        plan: of the call.
        length: number of keys of the whole text.
        group: the process group.
    """
    changes: dict[str, Tensor] = {}
    index = plan.key_index
    if found.top_keys is not None and plan.gathered:
        keys = found.top_keys
        changes["top_keys"] = torch.where(keys < 0, keys, index.to(keys.device)[keys.clamp(min=0)])
    if found.rows is not None:
        there = index >= 0
        rows = found.rows.new_zeros(*found.rows.shape[:3], length)
        changes["rows"] = rows.index_add(3, index[there].to(rows.device), found.rows[..., there.to(rows.device)])
    for name in ("received", "received_by"):
        sums = getattr(found, name)
        if sums is not None:
            columns = sums[..., None]
            changes[name] = returned(columns, columns[..., :0], plan, group)[0][..., 0]
    return replace(found, **changes)
