"""Patterns by positions alone: intervals of keys, by arithmetic in the position of the query."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...tensors.shapes import check_tensor, describe, position, wrong
from ..coordinates import Where
from ..spans import EVERYTHING, MAX_UNITED_SPANS, NEVER, Reach, Span, Spans
from .base import Pattern


@dataclass(frozen=True, eq=False, repr=False)
class Full(Pattern):
    """Every query sees every key; the pattern of bidirectional encoders."""

    def allows(self, at: Where) -> Tensor:
        return torch.ones((1, 1, 1, 1), dtype=torch.bool, device=at.query_position.device)

    def spans(self, row: int | None = None) -> Spans | None:
        return EVERYTHING


@dataclass(frozen=True, eq=False, repr=False)
class Causal(Pattern):
    """A query sees the keys at its own position and before: ``j <= p``; the pattern of decoders."""

    def allows(self, at: Where) -> Tensor:
        return at.key_position <= at.query_position

    def spans(self, row: int | None = None) -> Spans | None:
        return (Span(end_offset=1),)


@dataclass(frozen=True, eq=False, repr=False)
class Window(Pattern):
    """A sliding window: ``back`` keys before the query's own position, that one, and ``ahead`` keys after it.

    ``p - back <= j <= p + ahead``; ``Window(2, 0)`` sees three keys. (Other libraries mean ``W``, ``W + 1`` or
    ``2 W + 1`` keys by "window W"; here the keys on each side are counted, and the own position is not among them.)

    Args:
        back: keys seen before the query's own position; ``None`` for no limit.
        ahead: keys seen after it; ``None`` for no limit.
    """

    back: int | None
    ahead: int | None

    def __post_init__(self) -> None:
        for name in ("back", "ahead"):
            value = getattr(self, name)
            if value is not None and position(name, value) < 0:
                raise wrong(
                    name,
                    "counts keys and cannot be negative",
                    f"it is {value}",
                    "Use 0 to see only one's own position on that side, None for no limit.",
                )

    def allows(self, at: Where) -> Tensor:
        allowed = torch.ones((1, 1, 1, 1), dtype=torch.bool, device=at.query_position.device)
        if self.back is not None:
            allowed = allowed & (at.key_position >= at.query_position - self.back)
        if self.ahead is not None:
            allowed = allowed & (at.key_position <= at.query_position + self.ahead)
        return allowed

    def spans(self, row: int | None = None) -> Spans | None:
        start = -NEVER if self.back is None else -self.back
        end = NEVER if self.ahead is None else self.ahead + 1
        return (Span(start_offset=start, end_offset=end),)


@dataclass(frozen=True, eq=False, repr=False)
class DilatedWindow(Pattern):
    """Every ``step``-th key within a distance: with ``d = j - p``, those with ``d % step == 0`` and ``-back * step <= d
    <= ahead * step``.

    ``DilatedWindow(3, 0, step=4)`` sees four keys: its own position and 4, 8 and 12 positions before it. So a layer
    reaches ``step`` times as far as with a `Window` of as many keys (the dilated sliding window of Longformer, Beltagy
    et al. 2020, arXiv:2004.05150; with ``back=None`` the strided pattern of Child et al. 2019, arXiv:1904.10509).

    Args:
        back: keys seen before the query's own position; ``None`` for no limit.
        ahead: keys seen after it; ``None`` for no limit.
        step: positions from one key that is seen to the next.
    """

    back: int | None
    ahead: int | None
    step: int

    def __post_init__(self) -> None:
        position("step", self.step, at_least=1)
        for name in ("back", "ahead"):
            if (value := getattr(self, name)) is not None:
                position(f"{name} * step", position(name, value, at_least=0) * self.step)

    def allows(self, at: Where) -> Tensor:
        back, ahead = self.reach()
        distance = at.distance
        allowed = distance % self.step == 0
        if back is not None:
            allowed = allowed & (distance >= -back)
        if ahead is not None:
            allowed = allowed & (distance <= ahead)
        return allowed

    def spans(self, row: int | None = None) -> Spans | None:
        back, ahead, step = self.back, self.ahead, self.step
        if step == 1:
            return Window(back, ahead).spans(row)
        if back is None or ahead is None or back + ahead >= MAX_UNITED_SPANS:
            return None
        return tuple(Span(start_offset=n * step, end_offset=n * step + 1) for n in range(-back, ahead + 1))

    def select(self, queries: Tensor, keys: Tensor) -> DilatedWindow:
        return self

    def for_heads(self, heads: slice) -> DilatedWindow:
        return self

    def reach(self) -> Reach:
        return Reach(*(None if count is None else count * self.step for count in (self.back, self.ahead)))

    @property
    def uniform_over_batch(self) -> bool:
        return True


@dataclass(frozen=True, eq=False, repr=False)
class Prefix(Pattern):
    """The tokens at positions below ``length`` see each other: ``p < length and j < length``.

    ``Causal() | Prefix(n)`` is the prefix language model (Raffel et al. 2020, arXiv:1910.10683).

    Args:
        length: tokens of the prefix, an int, or a ``(B,)`` integer tensor with one length for each batch row.
    """

    length: int | Tensor

    def __post_init__(self) -> None:
        if not isinstance(self.length, Tensor):
            position("length", self.length, at_least=0)
        elif (
            check_tensor("length", self.length).dtype == torch.bool
            or self.length.dim() != 1
            or self.length.dtype.is_floating_point
        ):
            raise wrong(
                "length",
                "must be an int or a (B,) integer tensor",
                f"it is {describe(self.length)}",
                "Give one length a row.",
            )

    def check(self, B: int, Hq: int, Lq: int, Lk: int) -> None:
        if isinstance(self.length, Tensor) and check_tensor("length", self.length).shape[0] != B:
            raise wrong(
                "length", "must have one number for each batch row", f"{len(self.length)} is not {B}", "Or pass an int."
            )

    def allows(self, at: Where) -> Tensor:
        length: int | Tensor = self.length
        if isinstance(length, Tensor):
            length = at.part.of(length.to(at.query_position.device)[:, None, None, None])
        return (at.query_position < length) & (at.key_position < length)

    def spans(self, row: int | None = None) -> Spans | None:
        length = self.length
        if isinstance(length, Tensor):
            if row is None or row >= len(length):
                return None
            length = int(length[row])
        return (Span(query_to=length, end=length),)


@dataclass(frozen=True, eq=False, repr=False)
class Chunks(Pattern):
    """Positions are cut into chunks; a query sees the keys of its own: ``p // size == j // size``.

    ``Causal() & Chunks(n)`` is the chunked attention of Llama 4.

    Args:
        size: positions in a chunk; one begins at position 0.
    """

    size: int

    def __post_init__(self) -> None:
        position("size", self.size, at_least=1)

    def allows(self, at: Where) -> Tensor:
        return block_of(at.query_position, self.size) == block_of(at.key_position, self.size)

    def spans(self, row: int | None = None) -> Spans | None:
        return (Span(chunk=self.size, chunk_start=0, chunk_end=self.size),)


@dataclass(frozen=True, eq=False, repr=False)
class Keys(Pattern):
    """Every query sees the keys at the first positions: ``j < first`` (global tokens, attention sinks).

    ``Causal() & (Window(n, 0) | Keys(first=4))`` is the pattern of StreamingLLM (Xiao et al. 2023, arXiv:2309.17453).

    Args:
        first: number of keys.
    """

    first: int

    def __post_init__(self) -> None:
        position("first", self.first, at_least=0)

    def allows(self, at: Where) -> Tensor:
        return at.key_position < self.first

    def spans(self, row: int | None = None) -> Spans | None:
        return (Span(end=self.first),)


def block_of(position: Tensor, size: int) -> Tensor:
    """The block of ``size`` positions that each position lies in."""
    return torch.div(position, size, rounding_mode="floor")
