"""Pictures: where each patch looked, kept for all heads at a size that does not depend on the model's."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...forms.observations import Observations
from ..subjects.patches import Patches
from .gathering import Gatherer
from .record import Floats

CELLS = 8_000_000  # weights that are kept of all heads; beyond, neighbouring patches are joined into one cell


@dataclass(frozen=True)
class Picture:
    """A picture as a model read it, and where its parts looked.

    The parts are the special tokens before the patches (the class token, registers), then cells of ``join`` x ``join``
    patches, row by row.

    Args:
        pixels: ``(height, width, 3)``, red, green and blue.
        rows: of patches.
        columns: of patches.
        before: number of special tokens.
        join: patches along the side of a cell.
        weights: ``(N, H, M, M)``: the share of the attention of each part that falls on each part; of a cell, the mean
            over its patches.
    """

    pixels: npt.NDArray[np.uint8]
    rows: int
    columns: int
    before: int
    join: int
    weights: Floats

    def coarser(self, join: int) -> Picture:
        """Join ``join`` x ``join`` cells into one."""
        rows, columns = (-(-side // self.join) for side in (self.rows, self.columns))
        cells = cells_of(self.before, rows, columns, join)
        layers, heads = self.weights.shape[:2]
        joined = [joined_cells(torch.from_numpy(layer), cells).numpy() for layer in self.weights]
        # A smaller cell at an edge counts as much in a mean as the others.
        weights = np.stack(joined) if layers else np.zeros((0, heads, *[int(cells.max()) + 1] * 2), np.float32)
        return replace(self, join=self.join * join, weights=weights)


class PatchGatherer(Gatherer):
    """Keeps what a `Reading` needs, and beside it where every patch looked.

    Args:
        patches: how the model cuts pictures.
        layers: number of layers.
        heads: the largest number of heads of a layer.
    """

    def __init__(self, patches: Patches, layers: int, heads: int) -> None:
        super().__init__(patches.text, False, layers, heads)
        self.patches = patches
        self.observe = replace(self.observe, rows=torch.arange(self.length, device="cpu"))
        rows, columns, _ = patches.grid
        self.join = 1
        while layers * heads * _count(patches.before, rows, columns, self.join) ** 2 > CELLS:
            self.join += 1
        self.cells = cells_of(patches.before, rows, columns, self.join)
        self.weights: list[Floats] = []

    def add(self, observations: Observations) -> None:
        """Keep the statistics and the joined weights of one layer."""
        super().add(observations)
        assert observations.rows is not None
        weights = joined_cells(observations.rows[0].detach().float().cpu(), self.cells).numpy()
        self.weights.append(np.pad(weights, ((0, self.heads - len(weights)), (0, 0), (0, 0))))

    def picture(self, numbers: Tensor) -> Picture:
        """The picture, after the run.

        Args:
            numbers: what the model read, ``(1, channels, height, width)``.
        """
        rows, columns, _ = self.patches.grid
        pixels = self.patches.pixels(numbers)
        return Picture(pixels, rows, columns, self.patches.before, self.join, np.stack(self.weights))


def _count(before: int, rows: int, columns: int, join: int) -> int:
    return before + -(-rows // join) * -(-columns // join)


def cells_of(before: int, rows: int, columns: int, join: int) -> Tensor:
    """The part that each token belongs to, ``(before + rows * columns,)``."""
    across = -(-columns // join)
    row, column = torch.arange(rows, device="cpu"), torch.arange(columns, device="cpu")
    patches = (row // join)[:, None] * across + (column // join)[None]
    return torch.cat([torch.arange(before, device="cpu"), before + patches.flatten()])


def joined_cells(weights: Tensor, cells: Tensor) -> Tensor:
    """Join weights between tokens ``(H, L, L)`` to parts ``(H, M, M)``: sums over keys, means over queries."""
    count = int(cells.max()) + 1
    if count == len(cells):
        return weights
    keys = weights.new_zeros(*weights.shape[:2], count).index_add_(2, cells, weights)
    queries = weights.new_zeros(len(weights), count, count).index_add_(1, cells, keys)
    return queries / torch.bincount(cells).to(weights.dtype)[:, None]
