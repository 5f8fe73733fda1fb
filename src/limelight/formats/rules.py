"""Key rules: one ordered list that reads in both directions.

A published checkpoint calls a tensor ``encoder.layer.3.attention.self.query.weight``; Limelight calls it
``layers.3.attention.inner.query.weight``. A rule is the two names side by side, with ``{...}`` for what varies::

    >>> rules = KeyRules(KeyRule("encoder.layer.{n}.attention.self.query.{p}", "layers.{n}.attention.inner.query.{p}"))
    >>> rules.ours("encoder.layer.3.attention.self.query.weight")[0].key
    'layers.3.attention.inner.query.weight'
    >>> rules.published("layers.3.attention.inner.query.weight").key
    'encoder.layer.3.attention.self.query.weight'

The first rule that fits wins, in either direction: a later rule with the same right side is an older spelling that
is read but never written. A tensor that is stored in another order carries a `Change`, which also reads both ways.
What a model leaves aside knowingly is an `Unused` rule, with its reason.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

FIELDS = {"n": "[0-9]+", "e": "[0-9]+", "p": "weight|bias", "any": ".+"}


class Change(Protocol):
    """A reversible change of a tensor's values between the published order and ours."""

    def read(self, tensor: Tensor) -> Tensor:
        """The values in our order, from the published ``tensor``."""

    def write(self, tensor: Tensor) -> Tensor:
        """The values in the published order, from our ``tensor``."""


@dataclass(frozen=True)
class AsItIs:
    """The published order is ours: nothing changes."""

    def read(self, tensor: Tensor) -> Tensor:
        """The published ``tensor`` as it is."""
        return tensor

    def write(self, tensor: Tensor) -> Tensor:
        """Our ``tensor`` as it is."""
        return tensor


@dataclass(frozen=True)
class PairedHalves:
    """Rows of a rotary projection, stored with the two numbers of each rotated pair side by side.

    GGUF stores the rows of each head as ``(a0, b0, a1, b1, ...)``; Limelight, like the published checkpoints, rotates
    ``a_i`` with ``b_i`` of the two halves ``(a0, a1, ..., b0, b1, ...)``.

    Args:
        heads: heads of the projection; its first dimension is ``heads * head width``.
    """

    heads: int

    def read(self, tensor: Tensor) -> Tensor:
        """Rows in halves, from the published rows in pairs."""
        return tensor.reshape(self.heads, -1, 2, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)

    def write(self, tensor: Tensor) -> Tensor:
        """Rows in pairs, from our rows in halves."""
        return tensor.reshape(self.heads, 2, -1, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)


@dataclass(frozen=True)
class Transposed:
    """A matrix stored as ``(in, out)``, the order of GPT-2's files; a vector stays as it is."""

    def read(self, tensor: Tensor) -> Tensor:
        """The ``(out, in)`` matrix, from the published ``(in, out)``."""
        return tensor.T if tensor.dim() == 2 else tensor

    def write(self, tensor: Tensor) -> Tensor:
        """The ``(in, out)`` matrix, from our ``(out, in)``."""
        return self.read(tensor)


@dataclass(frozen=True)
class OneMore:
    """A table without its last row, which is ``fill`` everywhere; a matrix of one row is a vector.

    Marian's decoder starts from a vector of zeros that is no token's; here it is the embedding of an added start token.
    """

    fill: float

    def read(self, tensor: Tensor) -> Tensor:
        """The table with the row of ``fill`` behind the published rows."""
        rows = tensor.flatten() if tensor.shape[0] == 1 else tensor
        return torch.cat((rows, torch.full_like(rows[:1], self.fill)))

    def write(self, tensor: Tensor) -> Tensor:
        """The table without its last row."""
        return tensor[:-1] if tensor.dim() > 1 else tensor[None, :-1]


@dataclass(frozen=True)
class SingleRow:
    """A vector stored as a matrix of one row."""

    def read(self, tensor: Tensor) -> Tensor:
        """The vector, from the published matrix of one row."""
        return tensor.flatten()

    def write(self, tensor: Tensor) -> Tensor:
        """The matrix of one row, from our vector."""
        return tensor[None]


