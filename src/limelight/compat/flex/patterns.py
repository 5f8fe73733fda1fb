"""Patterns of masks over token indices that have no public class, and the simplest forms of ``&``, ``|`` and ``~``.

Under the layout of FlexAttention, ``Aligned(query_start=0)``, position and index are one number.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...forms.coordinates import Where
from ...forms.layouts import Aligned, Layout, Packed
from ...forms.patterns import And, DilatedWindow, Full, Not, Pattern
from ...forms.spans import MAX_UNITED_SPANS, NEVER, Span, Spans
from ...tensors.shapes import wrong

EVERYTHING = Full()
NOTHING = ~EVERYTHING


def both(a: Pattern, b: Pattern) -> Pattern:
    """What both patterns allow, simplified where one allows everything or nothing."""
    if NOTHING in (a, b):
        return NOTHING
    return b if a == EVERYTHING else a if b == EVERYTHING else a & b


def either(a: Pattern, b: Pattern) -> Pattern:
    """What either pattern allows, simplified where one allows everything or nothing."""
    if EVERYTHING in (a, b):
        return EVERYTHING
    return b if a == NOTHING else a if b == NOTHING else a | b


def inverse(a: Pattern) -> Pattern:
    """What a pattern does not allow; the pattern within a `Not`."""
    return a.pattern if isinstance(a, Not) else ~a


@dataclass(frozen=True, eq=False, repr=False)
class Below(Pattern):
    """The queries, or the keys, at positions below a bound: ``p < bound[b]`` or ``j < bound[b]``.

    Args:
        bound: an int, or a ``(B,)`` integer tensor that is not modified.
        queries: whether queries are meant, not keys.
    """

    bound: int | Tensor
    queries: bool = False

    def check(self, B: int, Hq: int, Lq: int, Lk: int) -> None:
        if isinstance(self.bound, Tensor) and len(self.bound) < B:
            got = f"it reads a tensor of {len(self.bound)} numbers by the batch row"
            raise wrong("mask_mod", f"must have a value for each of {B} batch rows", got, "Give one number a row.")

    def allows(self, at: Where) -> Tensor:
        position = at.query_position if self.queries else at.key_position
        bound: int | Tensor = self.bound
        return position < (bound if isinstance(bound, int) else bound.to(position.device)[at.batch])

    def spans(self, row: int | None = None) -> Spans | None:
        bound = self.bound
        if isinstance(bound, Tensor):
            if row is None or row >= len(bound):
                return None
            bound = int(bound[row])
        return (Span(query_to=bound) if self.queries else Span(end=bound),)

    @property
    def is_fixed(self) -> bool:
        return True


@dataclass(frozen=True, eq=False, repr=False)
class SameDocument(Pattern):
    """The keys of the query's own document: ``of_queries[..., p] == of_keys[..., q]``, which are not modified.

    Args:
        of_queries: a number for each position of a query, ``(L,)`` or ``(B, L)``; those beyond the call are not read.
            A query at another position sees nothing.
        of_keys: a number for each position of a key.
    """

    of_queries: Tensor
    of_keys: Tensor

    def check(self, B: int, Hq: int, Lq: int, Lk: int) -> None:
        for numbers in (self.of_queries, self.of_keys):
            if numbers.dim() == 2 and len(numbers) < B:
                got = f"it reads one of shape {tuple(numbers.shape)}"
                raise wrong("mask_mod", f"must have numbers for each of {B} batch rows", got, "Extend it.")

    def allows(self, at: Where) -> Tensor:
        (query, has_query), (key, has_key) = (
            _numbers_at(numbers, at.batch, position)
            for numbers, position in ((self.of_queries, at.query_position), (self.of_keys, at.key_position))
        )
        return has_query & has_key & (query == key)

    def spans(self, row: int | None = None) -> Spans | None:
        queries, keys = self.of_queries, self.of_keys
        if queries.dim() == 2:
            if row is None or row >= len(queries):
                return None
            queries, keys = queries[row], keys[row]
        found = []
        places: dict[object, list[tuple[int, int]]] = {}
        for number, first, last in _runs(keys):
            places.setdefault(number, []).append((first, last))
        for number, first, last in _runs(queries):
            found += [Span(query_from=first, query_to=last, start=a, end=b) for a, b in places.get(number, ())]
            if len(found) > MAX_UNITED_SPANS:
                return None
        return tuple(found)

    @property
    def is_fixed(self) -> bool:
        return True

    @property
    def uniform_over_batch(self) -> bool:
        return self.of_queries.dim() == 1

    def select(self, queries: Tensor, keys: Tensor) -> SameDocument:
        return self

    def for_heads(self, heads: slice) -> SameDocument:
        return self

    def lengths(self, Lq: int, Lk: int) -> tuple[int, ...] | None:
        """The lengths of documents laid end to end, the same for queries and keys; ``None`` where they are not so."""
        same = Lq == Lk and self.of_queries is self.of_keys
        if not same or self.of_queries.dim() != 1 or len(self.of_queries) < Lq:
            return None
        runs = _runs(self.of_queries[:Lq])
        if len({number for number, *_ in runs}) < len(runs):  # a document is interrupted by another
            return None
        return tuple(last - first for _, first, last in runs)


def _numbers_at(numbers: Tensor, batch: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers at positions, and whether there is one."""
    size, numbers = numbers.shape[-1], numbers.to(position.device)
    if not size:
        return position, torch.zeros_like(position, dtype=torch.bool)
    place = position.clamp(0, size - 1)
    found = numbers[place] if numbers.dim() == 1 else numbers[batch, place]
    return found, position == place


