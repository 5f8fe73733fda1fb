"""What a run gathers: the statistics of every layer's attention, as a `Reading` needs them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..forms.observations import Observations, Observe, Seen
from ..text import Text
from .reading import Floats, HeadStatistics, Reading, find_sinks, number_units
from .words import join_words

EXACT_WEIGHTS = 1_200_000  # a text whose weights, over all layers and heads, are no more than this is kept exactly
BLOCKS = 64  # otherwise a heat map has this many blocks along a side,
STRONGEST = 8  # and every query's strongest keys are kept
NOTHING = Observe()


class Gathering(Protocol):
    """Observes calls of layers, and keeps what it needs of each."""

    observe: Observe

    def add(self, observations: Observations) -> None:
        """Keep what is needed of one call."""


class Watch(Seen):
    """Hands the observations of each layer to what gathers them.

    Args:
        gatherers: by the names of layers; calls of other layers are not observed.
        progress: called with the number of layers that have run.
        on_values: called with the name and the values of each layer, if given.
    """

    def __init__(
        self,
        gatherers: Mapping[str, Gathering],
        progress: Callable[[int], None],
        on_values: Callable[[str, Tensor], None] | None = None,
    ) -> None:
        super().__init__(NOTHING)
        self.gatherers, self.progress, self.on_values, self.done = gatherers, progress, on_values, 0

    def replace(self, name: str | None, query: Tensor, key: Tensor, value: Tensor, output: Tensor) -> Tensor:
        if self.on_values is not None and name is not None:
            self.on_values(name, value)
        return output

    def request(self, name: str | None, query: Tensor, key: Tensor) -> Observe:
        gatherer = self.gatherers.get(name or "")
        return NOTHING if gatherer is None else gatherer.observe

    def add(self, name: str | None, observations: Observations) -> None:
        gatherer = self.gatherers.get(name or "")
        if gatherer is not None:
            gatherer.add(observations)
            self.done += 1
            self.progress(self.done)


class Gatherer:
    """Keeps of each layer's self-attention what a `Reading` needs.

    Args:
        text: the tokens.
        causal: whether a token sees those before it alone.
        layers: number of layers.
        heads: the largest number of heads of a layer; layers with fewer have zeros for the others.
    """

    def __init__(self, text: Text, causal: bool, layers: int, heads: int) -> None:
        self.text, self.causal, self.heads = text, causal, heads
        self.length = len(text)
        exact = self.length <= BLOCKS or layers * heads * self.length**2 <= EXACT_WEIGHTS
        self.block = 1 if exact else -(-self.length // BLOCKS)
        self.special = tuple(i for i, special in enumerate(text.special) if special)
        self.candidates = tuple(dict.fromkeys((*((0,) if causal else ()), *self.special)))
        self.columns = _columns(self.candidates, self.causal, self.block)
        self.parts: dict[str, list[np.ndarray[Any, Any]]] = {}
        self.observe = self._observe(exact)

    def _observe(self, exact: bool) -> Observe:
        common: dict[str, Any] = dict.fromkeys(("entropy", "max_weight", "distance", "received"), True)
        common["blocks"] = (self.block, self.block)
        if exact:
            return Observe(**common)
        at = torch.arange(self.length, device="cpu")
        neighbours = (at, (at - 1).clamp(min=0)), (at, at), (at, (at + 1).clamp(max=self.length - 1))
        pairs = torch.cat([torch.stack(pair, 1) for pair in neighbours])  # (3 L, 2)
        features = torch.zeros(self.length, max(1, len(self.columns)), dtype=torch.float32, device="cpu")
        for column, members in enumerate(self.columns.values()):
            features[list(members), column] = 1.0
        return Observe(**common, top=STRONGEST, pairs=pairs, features=features)

    def add(self, observations: Observations) -> None:
        """Keep the statistics of one layer, and drop its other observations."""
        seen = {
            key: tensor[0].detach().float() for key, tensor in observations.seen().items() if tensor.is_floating_point()
        }
        for key in ("entropy", "max_weight", "distance"):
            self._keep(key, seen[key].mean(-1))
        self._keep("received", seen["received"].mean(0))
        self._keep("received_first", seen["received"][:, 0])  # (H,)
        rows = torch.full((seen["blocks"].shape[-2],), float(self.block), dtype=torch.float32, device="cpu")
        rows[-1] = self.length - self.block * (len(rows) - 1)
        self._keep("shares", seen["blocks"] / rows.to(seen["blocks"])[:, None])
        if self.block > 1:
            self._keep("neighbours", seen["pairs"].reshape(-1, 3, self.length))  # (H, 3, L)
            self._keep("features", _by_block(seen["features"], self.block))  # (H, T, F)
            self._keep("top_weights", seen["top_weights"])
            assert observations.top_keys is not None
            self._keep("top_keys", observations.top_keys[0].to(torch.int32))

    def _keep(self, key: str, tensor: Tensor) -> None:
        """Keep a tensor of one layer, with zeros for the heads that other layers have more."""
        array = tensor.cpu().numpy()
        if key != "received" and len(array) < self.heads:
            array = np.concatenate([array, np.zeros((self.heads - len(array), *array.shape[1:]), array.dtype)])
        self.parts.setdefault(key, []).append(array)

    def reading(self, hidden: Sequence[Tensor], keep_vectors: bool, unknown: str | None) -> Reading:
        """Everything together, after the run."""
        text, length = self.text, self.length
        parts = {key: np.stack(values) for key, values in self.parts.items()} or self._nothing()
        tokens, words = join_words(text.text, text.tokens, text.spans, text.special)
        shares = parts["shares"]
        exact = self.block == 1
        sinks = find_sinks(parts["received_first"], self.causal, length) if len(shares) else ()
        apart = tuple(sorted({*sinks, *self.special}))
        apart_shares = self._apart_shares(parts, shares, apart)
        neighbours = _diagonals(shares) if exact else parts["neighbours"]  # (N, H, 3, L)
        beside = max(1, length - 1)
        statistics = HeadStatistics(
            entropy=parts["entropy"],
            strongest=parts["max_weight"],
            distance=parts["distance"],
            previous=neighbours[:, :, 0, 1:].sum(-1) / beside,
            own=neighbours[:, :, 1].mean(-1),
            next=neighbours[:, :, 2, :-1].sum(-1) / beside,
            apart=_mean_rows(apart_shares.sum(-1), self.block, length),
        )
        none = (*shares.shape[:2], length, 0)
        units = torch.from_numpy(number_units(tokens, words)).long()
        path, steps, vectors = _paths(hidden, units, keep_vectors)
        return Reading(
            text=text.text,
            tokens=tokens,
            words=words,
            causal=self.causal,
            block=self.block,
            shares=shares,
            apart=apart,
            apart_shares=apart_shares,
            top_weights=parts.get("top_weights", np.zeros(none, np.float32)),
            top_keys=parts.get("top_keys", np.zeros(none, np.int32)),
            heads=statistics,
            received=parts["received"],
            path=path,
            steps=steps,
            vectors=vectors,
            unknown=tuple(place for place, token in enumerate(text.tokens) if token == unknown),
        )

    def _nothing(self) -> dict[str, np.ndarray[Any, Any]]:
        """Of a decoder whose layers have cross-attention alone."""
        per_head, per_token = np.zeros((0, self.heads), np.float32), np.zeros((0, self.length), np.float32)
        shares = np.zeros((0, self.heads, self.length, self.length), np.float32)
        statistics = dict.fromkeys(("entropy", "max_weight", "distance", "received_first"), per_head)
        return {**statistics, "received": per_token, "shares": shares}

    def _apart_shares(self, parts: dict[str, Any], shares: Floats, apart: tuple[int, ...]) -> Floats:
        """The part of every cell of the heat maps that falls on tokens set apart."""
        only = np.zeros_like(shares)
        if self.block == 1:
            only[..., list(apart)] = shares[..., list(apart)]
            return only
        for column, (block, members) in enumerate(self.columns.items()):
            if members[0] in apart:
                only[..., max(block, 0)] += parts["features"][..., column]
        return only


def _columns(candidates: tuple[int, ...], causal: bool, block: int) -> dict[int, tuple[int, ...]]:
    """Tokens that may be set apart, by block of keys; the first token of a causal model by itself, as block -1."""
    columns: dict[int, tuple[int, ...]] = {}
    for position in candidates:
        number = -1 if causal and position == 0 else position // block
        columns[number] = (*columns.get(number, ()), position)
    return columns


def _by_block(rows: Tensor, block: int) -> Tensor:
    """Mean over each block of queries: ``(H, L, F)`` to ``(H, T, F)``."""
    return torch.stack([part.mean(1) for part in torch.split(rows, block, dim=1)], 1)


def _mean_rows(by_block: Floats, block: int, length: int) -> Floats:
    """Mean over the queries of what is a mean over each block of them, ``(..., T)``."""
    count = np.full(by_block.shape[-1], block, np.float32)
    count[-1] = length - block * (len(count) - 1)
    return np.asarray((by_block * count).sum(-1) / length, dtype=np.float32)


def _diagonals(weights: Floats) -> Floats:
    """Weights on the previous, own and next token of every query, ``(N, H, 3, L)``; 0 where there is none."""
    rows = np.zeros((*weights.shape[:2], 3, weights.shape[-1]), np.float32)
    rows[:, :, 0, 1:] = weights.diagonal(-1, 2, 3)
    rows[:, :, 1] = weights.diagonal(0, 2, 3)
    rows[:, :, 2, :-1] = weights.diagonal(1, 2, 3)
    return rows


def _paths(hidden: Sequence[Tensor], units: Tensor, keep: bool) -> tuple[Floats, Floats, Floats | None]:
    """Cosine of each unit's vector (the mean of its tokens') with the first one and with the one before, by layer."""
    count = int(units.max()) + 1
    pieces = torch.bincount(units, minlength=count).float()
    path, steps, vectors = [], [], []
    first = last = None
    for states in hidden:
        total = torch.zeros(count, states.shape[-1], dtype=torch.float32, device="cpu")
        vector = total.index_add_(0, units, states[0].float().cpu()) / pieces[:, None]
        normal = torch.nn.functional.normalize(vector, dim=-1)
        first = normal if first is None else first
        path.append((normal * first).sum(-1).numpy())
        steps.append((normal * (normal if last is None else last)).sum(-1).numpy())
        last = normal
        if keep:
            vectors.append(normal.numpy())
    return np.stack(path), np.stack(steps), np.stack(vectors) if keep else None
