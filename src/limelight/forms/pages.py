"""Pages: where keys and values lie that are stored in pages of memory, and how they are gathered."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..tensors.shapes import check_tensor, wrong
from ..tensors.tracing import readable
from .segments import FIELDS, unpack

if TYPE_CHECKING:
    from numpy.typing import NDArray

_KEY_BEGIN, _PAGE_OFFSET = FIELDS.index("key_begin"), FIELDS.index("page_offset")


class Pages:
    """A page table over pages of one size: key ``j`` of text ``r`` lies in slot ``j % size`` of page
    ``table[r, j // size]``.

    Args:
        lengths: ``(R,)`` int64, keys of each text.
        table: ``(R, M)`` int32, contiguous on the CPU, a row for each text. It is never modified.
        size: slots of a page.
        total: keys of all texts.
    """

    def __init__(self, lengths: Tensor, table: Tensor, size: int, total: int) -> None:
        self.lengths, self.table, self.size, self.total = lengths, table, size, total
        self._indices: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self._segments = b"", b""

    def check(self, count: int) -> None:
        """Raise where an entry of the table that holds keys is none of ``count`` pages.

        Raises:
            ArgumentError: it is not, or a text has more keys than its row of the table.
        """
        if not readable(self.table):
            return
        low, high = self._bounds
        if low >= 0 and high < count:
            return
        table = self.table.numpy()
        row, column = np.argwhere(self._used & ((table < 0) | (table >= count)))[0].tolist()
        first = column * self.size
        raise wrong(
            "pages",
            f"must name one of the {count:,} pages of `key` wherever it holds keys",
            f"row {row}, column {column} is {table[row, column]}, for the keys from {first:,} on of "
            f"{int(self.lengths[row]):,}",
            f"Pages count from 0 and have {self.size} keys. Entries beyond the last key of a text may hold anything.",
        )

    @cached_property
    def _used(self) -> NDArray[np.bool_]:
        """``(R, M)``: which entries of the table hold keys."""
        columns = -(-self.lengths.numpy() // self.size)
        M = self.table.shape[1]
        if (columns > M).any():
            row = int((columns > M).argmax())
            raise wrong(
                "pages",
                "must have a column for each page of a text's keys",
                f"text {row} has {int(self.lengths[row]):,} keys in pages of {self.size}, and there are {M} columns",
                f"Use {int(columns[row])} columns or more.",
            )
        return np.arange(M) < columns[:, None]

    @cached_property
    def _bounds(self) -> tuple[int, int]:
        """The least and the largest entry that hold keys; ``(0, -1)`` where none does."""
        used = self.table.numpy()[self._used]
        return (int(used.min()), int(used.max())) if used.size else (0, -1)

    def segments(self, packed: bytes) -> bytes:
        """The segments of the texts, in order, with the place of each in the page table: ``page_offset`` of
        `limelight.forms.segments.FIELDS`; worked out once for the same bytes.

        Args:
            packed: `limelight.forms.segments`, one of each text.
        """
        if self._segments[0] is not packed:
            table = unpack(packed).copy()
            entries = np.arange(len(table)) * (self.table.shape[1] * self.size)
            table[:, _PAGE_OFFSET] = entries - table[:, _KEY_BEGIN]
            self._segments = packed, table.tobytes()
        return self._segments[1]

    def gather(self, name: str, tensor: Tensor) -> Tensor:
        """``(1, H, total, D)``: the keys or values of all texts end to end, from ``(pages, H, size, D)``.

        One indexing operation of PyTorch, with every derivative. Slots without a key are not read.

        Args:
            name: ``"key"`` or ``"value"``, for errors.
            tensor: ``(pages, H, size, D)``.

        Raises:
            ArgumentError: the tensor has no dense memory.
        """
        check_tensor(name, tensor)
        page, slot = self._index(tensor.device)
        return tensor[page, :, slot].transpose(0, 1)[None]

    def _index(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """``(total,)`` int64 each: page and slot of every key; kept where they are not recorded."""
        found = self._indices.get(device)
        if found is None and readable(self.table):
            with torch.inference_mode(False):  # a later call may save them for its gradients
                found = self._indices[device] = self._new_index(device)
        return self._new_index(device) if found is None else found

    def _new_index(self, device: torch.device) -> tuple[Tensor, Tensor]:
        lengths, table = self.lengths.to(device), self.table.to(device, torch.int64)
        text = torch.repeat_interleave(torch.arange(len(lengths), device=device), lengths, output_size=self.total)
        key = torch.arange(self.total, device=device) - (lengths.cumsum(0) - lengths)[text]
        column = torch.div(key, self.size, rounding_mode="floor")
        page = table[text, column]
        # What is recorded is not checked: an index below zero, which counts from the end, must fail too.
        return torch.where(page < 0, torch.iinfo(torch.int64).max, page), key - column * self.size
