"""How a dimension of tokens is divided into blocks, as xFormers' masks hold it (``q_seqinfo``, ``k_seqinfo``)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from ...tensors.devices import check_device
from ...tensors.shapes import check_tensor, describe, position, sequence, wrong


@dataclass
class SeqLenInfo:
    """Blocks of tokens laid end to end.

    Attributes:
        seqstart_py: where each block begins, and the total.
        device: of the tensors.
    """

    seqstart_py: list[int]
    device: torch.device | None = None

    def __post_init__(self) -> None:
        if self.device is not None:
            self.device = check_device("device", self.device)

    @classmethod
    def from_seqlens(cls, seqlens: Sequence[int], *, device: torch.device | None = None) -> SeqLenInfo:
        """The blocks of these lengths."""
        return cls([0, *accumulate(lengths("seqlens", seqlens))], device)

    @property
    def seqstart(self) -> Tensor:
        """Where each block begins, ``seqstart_py``, as an int32 tensor ``(N + 1,)``."""
        return torch.tensor(self.seqstart_py, dtype=torch.int32, device=self.device)

    @property
    def max_seqlen(self) -> int:
        """The length of the longest block."""
        return max((last - first for first, last in self.intervals()), default=-1)

    @property
    def min_seqlen(self) -> int:
        """The length of the shortest block."""
        return min((last - first for first, last in self.intervals()), default=-1)

    def intervals(self) -> Iterator[tuple[int, int]]:
        """Where each block begins and ends."""
        yield from pairwise(self.seqstart_py)

    def to(self, device: torch.device) -> SeqLenInfo:
        """A copy with tensors on another device."""
        return SeqLenInfo(self.seqstart_py, device)

    def split(self, x: Tensor, batch_sizes: Sequence[int] | None = None) -> list[Tensor]:
        """The blocks of ``(1, M, ...)``, each ``(rows, length, ...)``; ``batch_sizes`` are the rows of each."""
        if check_tensor("tensor", x).dim() < 2 or x.shape[0] != 1 or x.shape[1] != self.seqstart_py[-1]:
            rule = f"must be (1, {self.seqstart_py[-1]}, ...)"
            raise wrong("tensor", rule, f"it is {describe(x)}", "Pass all blocks laid end to end.")
        sizes = [1] * (len(self.seqstart_py) - 1) if batch_sizes is None else list(batch_sizes)
        ends = [self.seqstart_py[n] for n in (0, *accumulate(sizes))]
        pieces = torch.split(x, [last - first for first, last in pairwise(ends)], 1)
        return [piece.reshape(n, -1, *x.shape[2:]) for n, piece in zip(sizes, pieces, strict=True)]


@dataclass
class SeqLenInfoOfSome(SeqLenInfo):
    """Blocks that begin at ``seqstart_py``, and hold ``seqlen_py`` tokens each; what lies between them is not used.

    Attributes:
        seqlen_py: the length of each block; in pages (`PagedBlockDiagonalGappyKeysMask`) where it ends.
        padding: slots of each block, where all have as many.
    """

    seqlen_py: Sequence[int] = ()
    padding: int = 0

    @classmethod
    def from_seqlens_padded(
        cls, seqlens: Sequence[int], padding: int, *, device: torch.device | None = None
    ) -> SeqLenInfoOfSome:
        """Blocks of these lengths, each in ``padding`` slots."""
        found = lengths("kv_seqlen", seqlens)
        if max(found, default=0) > position("kv_padding", padding, at_least=0):
            got = f"the longest has {max(found)}, and there are {padding} slots"
            raise wrong("kv_seqlen", "must fit into the slots of a block", got, "Allocate more of them.")
        return cls([n * padding for n in range(len(found) + 1)], device, found, padding)

    @property
    def seqlen(self) -> Tensor:
        """The lengths of the blocks, ``seqlen_py``, as an int32 tensor ``(N,)``."""
        return torch.tensor(self.seqlen_py, dtype=torch.int32, device=self.device)

    def intervals(self) -> Iterator[tuple[int, int]]:
        """Where each block begins and where its used tokens end."""
        for first, length in zip(self.seqstart_py, self.seqlen_py, strict=False):
            yield first, first + length

    def to(self, device: torch.device) -> SeqLenInfoOfSome:
        """A copy with tensors on another device."""
        return SeqLenInfoOfSome(self.seqstart_py, device, self.seqlen_py, self.padding)


def check_pages(block_tables: Tensor, page_size: int) -> int:
    """The number of slots in the pages of a text.

    Raises:
        ArgumentError: ``block_tables`` is no ``(N, pages of a text)`` whole numbers, or ``page_size`` is below 1.
    """
    table = check_tensor("block_tables", block_tables)
    if table.dim() != 2 or table.is_floating_point():
        rule, way_out = "must be (N, pages of a text) whole numbers", "Give one row for each text."
        raise wrong("block_tables", rule, f"it is {describe(table)}", way_out)
    return table.shape[1] * position("page_size", page_size, at_least=1)


def lengths(name: str, given: object) -> list[int]:
    """Lengths as a list of whole numbers.

    Raises:
        ArgumentError: they are no sequence of whole numbers from 0 on.
    """
    if isinstance(given, Tensor):
        given = given.tolist()
    parts = sequence(name, given, "a sequence of lengths", f"{name}=[100, 150]")
    return [position(name, part, at_least=0) for part in parts]
