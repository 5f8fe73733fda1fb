"""The store of a layer that keeps only some keys: each key head of each row holds its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...backends import huge_pages
from ...operator.attention import attention
from ...tensors.shapes import wrong
from ...tensors.tracing import uncompiled
from .folding import RECEIVED, Heads, attend, check_settings, observed, plain, ranges
from .policies import HeldKeys, Keep, Numbers
from .precision import DENSE, Cached, Precision
from .stores import FIRST, NewTokens, Store


@dataclass(frozen=True, eq=False)
class Kept:
    """What a layer keeps of the texts that were read.

    Args:
        positions: of each row, of each key head: ``(n,)`` int64, the positions of the tokens whose keys are kept,
            ascending.
        evicted: ``(B, Hkv)`` int64, how many keys were evicted.
        evicted_weight: ``(B, Hkv)`` float32, which share of the observed weight the evicted keys had received: of all
            weight so far under `Received`, of that of the last queries at the latest eviction under `LastQueries`;
            ``None`` where no weight is observed.
    """

    positions: tuple[tuple[Tensor, ...], ...]
    evicted: Tensor
    evicted_weight: Tensor | None = None

    @property
    def counts(self) -> Tensor:
        """``(B, Hkv)`` int64, how many keys are kept."""
        return torch.tensor([[len(head) for head in row] for row in self.positions], dtype=torch.int64)


class KeptStore(Store):
    """The keys and values that a policy keeps, of each key head of each row.

    Args:
        keep: the policy.
        layer: number of the layer, from 0.
        layers: how many there are; ``None`` where that is not known.
        precision: in which keys and values are kept.
    """

    def __init__(self, keep: Keep, layer: int = 0, layers: int | None = None, precision: Precision = DENSE) -> None:
        none = np.zeros(0, np.int64)
        self.keep, self.layer, self.layers, self.precision = keep, layer, layers, precision
        self.buffers: list[Tensor] = []  # (T, ...) each, of `Precision`: those of a head in the order of positions
        self.positions = torch.zeros(0, dtype=torch.int64)  # (T,)
        self.received: Tensor | None = None  # (T,) weight that each key has received, mean over its group
        self.queries: Tensor | None = None  # (B, Hq, window, D): that of position p in place p % window
        self.heads, self.room = Heads(0, none, none), none  # room: (R,) places of each head
        self.evicted = none  # (R,)
        self.evicted_weight: Tensor | None = None  # (R,), a sum under `Received`, else the share of an eviction

    @uncompiled("which keys each head keeps is found out from its numbers")
    def attend(self, new: NewTokens, query: Tensor, key: Tensor, value: Tensor, settings: dict[str, Any]) -> Tensor:
        """Attention of the new queries to all that is kept and to each other; then keys beyond the budget are evicted.

        Args:
            new: the tokens of the pass.
            query: ``(B, Hq, L, D)``.
            key: ``(B, Hkv, L, D)``, of the new tokens.
            value: ``(B, Hkv, L, Dv)``.
            settings: further arguments of `limelight.attention`.

        Returns:
            ``(B, Hq, L, Dv)``.

        Raises:
            ArgumentError: settings under which a query sees a key by its distance or index; an earlier pass that was
                interrupted.
        """
        check_settings(settings)
        B = len(query)
        self._add(new, key, value)
        if new.continues:
            none, count = np.zeros(B, np.int64), _each(new.count, B)
            wanted = self.keep.by.observes
            output, weight = attend(query, self._folded(), self.heads, none, count, settings, received=wanted)
            if self.received is not None and weight is not None:
                self.received += weight
        else:
            output = self._first(new, query, key, value, settings)
        if self.keep.by.window:
            self._hold_queries(new, query)
        self._evict(_each(new.after, B), settings)
        return output

    def _add(self, new: NewTokens, key: Tensor, value: Tensor) -> None:
        """Write the new keys and values behind those of their heads."""
        B, H, L, _ = key.shape
        device, parts = key.device, self.precision.split(key, value)
        if not self.buffers:
            self.evicted = self.room = np.zeros(B * H, np.int64)
            self.heads = Heads(H, self.room, self.room)
            self.buffers = [x.new_zeros(0, x.shape[3]) for x in parts]
            self.positions = self.positions.to(device)
            if self.keep.by.observes:
                self.received = key.new_zeros(0, dtype=torch.promote_types(key.dtype, torch.float32))
        if ((self.heads.count + self.evicted).reshape(B, H) != _each(new.before, B)[:, None]).any():
            got = "a pass ended before all layers had read its tokens"
            raise wrong("cache", "must hold whole passes", got, "Read the text again with a new cache.")
        needed = self.heads.count + np.repeat(_each(new.count, B), H)
        if (needed > self.room).any():
            budget = np.repeat(self._budget(_each(new.after, B)), H)
            growth = np.maximum(self._spare(needed), np.minimum(needed // 2, budget - needed))
            self._move(self.heads.places(), self.heads.count, needed + growth)
        behind = torch.from_numpy(self.heads.start + self.heads.count).to(device).view(B, H)
        if new.exists is None:
            places = (behind[:, :, None] + torch.arange(L, device=device)).flatten()
            written = [x.reshape(-1, x.shape[3]) for x in parts]
            positions = new.positions[:, None].expand(B, H, L).flatten()
        else:
            row, token = new.exists.nonzero(as_tuple=True)
            at = new.positions[row, token]
            before = torch.as_tensor(new.before, device=device).expand(B)
            places = (behind[row] + (at - before[row])[:, None]).flatten()
            written = [x[row, :, token].flatten(0, 1) for x in parts]
            positions = at[:, None].expand(-1, H).flatten()
        for buffer, tensor in zip((*self.buffers, self.positions), (*written, positions), strict=True):
            buffer.index_copy_(0, places, tensor)
        self.heads = Heads(H, self.heads.start, needed)

    def _first(self, new: NewTokens, query: Tensor, key: Tensor, value: Tensor, settings: dict[str, Any]) -> Tensor:
        """The call of a pass before which nothing was kept, as without a policy."""
        if self.received is None:
            return plain(attention(query, key, value, layout=new.layout, **settings))
        call = attention(query, key, value, layout=new.layout, observe=RECEIVED, **settings)
        output, weight = observed(call, self.heads.number)
        exists = None if new.exists is None else new.exists[:, None].expand(weight.shape)
        by_head = weight.flatten() if exists is None else weight[exists]  # in the order of the store
        places = torch.from_numpy(self.heads.places()).to(weight.device)
        self.received.index_copy_(0, places, by_head.to(self.received.dtype))
        return output

    def _hold_queries(self, new: NewTokens, query: Tensor) -> None:
        """Keep the last queries of each row in their places."""
        window, B = self.keep.by.window, len(query)
        if self.queries is None:
            self.queries = query.new_zeros(B, query.shape[1], window, query.shape[3])
        after = torch.as_tensor(new.after, device=query.device).expand(B)[:, None]
        last = new.positions >= after - window
        row, token = (last if new.exists is None else last & new.exists).nonzero(as_tuple=True)
        position = new.positions.expand(B, -1)[row, token]
        self.queries[row, :, position % window] = query[row, :, token]

    def _budget(self, after: Numbers) -> Numbers:
        return self.keep.budget(after, self.layer, self.layers)

    def _evict(self, after: Numbers, settings: dict[str, Any]) -> None:
        """Evict keys in the rows whose heads hold `Keep.interval` more each than their budget."""
        H, budgets = self.heads.number, self._budget(after)
        due = self.heads.count.reshape(-1, H).sum(1) >= H * (budgets + self.keep.interval)
        if not due.any():
            return
        device = self.positions.device
        places, exists = self.heads.padded(device)
        from_last = self._from_last(after, settings)[places] if self.keep.by.window else None
        received = None if self.received is None else self.received[places]
        texts, now = (torch.from_numpy(x).to(device)[:, None, None] for x in (after, due))
        held = HeldKeys(self.positions[places].where(exists, -1), exists, texts, received, from_last)
        chosen = self.keep.choose(held, budgets).where(now, exists)
        lost = exists & ~chosen
        if received is not None:
            gone = received.where(lost, 0.0).sum(-1)
            self.evicted_weight = gone if self.evicted_weight is None else self.evicted_weight + gone
        elif from_last is not None:
            share = from_last.where(lost, 0.0).sum(-1) / from_last.where(exists, 0.0).sum(-1)
            old = torch.zeros_like(share) if self.evicted_weight is None else self.evicted_weight
            self.evicted_weight = share.where(now[..., 0], old)
        self.evicted = self.evicted + lost.sum(-1).flatten().numpy(force=True)
        count = chosen.sum(-1).flatten().numpy(force=True)
        self._move(places[chosen].numpy(force=True), count, count + self._spare(count))

    def _spare(self, count: Numbers) -> Numbers:
        """Places that heads have behind ``count`` keys: for an interval, and where that is long, for half as many."""
        spare: Numbers = np.minimum(self.keep.interval, np.maximum(count // 2, FIRST))
        return spare

    def _from_last(self, after: Numbers, settings: dict[str, Any]) -> Tensor:
        """``(T,)``: the mean weight that each key receives from the last queries of its row."""
        assert self.queries is not None
        window = self.queries.shape[2]
        place = (torch.from_numpy(after)[:, None] + torch.arange(window)) % window  # the oldest first
        order = place.to(self.queries.device)[:, None, :, None].expand_as(self.queries)
        queries, count = self.queries.gather(2, order), np.minimum(after, window)
        how: dict[str, Any] = {"received": True, "watched": False}
        weight = attend(queries, self._folded(), self.heads, window - count, count, settings, **how)[1]
        assert weight is not None
        return weight / window

    def _folded(self) -> tuple[Cached, Cached]:
        """Keys and values of all heads, ``(1, 1, T, D)`` and ``(1, 1, T, Dv)``."""
        return self.precision.joined([buffer[None, None] for buffer in self.buffers])

    def _move(self, places: Numbers, count: Numbers, room: Numbers) -> None:
        """Copy the keys at ``places`` to new memory, where each head has its ``count`` of them and ``room``."""
        start = room.cumsum() - room
        source, target = (torch.from_numpy(x).to(self.positions.device) for x in (places, ranges(start, count)))
        total = int(room.sum())

        def moved(tensor: Tensor) -> Tensor:
            larger = huge_pages.zeros(tensor, (total, *tensor.shape[1:]))
            return larger.index_copy_(0, target, tensor.index_select(0, source))

        for number, buffer in enumerate(self.buffers):  # one after the other, so that one of the old ones is freed
            self.buffers[number] = moved(buffer)
        self.positions = moved(self.positions)
        self.received = None if self.received is None else moved(self.received)
        self.heads, self.room = Heads(self.heads.number, start, count), room

    def select(self, rows: Tensor) -> None:
        if not self.buffers:
            return
        rows, H = rows.cpu(), self.heads.number
        heads = (rows.numpy()[:, None] * H + np.arange(H)).flatten()
        self.evicted = self.evicted[heads]
        if self.evicted_weight is not None:
            self.evicted_weight = self.evicted_weight[rows.to(self.evicted_weight.device)]
        if self.queries is not None:
            self.queries = self.queries.index_select(0, rows.to(self.queries.device))
        start, count = self.heads.start[heads], self.heads.count[heads]
        self._move(ranges(start, count), count, self.room[heads])

    def tensors(self) -> list[Tensor]:
        others = (self.positions, self.received, self.queries)
        return [*self.buffers, *(tensor for tensor in others if tensor is not None)]

    def kept(self) -> Kept:
        """Which positions are kept, and what was evicted."""
        H, parts = self.heads.number, list(zip(self.heads.start.tolist(), self.heads.count.tolist(), strict=True))
        of_head = [self.positions[a : a + n].cpu() for a, n in parts]
        rows = tuple(tuple(of_head[r : r + H]) for r in range(0, len(of_head), H))
        evicted, weight = torch.from_numpy(self.evicted).view(-1, H), self.evicted_weight
        if self.received is not None and weight is not None:
            left = [float(self.received[a : a + n].sum()) for a, n in parts]
            weight = weight / (weight + weight.new_tensor(left).view(-1, H))
        elif weight is None and (self.received is not None or self.queries is not None):
            weight = torch.zeros(evicted.shape)
        return Kept(rows, evicted, None if weight is None else weight.float().cpu())


def _each(value: int | Tensor, B: int) -> Numbers:
    """``(B,)``: one number for each row."""
    if isinstance(value, Tensor):
        return value.numpy(force=True).astype(np.int64)
    return np.full(B, value, np.int64)
