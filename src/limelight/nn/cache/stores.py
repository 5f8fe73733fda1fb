"""What one layer keeps: the keys and values of its own text, those of a source, or a recurrent state.

A store belongs to one layer. Rows may have different lengths: token ``i`` of a row has column ``i`` of a `FullStore`,
whatever the padding of the prompt was, so positions are exact and no padding is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ...backends import huge_pages
from ...forms.layouts import Aligned, Layout, Padded
from ...forms.patterns import Pattern
from ...forms.spans import UNBOUNDED
from .precision import DENSE, Cached, Precision

Lengths = int | Tensor  # one for all rows, or (B,) int64 on the CPU, where layouts are worked out

FIRST = 64  # columns that a growing store begins with


@dataclass(eq=False)
class NewTokens:
    """The tokens that one forward pass adds to every row.

    Args:
        layout: that of the new tokens, as given.
        limit: the maximum number of tokens of a row, or ``None``.
        before: tokens of each row that are cached already.
        count: new tokens of each row; the rest of the ``L`` are padding.
        positions: ``(B | 1, L)`` int64, the position of each new token; 0 for padding.
        exists: ``(B, L)`` bool, which tokens are not padding; ``None`` where all rows have the same number.
    """

    layout: Layout | None
    limit: int | None
    before: Lengths
    count: Lengths
    positions: Tensor
    exists: Tensor | None

    @cached_property
    def after(self) -> Lengths:
        """Tokens of each row when the pass is over."""
        return self.before + self.count

    @cached_property
    def longest(self) -> int:
        """The largest number of tokens of a row after the step, the maximum of `after`."""
        return maximum(self.after)

    @cached_property
    def continues(self) -> bool:
        """Whether any row has tokens from earlier passes."""
        return maximum(self.before) > 0

    @property
    def continues_unpadded(self) -> bool:
        """Whether rows continue and no new token is padding: a step of decoding."""
        return self.continues and isinstance(self.count, int) and self.count == self.positions.shape[1]


class Slots(NamedTuple):
    """Where new keys and values are written, and what the queries of a pass attend to.

    ``new`` holds, for each run of rows, the rows, the columns of their new keys ``(rows, Hkv, L, D)`` and of their new
    values ``(rows, Hkv, L, Dv)``. ``key`` and ``value`` are all columns in use, and ``layout`` says which positions
    they have.
    """

    new: list[tuple[slice, Cached, Cached]]
    key: Cached
    value: Cached
    layout: Layout | None

    @classmethod
    def within(
        cls, precision: Precision, buffers: list[Tensor], columns: Lengths, count: int, layout: Layout | None
    ) -> Slots:
        """The slots of ``count`` new tokens of each row, from its entry of ``columns`` on."""
        if isinstance(columns, int):
            new = [(slice(None), *precision.joined([x.narrow(2, columns, count) for x in buffers]))]
        else:
            rows = [(slice(row, row + 1), first) for row, first in enumerate(columns.tolist())]
            new = [(row, *precision.joined([x[row].narrow(2, first, count) for x in buffers])) for row, first in rows]
        end = maximum(columns) + count
        return cls(new, *precision.joined([x.narrow(2, 0, end) for x in buffers]), layout)


class Store(Protocol):
    """What one layer keeps between the steps of a text: keys and values, or another state."""

    def select(self, rows: Tensor) -> None:
        """Keep these ``rows`` ``(N,)`` of the batch, in this order, with repetitions."""

    def tensors(self) -> list[Tensor]:
        """All tensors that take memory."""


class RecurrentState(Store):
    """One tensor ``(B, ...)`` that changes with every token; ``None`` before the first."""

    def __init__(self) -> None:
        self.state: Tensor | None = None

    def select(self, rows: Tensor) -> None:
        if self.state is not None:
            self.state = self.state.index_select(0, rows.to(self.state.device))

    def tensors(self) -> list[Tensor]:
        return [] if self.state is None else [self.state]


class CrossStore(Store):
    """Keys and values of the source of cross-attention, computed once.

    Args:
        key: ``(B, Hkv, Lk, D)``.
        value: ``(B, Hkv, Lk, Dv)``.
    """

    def __init__(self, key: Tensor, value: Tensor) -> None:
        self.key, self.value = key, value

    def select(self, rows: Tensor) -> None:
        rows = rows.to(self.key.device)
        self.key, self.value = self.key.index_select(0, rows), self.value.index_select(0, rows)

    def tensors(self) -> list[Tensor]:
        return [self.key, self.value]


class FullStore(Store):
    """The keys and values of every token: position ``p`` in column ``p``.

    Args:
        precision: in which they are kept.
    """

    def __init__(self, precision: Precision = DENSE) -> None:
        self.precision = precision
        self.buffers: list[Tensor] = []
        self.used = 0

    def extend(self, new: NewTokens, key: Tensor, value: Tensor) -> tuple[Cached, Cached, Layout | None]:
        """Add keys ``(B, Hkv, L, D)`` and values ``(B, Hkv, L, Dv)``; returns all that the queries attend to."""
        end = self._grow(new, key, value)
        for buffer, tensor in zip(self.buffers, self.precision.split(key, value), strict=True):
            _write(buffer, tensor, new.before, new)
        if not new.continues:
            return key, value, new.layout
        return *self.precision.joined([x[:, :, :end] for x in self.buffers]), self._layout(new)

    def slots(self, new: NewTokens, key: Tensor, value: Tensor) -> Slots:
        """As `extend`, for keys and values that the caller writes itself."""
        self._grow(new, key, value)
        return Slots.within(self.precision, self.buffers, new.before, key.shape[2], self._layout(new))

    def _layout(self, new: NewTokens) -> Layout | None:
        even = new.exists is None and isinstance(new.after, int)
        return None if even else Padded(new.count, new.after)

    def _grow(self, new: NewTokens, key: Tensor, value: Tensor) -> int:
        """Have columns for the new tokens; returns how many are then in use."""
        end = new.longest
        if not self.buffers or end > self.buffers[0].shape[2]:
            columns = new.limit or max(FIRST, 2 * end if self.buffers else end + end // 4)
            likes = self.precision.likes(key, value)
            old: Sequence[Tensor | None] = self.buffers or [None] * len(likes)
            self.buffers = [_larger(buffer, like, columns, self.used) for buffer, like in zip(old, likes, strict=True)]
        self.used = end
        return end

    def select(self, rows: Tensor) -> None:
        self.buffers = [_selected(buffer, rows, self.used) for buffer in self.buffers]

    def tensors(self) -> list[Tensor]:
        return self.buffers


class WindowStore(Store):
    """The last ``back`` tokens of each row and at most as many more: position ``start + c`` in column ``c``.

    When the columns are full, the last ``back`` move to the front, so each token is moved once for every ``back``
    tokens that are read.

    Args:
        back: how many keys before its own position a query may see.
        precision: in which keys and values are kept.
    """

    def __init__(self, back: int, precision: Precision = DENSE) -> None:
        self.back, self.precision = back, precision
        self.buffers: list[Tensor] = []
        self.start: Lengths = 0

    def extend(self, new: NewTokens, key: Tensor, value: Tensor) -> tuple[Cached, Cached, Layout | None]:
        """Add keys ``(B, Hkv, L, D)`` and values ``(B, Hkv, L, Dv)``; returns all that the queries attend to."""
        L, (used, columns) = key.shape[2], self._make_room(new, key, value)
        layout = Aligned(new.before, self.start)
        fits = used + L <= columns
        # More at once than there are columns: the queries attend to all of them, and the end is kept.
        seen = self.buffers if fits else [_larger(buffer, buffer, used + L, used) for buffer in self.buffers]
        for buffer, tensor in zip(seen, self.precision.split(key, value), strict=True):
            _write(buffer, tensor, new.before - self.start, new)
        if not fits:
            self._keep(seen, new.after)
        if not new.continues:
            return key, value, new.layout
        return *self.precision.joined([x[:, :, : used + L] for x in seen]), layout

    def begin(self, key: Tensor, value: Tensor, first: int) -> None:
        """Keep the end of a text: at most the last ``back`` keys and values, of the positions from ``first`` on."""
        columns = 2 * max(self.back, FIRST // 2)
        parts = self.precision.split(key, value)
        self.buffers = [_larger(part, part, columns, part.shape[2]) for part in parts]
        self.start = first

    def slots(self, new: NewTokens, key: Tensor, value: Tensor) -> Slots:
        """As `extend`, for at most ``FIRST // 2`` keys and values that the caller writes itself."""
        self._make_room(new, key, value)
        layout = Aligned(new.before, self.start)
        return Slots.within(self.precision, self.buffers, new.before - self.start, key.shape[2], layout)

    def _make_room(self, new: NewTokens, key: Tensor, value: Tensor) -> tuple[int, int]:
        """Columns in use before the pass, and all columns, after a move to the front where they would not do."""
        L, columns = key.shape[2], 2 * max(self.back, FIRST // 2)
        if not self.buffers:
            likes = self.precision.likes(key, value)
            self.buffers = [_larger(None, like, columns, 0) for like in likes]
        used = maximum(new.before - self.start)
        if used + L > columns:
            self._keep(self.buffers, new.before)
            used = maximum(new.before - self.start)
        return used, columns

    def _keep(self, source: list[Tensor], lengths: Lengths) -> None:
        """Copy to the front the last ``back`` tokens of each row, of the ``lengths`` whose end the ``source`` holds."""
        used = lengths - self.start
        if isinstance(used, int):
            dropped: Lengths = max(used - self.back, 0)
            ends = [buffer[:, :, dropped:used].clone() for buffer in source]
        else:
            dropped = (used - self.back).clamp(min=0)
            device = source[0].device
            columns = torch.arange(self.back, device=device) + dropped.to(device)[:, None]
            columns = columns.clamp(max=source[0].shape[2] - 1)  # of a shorter row: later columns, which no query sees
            ends = [
                buffer.gather(2, columns[:, None, :, None].expand(-1, buffer.shape[1], -1, buffer.shape[3]))
                for buffer in source
            ]
        for buffer, end in zip(self.buffers, ends, strict=True):
            buffer[:, :, : end.shape[2]] = end
        self.start = self.start + dropped

    def select(self, rows: Tensor) -> None:
        if isinstance(self.start, Tensor):
            self.start = self.start[rows.cpu()]
        self.buffers = [buffer.index_select(0, rows.to(buffer.device)) for buffer in self.buffers]

    def tensors(self) -> list[Tensor]:
        return self.buffers


def store_for(pattern: Pattern | None, precision: Precision = DENSE) -> FullStore | WindowStore:
    """An empty store of what queries with this ``pattern`` may still see: a window where it has one, else all."""
    back, ahead = UNBOUNDED if pattern is None else pattern.reach()
    return WindowStore(back, precision) if back is not None and ahead == 0 else FullStore(precision)


def maximum(lengths: Lengths) -> int:
    """The largest of the lengths; 0 without a row."""
    return lengths if isinstance(lengths, int) else int(lengths.max()) if len(lengths) else 0


def _write(buffer: Tensor, tensor: Tensor, column: Lengths, new: NewTokens) -> None:
    """Write the tokens of ``tensor`` ``(B, H, L, D)`` that are not padding to the columns from ``column`` on."""
    if new.exists is None and isinstance(column, int):
        buffer[:, :, column : column + tensor.shape[2]] = tensor
        return
    exists = new.positions.new_ones(tensor.shape[0], tensor.shape[2]).bool() if new.exists is None else new.exists
    row, token = exists.nonzero(as_tuple=True)
    shift = torch.as_tensor(column - new.before, device=row.device)  # from a position to its column
    shift = shift.expand(tensor.shape[0])
    positions = new.positions.expand(exists.shape)
    buffer[row, :, positions[row, token] + shift[row]] = tensor[row, :, token]


def _larger(buffer: Tensor | None, like: Tensor, columns: int, used: int) -> Tensor:
    """``columns`` columns of zeros, the first ``used`` those of ``buffer``."""
    larger = huge_pages.zeros(like, (*like.shape[:2], columns, like.shape[3]))
    if buffer is not None:
        larger[:, :, :used] = buffer[:, :, :used]
    return larger


def _selected(buffer: Tensor, rows: Tensor, used: int) -> Tensor:
    kept = buffer[:, :, :used].index_select(0, rows.to(buffer.device))
    if len(kept) == len(buffer):
        buffer[:, :, :used] = kept
        return buffer
    return _larger(kept, buffer[:1].expand(len(kept), -1, -1, -1), buffer.shape[2], used)
