"""Patterns: which keys a query may see, by their positions.

A pattern is a frozen, hashable value. It holds no matrix of zeros and minus infinities, prints itself, draws itself
and says what it costs::

    >>> from limelight.forms.patterns import Causal, Keys, Window
    >>> streaming = Causal() & (Window(back=2, ahead=0) | Keys(first=1))
    >>> streaming
    Causal() & (Window(back=2, ahead=0) | Keys(first=1))
    >>> print(streaming.draw(6))
    ■ · · · · ·
    ■ ■ · · · ·
    ■ ■ ■ · · ·
    ■ ■ ■ ■ · ·
    ■ · ■ ■ ■ ·
    ■ · · ■ ■ ■
    >>> streaming.pairs(6)
    18

``&`` allows what both allow, ``|`` what either allows, ``~`` what the pattern does not. Positions come from the
layout (`limelight.forms.layouts`); by default the last query stands at the last key.

Here ``p`` is the position of the query and ``j`` that of the key:

==========================  ====================================================================
``Full()``                  always
``Causal()``                ``j <= p``
``Window(back, ahead)``     ``p - back <= j <= p + ahead``
``Prefix(length)``          ``p < length and j < length``
``Chunks(size)``            ``p // size == j // size``
``Keys(first=n)``           ``j < n``
``Blocks(table, size)``     ``table[..., p // size, j // size]``
``Explicit(mask)``          ``mask[..., i, j]``, by the index of the tokens
``Rule(function)``          ``function(at)``, a predicate of everything above
==========================  ====================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..tensors.shapes import check_broadcast, check_tensor, describe, position, whole_number, wrong
from .coordinates import Where
from .descriptions import Description

if TYPE_CHECKING:
    from .drawing import Drawing
    from .layouts import Layout

MOST_DRAWN = 2**24  # queries and keys of a picture


class Pattern(Description):
    """Base of all patterns."""

    def allows(self, at: Where) -> Tensor:
        """The definition: a bool tensor that broadcasts to ``(B, Hq, Lq, Lk)``."""
        raise NotImplementedError

    def check(self, B: int, Hq: int, Lq: int, Lk: int) -> None:
        """Raise `ArgumentError` when the pattern holds a tensor that does not fit the call."""

    def __and__(self, other: Pattern) -> Pattern:
        return And(self, other) if isinstance(other, Pattern) else NotImplemented

    def __or__(self, other: Pattern) -> Pattern:
        return Or(self, other) if isinstance(other, Pattern) else NotImplemented

    def __invert__(self) -> Pattern:
        return Not(self)

    def pairs(
        self, queries: int, keys: int | None = None, *, layout: Layout | None = None, batch: int = 1, heads: int = 1
    ) -> int:
        """How many (query, key) pairs the pattern allows over a ``batch`` of rows and ``heads`` query heads."""
        from .lowering import lower

        keys = queries if keys is None else keys
        for name, size in (("queries", queries), ("keys", keys), ("batch", batch), ("heads", heads)):
            whole_number(name, size, at_least=0)
        return lower(self, layout, batch, heads, queries, keys).pairs()

    def draw(
        self, queries: int, keys: int | None = None, *, layout: Layout | None = None, head: int = 0, heads: int = 1
    ) -> Drawing:
        """A picture of who sees whom: text when printed, SVG in a notebook (``.svg()``), for the first batch row."""
        from .drawing import draw

        keys = queries if keys is None else keys
        for name, size in (("queries", queries), ("keys", keys)):
            whole_number(name, size, at_least=0, at_most=MOST_DRAWN)
        whole_number("heads", heads, at_least=1)
        whole_number("head", head, at_least=0, at_most=heads - 1)
        return draw(self, queries, keys, layout=layout, head=head, heads=heads)


@dataclass(frozen=True, eq=False, repr=False)
class Full(Pattern):
    """Every query sees every key."""

    def allows(self, at: Where) -> Tensor:
        """See `Pattern.allows`."""
        return torch.ones((1, 1, 1, 1), dtype=torch.bool, device=at.query_position.device)


@dataclass(frozen=True, eq=False, repr=False)
class Causal(Pattern):
    """A query sees the keys at its own position and before: ``j <= p``."""

    def allows(self, at: Where) -> Tensor:
        """See `Pattern.allows`."""
        return at.key_position <= at.query_position


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
        """See `Pattern.allows`."""
        allowed = torch.ones((1, 1, 1, 1), dtype=torch.bool, device=at.query_position.device)
        if self.back is not None:
            allowed = allowed & (at.key_position >= at.query_position - self.back)
        if self.ahead is not None:
            allowed = allowed & (at.key_position <= at.query_position + self.ahead)
        return allowed


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
        """See `Pattern.check`."""
        if isinstance(self.length, Tensor) and check_tensor("length", self.length).shape[0] != B:
            raise wrong(
                "length", "must have one number for each batch row", f"{len(self.length)} is not {B}", "Or pass an int."
            )

    def allows(self, at: Where) -> Tensor:
        """See `Pattern.allows`."""
        length: int | Tensor = self.length
        if isinstance(length, Tensor):
            length = at.part.of(length.to(at.query_position.device)[:, None, None, None])
        return (at.query_position < length) & (at.key_position < length)


@dataclass(frozen=True, eq=False, repr=False)
class Chunks(Pattern):
    """Positions are cut into chunks of ``size``; a query sees the keys of its own chunk."""

    size: int

    def __post_init__(self) -> None:
        position("size", self.size, at_least=1)

    def allows(self, at: Where) -> Tensor:
        """See `Pattern.allows`."""
        return _floor(at.query_position, self.size) == _floor(at.key_position, self.size)


@dataclass(frozen=True, eq=False, repr=False)
class Keys(Pattern):
    """Every query sees the keys at the ``first`` positions (attention sinks, global tokens)."""

    first: int

    def __post_init__(self) -> None:
        position("first", self.first, at_least=0)

    def allows(self, at: Where) -> Tensor:
        """See `Pattern.allows`."""
        return at.key_position < self.first


@dataclass(frozen=True, eq=False, repr=False)
class Blocks(Pattern):
    """Block-sparse: positions are cut into blocks of ``size``; a table says which block sees which.

    Args:
        table: bool, ``(query blocks, key blocks)``, with ``(Hq,)`` or ``(B, Hq)`` before it where heads or rows
            differ (1 broadcasts). Positions beyond the table see nothing and are not seen.
        size: positions in a block.
    """

    table: Tensor
    size: int

    def __post_init__(self) -> None:
        position("size", self.size, at_least=1)
        table = check_tensor("table", self.table)
        if table.dtype != torch.bool or not 2 <= table.dim() <= 4:
            raise wrong(
                "table",
                "must be a bool tensor (..., query blocks, key blocks)",
                f"it is {describe(self.table)}",
                "Use .bool().",
            )

    def check(self, B: int, Hq: int, Lq: int, Lk: int) -> None:
        """See `Pattern.check`."""
        check_tensor("table", self.table)
        check_broadcast("table", self.table.shape[:-2], (B, Hq))

    def allows(self, at: Where) -> Tensor:
        """See `Pattern.allows`."""
        table = self.table.to(at.query_position.device)
        table = table[(None,) * (4 - table.dim())]
        row, column = _floor(at.query_position, self.size), _floor(at.key_position, self.size)
        rows, columns = table.shape[-2:]
        inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
        if rows == 0 or columns == 0:
            return inside
        batch = at.batch if table.shape[0] > 1 else 0 * at.batch[:1]
        head = at.head if table.shape[1] > 1 else 0 * at.head[:, :1]
        return inside & table[batch, head, row.clamp(0, rows - 1), column.clamp(0, columns - 1)]


@dataclass(frozen=True, eq=False, repr=False)
class Explicit(Pattern):
    """Any bool mask by token index, true where the query sees the key; broadcastable to ``(B, Hq, Lq, Lk)``.

    Args:
        mask: bool, up to 4 dimensions.
        fixed: the caller's word that the numbers of the mask never change; the lowering of a pattern that holds it is
            then kept with the pattern, for the next layer that is given it.
    """

    mask: Tensor
    fixed: bool = False

    def __post_init__(self) -> None:
        mask = check_tensor("mask", self.mask)
        if mask.dtype != torch.bool or mask.dim() > 4:
            raise wrong(
                "mask",
                "must be a bool tensor, true where the query sees the key",
                f"it is {describe(self.mask)}",
                "A float mask that is added to the scores is limelight.forms.scores.Bias(mask).",
            )

    def check(self, B: int, Hq: int, Lq: int, Lk: int) -> None:
        """See `Pattern.check`."""
        check_tensor("mask", self.mask)
        check_broadcast("mask", self.mask.shape, (B, Hq, Lq, Lk))

    def allows(self, at: Where) -> Tensor:
        """See `Pattern.allows`."""
        return at.part.of(self.mask.to(at.query_position.device))


@dataclass(frozen=True, eq=False, repr=False)
class Rule(Pattern):
    """Any predicate: ``function(at)`` returns a bool tensor for the places ``at`` (see `Where`).

    ``Rule(lambda at: (at.head == 0) | (at.key_position % 2 == 0))`` lets head 0 see everything and the others every
    second key. A rule is evaluated at each call, because it may close over something that changes.

    Args:
        function: from a `Where` to a bool tensor that broadcasts to ``(B, Hq, Lq, Lk)``; elementwise, since it may
            be asked about some of the queries only.
        fixed: the caller's word that equal calls give equal answers; its lowering may then be kept.
    """

    function: Callable[[Where], Tensor]
    fixed: bool = False

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise wrong("function", "must be callable", f"it is {self.function!r}", "Pass a function of one `Where`.")

    def allows(self, at: Where) -> Tensor:
        """See `Pattern.allows`."""
        if at.whole is not None:
            return at.part._replace(queries=slice(None)).of(self.allows(at.whole))
        allowed = self.function(at)
        if not isinstance(allowed, Tensor) or allowed.dtype != torch.bool:
            raise wrong(
                "function",
                "of a Rule must return a bool tensor",
                f"it returned {describe(allowed)}",
                "Compare, or use .bool().",
            )
        sizes = (at.batch.shape[0], at.head.shape[1], at.query_index.shape[2], at.key_index.shape[3])
        check_broadcast("function", allowed.shape, sizes)
        return allowed[(None,) * (4 - allowed.dim())]


@dataclass(frozen=True, eq=False, repr=False)
class And(Pattern):
    """What both allow; written ``a & b``."""

    left: Pattern
    right: Pattern

    def tensors(self) -> tuple[Tensor, ...]:
        """See `Description.tensors`; every call asks."""
        return self.left.tensors() + self.right.tensors()

    def check(self, B: int, Hq: int, Lq: int, Lk: int) -> None:
        """See `Pattern.check`."""
        self.left.check(B, Hq, Lq, Lk)
        self.right.check(B, Hq, Lq, Lk)

    def allows(self, at: Where) -> Tensor:
        """See `Pattern.allows`."""
        return self.left.allows(at) & self.right.allows(at)

    def __repr__(self) -> str:
        return f"{_within(self.left, Or)} & {_within(self.right, Or, And)}"


@dataclass(frozen=True, eq=False, repr=False)
class Or(Pattern):
    """What either allows; written ``a | b``."""

    left: Pattern
    right: Pattern

    def tensors(self) -> tuple[Tensor, ...]:
        """See `Description.tensors`; every call asks."""
        return self.left.tensors() + self.right.tensors()

    def check(self, B: int, Hq: int, Lq: int, Lk: int) -> None:
        """See `Pattern.check`."""
        self.left.check(B, Hq, Lq, Lk)
        self.right.check(B, Hq, Lq, Lk)

    def allows(self, at: Where) -> Tensor:
        """See `Pattern.allows`."""
        return self.left.allows(at) | self.right.allows(at)

    def __repr__(self) -> str:
        return f"{_within(self.left)} | {_within(self.right, Or)}"


@dataclass(frozen=True, eq=False, repr=False)
class Not(Pattern):
    """What the pattern does not allow; written ``~a``."""

    pattern: Pattern

    def check(self, B: int, Hq: int, Lq: int, Lk: int) -> None:
        """See `Pattern.check`."""
        self.pattern.check(B, Hq, Lq, Lk)

    def allows(self, at: Where) -> Tensor:
        """See `Pattern.allows`."""
        return ~self.pattern.allows(at)

    def __repr__(self) -> str:
        return f"~{_within(self.pattern, And, Or)}"


def _within(pattern: Pattern, *bracketed: type[Pattern]) -> str:
    return f"({pattern!r})" if isinstance(pattern, bracketed) else repr(pattern)


def _floor(position: Tensor, size: int) -> Tensor:
    return torch.div(position, size, rounding_mode="floor")
