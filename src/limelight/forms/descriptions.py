"""Frozen, hashable values that describe a call: the base of layouts, patterns and score rules."""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import numbers
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

_NUMBERS = (int, type(None), bool, float)
#: From the name of a method to what checks its arguments.
Checks = Mapping[str, Callable[..., None]]
_FIELDS: dict[type[Any], tuple[str, ...]] = {}


def _fields(described: Description) -> tuple[str, ...]:
    # Needed several times in a call, so cached; but not while a graph is traced.
    names = None if torch.compiler.is_compiling() else _FIELDS.get(type(described))
    if names is None:
        names = tuple([field.name for field in dataclasses.fields(described)])
        if not torch.compiler.is_compiling():
            _FIELDS[type(described)] = names
    return names


class Hole:
    """The place of a tensor that `Description.hollow` took out."""


_Self = TypeVar("_Self", bound="Description")


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Description:
    """A frozen value, equal to another of the same class with equal parts.

    A tensor among the parts is compared by *identity*, never by value: comparing values would read memory, wait
    for a GPU, and make a cache key out of numbers that change at every call.
    """

    #: Checks that run before the methods of these names, in every subclass: what the operator calls may be called by
    #: hand, too, and then ends in an error that names the argument.
    argument_checks: ClassVar[Checks] = {}

    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        for name, check in cls.argument_checks.items():
            if name in vars(cls):
                setattr(cls, name, _checked(check, vars(cls)[name]))

    def parts(self) -> tuple[Any, ...]:
        """The values of the fields, in order."""
        return tuple([getattr(self, name) for name in _fields(self)])

    def tensors(self) -> tuple[Tensor, ...]:
        """Every tensor inside, nested descriptions included, in order."""
        names = _fields(self)
        if not names:
            return ()
        found: list[Tensor] = []
        for name in names:
            part = getattr(self, name)
            if type(part) in _NUMBERS:  # cheaper to find out than that it is no tensor
                continue
            if isinstance(part, Tensor):
                found.append(part)
            elif isinstance(part, Description):
                found.extend(part.tensors())
        return tuple(found)

    @property
    def is_fixed(self) -> bool:
        """Whether equal descriptions always mean the same, so that what follows from one may be kept for the next call.

        By default where the parts are numbers, strings, and descriptions for which this holds: the elements of a tensor
        may be overwritten, and a function may read what changes.
        """
        return all(map(_never_changes, self.parts()))

    def with_tensors(self: _Self, tensors: Iterator[Any]) -> _Self:
        """A copy with each of its tensors replaced by the next of ``tensors``; its own are not read."""
        new = self
        for name, part in zip(_fields(self), self.parts(), strict=True):
            if isinstance(part, (Tensor, Hole)):
                changed = next(tensors)
            elif isinstance(part, Description):
                changed = part.with_tensors(tensors)
            else:
                continue
            if changed is not part:
                new = copy.copy(self) if new is self else new
                object.__setattr__(new, name, changed)
        return new

    def hollow(self: _Self) -> _Self:
        """A copy without its tensors, which `with_tensors` puts back; it holds no memory."""
        return self.with_tensors(itertools.repeat(Hole())) if self.tensors() else self

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if type(self) is not type(other) or not isinstance(other, Description):
            return NotImplemented
        return all(map(_same, self.parts(), other.parts()))

    def __hash__(self) -> int:
        return hash((type(self), *(id(part) if isinstance(part, Tensor) else part for part in self.parts())))

    def __repr__(self) -> str:
        shown = (f"{f.name}={_short(getattr(self, f.name))}" for f in dataclasses.fields(self))
        return f"{type(self).__name__}({', '.join(shown)})"


def _checked(check: Callable[..., None], method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(self: Any, *arguments: Any, **named: Any) -> Any:
        check(*arguments, **named)
        return method(self, *arguments, **named)

    return call


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return a is b
    return bool(a == b)


def _never_changes(part: Any) -> bool:
    if isinstance(part, Description):
        return part.is_fixed
    if isinstance(part, tuple):
        return all(map(_never_changes, part))
    return part is None or isinstance(part, (numbers.Number, str))


def _short(part: Any) -> str:
    if isinstance(part, Tensor):
        return f"<{str(part.dtype).removeprefix('torch.')} {tuple(part.shape)}>"
    return getattr(part, "__qualname__", None) or repr(part)
