"""Host side of the observations: launches of the observing kernels, and counts that depend on the pattern alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...forms.observations import Observations
from ..contract import Call
from . import arguments, machine, tuning
from .launching import launch
from .normalizers import normalizers
from .score_rules import rule_arguments
from .visibility import visibility

TOP_LIMIT = 64  # largest weights that a kernel keeps for each query
FEATURES = 64  # features of the keys that one launch sums
ROWS = 64  # queries whose weights are held in memory at a time while pairs are gathered from them


def observe(call: Call, logsumexp: Tensor, nothing_visible: bool) -> Observations:
    """The observations that a call requests, from its final ``logsumexp``.

    ``nothing_visible``: no query of the call sees any key.
    """
    assert call.observe is not None
    request, seen = call.observe, Observations()
    passes = _Passes(call, logsumexp, nothing_visible)
    B, Hq, _, Lq, Lk, _, _ = call.shapes
    if request.logsumexp:
        seen.logsumexp = logsumexp
    if (
        request.max_score
        or request.max_weight
        or request.entropy
        or request.distance
        or request.top
        or request.features is not None
    ):
        found = passes.rows()
        seen.max_score = found["max_score"] if request.max_score else None
        seen.max_weight = found["max_weight"] if request.max_weight else None
        seen.entropy = found["entropy"] if request.entropy else None
        seen.distance = found["distance"] if request.distance else None
        if request.top:
            seen.top_weights, seen.top_keys = found["top_weights"], found["top_keys"]
        seen.features = found.get("features")
    if request.received:
        seen.received = passes.blocks(max(Lq, 1), passes.tile.keys, by_key=True).reshape(B, Hq, Lk)
    if request.rows is not None:
        chosen = torch.as_tensor(request.rows, dtype=torch.int64, device="cpu").reshape(-1)
        seen.rows = passes.whole_rows(chosen)
    if request.pairs is not None:
        seen.pairs = passes.pairs(torch.as_tensor(request.pairs, dtype=torch.int64, device="cpu").reshape(-1, 2))
    if request.blocks is not None:
        seen.blocks = passes.blocks(*request.blocks)
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
    """The observing kernels of one call."""

    def __init__(self, call: Call, logsumexp: Tensor, nothing_visible: bool) -> None:
        self.call, self.nothing_visible = call, nothing_visible
        D, Dv = call.shapes.D, call.shapes.Dv
        self.device = logsumexp.device
        self.query, self.key = arguments.with_unit_stride(call.query), arguments.with_unit_stride(call.key)
        self.tile = tuning.observing_tile(
            machine.generation(self.device), call.query.dtype.itemsize, max(tuning.width(D), tuning.width(Dv))
        )
        self.visible = visibility(call.lowered, self.tile.rows, self.device)
        rules = rule_arguments(call)
        const = arguments.constants(call, rules, self.visible, 1, 1, self.tile)
        self.scoring = arguments.scoring(call, rules)
        self.normalizer = tuple(normalizers(call, logsumexp, nothing_visible)[1:])
        self.strides = (self.query.stride()[:3], arguments.stored_strides(call, self.key))
        self.options: dict[str, Any] = {"const": const, "num_warps": self.tile.warps, "num_stages": 1}

    def new(self, *shape: int, value: float = 0.0, dtype: torch.dtype = torch.float32) -> Tensor:
        """A tensor filled with the value that a query has which sees no key."""
        return torch.full(shape, value, dtype=dtype, device=self.device)

    def rows(self) -> dict[str, Tensor]:
        """The observations that are one value, or one list of values, for each query."""
        from .kernels import observe as kernels

        request = self.call.observe
        assert request is not None
        B, Hq, Hkv, Lq, _, _, _ = self.call.shapes
        found = {name: self.new(B, Hq, Lq) for name in ("max_weight", "entropy", "distance")}
        found["max_score"] = self.new(B, Hq, Lq, value=-torch.inf)
        if request.top:
            found["top_weights"] = self.new(B, Hq, Lq, request.top)
            found["top_keys"] = self.new(B, Hq, Lq, request.top, value=-1, dtype=torch.int64)
        features = None
        if request.features is not None:
            features = request.features.detach().to(self.device, torch.float32).contiguous()
            found["features"] = self.new(B, Hq, Lq, features.shape[1])
        width = 0 if features is None else features.shape[1]
        if self.nothing_visible or not self.visible.tiles:
            return found
        for first in range(0, max(width, 1), FEATURES):
            launch(
                kernels.row_statistics, (self.visible.tiles, Hq, self.visible.rows),
                self.query, self.key, self.normalizer, found["max_score"], found["max_weight"], found["entropy"],
                found["distance"], found.get("top_weights"), found.get("top_keys"), features, found.get("features"),
                *self.strides, Hq, Hq // Hkv, Lq, *self.visible.of_tile, *self.scoring, first, width, request.top,
                TOP=1 if first or not request.top else max(2, 1 << (request.top - 1).bit_length()),
                FEATURES=FEATURES if width else 1, **self.options,
            )  # fmt: skip
        return found

    def blocks(self, high: int, wide: int, by_key: bool = False) -> Tensor:
        """Weights summed over blocks of ``high`` queries by ``wide`` keys; with ``by_key`` over queries alone."""
        from .kernels import observe as kernels

        B, Hq, Hkv, Lq, Lk, _, _ = self.call.shapes
        rows, columns = -(-Lq // high), -(-Lk // wide)
        result = self.new(B, Hq, 1, Lk) if by_key else self.new(B, Hq, rows, columns)
        if not self.nothing_visible and result.numel() and rows:
            launch(
                kernels.block_sums, (rows * columns, Hq, B),
                self.query, self.key, self.normalizer, result, *self.strides, Hq, Hq // Hkv, Lq, Lk,
                *self.visible.of_all_segments, *self.scoring, high, wide, columns, BY_KEY=by_key, **self.options,
            )  # fmt: skip
        return result

    def whole_rows(self, chosen: Tensor) -> Tensor:
        """All weights of some queries, ``(B, Hq, queries, Lk)``."""
        from .kernels import observe as kernels

        B, Hq, Hkv, Lq, Lk, _, _ = self.call.shapes
        result = self.new(B, Hq, len(chosen), Lk)
        if not self.nothing_visible and result.numel():
            tiles = -(-len(chosen) // self.tile.rows) * -(-Lk // self.tile.keys)
            launch(
                kernels.whole_rows, (tiles, Hq, B),
                self.query, self.key, self.normalizer, result, chosen.to(self.device), len(chosen), *self.strides,
                Hq, Hq // Hkv, Lq, Lk, *self.visible.of_all_segments, *self.scoring, **self.options,
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
