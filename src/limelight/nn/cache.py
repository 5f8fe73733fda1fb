"""The keys and values of what a model has read already, so that the next token costs one token.

A `Cache` belongs to one run of one model over a batch of texts. Each forward pass opens a `Step`, every attention layer
hands its new keys and values to it and gets back all that its queries may look at, and the pass closes the step::

    cache = Cache()
    for tokens in (prompt, next_token, ...):
        step = cache.step(*tokens.shape, layout)
        context = ForwardContext(layout, step.positions, cache=step)
        ...  # the layers
        cache.close(step)

(`limelight.models.Stack.forward` does this when it is given a ``cache``.) What a layer keeps follows from its
pattern: a causal window of W keys keeps at most 2 W, anything else keeps everything; cross-attention keeps the keys and
values of its source, computed once. Rows may have different lengths: token ``i`` of a row lies in column ``i`` of its
store, whatever the padding of the prompt was, so positions are exact and no padding is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ..forms.layouts import Aligned, Layout, Padded
from ..forms.patterns import Pattern
from ..forms.spans import UNBOUNDED
from ..tensors.shapes import whole_number, wrong

Lengths = int | Tensor  # one for all rows, or (B,) int64 on the CPU, where layouts are worked out

FIRST = 64  # columns that a growing store begins with


class Room(NamedTuple):
    """Where new keys and values belong, and what the queries of a step look at.

    ``new`` names rows and their columns of keys and of values; ``layout`` says where ``key`` and ``value`` stand.
    """

    new: list[tuple[slice, Tensor, Tensor]]
    key: Tensor
    value: Tensor
    layout: Layout | None

    @classmethod
    def within(cls, buffers: list[Tensor], columns: Lengths, count: int, layout: Layout | None) -> Room:
        """``count`` new tokens from ``columns`` on."""
        key, value = buffers
        firsts = [columns] if isinstance(columns, int) else columns.tolist()
        rows = [slice(None)] if isinstance(columns, int) else [slice(row, row + 1) for row in range(len(firsts))]
        new = [
            (row, key[row].narrow(2, first, count), value[row].narrow(2, first, count))
            for row, first in zip(rows, firsts, strict=True)
        ]
        end = max(firsts) + count
        return cls(new, key.narrow(2, 0, end), value.narrow(2, 0, end), layout)


@dataclass(eq=False)
class Step:
    """One forward pass over the next tokens of every row.

    Args:
        stores: what each layer has kept, to be added to.
        limit: the most tokens of a row, or ``None``.
        layout: that of the new tokens, as given.
        before: tokens of each row that are there already.
        count: how many come now; the others of the ``L`` are padding.
        positions: ``(B | 1, L)`` int64, where the new tokens stand; 0 for padding.
        exists: ``(B, L)`` bool, which tokens are no padding; ``None`` where all rows have the same.
        memory: what whoever runs the layers wants to find again in the next step.
    """

    stores: dict[tuple[nn.Module, int], Store]
    limit: int | None
    layout: Layout | None
    before: Lengths
    count: Lengths
    positions: Tensor
    exists: Tensor | None
    memory: dict[nn.Module, Any] = field(default_factory=dict)
    _visits: dict[nn.Module, int] = field(default_factory=dict)

    @cached_property
    def after(self) -> Lengths:
        """Tokens of each row when the step is closed."""
        return self.before + self.count

    @cached_property
    def longest(self) -> int:
        """The most tokens of a row when the step is closed."""
        return most(self.after)

    @cached_property
    def continues(self) -> bool:
        """Whether any row has tokens from earlier steps."""
        return most(self.before) > 0

    def extend(
        self, layer: nn.Module, pattern: Pattern | None, key: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor, Layout | None]:
        """Add the new keys and values of a ``layer`` to its store.

        Args:
            layer: who asks; a layer that is run several times in a pass has a store for each time.
            pattern: which keys its queries may see.
            key: ``(B, Hkv, L, D)``.
            value: ``(B, Hkv, L, Dv)``.

        Returns:
            The keys and values that the queries of this step look at, and the layout that says where they stand.
        """
        _no_gradient(key, value)
        return self._own(layer, pattern).extend(self, key, value)

    def room(self, layer: nn.Module, pattern: Pattern | None, key: Tensor, value: Tensor) -> Room:
        """As `extend`, for keys and values that the caller will write itself; for a step that `goes_on`.

        Args:
            layer: who asks.
            pattern: which keys its queries may see.
            key: of the shape and dtype of the new keys, ``(B, Hkv, L, D)``.
            value: the same of the values.
        """
        return self._own(layer, pattern).room(self, key, value)

    @property
    def goes_on(self) -> bool:
        """Whether rows have been begun, and all new tokens exist."""
        return self.continues and isinstance(self.count, int) and self.count == self.positions.shape[1]

    def once(self, layer: nn.Module, make: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """The keys and values of a ``layer`` that looks at another text, made in the first step only."""
        store = self._store(layer, lambda: Source(*make()))
        if not isinstance(store, Source):
            raise wrong("layer", "must look at another text here", "it looked at its own before", "Make two layers.")
        _no_gradient(store.key, store.value)
        return store.key, store.value

    def running(self, layer: nn.Module) -> Running:
        """What a recurrent ``layer`` carries from token to token, to be read and replaced."""
        store = self._store(layer, Running)
        if not isinstance(store, Running):
            raise wrong("layer", "must be recurrent here", "it kept keys and values before", "Make two layers.")
        return store

    def _own(self, layer: nn.Module, pattern: Pattern | None) -> Whole | Recent:
        store = self._store(layer, lambda: _store_for(pattern))
        if not isinstance(store, (Whole, Recent)):
            raise wrong("layer", "must look at its own text here", "it looked at another before", "Make two layers.")
        return store

    def _store(self, layer: nn.Module, make: Callable[[], Store]) -> Store:
        visit = self._visits[layer] = self._visits.get(layer, -1) + 1
        if (layer, visit) not in self.stores:
            if self.continues:
                raise wrong(
                    "cache",
                    "must have been filled by the layers that go on with it",
                    f"it holds up to {most(self.before)} tokens, none of them read by this {type(layer).__name__}",
                    "Copy or pickle a cache together with its model, or read the text again with a new Cache.",
                )
            self.stores[layer, visit] = make()
        return self.stores[layer, visit]


class Cache:
    """What every layer of a model keeps of the texts read so far.

    Args:
        limit: the most tokens a row may have; memory for them is taken at once, and more are refused. ``None``: memory
            grows by doubling, so that each token is copied a bounded number of times on average.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.limit = None if limit is None else whole_number("limit", limit, at_least=1)
        self.lengths: Lengths = 0
        self._rows: int | None = None
        self._stores: dict[tuple[nn.Module, int], Store] = {}
        self._memory: dict[nn.Module, Any] = {}

    def step(self, B: int, L: int, layout: Layout | None = None, device: torch.device | str = "cpu") -> Step:
        """Open a pass over ``L`` more tokens of each of the ``B`` rows.

        Args:
            B: rows, the same in each pass.
            L: tokens of each row, padding included.
            layout: ``None`` when all exist, or `limelight.Padded`: at either side in the first pass, then at the right.
            device: of the positions.

        Raises:
            ArgumentError: another number of rows, a layout that cannot be continued, more tokens than the limit.
        """
        whole_number("B", B, at_least=0)
        whole_number("L", L, at_least=0)
        if self._rows not in (None, B):
            raise wrong(
                "tokens",
                f"must have the {self._rows} rows of the cache",
                f"they have {B}",
                "Cache.repeat makes copies of a prompt that was read once; Cache.select chooses among rows.",
            )
        count: Lengths = L
        first: Lengths = 0
        if layout is not None:
            count = _new_tokens(layout, B, L)
            if isinstance(layout, Padded) and layout.side == "left":
                first = L - count
                if most(self.lengths) and most(first):
                    raise wrong(
                        "layout",
                        "must have its padding at the right once a cache holds tokens",
                        'it is Padded(..., side="left")',
                        "Put the new tokens of every row first.",
                    )
        positions, exists = _positions(self.lengths, count, first, B, L, device)
        step = Step(self._stores, self.limit, layout, self.lengths, count, positions, exists, self._memory)
        if self.limit is not None and step.longest > self.limit:
            raise wrong(
                "tokens",
                f"must fit into the {self.limit} positions of the cache",
                f"a row would have {step.longest}",
                "Give Cache a larger limit, or none.",
            )
        self._rows = B
        return step

    def close(self, step: Step) -> None:
        """The pass is over: its tokens count as read."""
        self.lengths = _same(step.after)

    def select(self, rows: Tensor) -> None:
        """Keep these ``rows`` ``(N,)``, in this order, each as often as it is named (beams; texts that go on)."""
        if self._rows is None:
            return
        if isinstance(self.lengths, Tensor):
            self.lengths = _same(self.lengths[rows.cpu()])
        for store in self._stores.values():
            store.select(rows)
        self._rows = len(rows)

    def repeat(self, times: int) -> None:
        """Every row ``times`` times in a row: a prompt read once, continued in several ways."""
        if self._rows is not None:
            self.select(
                torch.arange(self._rows, device="cpu").repeat_interleave(whole_number("times", times, at_least=1))
            )

    @property
    def bytes(self) -> int:
        """Memory taken."""
        tensors = [tensor for store in self._stores.values() for tensor in store.tensors()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def __deepcopy__(self, memo: dict[int, Any]) -> Cache:
        """A cache of the same layers; of their copies where they were copied before it, in one call."""
        copied = memo[id(self)] = Cache(self.limit)
        copied.lengths, copied._rows = deepcopy(self.lengths, memo), self._rows
        for (layer, visit), store in self._stores.items():
            copied._stores[memo.get(id(layer), layer), visit] = deepcopy(store, memo)
        return copied

    def __getstate__(self) -> dict[str, Any]:
        """Without what was noted of the layers: it holds addresses of this process."""
        return {**self.__dict__, "_memory": {}}

    def __repr__(self) -> str:
        return f"<Cache: {self._rows or 0} rows, up to {most(self.lengths)} tokens, {self.bytes / 2**20:.1f} MiB>"


# --- What a layer keeps ----------------------------------------------------------------------------------------------


class Store(Protocol):
    """What one layer keeps."""

    def select(self, rows: Tensor) -> None:
        """See `Cache.select`."""

    def tensors(self) -> list[Tensor]:
        """All that takes memory."""


class Running:
    """One tensor ``(B, ...)`` that changes with every token; ``None`` before the first."""

    def __init__(self) -> None:
        self.state: Tensor | None = None

    def select(self, rows: Tensor) -> None:
        """See `Store`."""
        if self.state is not None:
            self.state = self.state.index_select(0, rows.to(self.state.device))

    def tensors(self) -> list[Tensor]:
        """See `Store`."""
        return [] if self.state is None else [self.state]


class Source:
    """Keys and values of another text: made once.

    Args:
        key: ``(B, Hkv, Lk, D)``.
        value: ``(B, Hkv, Lk, Dv)``.
    """

    def __init__(self, key: Tensor, value: Tensor) -> None:
        self.key, self.value = key, value

    def select(self, rows: Tensor) -> None:
        """See `Store`."""
        rows = rows.to(self.key.device)
        self.key, self.value = self.key.index_select(0, rows), self.value.index_select(0, rows)

    def tensors(self) -> list[Tensor]:
        """See `Store`."""
        return [self.key, self.value]


class Whole:
    """Every token: position ``p`` in column ``p``."""

    def __init__(self) -> None:
        self.buffers: list[Tensor] = []
        self.used = 0

    def extend(self, step: Step, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Layout | None]:
        """See `Step.extend`."""
        end = self._reach(step, key, value)
        for buffer, new in zip(self.buffers, (key, value), strict=True):
            _write(buffer, new, step.before, step)
        if not step.continues:
            return key, value, step.layout
        return self.buffers[0][:, :, :end], self.buffers[1][:, :, :end], self._layout(step)

    def _layout(self, step: Step) -> Layout | None:
        even = step.exists is None and isinstance(step.after, int)
        return None if even else Padded(step.count, step.after)

    def room(self, step: Step, key: Tensor, value: Tensor) -> Room:
        """See `Step.room`."""
        self._reach(step, key, value)
        return Room.within(self.buffers, step.before, key.shape[2], self._layout(step))

    def _reach(self, step: Step, key: Tensor, value: Tensor) -> int:
        """Make room for the tokens of the step; the columns that are then used."""
        end = step.longest
        if not self.buffers or end > self.buffers[0].shape[2]:
            columns = step.limit or max(FIRST, 2 * end if self.buffers else end + end // 4)
            self.buffers = [_larger(buffer, new, columns, self.used) for buffer, new in self._beside(key, value)]
        self.used = end
        return end

    def _beside(self, key: Tensor, value: Tensor) -> list[tuple[Tensor | None, Tensor]]:
        return list(zip(self.buffers or (None, None), (key, value), strict=True))

    def select(self, rows: Tensor) -> None:
        """See `Store`."""
        self.buffers = [_chosen(buffer, rows, self.used) for buffer in self.buffers]

    def tensors(self) -> list[Tensor]:
        """See `Store`."""
        return self.buffers


class Recent:
    """The last ``back`` tokens of each row and at most as many more: position ``start + c`` in column ``c``.

    When the columns are full the last ``back`` move to the front, so each token is moved once for every ``back``
    tokens that are read.

    Args:
        back: how many keys before its own position a query may see.
    """

    def __init__(self, back: int) -> None:
        self.back = back
        self.buffers: list[Tensor] = []
        self.start: Lengths = 0

    def extend(self, step: Step, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Layout | None]:
        """See `Step.extend`."""
        L, (used, room) = key.shape[2], self._reach(step, key, value)
        layout = Aligned(step.before, self.start)
        fits = used + L <= room
        # More at once than there is room for: all of them are looked at, and the end is kept.
        seen = self.buffers if fits else [_larger(buffer, buffer, used + L, used) for buffer in self.buffers]
        for buffer, new in zip(seen, (key, value), strict=True):
            _write(buffer, new, step.before - self.start, step)
        if not fits:
            self._keep(seen, step.after)
        if not step.continues:
            return key, value, step.layout
        return seen[0][:, :, : used + L], seen[1][:, :, : used + L], layout

    def room(self, step: Step, key: Tensor, value: Tensor) -> Room:
        """See `Step.room`: at most ``FIRST // 2`` tokens."""
        self._reach(step, key, value)
        return Room.within(self.buffers, step.before - self.start, key.shape[2], Aligned(step.before, self.start))

    def _reach(self, step: Step, key: Tensor, value: Tensor) -> tuple[int, int]:
        """How many columns are used before the step, and how many there are, after a move where they would not do."""
        L, columns = key.shape[2], 2 * max(self.back, FIRST // 2)
        if not self.buffers:
            self.buffers = [new.new_zeros(*new.shape[:2], columns, new.shape[3]) for new in (key, value)]
        used = most(step.before - self.start)
        if used + L > columns:
            self._keep(self.buffers, step.before)
            used = most(step.before - self.start)
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
            columns = columns.clamp(max=source[0].shape[2] - 1)  # a shorter row has later ones there, which nobody sees
            ends = [
                buffer.gather(2, columns[:, None, :, None].expand(-1, buffer.shape[1], -1, buffer.shape[3]))
                for buffer in source
            ]
        for buffer, end in zip(self.buffers, ends, strict=True):
            buffer[:, :, : end.shape[2]] = end
        self.start = self.start + dropped

    def select(self, rows: Tensor) -> None:
        """See `Store`."""
        if isinstance(self.start, Tensor):
            self.start = self.start[rows.cpu()]
        self.buffers = [buffer.index_select(0, rows.to(buffer.device)) for buffer in self.buffers]

    def tensors(self) -> list[Tensor]:
        """See `Store`."""
        return self.buffers


def _store_for(pattern: Pattern | None) -> Whole | Recent:
    back, ahead = UNBOUNDED if pattern is None else pattern.reach()
    return Recent(back) if back is not None and ahead == 0 else Whole()


# --- Columns ---------------------------------------------------------------------------------------------------------


def most(lengths: Lengths) -> int:
    """The largest of them."""
    return lengths if isinstance(lengths, int) else int(lengths.max()) if len(lengths) else 0


def _same(lengths: Lengths) -> Lengths:
    """One number where all rows have the same."""
    if isinstance(lengths, Tensor) and len(lengths) and bool((lengths == lengths[0]).all()):
        return int(lengths[0])
    return lengths


def _new_tokens(layout: Layout, B: int, L: int) -> Lengths:
    layout.check(B, L, L)
    if isinstance(layout, Padded) and layout.key_lengths is None:
        lengths = layout.query_lengths
        return lengths if isinstance(lengths, int) else _same(lengths.long().cpu())
    raise wrong(
        "layout",
        "must be Padded, with one set of lengths, or None for a model with a cache",
        f"it is {layout!r}",
        "A cache holds one text a row; run packed or masked texts without it.",
    )


def _positions(
    before: Lengths, count: Lengths, first: Lengths, B: int, L: int, device: torch.device | str
) -> tuple[Tensor, Tensor | None]:
    """`Step.positions` and `Step.exists`."""
    if isinstance(before, int) and isinstance(count, int) and count == L:
        return torch.arange(before, before + L, device=device)[None], None
    starts, counts, firsts = (torch.as_tensor(x, device=device).expand(B)[:, None] for x in (before, count, first))
    place = torch.arange(L, device=device) - firsts  # (B, L): which new token of its row
    exists = (place >= 0) & (place < counts)
    return (starts + place).where(exists, 0), exists


def _write(buffer: Tensor, new: Tensor, column: Lengths, step: Step) -> None:
    """Put the tokens of ``new`` ``(B, H, L, D)`` that are no padding into the columns from ``column`` on."""
    if step.exists is None and isinstance(column, int):
        buffer[:, :, column : column + new.shape[2]] = new
        return
    exists = step.positions.new_ones(new.shape[0], new.shape[2]).bool() if step.exists is None else step.exists
    row, token = exists.nonzero(as_tuple=True)
    shift = torch.as_tensor(column - step.before, device=row.device).expand(
        new.shape[0]
    )  # from a position to its column
    positions = step.positions.expand(exists.shape)
    buffer[row, :, positions[row, token] + shift[row]] = new[row, :, token]


def _no_gradient(*tensors: Tensor) -> None:
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        raise wrong(
            "cache",
            "keeps numbers without the way back to the parameters",
            "a gradient is wanted",
            "Run the model under torch.no_grad(), or train without a cache.",
        )


def _larger(buffer: Tensor | None, like: Tensor, columns: int, used: int) -> Tensor:
    """``columns`` columns of zeros, the first ``used`` those of ``buffer``."""
    larger = like.new_zeros(*like.shape[:2], columns, like.shape[3])
    if buffer is not None:
        larger[:, :, :used] = buffer[:, :, :used]
    return larger


def _chosen(buffer: Tensor, rows: Tensor, used: int) -> Tensor:
    kept = buffer[:, :, :used].index_select(0, rows.to(buffer.device))
    if len(kept) == len(buffer):
        buffer[:, :, :used] = kept
        return buffer
    return _larger(kept, buffer[:1].expand(len(kept), -1, -1, -1), buffer.shape[2], used)
