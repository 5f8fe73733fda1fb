"""Host side of the observations: launches of the observing kernels, and counts that depend on the pattern alone."""

from __future__ import annotations

from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...forms.observations import Observations
from ..contract import Call
from . import arguments, machine, tuning
from .launching import launch
from .normalizers import normalizers
from .score_rules import RuleArguments, rule_arguments
from .visibility import Visibility, visibility

TOP_LIMIT = 64  # largest weights that a kernel keeps for each query
FEATURES = 64  # features of the keys that one launch sums
ROWS = 64  # queries whose weights are held in memory at a time while pairs are gathered from them


class RowStatistics(NamedTuple):
    """Statistics of each query that a forward kernel computes beside the output, ``(B, Hq, Lq)`` float32."""

    max_score: Tensor
    max_weight: Tensor
    entropy: Tensor | None  # None where it is not observed


def statistics_level(call: Call) -> int:
    """Which statistics a forward kernel computes for a call: 0 none, 1 largest score and weight, 2 entropy too."""
    request = call.observe
    if request is None:
        return 0
    return 2 if request.entropy else int(request.max_score or request.max_weight)


def new_statistics(call: Call, splits: int = 1) -> RowStatistics | None:
    """Memory for `RowStatistics`, with those of a query that sees no key; ``None`` where none are observed.

    With ``splits`` for parts of the keys, ``(splits, B, Hq, Lq)``.
    """
    B, Hq, _, Lq, *_ = call.shapes
    level = statistics_level(call)
    if not level:
        return None
    shape, device = ((B, Hq, Lq) if splits == 1 else (splits, B, Hq, Lq)), call.query.device
    of_weights = torch.zeros((level, *shape), dtype=torch.float32, device=device)
    max_score = torch.full(shape, -torch.inf, dtype=torch.float32, device=device)
    return RowStatistics(max_score, of_weights[0], of_weights[1] if level > 1 else None)


def observe(
    call: Call, logsumexp: Tensor, nothing_visible: bool, statistics: RowStatistics | None = None
) -> Observations:
    """The observations that a call requests, from its final ``logsumexp``.

    Args:
        call: the call.
        logsumexp: its logsumexp, ``(B, Hq, Lq)``.
        nothing_visible: no query of the call sees any key.
        statistics: what the forward kernel has computed; without them, a second pass computes them.
    """
    assert call.observe is not None
    request, seen = call.observe, Observations()
    passes = _Passes(call, logsumexp, nothing_visible)
    missing = new_statistics(call) if statistics is None else None
    if missing or request.distance or request.features is not None:
        seen.distance, seen.features = passes.rows(missing)
    statistics = statistics or missing
    seen.logsumexp = logsumexp if request.logsumexp else None
    if statistics is not None:
        seen.max_score = statistics.max_score if request.max_score else None
        seen.max_weight = statistics.max_weight if request.max_weight else None
        seen.entropy = statistics.entropy if request.entropy else None
    if request.top:
        seen.top_weights, seen.top_keys = passes.top(request.top)
    if request.received or request.blocks is not None:
        seen.received, seen.blocks = passes.columns(request.received, request.blocks)
    if request.rows is not None:
        chosen = torch.as_tensor(request.rows, dtype=torch.int64, device="cpu").reshape(-1)
        seen.rows = passes.whole_rows(chosen)
    if request.pairs is not None:
        seen.pairs = passes.pairs(torch.as_tensor(request.pairs, dtype=torch.int64, device="cpu").reshape(-1, 2))
    if request.heads is not None:
        seen = seen.map(lambda tensor: tensor[:, list(request.heads or ())])
    if request.received:
        seen.received_by = _counts(call.lowered.seen_by(), request.heads, logsumexp.device)
    if request.blocks is not None:
        seen.block_pairs = _counts(call.lowered.block_pairs(*request.blocks), request.heads, logsumexp.device)
    return seen


def _counts(counts: NDArray[np.int64], heads: tuple[int, ...] | None, device: torch.device) -> Tensor:
    found = torch.from_numpy(np.ascontiguousarray(counts)).to(device)
    return found if heads is None or found.shape[1] == 1 else found[:, list(heads)]


