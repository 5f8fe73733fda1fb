"""The masks of Hugging Face transformers, read as layouts and patterns.

A model describes its mask by a *mask function* ``(batch, head, query index, key index) -> bool``, put together by the
factories of ``transformers.masking_utils`` (causal, sliding window, chunks, packed documents, "and", "or"), by a
``(B, Lk)`` padding mask, and by the offsets of a cache. `read` takes the description apart, and nothing of size
``Lq * Lk`` is built for a known factory; an unknown part is evaluated, and `Sight.notes` reports it.

What the model then carries through its layers is a `Mask`: the float tensor ``(B, 1, Lq, Lk)`` that ``eager`` adds to
the scores, but one that holds no numbers. A model that computes with it gets the numbers, so no
model has to be changed; one that hands it on, as nearly all do, costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, reduce
from operator import and_, or_
from types import CodeType
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary
from transformers import masking_utils

from ..backends.contract import BackendError
from ..forms.coordinates import Where
from ..forms.layouts import Aligned, KeyMask, Layout, Packed
from ..forms.patterns import Causal, Chunks, Explicit, Full, Keys, Pattern, Window
from ..tensors.shapes import describe, wrong
from ..tensors.torch_internals import disabled_torch_function

MaskFunction = Callable[..., Any]


@dataclass(frozen=True, eq=False)
class Sight:
    """Which queries see which keys in one forward pass of a model.

    Args:
        size: ``(B, Lq, Lk)``, ``Lk`` as the model counts it, the unused end of a static cache included.
        device: where the model's tensors lie.
        keys: how many of the keys can be seen; the others come after the last query.
        layout: of the queries and the first ``keys`` keys.
        pattern: the pattern of the mask; ``None`` is ``Full()``.
        notes: what had to be evaluated for every pair, and why.
    """

    size: tuple[int, int, int]
    device: torch.device
    keys: int
    layout: Layout | None
    pattern: Pattern | None
    notes: tuple[str, ...] = ()

    @cached_property
    def seen(self) -> Tensor:
        """``(B, 1, Lq, Lk)`` bool, true where the query sees the key."""
        if self.layout is not None and self.layout.spread:
            raise BackendError(
                "The model computes with its mask, whose columns lie on several processes under context_parallel. Run "
                "it in one process."
            )
        B, Lq, Lk = self.size
        coordinates = (self.layout or Aligned()).coordinates(B, Lq, self.keys, self.device)
        seen = coordinates.together()
        if self.pattern is not None:
            seen = seen & self.pattern.allows(Where.of(coordinates, B, 1))
        seen = seen.expand(B, 1, Lq, self.keys)
        return torch.nn.functional.pad(seen, (0, Lk - self.keys)) if Lk > self.keys else seen.contiguous()

    def __str__(self) -> str:
        return f"{self.pattern or Full()} under {self.layout or Aligned()}"


class Mask(Tensor):
    """A `Sight` in the shape of the tensor that ``eager`` adds to the scores, written out when it is computed with.

    It is a tensor because models treat it as one: they read its ``dtype``, ``shape`` and ``ndim``, move it to
    devices, cut it to the length of the keys, hand it through activation checkpointing, and return a mask with four
    dimensions that they are given as it is. It is float, 0 and the least number of its dtype, because that is what
    every model can add to, fill or join. `touched` names the operation that made the numbers appear.
    """

    sight: Sight
    touched: str

    # No function of torch is changed for it, only the operations underneath.
    __torch_function__ = disabled_torch_function  # type: ignore[assignment]

    @staticmethod
    def of(sight: Sight, dtype: torch.dtype = torch.float32) -> Mask:
        """The mask that a model carries."""
        B, Lq, Lk = sight.size
        mask: Mask = Tensor._make_wrapper_subclass(Mask, (B, 1, Lq, Lk), dtype=dtype, device=sight.device)
        mask.sight, mask.touched = sight, ""
        return mask

    @property
    def numbers(self) -> Tensor:
        """``(B, 1, Lq, Lk)``: 0 where the query sees the key, else the least number."""
        return torch.zeros(self.shape, dtype=self.dtype, device=self.device).masked_fill_(
            ~self.sight.seen, torch.finfo(self.dtype).min
        )

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Cuts and copies stay descriptions; anything else gets the numbers."""
        kwargs = kwargs or {}
        if args and isinstance(args[0], Mask):
            sight = _still_described(function, args, kwargs)
            if sight is not None:
                return Mask.of(sight, args[0].dtype)

        def numbers(value: Any) -> Any:
            if not isinstance(value, Mask):
                return value
            value.touched = str(function)
            return value.numbers

        args, kwargs = torch.utils._pytree.tree_map(numbers, (args, kwargs))
        return function(*args, **kwargs)

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Mask({self.sight}, {tuple(self.shape)})"