@dataclass(frozen=True)
class KeyRule:
    """``published`` and ``ours``: two key templates with the same ``{...}`` fields, and how the values change.

    ``{n}`` and ``{e}`` stand for whole numbers, ``{p}`` for ``weight`` or ``bias``, ``{any}`` for anything.

    A published tensor may be several of ours laid end to end along the first dimension (queries, keys and values in
    one matrix): then each of them has a rule with the same published name, and its ``part`` as ``(begin, end, of)``:
    the rows from ``begin / of`` to ``end / of`` of the published tensor.

    A rule ``again`` is another name of a tensor that some files store twice: it is read where the first is missing,
    and holds the same values where both are there. A ``spare`` rule is read where all others of its tensor are missing,
    and may hold other values; of several the first in the list is read.
    """

    published: str
    ours: str
    change: Change = AsItIs()
    part: tuple[int, int, int] = (0, 1, 1)
    again: bool = False
    spare: bool = False


@dataclass(frozen=True)
class Unused:
    """A published key (template) that the model leaves aside, and ``why``."""

    published: str
    why: str


class Renamed(NamedTuple):
    """A key on the other side, the change of its values, and which part of the published tensor they are.

    ``rank`` is 0 for a rule that must be read; others are read in the order of their ranks, where the key is missing.
    """

    key: str
    change: Change
    part: tuple[int, int, int] = (0, 1, 1)
    rank: int = 0

    def read(self, tensor: Tensor) -> Tensor:
        """The part of the published ``tensor`` that this key stands for, in our order."""
        begin, end, of = self.part
        whole = self.change.read(tensor)
        if of == 1:
            return whole
        size, rest = divmod(whole.shape[0], of)
        if rest:
            raise IndexError(f"{whole.shape[0]} rows do not make {of} equal parts")
        return whole[begin * size : end * size]


class KeyRules:
    """The rules of one family, in order.

    Args:
        rules: what corresponds to what.
        prefix: how published keys of the body of a model begin (``"bert."``) when it has a head. The rules are written
            with it; a file may leave it out.
        bare: whether it is left out when keys are written, as the files of a body without a head do.
    """

    def __init__(self, *rules: KeyRule | Unused, prefix: str = "", bare: bool = False) -> None:
        self.rules = rules
        self.prefix = prefix
        self.bare = bare

    def ours(self, key: str) -> tuple[Renamed, ...] | Unused | None:
        """Our names for a published key; the rule that leaves it aside; or ``None`` when no rule has it."""
        for spelled in (key, self.prefix + key):
            for rule in self.rules:
                if fields := _fields(rule.published, spelled):
                    if isinstance(rule, Unused):
                        return rule
                    return tuple(
                        Renamed(one.ours.format(**fields.groupdict()), one.change, one.part, _rank(one, number))
                        for number, one in enumerate(self.rules, 1)
                        if isinstance(one, KeyRule) and one.published == rule.published
                    )
        return None

    def published(self, key: str) -> Renamed | None:
        """The published name of one of our keys, or ``None`` when no rule has it."""
        for number, rule in enumerate(self.rules, 1):
            if isinstance(rule, KeyRule) and (fields := _fields(rule.ours, key)):
                name = rule.published.format(**fields.groupdict())
                name = name.removeprefix(self.prefix) if self.bare else name
                return Renamed(name, rule.change, rule.part, _rank(rule, number))
        return None


def _rank(rule: KeyRule, number: int) -> int:
    return number * (rule.again or rule.spare)


@lru_cache(maxsize=1024)
def _pattern(template: str) -> re.Pattern[str]:
    """The regular expression of a template: its text as it stands, its fields by `FIELDS`."""
    parts = re.split(r"\{(\w+)\}", template)
    fields = (f"(?P<{name}>{FIELDS[name]})" for name in parts[1::2])
    texts = (re.escape(text) for text in parts[0::2])
    return re.compile("".join(text + field for text, field in zip(texts, (*fields, ""), strict=True)))


def _fields(template: str, key: str) -> re.Match[str] | None:
    return _pattern(template).fullmatch(key)