class _Passes:
    """The observing kernels of one call, which compute the scores again."""

    def __init__(self, call: Call, logsumexp: Tensor, nothing_visible: bool) -> None:
        self.call, self.logsumexp, self.nothing_visible = call, logsumexp, nothing_visible
        self.device = logsumexp.device
        widest = max(tuning.width(call.shapes.D), tuning.width(call.shapes.Dv))
        self.kind = machine.generation(self.device), call.query.dtype.itemsize, widest
        self.needs = arguments.needs(call)
        self.tile = tuning.observing_tile(*self.kind, self.needs)

    @cached_property
    def inputs(self) -> tuple[Any, ...]:
        """The first arguments of each kernel: query, key, normalizers."""
        query, key = arguments.with_unit_stride(self.call.query), arguments.with_unit_stride(self.call.key)
        return query, key, tuple(normalizers(self.call, self.logsumexp, self.nothing_visible)[1:])

    @property
    def strides(self) -> tuple[Any, ...]:
        """The strides of query and key, heads, and heads of a group."""
        query, key, _ = self.inputs
        Hq, Hkv = self.call.shapes.Hq, self.call.shapes.Hkv
        return query.stride()[:3], arguments.stored_strides(self.call, key), Hq, Hq // Hkv

    def new(self, *shape: int, value: float = 0.0, dtype: torch.dtype = torch.float32) -> Tensor:
        """A tensor filled with the value that a query has which sees no key."""
        return torch.full(shape, value, dtype=dtype, device=self.device)

    def launch(self, tile: tuning.Tile) -> tuple[Visibility, dict[str, Any]]:
        """The tables of a kernel with this tile, and its options."""
        visible = visibility(self.call.lowered, tile.rows, self.device)
        const = arguments.constants(self.call, self.rules, visible, 1, 1, tile)
        return visible, {"const": const, "num_warps": tile.warps, "num_stages": tile.stages}

    @cached_property
    def rules(self) -> RuleArguments:
        """The arguments of the score rules."""
        return rule_arguments(self.call)

    @property
    def scoring(self) -> tuple[Any, ...]:
        """The arguments of the scores."""
        return arguments.scoring(self.call, self.rules)

    def rows(self, statistics: RowStatistics | None) -> tuple[Tensor | None, Tensor | None]:
        """Fill the statistics of each query, and return its mean distance and its weights by feature, each where it is
        requested."""
        from .kernels import observe as kernels

        request = self.call.observe
        assert request is not None
        B, Hq, _, Lq, _, _, _ = self.call.shapes
        distance = self.new(B, Hq, Lq) if request.distance else None
        features = by_feature = None
        if request.features is not None:
            features = request.features.detach().to(self.device, torch.float32).contiguous()
            by_feature = self.new(B, Hq, Lq, features.shape[1])
        width = 0 if features is None else features.shape[1]
        visible, options = self.launch(self.tile)
        if not self.nothing_visible and visible.tiles:
            for first in range(0, max(width, 1), FEATURES):
                once = first == 0
                launch(
                    kernels.row_statistics, (visible.tiles, Hq, visible.rows),
                    *self.inputs, statistics if once else None, distance if once else None,
                    features, by_feature, *self.strides, Lq, *visible.of_tile, *self.scoring, first,
                    width, FEATURES=FEATURES if width else 1, **options,
                )  # fmt: skip
        return distance, by_feature

    def top(self, number: int) -> tuple[Tensor, Tensor]:
        """The largest weights of each query and their keys, ``(B, Hq, Lq, number)``."""
        from .kernels import largest as kernels

        B, Hq, _, Lq, _, _, _ = self.call.shapes
        weights = self.new(B, Hq, Lq, number)
        keys = self.new(B, Hq, Lq, number, value=-1, dtype=torch.int64)
        visible, options = self.launch(tuning.largest_tile(*self.kind, self.needs, number))
        if not self.nothing_visible and visible.tiles:
            launch(
                kernels.largest_weights, (visible.tiles, Hq, visible.rows),
                *self.inputs, weights, keys, *self.strides, Lq,
                *visible.of_tile, *self.scoring, number, TOP=max(2, 1 << (number - 1).bit_length()), **options,
            )  # fmt: skip
        return weights, keys

    def columns(self, received: bool, blocks: tuple[int, int] | None) -> tuple[Tensor | None, Tensor | None]:
        """The weight that each key receives, ``(B, Hq, Lk)``, and the weights summed over blocks of queries by keys,
        each where it is requested."""
        from .kernels import columns as kernels

        B, Hq, _, Lq, Lk, _, _ = self.call.shapes
        high, wide = blocks or (Lq, Lk)
        high, wide = min(high, max(Lq, 1)), min(wide, max(Lk, 1))
        tile, columns_of_tile = tuning.column_tile(*self.kind, self.needs, high, wide if blocks else None)
        if blocks is None:
            high, wide = -(-high // tile.rows) * tile.rows, tile.keys
        rows, columns, parts = -(-Lq // high), -(-Lk // wide), -(-wide // tile.keys)
        by_key = self.new(B, Hq, Lk) if received else None
        by_block = self.new(B, Hq, rows, columns, parts) if blocks else None
        tiles = -(-columns // columns_of_tile) * parts
        if not self.nothing_visible and B * Hq * Lq * tiles:
            visible, options = self.launch(tile)
            launch(
                kernels.column_sums, (tiles, Hq, B),
                *self.inputs, by_key, by_block, *self.strides, Lq, Lk,
                *visible.of_all_segments, *self.scoring, high, wide, columns, parts, COLUMNS=columns_of_tile, **options,
            )  # fmt: skip
        return by_key, None if by_block is None else by_block.sum(-1) if parts > 1 else by_block[..., 0]

    def whole_rows(self, chosen: Tensor) -> Tensor:
        """All weights of some queries, ``(B, Hq, queries, Lk)``."""
        from .kernels import observe as kernels

        B, Hq, _, Lq, Lk, _, _ = self.call.shapes
        result = self.new(B, Hq, len(chosen), Lk)
        if not self.nothing_visible and result.numel():
            tiles = -(-len(chosen) // self.tile.rows) * -(-Lk // self.tile.keys)
            visible, options = self.launch(self.tile)
            launch(
                kernels.whole_rows, (tiles, Hq, B),
                *self.inputs, result, chosen.to(self.device), len(chosen), *self.strides,
                Lq, Lk, *visible.of_all_segments, *self.scoring, **options,
            )  # fmt: skip
        return result

    def pairs(self, chosen: Tensor) -> Tensor:
        """The weights of some pairs ``(query, key)``, gathered from whole rows, `ROWS` queries at a time."""
        B, Hq = self.call.shapes[:2]
        result = self.new(B, Hq, len(chosen))
        queries, row = torch.unique(chosen[:, 0], return_inverse=True)
        for first in range(0, len(queries), ROWS):
            of_these = ((row >= first) & (row < first + ROWS)).nonzero()[:, 0]
            rows = self.whole_rows(queries[first : first + ROWS])
            result[:, :, of_these] = rows[
                :, :, (row[of_these] - first).to(self.device), chosen[of_these, 1].to(self.device)
            ]
        return result
