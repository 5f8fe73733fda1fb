"""Observations under context parallelism: of a rank's own call, and what they are in the whole text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..forms.lowering import Lowered
from ..forms.observations import Observations, Observe
from ..forms.scores import ScoreRule
from ..operator.calling import prepare, run
from ..tensors.shapes import wrong
from .exchange import exchanged, returned
from .plan import Plan
from .runs import count


def own_observe(
    observe: Observe | None, plan: Plan, group: Any, exchange: Callable[..., tuple[Tensor, Tensor]] = exchanged
) -> Observe | None:
    """What to observe of a rank's own call; blocks are observed by `block_sums`.

    Args:
        observe: of the whole call.
        plan: of the call.
        group: the process group.
        exchange: how features of keys are gathered.
    """
    if observe is None:
        return None
    changes: dict[str, Any] = {"blocks": None}
    if observe.top:
        changes["top"] = min(observe.top, max(plan.gathered, 1))
    if observe.features is not None:
        own = observe.features[None, None]
        changes["features"] = exchange(own, own[..., :0], plan, group)[0][0, 0]
    if observe.pairs is not None:
        changes["pairs"] = own_pairs(observe.pairs, plan)[1]
    return replace(observe, **changes)


def selected(rule: ScoreRule, keys: Tensor, queries: Tensor | None = None) -> ScoreRule:
    """A score rule for some keys, and some queries; ``None`` for all of these."""
    tensors = rule.tensors()
    device = tensors[0].device if tensors else torch.device("cpu")
    rule = rule if queries is None else rule.select_queries(queries.to(device))
    return rule.select_keys(keys.to(device))


def own_pairs(pairs: Any, plan: Plan) -> tuple[Tensor, Tensor]:
    """The pairs of own queries and keys of the whole text whose keys were gathered for the query's run.

    Returns:
        ``(n,)`` int64, which pairs these are, ascending; and ``(n, 2)`` int64, query and key by index in the own call.
        A query sees no other key.

    Raises:
        ArgumentError: an index is not that of an own query, or of a key of the whole text.
    """
    query, key = torch.as_tensor(pairs, dtype=torch.int64, device="cpu").reshape(-1, 2).unbind(1)
    own, whole = count(tuple((a, b) for a, b, _ in plan.queries)), sum(map(count, plan.held))
    for indices, size, what in ((query, own, "the rank's own queries"), (key, whole, "keys of the whole text")):
        if indices.numel() and not (int(indices.min()) >= 0 and int(indices.max()) < size):
            got = f"they run from {int(indices.min())} to {int(indices.max())}"
            raise wrong("pairs", f"must hold indices of {what}, from 0 to {size - 1}", got, "Indices count from 0.")
    ends = torch.tensor([place + last - first for first, last, place in plan.queries])
    run = torch.searchsorted(ends, query, right=True)
    place = torch.full_like(key, -1)
    for number, (first, last, begin) in zip(plan.runs, plan.pieces, strict=True):
        place = torch.where((run == number) & (key >= first) & (key < last), key - first + begin, place)
    which = (place >= 0).nonzero()[:, 0]
    return which, torch.stack([query[which], place[which]], 1)


def of_heads(observe: Observe | None, heads: slice) -> Observe | None:
    """What to observe of a call of these query heads; ``None`` where none of them is observed."""
    if observe is None or observe.heads is None:
        return observe
    every = _listed(observe.heads)
    some = tuple([head - heads.start for head in every if heads.start <= head < heads.stop])
    return replace(observe, heads=some) if some or not every else None


def _listed(heads: Sequence[int] | Tensor) -> list[int]:
    return [int(head) for head in heads]


def joined(found: Sequence[Observations | None], heads: Sequence[int], observe: Observe | None) -> Observations:
    """The observations of several calls of consecutive heads as those of one.

    Args:
        found: of each call; ``None`` where none of its heads is observed.
        heads: query heads of each call.
        observe: of the whole call.
    """
    some = [one for one in found if one is not None]
    if len(heads) == 1:
        return some[0]
    made = {name: _joined([getattr(one, name) for one in some], name) for name in some[0].seen()}
    if observe is not None and observe.heads is not None:
        ends = [0]
        for number in heads:
            ends.append(ends[-1] + number)
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


def in_whole(found: Observations, observe: Observe, plan: Plan, length: int, group: Any) -> Observations:
    """Observations of a rank's own call, with keys numbered in the whole text and sums over all ranks.

    Args:
        found: of the own call.
        observe: what was to be observed.
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
    if found.pairs is not None:
        which = own_pairs(observe.pairs, plan)[0].to(found.pairs.device)
        zeros = found.pairs.new_zeros(*found.pairs.shape[:2], len(torch.as_tensor(observe.pairs).reshape(-1, 2)))
        changes["pairs"] = zeros.index_copy(2, which, found.pairs)
    for name in ("received", "received_by"):
        sums = getattr(found, name)
        if sums is not None:
            columns = sums[..., None]
            changes[name] = returned(columns, columns[..., :0], plan, group)[0][..., 0]
    return replace(found, **changes)


