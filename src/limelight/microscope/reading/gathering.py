"""What a run gathers: the statistics of every layer's attention, as a `Reading` needs them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ...forms.observations import Observations, Observe, Seen
from ...text import Text
from .record import Floats, HeadStatistics, Integers, Reading, find_sinks, number_units
from .refinement import BLOCKS, Refinement, block_sizes, coarsened, most_uneven, on_column
from .words import Token, Word, join_words

JoinedWords = tuple[tuple[Token, ...], tuple[Word, ...]]

EXACT_WEIGHTS = 1_200_000  # a text whose weights, over all layers and heads, are no more than this is kept exactly
STRONGEST = 8  # otherwise blocks are kept, and every query's strongest keys
COLUMNS = 64  # columns in which what falls on tokens set apart is counted
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
        on_values: Callable[[str, Tensor], object] | None = None,
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
        join: groups the tokens into words.
    """

    def __init__(
        self, text: Text, causal: bool, layers: int, heads: int, join: Callable[..., JoinedWords] = join_words
    ) -> None:
        self.text, self.causal, self.heads = text, causal, heads
        self.length, self.layers, self.done = len(text), layers, 0
        self.tokens, self.words = join(text.text, text.tokens, text.spans, text.special)
        exact = self.length <= BLOCKS or layers * heads * self.length**2 <= EXACT_WEIGHTS
        self.block, self.fine = (1, 1) if exact else block_sizes(self.length, BLOCKS)
        self.special = tuple(i for i, special in enumerate(text.special) if special)
        self.candidates = tuple(dict.fromkeys((*((0,) if causal else ()), *self.special)))
        self.columns = _columns(self.candidates, self.causal, self.fine)
        if len(self.columns) > COLUMNS:
            self.columns = _columns(self.candidates, self.causal, self.block)
        self.parts: dict[str, np.ndarray[Any, Any]] = {}
        self.observe = self._observe(exact)

    def _observe(self, exact: bool) -> Observe:
        common: dict[str, Any] = dict.fromkeys(("entropy", "max_weight", "distance", "received"), True)
        common["blocks"] = (self.fine, self.fine)
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
        blocks = seen["blocks"]  # (H, t, t), summed over queries and keys
        coarse = coarsened(blocks, self.block // self.fine)
        self._keep("shares", coarse / self._rows(coarse, self.block))
        if self.block > 1:
            self._keep_fine(blocks / self._rows(blocks, self.fine), seen["features"])
            beside = seen["pairs"].reshape(-1, 3, self.length)
            self._keep(
                "neighbours",
                torch.stack([beside[:, 0, 1:].sum(-1), beside[:, 1].sum(-1), beside[:, 2, :-1].sum(-1)], 1),
            )
            self._keep("top_weights", seen["top_weights"])
            assert observations.top_keys is not None
            small = self.length <= 1 << 15  # 16 bits hold every position, and -1
            self._keep("top_keys", observations.top_keys[0].to(torch.int16 if small else torch.int32))
        self.done += 1

    def _rows(self, blocks: Tensor, size: int) -> Tensor:
        """The number of queries of each row of blocks of this size, ``(T, 1)``."""
        first = size * torch.arange(blocks.shape[-2], dtype=blocks.dtype, device=blocks.device)
        return (self.length - first).clamp(max=size)[:, None]

    def _keep_fine(self, shares: Tensor, features: Tensor) -> None:
        """Keep the most uneven fine blocks ``(H, t, t)``, and what tokens that may be set apart get of each row."""
        given = _by_block(features, self.fine)  # (H, t, F)
        rest = shares.clone()
        for column, members in enumerate(self.columns.values()):
            at = self._fine_columns(members)
            rest[..., at] -= given[..., column, None] / len(at)
        cells, kept = most_uneven(shares, rest, self.block // self.fine)
        self._keep("features", given)
        self._keep("cells", cells + 1)  # 0: none, as for the heads that other layers have more
        self._keep("fine", kept)

    def _fine_columns(self, members: tuple[int, ...]) -> list[int]:
        return sorted({position // self.fine for position in members})

    def _keep(self, key: str, tensor: Tensor) -> None:
        """Keep a tensor of one layer, with zeros for the heads that other layers have more."""
        array = tensor.cpu().numpy()
        heads = () if key == "received" else (self.heads,)
        if key not in self.parts:
            self.parts[key] = np.zeros((self.layers, *heads, *array.shape[len(heads) :]), array.dtype)
        kept = self.parts[key][self.done]
        kept[: len(array) if heads else None] = array

    def paths(self, keep_vectors: bool) -> Paths:
        """What the states of a run are to be given to."""
        return Paths(number_units(self.tokens, self.words), keep_vectors)

    def reading(self, paths: Paths, unknown: str | None) -> Reading:
        """Everything together, after the run."""
        text, length, tokens, words = self.text, self.length, self.tokens, self.words
        parts = {key: self.parts.pop(key) for key in tuple(self.parts)} or self._nothing()
        shares = parts["shares"]
        exact = self.block == 1
        sinks = find_sinks(parts["received_first"], self.causal, length) if len(shares) else ()
        apart = tuple(sorted({*sinks, *self.special}))
        apart_shares = self._apart_shares(parts, shares, apart)
        neighbours: Floats = _diagonals(shares) if exact else parts["neighbours"]  # (N, H, 3)
        beside = max(1, length - 1)
        statistics = HeadStatistics(
            entropy=parts["entropy"],
            strongest=parts["max_weight"],
            distance=parts["distance"],
            previous=neighbours[:, :, 0] / np.float32(beside),
            own=neighbours[:, :, 1] / np.float32(length),
            next=neighbours[:, :, 2] / np.float32(beside),
            apart=_mean_rows(apart_shares.sum(-1), self.block, length),
        )
        refinement = None if exact else self._refinement(parts, shares.shape[-1], apart)
        none = (*shares.shape[:2], length, 0)
        return Reading(
            text=text.text,
            tokens=tokens,
            words=words,
            causal=self.causal,
            block=self.block,
            shares=shares,
            apart=apart,
            apart_shares=apart_shares,
            refinement=refinement,
            top_weights=parts.get("top_weights", np.zeros(none, np.float32)),
            top_keys=parts.get("top_keys", np.zeros(none, np.int32)),
            heads=statistics,
            received=parts["received"],
            path=paths.path,
            steps=paths.steps,
            vectors=paths.vectors,
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
        for column, members in enumerate(self.columns.values()):
            if members[0] in apart:
                only[..., members[0] // self.block] += self._by_coarse_row(parts["features"][..., column])
        return only

    def _by_coarse_row(self, given: Floats) -> Floats:
        """The mean over each coarse block's queries of what is a mean over a fine one's, ``(N, H, t)``."""
        factor = self.block // self.fine
        count = np.minimum(self.fine, self.length - self.fine * np.arange(given.shape[-1])).astype(np.float32)
        starts = np.arange(0, given.shape[-1], factor)
        total = np.add.reduceat(given * count, starts, axis=-1) / np.add.reduceat(count, starts)
        return np.asarray(total, dtype=np.float32)

    def _refinement(self, parts: dict[str, Any], side: int, apart: tuple[int, ...]) -> Refinement:
        cells = parts["cells"] - 1
        only = np.zeros_like(parts["fine"])
        for column, members in enumerate(self.columns.values()):
            at = self._fine_columns(members)
            for place in at if members[0] in apart else ():
                rows = parts["features"][..., column] / np.float32(len(at))
                only += on_column(cells, rows, place, side, self.block // self.fine)
        return Refinement(self.fine, cells, parts["fine"], only)


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
    """The sums of the weights on the previous, own and next token over all queries, ``(N, H, 3)``."""
    return np.stack([weights.diagonal(offset, 2, 3).sum(-1) for offset in (-1, 0, 1)], axis=-1)


def _cosine(a: Tensor, b: Tensor) -> Floats:
    """The products of vectors of length 1, row by row."""
    found: Floats = torch.bmm(a[:, None], b[..., None])[:, 0, 0].numpy()
    return found


class Paths:
    """Follows each unit's vector (the mean of its tokens') through the layers, one layer's states after another.

    Args:
        units: the unit of each token, ``(L,)``.
        keep: whether the vectors are kept, for a comparison.
    """

    def __init__(self, units: Integers, keep: bool) -> None:
        self._units, self._keep = torch.from_numpy(units).long(), keep
        self._pieces = torch.bincount(self._units).float()
        self._first: Tensor | None = None
        self._last: Tensor | None = None
        self._path: list[Floats] = []
        self._steps: list[Floats] = []
        self._vectors: list[Floats] = []

    def add(self, states: Tensor) -> None:
        """Follow the units through the states ``(1, L, width)`` of the next depth, the embedding's first.

        States behind those of the units are left out: the silence behind a sound.
        """
        # In place, since there are as many numbers as in the states: 75 MB of 32,768 tokens.
        normal = torch.zeros(len(self._pieces), states.shape[-1], dtype=torch.float32, device="cpu")
        normal.index_add_(0, self._units, states[0, : len(self._units)].float().cpu()).div_(self._pieces[:, None])
        normal.div_(normal.norm(dim=-1, keepdim=True).clamp_min_(1e-12))
        self._first = normal if self._first is None else self._first
        self._path.append(_cosine(normal, self._first))
        self._steps.append(_cosine(normal, normal if self._last is None else self._last))
        self._last = normal
        if self._keep:
            self._vectors.append(normal.numpy())

    @property
    def path(self) -> Floats:
        """Cosine with the embedding, ``(N + 1, U)``."""
        return np.stack(self._path)

    @property
    def steps(self) -> Floats:
        """Cosine with the depth before, ``(N + 1, U)``."""
        return np.stack(self._steps)

    @property
    def vectors(self) -> Floats | None:
        """The vectors, of length 1, ``(N + 1, U, width)``, if they are kept."""
        return np.stack(self._vectors) if self._keep else None
