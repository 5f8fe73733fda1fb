"""Patterns by positions alone: for each query one interval of keys, by arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...tensors.shapes import check_tensor, describe, position, wrong
from ..coordinates import Where
from ..spans import EVERYTHING, NEVER, Span, Spans
from .base import Pattern


@dataclass(frozen=True, eq=False, repr=False)
class Full(Pattern):
    """Every query sees every key."""

    def allows(self, at: Where) -> Tensor:
        return torch.ones((1, 1, 1, 1), dtype=torch.bool, device=at.query_position.device)

    def spans(self, row: int | None = None) -> Spans | None:
        return EVERYTHING


@dataclass(frozen=True, eq=False, repr=False)
class Causal(Pattern):
    """A query sees the keys at its own position and before: ``j <= p``."""

    def allows(self, at: Where) -> Tensor:
        return at.key_position <= at.query_position

    def spans(self, row: int | None = None) -> Spans | None:
        return (Span(end_offset=1),)


@dataclass(frozen=True, eq=False, repr=False)
class Window(Pattern):
    """A query sees ``back`` keys before its own position, that one, and ``ahead`` keys after it.

    ``Window(2, 0)`` sees three keys. (Other libraries mean ``W``, ``W + 1`` or ``2 W + 1`` keys by "window W"; here
    the numbers are counted, and one's own position is not among them.) ``None`` sets no limit on that side.
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
class Prefix(Pattern):
    """The tokens at positions below ``length`` see each other; ``Causal() | Prefix(n)`` is the prefix language model.

    Args:
        length: an int, or a ``(B,)`` tensor with one length for each batch row.
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
    """Positions are cut into chunks of ``size``; a query sees the keys of its own chunk."""

    size: int

    def __post_init__(self) -> None:
        position("size", self.size, at_least=1)

    def allows(self, at: Where) -> Tensor:
        return block_of(at.query_position, self.size) == block_of(at.key_position, self.size)

    def spans(self, row: int | None = None) -> Spans | None:
        return (Span(chunk=self.size, chunk_start=0, chunk_end=self.size),)


@dataclass(frozen=True, eq=False, repr=False)
class Keys(Pattern):
    """Every query sees the keys at the ``first`` positions (attention sinks, global tokens)."""

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