def _still_described(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Sight | None:
    """The sight that an operation on a `Mask` leaves, when it needs no numbers."""
    aten = torch.ops.aten
    mask: Mask = args[0]
    sight = mask.sight
    if function in (aten.detach.default, aten.alias.default, aten.clone.default):
        return sight
    if function is aten._to_copy.default and kwargs.get("dtype") in (None, mask.dtype):
        # Layouts and patterns bring their tensors to where they are asked.
        return replace(sight, device=torch.device(kwargs.get("device") or sight.device))
    if function is aten.slice.Tensor:
        dim = args[1] if len(args) > 1 else 0
        start, end = (args[n] if len(args) > n else None for n in (2, 3))
        step = args[4] if len(args) > 4 else 1
        size = mask.shape[dim]
        first, last, _ = slice(start, end).indices(size)
        if (first, last, step) == (0, size, 1):
            return sight
        if dim % 4 == 3 and (first, step) == (0, 1) and last >= sight.keys:
            return replace(sight, size=(*sight.size[:2], last))
    return None


def written(sight: Sight, dtype: torch.dtype) -> Tensor:
    """The numbers of a mask, whose description is kept beside them while they are unchanged."""
    numbers = Mask.of(sight, dtype).numbers
    if not numbers.is_inference():  # inference tensors have no version counter, so a change would go unnoticed
        _described[numbers] = (sight, numbers._version)
    return numbers


def sight_of(mask: Tensor | None) -> Sight | None:
    """The description of a mask that has one. A graph being traced reads numbers alone where there are numbers."""
    if isinstance(mask, Mask):
        return mask.sight
    if mask is None or torch.compiler.is_compiling():
        return None
    if mask not in _described:
        return None
    sight, version = _described[mask]
    return sight if version == mask._version else None


_described = WeakIdKeyDictionary()  # (sight, version of the numbers) by the tensor of numbers


# --- Reading ---------------------------------------------------------------------------------------------------------


def read(
    mask_function: MaskFunction,
    size: tuple[int, int, int],
    q_offset: int = 0,
    kv_offset: int = 0,
    padding: Tensor | None = None,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
) -> Sight:
    """Translate a mask function of transformers to a layout and a pattern.

    Args:
        mask_function: ``(batch, head, query index, key index) -> bool``, indices counted from the cache's beginning.
        size: ``(B, Lq, Lk)``.
        q_offset: index of the first query; ``kv_offset`` that of the first key.
        padding: ``(B, n)`` bool, true where the token exists, by key index; tokens beyond ``n`` do not.
        use_vmap: whether an unknown mask function takes one pair at a time.
        device: where the mask is wanted.
    """
    B, Lq, Lk = size
    parts = conjuncts(mask_function)
    causal = any(_made_by(part) == "causal_mask_function" for part in parts)
    keys = max(0, min(Lk, q_offset + Lq - kv_offset)) if causal else Lk
    reading = Reading((B, Lq, keys), q_offset, kv_offset, use_vmap, torch.device(device))
    documents, parts = _documents(parts)
    patterns = [reading.pattern(part) for part in parts]
    exists = _exists(padding, kv_offset, keys)

    # Whether the default positions, the last query at the last key and keys from 0 on, give the same picture.
    default = q_offset + Lq == kv_offset + keys and (reading.left is None or kv_offset == 0)
    layout: Layout | None = None if default else Aligned(q_offset, kv_offset)
    if documents is not None:
        layout = documents
    elif reading.left is not None and bool(reading.left.any()):
        # Chunks are counted from the first token that exists: it gets the position 0.
        layout = Aligned(q_offset - reading.left, kv_offset - reading.left)
        if exists is not None:
            only_left = bool((exists.sum(1) == (kv_offset + keys - reading.left).clamp(0, keys)).all())
            patterns.append(~Keys(0) if only_left else Explicit(exists[:, None, None, :], fixed=True))
    elif exists is not None and (default or intersection(patterns) is None):
        layout = KeyMask(exists, fixed=True)
    elif exists is not None:
        patterns.append(Explicit(exists[:, None, None, :], fixed=True))
    return Sight(size, reading.device, keys, layout, intersection(patterns), tuple(reading.notes))


def _exists(padding: Tensor | None, kv_offset: int, keys: int) -> Tensor | None:
    """``(B, keys)``: which keys exist; ``None`` when all do."""
    if padding is None:
        return None
    if padding.dim() != 2:
        got = f"it is {describe(padding)}"
        raise wrong("attention_mask", "must be a (B, Lk) or a (B, 1, Lq, Lk) mask", got, "Give one of the two.")
    exists = padding[:, kv_offset : kv_offset + keys].to(torch.bool)
    if exists.shape[1] < keys:
        exists = torch.nn.functional.pad(exists, (0, keys - exists.shape[1]))
    return None if bool(exists.all()) else exists


@dataclass
class Reading:
    """Translates mask functions for one size; records where chunks begin and which functions were evaluated."""

    size: tuple[int, int, int]
    q_offset: int
    kv_offset: int
    use_vmap: bool
    device: torch.device
    left: Tensor | None = None

    def __post_init__(self) -> None:
        self.notes: list[str] = []

    def pattern(self, function: MaskFunction) -> Pattern:
        """The pattern of a mask function, over indices counted from the cache's beginning."""
        made_by, cells = _made_by(function), _cells(function)
        match made_by:
            case "causal_mask_function":
                return Causal()
            case "bidirectional_mask_function":
                return Full()
            case "sliding_window_overlay":
                return _window(cells["sliding_window"] - 1, None)
            case "sliding_window_bidirectional_overlay":
                return _window(cells["sliding_window"], cells["sliding_window"])
            case "chunked_overlay" if self.left is None or self.left is cells["left_padding"]:
                self.left = cells["left_padding"]
                return Chunks(cells["chunk_size"])
            case "and_masks":
                return intersection([self.pattern(part) for part in cells["mask_functions"]]) or Full()
            case "or_masks":
                return reduce(or_, [self.pattern(part) for part in cells["mask_functions"]])
        self.notes.append(
            f"the mask function {getattr(function, '__qualname__', function)} was evaluated for every pair: it is "
            "none of those whose meaning is known"
        )
        return Explicit(self.evaluate(function), fixed=True)

    def evaluate(self, function: MaskFunction) -> Tensor:
        """``(B, 1, Lq, keys)`` bool, by transformers itself."""
        B, Lq, keys = self.size
        seen = masking_utils.sdpa_mask(
            batch_size=B, q_length=Lq, kv_length=keys, q_offset=self.q_offset, kv_offset=self.kv_offset,
            mask_function=function, allow_is_causal_skip=False, use_vmap=self.use_vmap, device=self.device,
        )  # fmt: skip
        assert seen is not None
        return seen


@lru_cache(maxsize=64)
def _window(back: int, ahead: int | None) -> Window:
    return Window(back, ahead)


def intersection(patterns: list[Pattern]) -> Pattern | None:
    """The intersection of patterns; ``None`` when it allows every pair."""
    limits = [pattern for pattern in patterns if pattern != Full()]
    return reduce(and_, limits) if limits else None


def conjuncts(function: MaskFunction) -> list[MaskFunction]:
    """The mask functions that must all agree."""
    if _made_by(function) != "and_masks":
        return [function]
    return [part for inner in _cells(function)["mask_functions"] for part in conjuncts(inner)]


def without_documents(parts: list[MaskFunction]) -> tuple[list[MaskFunction], list[MaskFunction]]:
    """The parts that tell documents apart, and the others, as functions of positions within a document."""
    packed = [part for part in parts if _made_by(part) == "packed_sequence_mask_function"]
    inner = []
    for part in parts:
        if _made_by(part) == "remap_positions_for_packed_sequence":
            inner += conjuncts(_cells(part)["mask_function"])
        elif part not in packed:
            inner.append(part)
    return packed, inner


def _documents(parts: list[MaskFunction]) -> tuple[Packed | None, list[MaskFunction]]:
    """Packed documents among the parts as a layout, and the parts that remain, counted within each document.

    Only where every batch row holds documents of the same lengths (nearly always there is one row), and no part
    counts from a document's first position.
    """
    packed, inner = without_documents(parts)
    if len(packed) != 1 or not all(_made_by(part) in _RELATIVE for part in inner):
        return None, parts
    numbers = _cells(packed[0])["packed_sequence_mask"]
    if not bool((numbers == numbers[:1]).all()):
        return None, parts
    _, lengths = torch.unique_consecutive(numbers[0], return_counts=True)
    return Packed(tuple(lengths.tolist())), inner


# Those that depend on the distance of query and key alone.
_RELATIVE = (
    "causal_mask_function", "bidirectional_mask_function", "sliding_window_overlay",
    "sliding_window_bidirectional_overlay",
)  # fmt: skip


def _made_by(function: MaskFunction) -> str | None:
    """Which factory of transformers made a mask function; ``None`` for any other function."""
    return _factories().get(getattr(function, "__code__", None))


def _cells(function: MaskFunction) -> dict[str, Any]:
    """The closure variables of a mask function, by name."""
    closure = getattr(function, "__closure__", None) or ()
    return (
        {} if not closure else dict(zip(function.__code__.co_freevars, (c.cell_contents for c in closure), strict=True))
    )


@lru_cache(maxsize=1)
def _factories() -> dict[CodeType | None, str]:
    """The code of each known mask function: code is compared, so a function of the same name means nothing."""
    known: dict[CodeType | None, str] = {}
    for name, arguments in (
        ("causal_mask_function", None),
        ("bidirectional_mask_function", None),
        ("sliding_window_overlay", (1,)),
        ("sliding_window_bidirectional_overlay", (1,)),
        ("chunked_overlay", (1, None)),
        ("packed_sequence_mask_function", (None,)),
        ("remap_positions_for_packed_sequence", (None, None)),
        ("and_masks", ()),
        ("or_masks", ()),
    ):
        factory = getattr(masking_utils, name, None)
        if factory is not None:
            known[(factory if arguments is None else factory(*arguments)).__code__] = name
    return known
