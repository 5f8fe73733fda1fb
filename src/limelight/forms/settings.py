"""The settings of one call of the operator, as one frozen value: everything but query, key and value."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

from torch import Tensor

from .descriptions import Hole
from .layouts import Layout
from .observations import Observe
from .patterns import Pattern
from .scores import Comparison, ScoreRule

_Kind = TypeVar("_Kind")
_Self = TypeVar("_Self", bound="Settings")


class SettingsButObserve(TypedDict, total=False):
    """The keyword arguments of `limelight.attention` that are settings, without ``observe``, for type checkers."""

    sink: Tensor | None
    scores: Sequence[ScoreRule]
    compare: Comparison | None
    layout: Layout | None
    pattern: Pattern | None
    scale: float | None
    dropout: float
    seed: int | Tensor | None


class SettingsFields(SettingsButObserve, total=False):
    """The fields of `Settings` as keyword arguments, for type checkers."""

    observe: Observe | None


if TYPE_CHECKING:
    from typing_extensions import dataclass_transform

    @dataclass_transform(eq_default=False, frozen_default=True)
    def frozen(kind: type[_Kind]) -> type[_Kind]: ...  # noqa: D103

else:

    def frozen(kind):
        """A frozen dataclass, as type checkers see it. Freezing it at run time too would cost a call a microsecond."""
        return dataclass(eq=False)(kind)


@frozen
class Settings:
    """The settings of a call of `limelight.attention`: all arguments but query, key and value. Each field is documented
    at the argument of the same name.

    The order of the fields is the order in which their tensors are listed (`tensors`).
    """

    sink: Tensor | None = None
    scores: Sequence[ScoreRule] = ()
    compare: Comparison | None = None
    layout: Layout | None = None
    pattern: Pattern | None = None
    scale: float | None = None
    dropout: float = 0.0
    seed: int | Tensor | None = None
    observe: Observe | None = None

    def replace(self: _Self, **changes: Any) -> _Self:
        """A copy with some fields changed."""
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__)
        made.__dict__.update(changes)
        return made

    @property
    def operands(self) -> tuple[Tensor, ...]:
        """The tensors that may have gradients: the sink, those of the score rules, those of ``compare``."""
        if self.sink is None and self.compare is None and not self.scores:
            return ()
        found: tuple[Tensor, ...] = () if self.sink is None else (self.sink,)
        for rule in self.scores:
            found += rule.tensors()
        return found if self.compare is None else found + self.compare.tensors()

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Every tensor but those of ``observe``: the `operands`, then those of layout, pattern and seed."""
        found = self.operands
        if self.layout is not None:
            found += self.layout.tensors()
        if self.pattern is not None:
            found += self.pattern.tensors()
        return (*found, self.seed) if isinstance(self.seed, Tensor) else found

    def with_tensors(self: _Self, tensors: Iterator[Any]) -> _Self:
        """A copy with the next of ``tensors`` in the place of each of `tensors`."""
        return self.replace(
            sink=None if self.sink is None else next(tensors),
            scores=tuple([rule.with_tensors(tensors) for rule in self.scores]) if self.scores else (),
            compare=None if self.compare is None else self.compare.with_tensors(tensors),
            layout=None if self.layout is None else self.layout.with_tensors(tensors),
            pattern=None if self.pattern is None else self.pattern.with_tensors(tensors),
            seed=next(tensors) if isinstance(self.seed, (Tensor, Hole)) else self.seed,
        )

    def for_heads(self: _Self, heads: slice) -> _Self:
        """The settings of a call of these query heads alone; ``observe`` is left out.

        Raises:
            ArgumentError: pattern, comparison or a score rule cannot be cut into heads.
        """
        return self.replace(
            sink=None if self.sink is None else self.sink[heads],
            scores=tuple([rule.for_heads(heads) for rule in self.scores]),
            compare=None if self.compare is None else self.compare.for_heads(heads),
            pattern=None if self.pattern is None else self.pattern.for_heads(heads),
            observe=None,
        )

    def hollow(self: _Self) -> _Self:
        """A copy with holes in the place of `tensors`, to be filled by `with_tensors`; it keeps no memory alive."""
        return self.with_tensors(itertools.repeat(Hole()))
