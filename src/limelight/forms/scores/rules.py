"""Score rules: what changes a score before the softmax."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from ...tensors.shapes import (
    FLOATS,
    Shapes,
    check_broadcast,
    check_tensor,
    describe,
    fits,
    flag,
    number,
    whole_number,
    wrong,
)
from ...tensors.tracing import is_transformed, readable
from ..coordinates import Where, check_where
from ..descriptions import Checks, Description

_Rule = TypeVar("_Rule", bound="ScoreRule")


def _check_apply(scores: object, at: object) -> None:
    check_tensor("scores", scores)
    check_where(at)


class ScoreRule(Description):
    """Base of the score rules.

    A new rule defines `apply`, and `check` where it holds a tensor; the definition serves it, with all derivatives. The
    other members state facts that more of the library needs; by default nothing is claimed.
    """

    #: What the dimensions of its tensors mean, matched from the last one on: a letter of ``bhqk`` for batch row, query
    #: head, query and key (size 1 is shared), or a point for a dimension that is never cut; by default all of them.
    letters: ClassVar[str] = "."
    #: Whether `apply` reads positions (``at.distance``). Backends that have positions as "index + offset" only serve a
    #: rule that does not under any layout.
    needs_positions: ClassVar[bool] = True

    argument_checks: ClassVar[Checks] = {"apply": _check_apply}

    def check(self, shapes: Shapes) -> None:
        """Raise `ArgumentError` when the rule does not fit the call."""

    def apply(self, scores: Tensor, at: Where) -> Tensor:
        """The definition: the scores after the rule.

        Args:
            scores: ``(B, Hq, Lq, Lk)``, or the part of them that ``at`` describes.
            at: positions and indices of queries and keys.

        Returns:
            A tensor of the shape of ``scores``, differentiable in them and in the rule's tensors.
        """
        raise NotImplementedError(f"{type(self).__name__} must define `apply(scores, at)`, the definition of the rule.")

    def select_keys(self: _Rule, index: Tensor) -> _Rule:
        """The rule for a call of some of the keys: its tensors' dimensions of keys (`letters`) are cut.

        Args:
            index: ``(n,)`` int64, the keys of the call.
        """
        return self._select("k", index)

    def select_queries(self: _Rule, index: Tensor) -> _Rule:
        """The rule for a call of some of the queries: its tensors' dimensions of queries (`letters`) are cut.

        Args:
            index: ``(n,)`` int64, the queries of the call.
        """
        return self._select("q", index)

    def _select(self: _Rule, letter: str, index: Tensor) -> _Rule:
        if letter not in self.letters:
            return self
        dim = self.letters.index(letter) - len(self.letters)
        cut = [t.index_select(dim, index) if t.dim() >= -dim and t.shape[dim] > 1 else t for t in self.tensors()]
        return self.with_tensors(iter(cut))

    def for_heads(self, heads: slice) -> ScoreRule:
        """The rule for a call of these query heads alone.

        Raises:
            ArgumentError: the rule cannot be cut into heads, as by default.
        """
        way_out = "Use ALiBi, RelativeBias, Bias or SoftCap, or define for_heads."
        raise wrong("scores", "must be rules that can be cut into heads", f"there is {self!r}", way_out)


@dataclass(frozen=True, eq=False, repr=False)
class ALiBi(ScoreRule):
    """Attention with linear biases: ``s - slope * |key position - query position|`` (Press et al. 2022,
    arXiv:2108.12409).

    Args:
        slopes: ``(Hq,)`` or ``(B, Hq)``, float; `ALiBi.standard` gives the published ones. Documents of one batch row
            share their slopes.
    """

    slopes: Tensor
    letters = "bh"

    def __post_init__(self) -> None:
        check_float("slopes", self.slopes, (1, 2))

    @classmethod
    def standard(cls, heads: int, device: torch.device | None = None) -> ALiBi:
        """The published slopes: ``2^(-8 (h + 1) / n)``, interleaved with those of ``2 n`` unless a power of two."""
        whole_number("heads", heads, at_least=1)
        below = 2 ** int(math.log2(heads))
        first = [2 ** (-8 * (h + 1) / below) for h in range(below)]
        rest = [2 ** (-4 * (2 * h + 1) / below) for h in range(heads - below)]
        return cls(torch.tensor(first + rest, dtype=torch.float32, device=device))

    def check(self, shapes: Shapes) -> None:
        check_tensor("slopes", self.slopes)
        check_heads("slopes", self.slopes.shape, shapes)

    def apply(self, scores: Tensor, at: Where) -> Tensor:
        slopes = self.slopes.to(scores.dtype)[..., None, None]
        return scores - slopes * at.distance.abs()

    def for_heads(self, heads: slice) -> ALiBi:
        return self if self.slopes.shape[-1] == 1 else ALiBi(self.slopes[..., heads])


@dataclass(frozen=True, eq=False, repr=False)
class T5Buckets(Description):
    """The distance buckets of T5: exact for near distances, logarithmic up to ``max_distance``, one beyond (Raffel et
    al. 2020, arXiv:1910.10683).

    Args:
        count: number of buckets, half of them for keys after the query when ``bidirectional``.
        max_distance: distance in tokens from which on the last bucket is used.
        bidirectional: keys after the query have buckets of their own (encoder); else they share bucket 0 (decoder).
    """

    count: int = 32
    max_distance: int = 128
    bidirectional: bool = True

    def __post_init__(self) -> None:
        flag("bidirectional", self.bidirectional)
        least = 4 if self.bidirectional else 2  # of each direction one exact distance and one beyond
        whole_number("count", self.count, at_least=least)
        exact = self.count // 4 if self.bidirectional else self.count // 2
        whole_number("max_distance", self.max_distance, at_least=exact + 1)

    def __call__(self, distance: Tensor) -> Tensor:
        """The bucket of each ``distance = key position - query position``: int64, of the same shape, from 0."""
        count, bucket = self.count, torch.zeros_like(check_tensor("distance", distance))
        if self.bidirectional:
            count //= 2
            bucket = bucket + (distance > 0) * count
            distance = distance.abs()
        else:
            distance = -distance.clamp(max=0)
        exact = count // 2
        # float32, as published: the rounding of this logarithm decides the bucket at the edges.
        logarithm = torch.log(distance.clamp(min=1).float() / exact) / math.log(self.max_distance / exact)
        far = (exact + (logarithm * (count - exact)).long()).clamp(max=count - 1)
        return bucket + torch.where(distance < exact, distance, far)


def _published_buckets() -> T5Buckets:
    """A function: a compiler cannot trace a dataclass whose default is an object, or the class of one."""
    return T5Buckets()


@dataclass(frozen=True, eq=False, repr=False)
class RelativeBias(ScoreRule):
    """A learned bias for each head and bucket of the distance: ``s + table[h, buckets(key position - query position)]``
    (Raffel et al. 2020, arXiv:1910.10683).

    Args:
        table: ``(Hq, number of buckets)`` or ``(1, ...)``, float, with gradient.
        buckets: from an int64 tensor of distances (key position minus query position) to bucket numbers.
    """

    table: Tensor
    buckets: Callable[[Tensor], Tensor] = field(default_factory=_published_buckets)
    letters = "h."

    def __post_init__(self) -> None:
        check_float("table", self.table, (2,))
        if not callable(self.buckets):
            way_out = "Pass T5Buckets(...) or a function of a tensor of distances."
            raise wrong("buckets", "must be callable", f"it is {describe(self.buckets)}", way_out)
        if isinstance(self.buckets, T5Buckets) and self.table.shape[1] < self.buckets.count:
            rule = f"must have one column for each of the {self.buckets.count} buckets"
            way_out = f"Use T5Buckets({self.table.shape[1]}, ...) or a wider table."
            raise wrong("table", rule, f"its shape is {tuple(self.table.shape)}", way_out)

    def check(self, shapes: Shapes) -> None:
        check_tensor("table", self.table)
        check_heads("table", self.table.shape[:1], shapes)

    def over(self, low: int, high: int) -> Tensor:
        """``(Hq | 1, high - low + 1)``: the bias at each distance from ``low`` to ``high``, as kernels read it."""
        return self.table[:, self.bucket_of(torch.arange(low, high + 1, device=self.table.device))]

    def bucket_of(self, distance: Tensor) -> Tensor:
        """The column of the table for each distance.

        Raises:
            ArgumentError: ``buckets`` gave something else than one column for each distance.
        """
        found = self.buckets(distance)
        if isinstance(self.buckets, T5Buckets):  # its columns are there, or the rule would not have been made
            return found
        rule, way_out = "must give a whole number for each distance", "Keep the shape and the device of its argument."
        if not isinstance(found, Tensor):
            raise wrong("buckets", rule, f"it gave {describe(found)}", way_out)
        whole = not (found.is_floating_point() or found.is_complex() or found.dtype == torch.bool)
        if not whole or found.shape != distance.shape or found.device != distance.device:
            got = f"for {describe(distance)} on {distance.device} it gave {describe(found)} on {found.device}"
            raise wrong("buckets", rule, got, way_out)
        # A GPU is not waited for.
        if found.is_cpu and found.numel() and readable(found) and not is_transformed():
            low, high = (int(x) for x in found.aminmax())
            if low < 0 or high >= self.table.shape[1]:
                rule = f"must give numbers from 0 to {self.table.shape[1] - 1}, the columns of `table`"
                raise wrong("buckets", rule, f"they run from {low} to {high}", "Clamp them, or widen the table.")
        return found.long()

    def apply(self, scores: Tensor, at: Where) -> Tensor:
        bias = self.table.to(scores.dtype)[:, self.bucket_of(at.distance)]  # (H, B, 1, Lq, Lk)
        return scores + bias.squeeze(2).transpose(0, 1)

    def for_heads(self, heads: slice) -> RelativeBias:
        return self if len(self.table) == 1 else RelativeBias(self.table[heads], self.buckets)


@dataclass(frozen=True, eq=False, repr=False)
class Bias(ScoreRule):
    """A tensor added to the scores: ``s + tensor[b, h, i, j]``. An entry of ``-inf`` makes the key unseen.

    Args:
        tensor: float, broadcastable to ``(B, Hq, Lq, Lk)``, by token index, with gradient.
    """

    tensor: Tensor
    letters = "bhqk"
    needs_positions = False

    def __post_init__(self) -> None:
        check_float("tensor", self.tensor, (0, 1, 2, 3, 4))

    def check(self, shapes: Shapes) -> None:
        check_tensor("tensor", self.tensor)
        check_broadcast("tensor", self.tensor.shape, shapes.scores)

    def apply(self, scores: Tensor, at: Where) -> Tensor:
        return scores + self.tensor.to(scores.dtype)

    def for_heads(self, heads: slice) -> Bias:
        shared = self.tensor.dim() < 3 or self.tensor.shape[-3] == 1
        return self if shared else Bias(self.tensor[..., heads, :, :])


@dataclass(frozen=True, eq=False, repr=False)
class SoftCap(ScoreRule):
    """Soft-capped scores, in ``(-limit, limit)``: ``limit * tanh(s / limit)`` (Gemma 2, arXiv:2408.00118).

    Args:
        limit: a positive number.
    """

    limit: float
    needs_positions = False

    def __post_init__(self) -> None:
        rule, way_out = "must be a positive number", "Leave the rule out for no limit."
        if number("limit", self.limit, rule, way_out) <= 0:
            raise wrong("limit", rule, f"it is {self.limit!r}", way_out)

    def apply(self, scores: Tensor, at: Where) -> Tensor:
        return self.limit * torch.tanh(scores / self.limit)

    def for_heads(self, heads: slice) -> SoftCap:
        return self


def check_float(name: str, value: object, ranks: tuple[int, ...]) -> None:
    """Raise `ArgumentError` where ``value`` is no float tensor of one of these numbers of dimensions."""
    tensor = check_tensor(name, value)
    if tensor.dtype not in FLOATS or tensor.dim() not in ranks:
        wanted = " or ".join(str(rank) for rank in ranks)
        raise wrong(
            name,
            f"must be a float tensor of {wanted} dimensions",
            f"it is {describe(tensor)}",
            "Convert it, or reshape it.",
        )


def check_heads(name: str, shape: tuple[int, ...], shapes: Shapes) -> None:
    """Raise `ArgumentError` where a tensor of this shape does not hold a number for each query head."""
    heads = fits(shape[-1], shapes.Hq)
    if len(shape) == 2 and heads and not fits(shape[0], shapes.B):
        raise wrong(
            name,
            f"must have one row for all batch rows or one for each (B = {shapes.B})",
            f"its shape is {tuple(shape)}",
            "Slopes cannot differ between the documents of a packed row: call once for each document.",
        )
    if not heads:
        raise wrong(
            name,
            f"must have one number for each query head (Hq = {shapes.Hq})",
            f"its shape is {tuple(shape)}",
            "Query heads are counted, not key-value heads.",
        )
