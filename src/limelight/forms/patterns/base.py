"""The base of all patterns, and what joins them: ``&``, ``|`` and ``~``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from ...tensors.shapes import wrong
from ..coordinates import Where, check_where
from ..descriptions import Checks, Description
from ..spans import UNBOUNDED, Reach, Spans, complement, intersection, reach, union

if TYPE_CHECKING:
    from ..drawing import Drawing
    from ..layouts import Layout


class Pattern(Description):
    """Base of all patterns.

    A new pattern defines `allows`, and `check` where it holds a tensor. The other methods state facts that make it
    faster; by default nothing is claimed: the lowering evaluates `allows` to a map of tiles, a cache keeps every key,
    and ``torch.vmap`` computes one sample after the other.
    """

    argument_checks: ClassVar[Checks] = {"allows": check_where}

    def allows(self, at: Where) -> Tensor:
        """The definition: whether each query sees each key.

        Args:
            at: the positions and indices of queries and keys, or of a part of them (``at.part``).

        Returns:
            A bool tensor that broadcasts to ``(B, Hq, Lq, Lk)``, the shape of ``at``.
        """
        raise NotImplementedError(f"{type(self).__name__} must define `allows(at)`, the definition of the pattern.")

    def check(self, B: int, Hq: int, Lq: int, Lk: int) -> None:
        """Raise `ArgumentError` when the pattern holds a tensor that does not fit the call."""

    def spans(self, row: int | None = None) -> Spans | None:
        """The pattern as a union of intervals by arithmetic, which kernels evaluate themselves.

        Args:
            row: the batch row that is meant; ``None`` for a union that holds in every row.

        Returns:
            The spans, however many; ``None``, the default, when the pattern has no such form.
        """
        return None

    def conjuncts(self) -> list[Pattern]:
        """Patterns that the pattern is the "and" of, so that each may be lowered in its own form; by default itself."""
        return [self]

    def reach(self) -> Reach:
        """How many keys before and after its own position a query sees at most; a cache keeps no more.

        By default what `spans` say, and no bound without them.
        """
        found = self.spans()
        return UNBOUNDED if found is None else reach(found)

    @property
    def uniform_over_batch(self) -> bool:
        """Whether the pattern is the same in every batch row, so that calls can be joined to one of more rows.

        By default where `spans` hold in every row.
        """
        return self.spans() is not None

    def as_data(self, at: Callable[[], Where]) -> Pattern:
        """The pattern as a compiled graph carries it: a function within becomes the mask that it gives.

        Args:
            at: makes the positions and indices of the whole call.
        """
        return self

    def select(self, queries: Tensor, keys: Tensor) -> Pattern:
        """The pattern in a call of some of the queries and keys, which stand at their positions in the whole.

        Args:
            queries: ``(Lq,)`` int64, the index in the whole of each query of the call.
            keys: ``(Lk,)`` int64, of each key.

        Raises:
            ArgumentError: it is not known whether positions alone decide, as by default where there are no `spans`.
        """
        if self.spans() is None and self.spans(0) is None:
            way_out = "Define select(queries, keys): return self where `allows` reads positions alone."
            raise wrong("pattern", "must be one of which queries and keys can be chosen", f"it is {self!r}", way_out)
        return self

    def for_heads(self, heads: slice) -> Pattern:
        """The pattern of a call of these query heads alone.

        Args:
            heads: consecutive query heads; neither end is ``None``.

        Raises:
            ArgumentError: the pattern cannot be cut into heads, as by default where there are no `spans`.
        """
        if self.spans() is None and self.spans(0) is None:
            way_out = "Define for_heads(heads): return self where all heads see the same keys."
            raise wrong("pattern", "must be one that can be cut into heads", f"it is {self!r}", way_out)
        return self

    def __and__(self, other: Pattern) -> Pattern:
        return And(self, other) if isinstance(other, Pattern) else NotImplemented

    def __or__(self, other: Pattern) -> Pattern:
        return Or(self, other) if isinstance(other, Pattern) else NotImplemented

    def __invert__(self) -> Pattern:
        return Not(self)

    def pairs(
        self, queries: int, keys: int | None = None, *, layout: Layout | None = None, batch: int = 1, heads: int = 1
    ) -> int:
        """The number of (query, key) pairs that are seen, over all batch rows and query heads.

        Args:
            queries: queries of each row.
            keys: keys of each row; ``None`` for as many as queries.
            layout: where queries and keys stand; ``None`` is ``Aligned()``.
            batch: batch rows.
            heads: query heads.
        """
        from ..lowering import pairs

        return pairs(self, queries, keys, layout=layout, batch=batch, heads=heads)

    def draw(
        self, queries: int, keys: int | None = None, *, layout: Layout | None = None, head: int = 0, heads: int = 1
    ) -> Drawing:
        """A picture of which query sees which key, in the first batch row: text when printed, SVG in a notebook.

        Args:
            queries: queries, one row of the picture each.
            keys: keys, one column each; ``None`` for as many as queries.
            layout: where queries and keys stand; ``None`` is ``Aligned()``.
            head: the query head to draw.
            heads: query heads of the call.
        """
        from ..drawing import draw

        return draw(self, queries, keys, layout=layout, head=head, heads=heads)


@dataclass(frozen=True, eq=False, repr=False)
class _Joined(Pattern):
    """Two patterns, joined."""

    left: Pattern
    right: Pattern

    def tensors(self) -> tuple[Tensor, ...]:
        # Asked for in every call, so without a search.
        return self.left.tensors() + self.right.tensors()

    def check(self, B: int, Hq: int, Lq: int, Lk: int) -> None:
        self.left.check(B, Hq, Lq, Lk)
        self.right.check(B, Hq, Lq, Lk)

    @property
    def uniform_over_batch(self) -> bool:
        return self.left.uniform_over_batch and self.right.uniform_over_batch

    def as_data(self, at: Callable[[], Where]) -> Pattern:
        return type(self)(self.left.as_data(at), self.right.as_data(at))

    def select(self, queries: Tensor, keys: Tensor) -> Pattern:
        return type(self)(self.left.select(queries, keys), self.right.select(queries, keys))

    def for_heads(self, heads: slice) -> Pattern:
        return type(self)(self.left.for_heads(heads), self.right.for_heads(heads))


@dataclass(frozen=True, eq=False, repr=False)
class And(_Joined):
    """The keys that both patterns allow; written ``a & b``."""

    def allows(self, at: Where) -> Tensor:
        return self.left.allows(at) & self.right.allows(at)

    def spans(self, row: int | None = None) -> Spans | None:
        a, b = self.left.spans(row), self.right.spans(row)
        return None if a is None or b is None else intersection(a, b)

    def conjuncts(self) -> list[Pattern]:
        return [*self.left.conjuncts(), *self.right.conjuncts()]

    def reach(self) -> Reach:
        pairs = zip(self.left.reach(), self.right.reach(), strict=True)
        return Reach(*(min((x for x in pair if x is not None), default=None) for pair in pairs))

    def __repr__(self) -> str:
        return f"{_within(self.left, Or)} & {_within(self.right, Or, And)}"


@dataclass(frozen=True, eq=False, repr=False)
class Or(_Joined):
    """The keys that either pattern allows; written ``a | b``."""

    def allows(self, at: Where) -> Tensor:
        return self.left.allows(at) | self.right.allows(at)

    def spans(self, row: int | None = None) -> Spans | None:
        a, b = self.left.spans(row), self.right.spans(row)
        return None if a is None or b is None else union(a, b)

    def reach(self) -> Reach:
        pairs = zip(self.left.reach(), self.right.reach(), strict=True)
        return Reach(*(None if a is None or b is None else max(a, b) for a, b in pairs))

    def __repr__(self) -> str:
        return f"{_within(self.left)} | {_within(self.right, Or)}"


@dataclass(frozen=True, eq=False, repr=False)
class Not(Pattern):
    """The keys that the pattern does not allow; written ``~a``."""

    pattern: Pattern

    def check(self, B: int, Hq: int, Lq: int, Lk: int) -> None:
        self.pattern.check(B, Hq, Lq, Lk)

    def allows(self, at: Where) -> Tensor:
        return ~self.pattern.allows(at)

    def spans(self, row: int | None = None) -> Spans | None:
        found = self.pattern.spans(row)
        return None if found is None else complement(found)

    @property
    def uniform_over_batch(self) -> bool:
        return self.pattern.uniform_over_batch

    def as_data(self, at: Callable[[], Where]) -> Pattern:
        return Not(self.pattern.as_data(at))

    def select(self, queries: Tensor, keys: Tensor) -> Pattern:
        return Not(self.pattern.select(queries, keys))

    def for_heads(self, heads: slice) -> Pattern:
        return Not(self.pattern.for_heads(heads))

    def __repr__(self) -> str:
        return f"~{_within(self.pattern, And, Or)}"


def _within(pattern: Pattern, *bracketed: type[Pattern]) -> str:
    return f"({pattern!r})" if isinstance(pattern, bracketed) else repr(pattern)
