"""The host side of the observations: what each kernel fills, and the counts that follow from the pattern alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...forms.observations import Observations
from ..contract import Call
from . import machine, operands, tuning
from .normalizers import normalizers

MOST_TOP = 64
FEATURES = 64  # of the keys, at once
ROWS = 64  # chosen queries whose weights are held whole while pairs are picked from them


def observe(call: Call, logsumexp: Tensor, blind: bool) -> Observations:
    """What was asked for, with the final ``logsumexp`` of the call; ``blind`` when nobody sees anything."""
    assert call.observe is not None
    asked, seen = call.observe, Observations()
    passes = _Passes(call, logsumexp, blind)
    B, Hq, _, Lq, Lk, _, _ = call.shapes
    if asked.logsumexp:
        seen.logsumexp = logsumexp
    if (
        asked.max_score
        or asked.max_weight
        or asked.entropy
        or asked.distance
        or asked.top
        or asked.features is not None
    ):
        found = passes.rows()
        seen.max_score = found["max_score"] if asked.max_score else None
        seen.max_weight = found["max_weight"] if asked.max_weight else None
        seen.entropy = found["entropy"] if asked.entropy else None
        seen.distance = found["distance"] if asked.distance else None
        if asked.top:
            seen.top_weights, seen.top_keys = found["top_weights"], found["top_keys"]
        seen.features = found.get("features")
    if asked.received:
        seen.received = passes.blocks(max(Lq, 1), passes.tile.keys, by_key=True).reshape(B, Hq, Lk)
    if asked.rows is not None:
        chosen = torch.as_tensor(asked.rows, dtype=torch.int64, device="cpu").reshape(-1)
        seen.rows = passes.whole_rows(chosen)
    if asked.pairs is not None:
        seen.pairs = passes.pairs(torch.as_tensor(asked.pairs, dtype=torch.int64, device="cpu").reshape(-1, 2))
    if asked.blocks is not None:
        seen.blocks = passes.blocks(*asked.blocks)
    if asked.heads is not None:
        seen = seen.map(lambda tensor: tensor[:, list(asked.heads or ())])
    if asked.received:
        seen.received_by = _counts(call.lowered.seen_by(), asked.heads, logsumexp.device)
    if asked.blocks is not None:
        seen.block_pairs = _counts(call.lowered.block_pairs(*asked.blocks), asked.heads, logsumexp.device)
    return seen


def _counts(counts: NDArray[np.int64], heads: tuple[int, ...] | None, device: torch.device) -> Tensor:
    found = torch.from_numpy(np.ascontiguousarray(counts)).to(device)
    return found if heads is None or found.shape[1] == 1 else found[:, list(heads)]


class _Passes:
    """The kernels of one call."""

    def __init__(self, call: Call, logsumexp: Tensor, blind: bool) -> None:
        self.call, self.blind = call, blind
        D, Dv = call.shapes.D, call.shapes.Dv
        self.device = logsumexp.device
        self.query, self.key = operands.readable(call.query), operands.readable(call.key)
        self.tile = tuning.observing_tile(
            machine.generation(self.device), call.query.dtype.itemsize, max(tuning.width(D), tuning.width(Dv))
        )
        self.sight = operands.sight(call.lowered, self.tile.rows, self.device)
        rules = operands.rules(call)
        self.form = operands.form_of(call, rules, self.sight, 1, 1, self.tile)
        self.scoring = operands.scoring(call, rules)
        self.normalizer = tuple(normalizers(call, logsumexp, blind)[1:])
        self.strides = (self.query.stride()[:3], self.key.stride()[:3])
        self.options: dict[str, Any] = {"form": self.form, "num_warps": self.tile.warps, "num_stages": 1}

    def new(self, *shape: int, value: float = 0.0, dtype: torch.dtype = torch.float32) -> Tensor:
        """A tensor as those have it who see nothing."""
        return torch.full(shape, value, dtype=dtype, device=self.device)

    def rows(self) -> dict[str, Tensor]:
        """Everything that each query has of its own."""
        from .kernels import observe as kernels

        asked = self.call.observe
        assert asked is not None
        B, Hq, Hkv, Lq, _, _, _ = self.call.shapes
        found = {name: self.new(B, Hq, Lq) for name in ("max_weight", "entropy", "distance")}
        found["max_score"] = self.new(B, Hq, Lq, value=-torch.inf)
        if asked.top:
            found["top_weights"] = self.new(B, Hq, Lq, asked.top)
            found["top_keys"] = self.new(B, Hq, Lq, asked.top, value=-1, dtype=torch.int64)
        features = None
        if asked.features is not None:
            features = asked.features.detach().to(self.device, torch.float32).contiguous()
            found["features"] = self.new(B, Hq, Lq, features.shape[1])
        width = 0 if features is None else features.shape[1]
        if self.blind or not self.sight.tiles:
            return found
        for first in range(0, max(width, 1), FEATURES):
            kernels.row_statistics[self.sight.tiles, Hq, self.sight.rows](
                self.query, self.key, self.normalizer, found["max_score"], found["max_weight"], found["entropy"],
                found["distance"], found.get("top_weights"), found.get("top_keys"), features, found.get("features"),
                *self.strides, Hq, Hq // Hkv, Lq, *self.sight.operands, *self.scoring, first, width, asked.top,
                TOP=1 if first or not asked.top else max(2, 1 << (asked.top - 1).bit_length()),
                FEATURES=FEATURES if width else 1, **self.options,
            )  # fmt: skip
        return found

    def blocks(self, high: int, wide: int, by_key: bool = False) -> Tensor:
        """Sums of blocks of ``high`` queries by ``wide`` keys, or of each key by itself."""
        from .kernels import observe as kernels

        B, Hq, Hkv, Lq, Lk, _, _ = self.call.shapes
        rows, columns = -(-Lq // high), -(-Lk // wide)
        result = self.new(B, Hq, 1, Lk) if by_key else self.new(B, Hq, rows, columns)
        if not self.blind and result.numel() and rows:
            kernels.block_sums[rows * columns, Hq, B](
                self.query, self.key, self.normalizer, result, *self.strides, Hq, Hq // Hkv, Lq, Lk,
                *operands.all_segments(self.sight), *self.scoring, high, wide, columns, BY_KEY=by_key, **self.options,
            )  # fmt: skip
        return result

    def whole_rows(self, chosen: Tensor) -> Tensor:
        """All weights of the chosen queries."""
        from .kernels import observe as kernels

        B, Hq, Hkv, Lq, Lk, _, _ = self.call.shapes
        result = self.new(B, Hq, len(chosen), Lk)
        if not self.blind and result.numel():
            tiles = -(-len(chosen) // self.tile.rows) * -(-Lk // self.tile.keys)
            kernels.whole_rows[tiles, Hq, B](
                self.query, self.key, self.normalizer, result, chosen.to(self.device), len(chosen), *self.strides,
                Hq, Hq // Hkv, Lq, Lk, *operands.all_segments(self.sight), *self.scoring, **self.options,
            )  # fmt: skip
        return result

    def pairs(self, chosen: Tensor) -> Tensor:
        """The weights of the chosen pairs, picked from whole rows, a few at a time."""
        B, Hq = self.call.shapes[:2]
        result = self.new(B, Hq, len(chosen))
        queries, row = torch.unique(chosen[:, 0], return_inverse=True)
        for first in range(0, len(queries), ROWS):
            mine = ((row >= first) & (row < first + ROWS)).nonzero()[:, 0]
            rows = self.whole_rows(queries[first : first + ROWS])
            result[:, :, mine] = rows[:, :, (row[mine] - first).to(self.device), chosen[mine, 1].to(self.device)]
        return result
