"""Policies of a cache that keeps only some keys: how many a head may hold, and which.

`Keep` puts three independent choices together: which keys matter (`Importance`), how the budget falls from layer to
layer (`Pyramid`), and how the heads of a layer share it (`Adaptive`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import avg_pool1d

from ...tensors.shapes import FLOATS, describe, flag, number, whole_number, wrong

Numbers = NDArray[np.int64]
MOST = 2**40  # of tokens, so that the keys of all heads and layers are counted in int64


@dataclass(frozen=True, eq=False)
class HeldKeys:
    """The keys that a layer holds when it chooses among them, in the order of their positions.

    Heads may hold different numbers of keys: ``n`` is the largest, and the entries behind a head's last key do not
    exist.

    Args:
        positions: ``(B, Hkv, n)`` int64, the position of each key in its text.
        exists: ``(B, Hkv, n)`` bool.
        after: ``(B, 1, 1)`` int64, how many tokens of each text were read.
        received: ``(B, Hkv, n)`` float, the weight that each key has received so far, the mean over the query heads of
            its group; ``None`` unless `Importance.observes`.
        from_last: ``(B, Hkv, n)`` float, the mean weight that each key receives from the last `Importance.window`
            queries, the mean over the query heads of its group; ``None`` without a window.
    """

    positions: Tensor
    exists: Tensor
    after: Tensor
    received: Tensor | None = None
    from_last: Tensor | None = None


class Importance(ABC):
    """Base of the rules by which keys are ranked; a subclass defines `scores` and says what it needs."""

    #: Whether the weight that each key receives is observed in every pass (`HeldKeys.received`).
    observes: bool = False
    #: How many of the last queries the cache holds, for `HeldKeys.from_last`. The keys of these tokens are always kept.
    window: int = 0

    @abstractmethod
    def scores(self, keys: HeldKeys) -> Tensor:
        """``(B, Hkv, n)`` float: the keys with the largest scores are kept. Of equal scores the earlier key is kept."""


def ranked(by: Importance, keys: HeldKeys) -> Tensor:
    """The scores of ``by``, checked.

    Raises:
        ArgumentError: they are not what `Importance.scores` is to return.
    """
    scores = by.scores(keys)
    shape, device = keys.positions.shape, keys.positions.device
    if not isinstance(scores, Tensor) or scores.dtype not in FLOATS or scores.shape != shape or scores.device != device:
        rule = f"must return float scores of shape {tuple(shape)} on {device}, those of its `keys`"
        way_out = "Compute them from keys.positions, keys.received or keys.from_last."
        raise wrong(f"{type(by).__name__}.scores", rule, f"it returned {describe(scores)}", way_out)
    return scores.detach()


@dataclass(frozen=True)
class Recency(Importance):
    """The last keys, so that with `Keep.first` a head keeps the first and the last tokens: StreamingLLM (Xiao et al.
    2023, arXiv:2309.17453).

    ``score_j = position of j``. No weight is observed.
    """

    def scores(self, keys: HeldKeys) -> Tensor:
        return keys.positions.to(torch.float64)


@dataclass(frozen=True)
class Received(Importance):
    """The keys that have received the most weight, the *heavy hitters*: H2O (Zhang et al. 2023, arXiv:2306.14048).

    ``score_j = sum_i p_ij``, the mean over the query heads of the key head, over all queries so far; with ``mean``
    divided by the number of queries that could see the key, so that an early key has no advantage (as
    ``ObservedAttention`` of kvpress). Every pass is observed (``Observe(received=True)``), in memory that grows with
    the length.

    Args:
        mean: whether the sum is divided by the number of queries, or is as in the paper.
    """

    mean: bool = True
    observes = True

    def __post_init__(self) -> None:
        flag("mean", self.mean)

    def scores(self, keys: HeldKeys) -> Tensor:
        assert keys.received is not None
        return keys.received / (keys.after - keys.positions).clamp(min=1) if self.mean else keys.received


@dataclass(frozen=True)
class LastQueries(Importance):
    """The keys that the last queries look at: SnapKV (Li et al. 2024, arXiv:2404.14469).

    ``score_j = sum over the last window queries i of p_ij / window``, the mean over the query heads of the key head,
    averaged over ``pool`` neighbouring keys. The keys of the window itself are always kept. The cache holds the last
    queries and observes a call of them alone, when keys are to be evicted.

    Args:
        window: number of queries.
        pool: number of neighbouring keys over which scores are averaged, an odd number; 1 for none. Keys that are
            missing beside the first and the last count as 0.
    """

    window: int = 64
    pool: int = 5

    def __post_init__(self) -> None:
        whole_number("window", self.window, at_least=1, at_most=MOST)
        if whole_number("pool", self.pool, at_least=1, at_most=MOST) % 2 == 0:
            raise wrong("pool", "must be odd", f"it is {self.pool}", f"Use {self.pool + 1}: a key and its neighbours.")

    def scores(self, keys: HeldKeys) -> Tensor:
        assert keys.from_last is not None
        before = keys.exists & (keys.positions < keys.after - self.window)
        scores = keys.from_last.where(before, 0.0)
        return scores if self.pool == 1 else avg_pool1d(scores, self.pool, stride=1, padding=self.pool // 2)


@dataclass(frozen=True)
class Pyramid:
    """Budgets that fall from the first layer to the last: PyramidKV (Cai et al. 2024, arXiv:2406.02069).

    Of ``n`` layers, layer ``l`` gets ``a + (tokens - a) * (2 - 1 / steepness - 2 (1 - 1 / steepness) l / (n - 1))``
    keys for each head, where ``a`` are those that are always kept. The mean over the layers is ``tokens``.

    Args:
        steepness: the last layer gets ``1 / steepness`` of the mean budget; 1 is even. The paper's ``beta``.
    """

    steepness: float = 20.0

    def __post_init__(self) -> None:
        rule, way_out = "must be a number of at least 1", "1 gives every layer the same."
        if number("steepness", self.steepness, rule, way_out) < 1:
            raise wrong("steepness", rule, f"it is {self.steepness}", way_out)

    def share(self, budgets: Numbers, layer: int, layers: int) -> Numbers:
        """The budgets of a layer, of which the mean over all layers are ``budgets``, rounded without losing a key."""

        def until(end: int) -> Numbers:
            """The sum over the layers before ``end``."""
            low = 1.0 / self.steepness
            fall = 0.0 if layers == 1 else 2.0 * (1.0 - low) / (layers - 1)
            factors = end * (2.0 - low) - fall * end * (end - 1) / 2.0 if layers > 1 else float(end)
            found: Numbers = np.floor(budgets * factors + 1e-6).astype(np.int64)
            return found

        return until(layer + 1) - until(layer)


@dataclass(frozen=True)
class Adaptive:
    """Budgets by head: the heads of a layer share theirs, and the largest scores of all are kept: AdaKV (Feng et al.
    2024, arXiv:2407.11550).

    Args:
        floor: the share of an even budget that each head keeps at least.
    """

    floor: float = 0.2

    def __post_init__(self) -> None:
        rule, way_out = "must be a number from 0 to 1", "1 gives every head the same."
        if not 0 <= number("floor", self.floor, rule, way_out) <= 1:
            raise wrong("floor", rule, f"it is {self.floor}", way_out)


@dataclass(frozen=True)
class Keep:
    """How many keys each head of a `limelight.nn.Cache` keeps, and which.

    After each pass, where the heads of a layer hold ``interval`` or more keys each beyond their budget, the ones with
    the lowest scores are evicted down to the budget. ::

        Keep(2048)                                                  # the first 4 tokens and the last 2044
        Keep(2048, by=Received())                                   # heavy hitters
        Keep(0.25, by=LastQueries(64, pool=5))                      # a quarter of the text
        Keep(2048, by=LastQueries(), layers=Pyramid(), heads=Adaptive())

    Args:
        tokens: the budget, the mean over the heads and layers: a number of tokens, or as a float up to 1 a share of
            the tokens that were read.
        first: tokens at the beginning of a text that are always kept (*attention sinks*).
        recent: tokens at the end that are always kept.
        by: how keys are ranked: `Recency`, `Received`, `LastQueries`, or an `Importance` of your own.
        layers: how the budget falls over the layers; ``None`` for the same in each.
        heads: how the key heads of a layer share their budget; ``None`` for the same for each.
        interval: how many tokens are read between two evictions. A head then holds up to so many keys more; each
            eviction copies what is kept.

    Raises:
        ArgumentError: a budget below the tokens that are always kept or above 2^40, a setting of another kind.
    """

    tokens: int | float
    first: int = 4
    recent: int = 32
    by: Importance = field(default_factory=Recency)
    layers: Pyramid | None = None
    heads: Adaptive | None = None
    interval: int = 64

    def __post_init__(self) -> None:
        whole_number("first", self.first, at_least=0, at_most=MOST)
        whole_number("recent", self.recent, at_least=0, at_most=MOST)
        whole_number("interval", self.interval, at_least=1, at_most=MOST)
        for name, kind, example in (
            ("by", Importance, "Received()"), ("layers", Pyramid, "Pyramid()"), ("heads", Adaptive, "Adaptive()"),
        ):  # fmt: skip
            value = getattr(self, name)
            if not isinstance(value, kind) and (value is not None or name == "by"):
                got = f"it is the class {value.__name__}" if isinstance(value, type) else f"it is {describe(value)}"
                raise wrong(name, f"must be of the kind {kind.__name__}", got, f"For example {name}={example}.")
        if self.heads is not None and isinstance(self.by, Recency):
            got = f"there are {self.heads} and {self.by}, by which all heads keep the same"
            raise wrong("heads", "must be None for keys that are kept by their age", got, "Rank them by=Received().")
        if isinstance(self.tokens, float):
            rule, way_out = "must be a number of tokens, or a share above 0 and up to 1.0", "0.25 keeps a quarter."
            if not 0 < number("tokens", self.tokens, rule, way_out) <= 1:
                raise wrong("tokens", rule, f"it is {self.tokens}", way_out)
            return
        if whole_number("tokens", self.tokens, at_least=1, at_most=MOST) < self.always:
            got = f"{self.tokens} is less than {self.always}"
            way_out = f"Use tokens={self.always} or more, or a smaller `recent`."
            raise wrong("tokens", "must be at least the first and the recent tokens that are always kept", got, way_out)

    @property
    def always(self) -> int:
        """How many tokens of a text are always kept."""
        return self.first + max(self.recent, self.by.window)

    def budget(self, after: Numbers, layer: int, layers: int | None) -> Numbers:
        """How many keys a head of a layer may hold, the mean over its heads.

        Args:
            after: ``(B,)``, tokens that were read of each text.
            layer: number of the layer, from 0.
            layers: how many there are; needed by `layers` alone.
        """
        if isinstance(self.tokens, int):
            budgets = np.full(len(after), self.tokens, np.int64)
        else:
            budgets = np.maximum(np.floor(self.tokens * after + 1e-9).astype(np.int64), max(self.always, 1))
        if self.layers is None:
            return budgets
        if layers is None:
            way_out = "Give Cache.step(..., layers=n), or call the layers through a model of limelight.models."
            raise wrong("layers", "must be counted for a Pyramid", "their number is not known", way_out)
        return self.always + self.layers.share(budgets - self.always, layer, layers)

    def choose(self, keys: HeldKeys, budgets: Numbers) -> Tensor:
        """Which keys are kept, ``(B, Hkv, n)`` bool.

        Args:
            keys: what is held.
            budgets: ``(B,)``, keys of a head, the mean over the heads.
        """
        B, heads, n = keys.positions.shape
        scores = ranked(self.by, keys)
        always = (keys.positions < self.first) | (keys.positions >= keys.after - max(self.recent, self.by.window))
        scores = scores.nan_to_num(nan=torch.finfo(scores.dtype).min)  # all finite: below those that are always kept
        scores = scores.masked_fill(always, math.inf)
        budget = torch.as_tensor(budgets, device=scores.device)[:, None, None]
        if self.heads is None:
            return keys.exists & (_rank(scores, keys.exists) < budget)
        at_least = (budget * self.heads.floor).floor()
        scores = scores.masked_fill(_rank(scores, keys.exists) < at_least, math.inf)
        joined = _rank(scores.reshape(B, 1, heads * n), keys.exists.reshape(B, 1, heads * n))
        return keys.exists & (joined.reshape(B, heads, n) < heads * budget)


def _rank(scores: Tensor, exists: Tensor) -> Tensor:
    """The place of each score in the last dimension, the largest first, those that do not exist last."""
    order = scores.masked_fill(~exists, -math.inf).sort(dim=-1, descending=True, stable=True).indices
    places = torch.arange(scores.shape[-1], device=scores.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, places)
