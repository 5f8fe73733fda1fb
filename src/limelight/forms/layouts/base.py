"""The base of all layouts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...tensors.shapes import describe, wrong
from ..coordinates import Coordinates, check_sizes
from ..descriptions import Checks, Description
from ..pages import Pages
from ..segments import KeyRanges


class Layout(Description):
    """Base of the layouts.

    A new layout defines `check` and `coordinates`, and `documents` where a row has several. The other methods state
    facts that make it faster, or that a part of the library needs; by default nothing is claimed, and what needs more
    is refused with the reason.
    """

    #: Whether no query is farther from a key that it may see than queries and keys there are, so that no distance has
    #: to be checked before it is counted in 32 bits.
    near: ClassVar[bool] = False
    #: Whether there are `segments`, so that position is index plus offset and kernels can count distances. Found when a
    #: class is made.
    has_offsets: ClassVar[bool] = False
    #: Whether `segments` are all there is to it, without `holes`. Found when a class is made.
    only_segments: ClassVar[bool] = False

    #: Whether the tokens lie on several processes, so that a call begins with `localized`.
    spread: ClassVar[bool] = False

    #: Whether keys and values lie in pages of memory, which `stored` finds, so that they can be gathered for `in_rows`.
    paged: ClassVar[bool] = False

    argument_checks: ClassVar[Checks] = {"coordinates": check_sizes}

    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        cls.has_offsets = cls.segments is not Layout.segments
        cls.only_segments = cls.has_offsets and cls.holes is Layout.holes

    def check(self, B: int, Lq: int, Lk: int) -> None:
        """Raise `ArgumentError` when the layout does not fit ``B`` rows of ``Lq`` queries and ``Lk`` keys."""

    def coordinates(self, B: int, Lq: int, Lk: int, device: torch.device) -> Coordinates:
        """The definition: position, document and existence of every query and key of ``B`` rows, on ``device``."""
        raise NotImplementedError

    @property
    def documents(self) -> int:
        """The number of documents of each batch row."""
        return 1

    def segments(self, B: int, Lq: int, Lk: int) -> bytes | None:
        """The layout by arithmetic, which kernels evaluate themselves: `limelight.forms.segments`, packed.

        Keys within a range that do not exist are left to `holes`. ``None``, the default, when positions are not indices
        plus an offset; then `key_ranges` are used.
        """
        return None

    def key_ranges(self, B: int, Lq: int, Lk: int) -> KeyRanges | None:
        """For a layout without `segments`: where each query stands, and which range of keys it may see.

        By default worked out from `coordinates`; ``None`` where the keys of a document are not one range.
        """
        return KeyRanges.of_coordinates(self.coordinates(B, Lq, Lk, torch.device("cpu")))

    def key_pieces(self, B: int, Lq: int, Lk: int) -> bytes | None:
        """For a layout without `segments` and `key_ranges`: segments, packed, of which a query may have several.

        Each holds a range of the query's keys whose positions are indices plus an offset; the ranges do not overlap.
        ``None``, the default, where no such list is known.
        """
        return None

    def holes(self) -> Tensor | None:
        """``(B | 1, Lk)`` bool on the CPU, which keys exist, where some within a range of `segments` do not."""
        return None

    @property
    def uniform_over_batch(self) -> bool:
        """Whether every batch row has the same layout, so that calls can be joined to one of more rows."""
        return False

    def text_ranges(self, L: int) -> tuple[int | Tensor, int | Tensor] | None:
        """Where the one text of each row lies: ``(first, length)``, each an int or a ``(B,)`` tensor.

        Of ``L`` queries and as many keys, the tokens ``first .. first + length - 1`` of a row exist, at the positions
        from 0 on. ``None``, the default, where that does not hold: what continues texts (a cache, generation) refuses
        the layout then.
        """
        return None

    def text_lengths(self, positions: Tensor) -> Tensor:
        """``(B | 1, 1)`` int64: the last position of each row plus 1, also where a process holds only some tokens.

        Args:
            positions: ``(B | 1, L)``, those of the queries that this process holds; 0 for those that do not exist.
        """
        return positions.amax(-1, keepdim=True) + 1 if positions.shape[-1] else positions.new_zeros(len(positions), 1)

    def own_tokens(self, make: Callable[[int], Tensor], length: int) -> Tensor:
        """The tokens that this process holds of a tensor ``(B, length of the whole text, ...)``.

        Args:
            make: makes the tensor for a length.
            length: tokens that this process holds.
        """
        return make(length)

    def whole(self, tensor: Tensor, dim: int = 1, first: int = 0) -> Tensor:
        """The tensor of the whole text, on every process, of which this one holds some tokens along ``dim``.

        Args:
            tensor: this process's own tokens along ``dim``.
            dim: the dimension of the tokens.
            first: the token from which on they are wanted.
        """
        return tensor.narrow(dim, first, tensor.shape[dim] - first)

    def of_whole(self, L: int) -> tuple[Layout | None, int]:
        """The layout and length of the whole text, of which this process holds ``L`` tokens; ``None`` is `Aligned`.

        Args:
            L: tokens that this process holds.
        """
        return self, L

    def index_offset(self, Lq: int, Lk: int) -> int | None:
        """The ``offset`` with ``key position - query position = j - i - offset`` for every query ``i`` and key ``j``
        that belong together; ``None``, the default, where no one number is known to hold."""
        return None

    def cross(self, source: Layout) -> Layout:
        """The layout of cross-attention: each of several documents in a row sees its own source.

        Args:
            source: the layout of the source alone, with as many documents.

        Raises:
            ArgumentError: it is not known which tokens belong together, as by default.
        """
        raise wrong(
            "layout",
            "must be Packed for source and tokens, or of one document a row for both",
            f"that of the source is {source!r}, that of the tokens is {self!r}",
            "Every document needs its source.",
        )

    def stored(self, size: int) -> Pages:
        """For a layout that is `paged`: where the keys of a call lie in pages of ``size`` keys; worked out once."""
        raise NotImplementedError

    @property
    def in_rows(self) -> Layout:
        """For a layout that is `paged`: the layout of the gathered keys."""
        raise NotImplementedError

    def localized(self, query: Tensor, key: Tensor, value: Tensor, settings: Any) -> tuple[Any, Callable[[Any], Any]]:
        """For a layout that is `spread`: this process's own calls, each of consecutive heads.

        Args:
            query: ``(B, Hq, Lq, D)``, of this process.
            key: ``(B, Hkv, Lk, D)``, of this process.
            value: ``(B, Hkv, Lk, Dv)``, of this process.
            settings: `limelight.forms.settings.Settings` of the whole call.

        Returns:
            The own calls in order, whose ``gathered()`` exchanges keys and values, with ``query`` and ``settings``;
            and what turns the list of their `Observations` into those of the whole.
        """
        raise NotImplementedError

    def explained(self, query: Tensor, key: Tensor, value: Tensor, settings: Any) -> tuple[Tensor, Tensor, Any, object]:
        """For a layout that is `spread`: this process's own call as in `localized`, without communication.

        Args:
            query: ``(B, Hq, Lq, D)``, of this process.
            key: ``(B, Hkv, Lk, D)``, of this process.
            value: ``(B, Hkv, Lk, Dv)``, of this process.
            settings: `limelight.forms.settings.Settings` of the whole call.

        Returns:
            Keys and values of the own call, whose numbers are not defined, its settings, and a report about all
            processes, which `limelight.explain` prints.
        """
        raise NotImplementedError

    def select(self, rows: Tensor) -> Layout:
        """The layout of these batch ``rows`` ``(N,)`` int64, in this order, with repetitions.

        Raises:
            ArgumentError: the layout has no rows that can be chosen, as by default.
        """
        raise wrong("layout", "must be one of which rows can be chosen", f"it is {self!r}", "Use Padded.")


def check_layout(layout: object) -> None:
    """Raise `ArgumentError` where ``layout`` is neither a layout nor ``None``."""
    if layout is not None and not isinstance(layout, Layout):
        raise wrong("layout", "must be a Layout", f"it is {describe(layout)}", "None is Aligned().")


def one_document(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Documents of queries and keys that are all of document 0."""
    return torch.zeros_like(query), torch.zeros_like(key)


def all_exist(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Existence of queries and keys that all exist."""
    return torch.ones_like(query, dtype=torch.bool), torch.ones_like(key, dtype=torch.bool)