@torch.compiler.disable(reason="plans are made outside of the graph")  # type: ignore[untyped-decorator, no-untyped-call]
@torch.no_grad()
def block_sums(
    query: Tensor, key: Tensor, settings: Any, plan: Plan, lowered: Lowered, group: Any
) -> dict[str, Tensor]:
    """`Observe.blocks` of the whole text, on every rank: ``blocks`` and ``block_pairs``.

    The own queries and their keys are laid out once more, so that each lies where it lies in a block of the whole text.
    A call of these, whose output is not used, gives sums of parts of blocks, which are added up over all ranks.

    Args:
        query: ``(B, Hq, Lq, D)``, the rank's own.
        key: ``(B, Hkv, Lk, D)``, the rank's own, not yet exchanged.
        settings: of the whole call.
        plan: made with the ``blocks`` of `make_plan`.
        lowered: the pattern in the whole text.
        group: the process group.
    """
    observe: Observe = settings.observe
    assert observe.blocks is not None
    bq, bk = observe.blocks
    places = plan.query_index
    rows = query.new_zeros(*query.shape[:2], len(places), query.shape[3])
    there = (places >= 0).to(query.device)
    rows[:, :, there] = query
    keys, values = exchanged(key, key[..., :1], plan, group)
    number = (there.cumsum(0) - 1).clamp(min=0)
    scores = [selected(rule, plan.columns, number) for rule in settings.scores]
    pattern = settings.pattern and settings.pattern.select(places.clamp(min=0), plan.columns)
    observed = Observe(blocks=observe.blocks, heads=observe.heads)
    own = settings.replace(layout=plan.layout, pattern=pattern, scores=scores, observe=observed, dropout=0.0, seed=None)
    found = run(prepare(rows, keys, values, own), None).observations
    assert found is not None
    sums = found.blocks
    assert sums is not None
    Lq, Lk = lowered.Lq, lowered.Lk
    of_queries, of_keys = _blocks_of(places, bq).to(sums.device), _blocks_of(plan.key_index, bk).to(sums.device)
    of_rows = sums.new_zeros(*sums.shape[:3], -(-Lk // bk)).index_add_(3, of_keys, sums)
    whole = sums.new_zeros(*sums.shape[:2], -(-Lq // bq), -(-Lk // bk)).index_add_(2, of_queries, of_rows)
    dist.all_reduce(whole, group=group)
    pairs = torch.from_numpy(lowered.block_pairs(bq, bk)).to(sums.device)
    if observe.heads is not None and pairs.shape[1] > 1:
        pairs = pairs[:, _listed(observe.heads)]
    return {"blocks": whole, "block_pairs": pairs}


def _blocks_of(index: Tensor, size: int) -> Tensor:
    """Which block of the whole text each block of the own call is a part of; 0 for one that is empty.

    Args:
        index: ``(n,)`` int64, of each query or key in the whole text; -1 between pieces.
        size: of a block.
    """
    padded = torch.nn.functional.pad(index, (0, -len(index) % size), value=-1)
    return padded.view(-1, size).amax(1).clamp(min=0) // size
