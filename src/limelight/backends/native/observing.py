"""Observations as the library records them (``ll_observation``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ...forms.lowering import Lowered
from ...forms.observations import Observations, Observe
from ..contract import Call
from .addresses import SUM_OPTIONS, plain, pointer
from .structures import OBSERVATION

if TYPE_CHECKING:
    from numpy.typing import NDArray


def start(observe: Observe, call: Call, kept: list[Any]) -> tuple[Observations, bytes]:
    """Observations that the library fills, initialised as for a query that belongs to no document, and
    ``ll_observation`` that points to them; ``kept`` receives what else it points to.
    """
    B, Hq, Lq, Lk = call.shapes.scores
    heads = list(range(Hq)) if observe.heads is None else list(observe.heads)
    H = len(heads)
    seen = Observations()
    numbers = SUM_OPTIONS[call.query.dtype]
    if observe.logsumexp:
        seen.logsumexp = torch.full((B, H, Lq), -torch.inf, **numbers)
        if call.sink is not None:
            seen.logsumexp.copy_(plain("sink", call.sink, call.query.dtype)[heads][:, None])
    if observe.max_score:
        seen.max_score = torch.full((B, H, Lq), -torch.inf, **numbers)
    if observe.max_weight:
        seen.max_weight = torch.zeros(B, H, Lq, **numbers)
    if observe.entropy:
        seen.entropy = torch.zeros(B, H, Lq, **numbers)
    if observe.distance:
        seen.distance = torch.zeros(B, H, Lq, **numbers)
    if observe.top:
        seen.top_weights = torch.zeros(B, H, Lq, observe.top, **numbers)
        seen.top_keys = torch.full((B, H, Lq, observe.top), -1, dtype=torch.int64, device="cpu")
    if observe.received:
        seen.received = torch.zeros(B, H, Lk, **numbers)
    features = rows = pairs = None
    if observe.features is not None:
        features = plain("features", observe.features, call.query.dtype)
        seen.features = torch.zeros(B, H, Lq, features.shape[1], **numbers)
    if observe.rows is not None:
        rows = _sorted(torch.as_tensor(observe.rows, dtype=torch.int64, device="cpu").reshape(-1))
        seen.rows = torch.zeros(B, H, len(rows), Lk, **numbers)
    if observe.pairs is not None:
        pairs = _sorted(torch.as_tensor(observe.pairs, dtype=torch.int64, device="cpu").reshape(-1, 2))
        seen.pairs = torch.zeros(B, H, len(pairs), **numbers)
    bq, bk = observe.blocks or (0, 0)
    if observe.blocks is not None:
        seen.blocks = torch.zeros(B, H, -(-Lq // bq), -(-Lk // bk), **numbers)
    chosen = torch.tensor(heads, dtype=torch.int64, device="cpu")
    kept += [chosen, features, rows, pairs]
    packed = OBSERVATION.pack(
        heads=chosen.data_ptr(), head_count=H,
        logsumexp=pointer(seen.logsumexp), max_score=pointer(seen.max_score), max_weight=pointer(seen.max_weight),
        entropy=pointer(seen.entropy), distance=pointer(seen.distance),
        top=observe.top, top_weights=pointer(seen.top_weights), top_keys=pointer(seen.top_keys),
        received=pointer(seen.received),
        features=pointer(features), feature_count=0 if features is None else features.shape[1],
        feature_stride=0 if features is None else features.stride(0), features_out=pointer(seen.features),
        rows=pointer(rows), row_count=0 if rows is None else len(rows), rows_out=pointer(seen.rows),
        pairs=pointer(pairs), pair_count=0 if pairs is None else len(pairs), pairs_out=pointer(seen.pairs),
        block_queries=bq, block_keys=bk, blocks_out=pointer(seen.blocks),
    )  # fmt: skip
    return seen, packed


def finish(seen: Observations, observe: Observe, lowered: Lowered) -> None:
    """Put chosen rows and pairs back in the caller's order, and count pairs, which follow from the pattern alone."""
    if seen.rows is not None:
        order = _order(torch.as_tensor(observe.rows, dtype=torch.int64, device="cpu").reshape(-1))
        seen.rows = seen.rows[:, :, order.argsort()]
    if seen.pairs is not None:
        order = _order(torch.as_tensor(observe.pairs, dtype=torch.int64, device="cpu").reshape(-1, 2))
        seen.pairs = seen.pairs[:, :, order.argsort()]
    if observe.received:
        seen.received_by = _of_heads(lowered.seen_by(), observe.heads)
    if observe.blocks is not None:
        seen.block_pairs = _of_heads(lowered.block_pairs(*observe.blocks), observe.heads)


def _order(indices: Tensor) -> Tensor:
    return (indices if indices.dim() == 1 else indices[:, 0]).argsort(stable=True)


def _sorted(indices: Tensor) -> Tensor:
    """By query, since the library finds those of a tile by bisection."""
    return indices[_order(indices)].contiguous()


def _of_heads(counts: NDArray[np.int64], heads: tuple[int, ...] | None) -> Tensor:
    found = torch.from_numpy(counts)
    return found if heads is None or found.shape[1] == 1 else found[:, list(heads)]
