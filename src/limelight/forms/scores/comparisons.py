"""Comparisons: how a query and a key make a score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor

from ...tensors.shapes import Shapes, check_broadcast, check_tensor, number, wrong
from ..descriptions import Checks, Description
from .rules import check_float


def _check_prepare(query: object, key: object) -> None:
    check_tensor("query", query)
    check_tensor("key", key)


class Comparison(Description):
    """Base of the comparisons: how a query and a key make a score, before any rule.

    A comparison replaces the dot product ``scale * q . k`` and has no ``scale``.
    """

    argument_checks: ClassVar[Checks] = {"prepare": _check_prepare}

    def check(self, shapes: Shapes) -> None:
        """Raise `ArgumentError` when the comparison does not fit the call."""

    def prepare(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor, float, Additive | None]:
        """What backends compute: the comparison of some other query and key.

        Args:
            query: ``(B, Hq, Lq, D)``.
            key: ``(B, Hkv, Lk, D)``.

        Returns:
            A query and a key of the same shapes and dtypes, the scale of their dot product, and ``None``; or a
            comparison that kernels compute themselves in the place of ``None``.
        """
        raise NotImplementedError

    def for_heads(self, heads: slice) -> Comparison:
        """The comparison for a call of these query heads alone.

        Raises:
            ArgumentError: the comparison cannot be cut into heads, as by default.
        """
        way_out = "Use Additive or CosineSimilarity, or define for_heads."
        raise wrong("compare", "must be a comparison that can be cut into heads", f"it is {self!r}", way_out)


@dataclass(frozen=True, eq=False, repr=False)
class Additive(Comparison):
    """Additive attention: ``s = v . tanh(q + k)`` (Bahdanau et al. 2015, arXiv:1409.0473).

    Args:
        vector: ``v``, ``(D,)`` or ``(Hq, D)``, float, with gradient.
    """

    vector: Tensor
    letters = "h."

    def __post_init__(self) -> None:
        check_float("vector", self.vector, (1, 2))

    def check(self, shapes: Shapes) -> None:
        check_tensor("vector", self.vector)
        check_broadcast("vector", self.vector.shape, (shapes.Hq, shapes.D))

    def prepare(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor, float, Additive | None]:
        return query, key, 1.0, self

    def for_heads(self, heads: slice) -> Additive:
        return self if self.vector.dim() == 1 or len(self.vector) == 1 else Additive(self.vector[heads])


@dataclass(frozen=True, eq=False, repr=False)
class CosineSimilarity(Comparison):
    """Cosine similarity: ``s = q . k / (|q| |k| temperature)``, from ``-1 / temperature`` to ``1 / temperature``.

    Scores cannot grow with the lengths of vectors, which keeps the training of large models stable: query-key
    normalization (Henry et al. 2020, arXiv:2010.04245), the scaled cosine attention of Swin Transformer V2 (Liu et al.
    2022, arXiv:2111.09883), which learns a temperature for each head. A zero vector has the score 0 with every other.

    Lengths are computed in float32 (float64 for float64); the dot product of the normalized vectors is that of the
    backend, so every kernel serves it.

    Args:
        temperature: a positive number, or a float tensor ``(Hq,)`` or ``(1,)`` with gradient.
    """

    temperature: float | Tensor = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.temperature, Tensor):
            check_float("temperature", self.temperature, (1,))
            return
        rule, way_out = "must be a positive number or a float tensor (Hq,)", "Swin V2 begins with 0.1."
        if number("temperature", self.temperature, rule, way_out) <= 0:
            raise wrong("temperature", rule, f"it is {self.temperature!r}", way_out)

    def check(self, shapes: Shapes) -> None:
        if isinstance(self.temperature, Tensor):
            check_broadcast("temperature", check_tensor("temperature", self.temperature).shape, (shapes.Hq,))

    def prepare(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor, float, Additive | None]:
        directions, dtype = _normalized(query), query.dtype
        if not isinstance(self.temperature, Tensor):
            return directions.to(dtype), _normalized(key).to(dtype), 1.0 / self.temperature, None
        directions = directions / self.temperature.to(directions.dtype)[:, None, None]
        return directions.to(dtype), _normalized(key).to(dtype), 1.0, None

    def for_heads(self, heads: slice) -> CosineSimilarity:
        several = isinstance(self.temperature, Tensor) and len(self.temperature) > 1
        return CosineSimilarity(cast(Tensor, self.temperature)[heads]) if several else self


def _normalized(vectors: Tensor) -> Tensor:
    """Vectors of length 1, or 0 where they are zero, in float32 or float64."""
    vectors = vectors.to(torch.promote_types(vectors.dtype, torch.float32))
    if vectors.shape[-1] == 0:
        return vectors
    # First by the largest element, so that no square overflows; the result does not depend on it.
    largest = vectors.detach().abs().amax(-1, keepdim=True)
    vectors = vectors / torch.where((largest > 0) & largest.isfinite(), largest, 1.0)
    square = (vectors * vectors).sum(-1, keepdim=True)
    return vectors * torch.where(square > 0, square, 1.0).rsqrt()