def _runs(numbers: Tensor) -> list[tuple[object, int, int]]:
    """``(number, first, last)`` of every run of equal numbers."""
    values, counts = torch.unique_consecutive(numbers.detach().cpu(), return_counts=True)
    ends = counts.cumsum(0)
    return list(zip(values.tolist(), (ends - counts).tolist(), ends.tolist(), strict=True))


def arranged(pattern: Pattern, Lq: int, Lk: int) -> tuple[Layout, Pattern]:
    """A pattern over indices as a layout and a pattern: `Packed` where documents are laid end to end.

    Raises:
        ArgumentError: a function reads the document of a token beyond its tensor.
    """
    _check_numbers(pattern, Lq, Lk)
    documents = [part for part in pattern.conjuncts() if isinstance(part, SameDocument)]
    rest = [part for part in pattern.conjuncts() if not isinstance(part, SameDocument)]
    if len(documents) == 1 and all(map(_counts_distances, rest)):
        lengths = documents[0].lengths(Lq, Lk)
        if lengths is not None:
            joined: Pattern = EVERYTHING
            for part in rest:
                joined = both(joined, part)
            return Packed(lengths), joined
    return Aligned(query_start=0), pattern


def _check_numbers(pattern: Pattern, Lq: int, Lk: int) -> None:
    """Raises where the documents of fewer tokens are given than a call of these sizes has."""
    if isinstance(pattern, SameDocument):
        for numbers, size in ((pattern.of_queries, Lq), (pattern.of_keys, Lk)):
            if numbers.shape[-1] < size:
                got = f"it reads one of shape {tuple(numbers.shape)}"
                raise wrong("mask_mod", f"must have a number for each of {size} tokens", got, "Extend it.")
    for part in pattern.parts():
        if isinstance(part, Pattern):
            _check_numbers(part, Lq, Lk)


def _counts_distances(pattern: Pattern) -> bool:
    """Whether a pattern depends on the distance from query to key alone."""
    if isinstance(pattern, And):
        return all(map(_counts_distances, pattern.conjuncts()))
    found = pattern.spans()
    if found is None:
        return isinstance(pattern, DilatedWindow)
    return all(span._replace(start_offset=-NEVER, end_offset=NEVER) == Span() for span in found)
