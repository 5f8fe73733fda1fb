"""xFormers' block-diagonal masks: several texts laid end to end, whose keys may lie with gaps between them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from ...forms.layouts import Layout, Packed
from ...forms.layouts.portion import Portion
from ...forms.patterns import Causal, Pattern, Window
from ...forms.segments import FIELDS
from ...tensors.shapes import check_tensor, describe, position, sequence, wrong
from .dense import Arranged, AttentionBias, causal_window
from .lengths import SeqLenInfo, SeqLenInfoOfSome, check_pages, lengths

_Self = TypeVar("_Self", bound="Blocks")


@dataclass
class Blocks(AttentionBias):
    """Base of the block-diagonal masks: queries of block ``n`` see keys of block ``n``.

    Args:
        q_seqinfo: where the queries of each block lie.
        k_seqinfo: where its keys lie.
    """

    q_seqinfo: SeqLenInfo
    k_seqinfo: SeqLenInfo

    #: Whether the first query of a block has the position of its first key, not the last that of the last.
    top_left: ClassVar[bool] = False

    def pattern(self) -> Pattern | None:
        """Which keys of its block a query sees; ``None``, the default, for all."""
        return None

    def arranged(self, Lq: int, Lk: int) -> Arranged:
        queries, keys = list(self.q_seqinfo.intervals()), list(self.k_seqinfo.intervals())
        for name, info, size in (("queries", self.q_seqinfo, Lq), ("keys", self.k_seqinfo, Lk)):
            if info.seqstart_py[-1] != size:
                got = f"it is made for {info.seqstart_py[-1]}"
                raise wrong("attn_bias", f"must be made for the {size} {name} of the call", got, "Check the lengths.")
        layout = _layout(queries, keys, Lk, self.top_left)
        if layout is not None:
            return Arranged(layout, self.pattern())
        together = [range(first, last) for first, last in keys]  # a key belongs to several blocks
        index = torch.tensor([key for block in together for key in block], dtype=torch.int64, device="cpu")
        ends = [0]
        for block in together:
            ends.append(ends[-1] + len(block))
        layout = _layout(queries, list(pairwise(ends)), ends[-1], self.top_left)
        return Arranged(layout, self.pattern(), keys=index)

    def to(self: _Self, device: torch.device) -> _Self:
        return dataclasses.replace(self, q_seqinfo=self.q_seqinfo.to(device), k_seqinfo=self.k_seqinfo.to(device))


def _layout(queries: list[tuple[int, int]], keys: list[tuple[int, int]], Lk: int, top_left: bool) -> Layout | None:
    """The layout of blocks of queries and their keys; ``None`` where keys belong to several blocks."""
    sizes = [(q1 - q0, k1 - k0) for (q0, q1), (k0, k1) in zip(queries, keys, strict=True)]
    joined = [k0 for k0, _ in keys] + [Lk] == [0] + [k1 for _, k1 in keys]
    if joined and (not top_left or all(q == k for q, k in sizes)):
        return Packed(tuple(q for q, _ in sizes), tuple(k for _, k in sizes))
    used = sorted(interval for interval in keys if interval[0] < interval[1])
    if any(last > first for (_, last), (first, _) in pairwise(used)):
        return None
    rows = []
    for number, ((q0, q1), (k0, k1)) in enumerate(zip(queries, keys, strict=True)):
        if q0 < q1:
            first = 0 if top_left else (k1 - k0) - (q1 - q0)
            columns = {
                "query_begin": q0, "query_end": q1, "key_begin": k0, "key_end": k1, "query_offset": first - q0,
                "key_offset": -k0, "dropout_row": number,
            }  # fmt: skip
            rows.append([columns.get(name, 0) for name in FIELDS])
    table = torch.tensor(rows, dtype=torch.int64, device="cpu").reshape(-1, len(FIELDS))
    return Portion(table, count=max(1, len(queries)))


# --- Keys laid end to end --------------------------------------------------------------------------------------------


@dataclass
class BlockDiagonalMask(Blocks):
    """xFormers' mask of several texts laid end to end, ``(1, sum of lengths, H, K)``; none sees another.

    Args:
        q_seqinfo: the lengths of queries.
        k_seqinfo: the lengths of keys.
        _batch_sizes: how many texts of one length lie together, for `split`.
    """

    _batch_sizes: Sequence[int] | None = None

    @classmethod
    def from_seqlens(
        cls, q_seqlen: Sequence[int], kv_seqlen: Sequence[int] | None = None, *, device: torch.device | None = None
    ) -> Any:
        """The mask of texts of these lengths; of as many keys as queries by default."""
        queries = SeqLenInfo.from_seqlens(lengths("q_seqlen", q_seqlen), device=device)
        keys = queries if kv_seqlen is None else SeqLenInfo.from_seqlens(lengths("kv_seqlen", kv_seqlen), device=device)
        _check_as_many("kv_seqlen", keys.seqstart_py, queries.seqstart_py)
        return cls(queries, queries if keys.seqstart_py == queries.seqstart_py else keys)

    @classmethod
    def from_tensor_list(cls, tensors: Sequence[Tensor]) -> tuple[Any, Tensor]:
        """The mask of texts ``(rows, length, ...)``, and these laid end to end, ``(1, total, ...)``."""
        mask = cls.from_seqlens(_lengths_of("tensors", tensors))
        mask._batch_sizes = [len(x) for x in tensors]
        return mask, _joined(tensors)

    @classmethod
    def from_tensor_lists_qkv(
        cls, tensors_q: Sequence[Tensor], tensors_k: Sequence[Tensor], tensors_v: Sequence[Tensor] | None = None
    ) -> tuple[Any, Tensor, Tensor, Tensor | None]:
        """The mask of queries and keys of each text, and queries, keys and values laid end to end."""
        sizes = _lengths_of("tensors_q", tensors_q), _lengths_of("tensors_k", tensors_k)
        _check_as_many("tensors_k", tensors_k, tensors_q)
        mask = cls.from_seqlens(*sizes)
        if tensors_v is not None:
            _lengths_of("tensors_v", tensors_v)
        mask._batch_sizes = [len(x) for x in tensors_q]
        values = None if tensors_v is None else _joined(tensors_v)
        return mask, _joined(tensors_q), _joined(tensors_k), values

    def split_queries(self, tensor: Tensor) -> list[Tensor]:
        """The texts of queries or outputs ``(1, total, ...)``, as `from_tensor_list` took them."""
        return self.q_seqinfo.split(tensor, self._batch_sizes)

    def split_kv(self, tensor: Tensor) -> list[Tensor]:
        """The texts of keys or values ``(1, total, ...)``."""
        return self.k_seqinfo.split(tensor, self._batch_sizes)

    def split(self, tensor: Tensor) -> list[Tensor]:
        """The texts of a tensor ``(1, total, ...)``, of as many queries as keys."""
        return self.split_queries(tensor)

    def make_causal(self) -> BlockDiagonalCausalMask:
        """These texts, each causal from its top left."""
        return BlockDiagonalCausalMask(self.q_seqinfo, self.k_seqinfo, self._batch_sizes)

    def make_causal_from_bottomright(self) -> BlockDiagonalCausalFromBottomRightMask:
        """These texts, each causal from its bottom right."""
        return BlockDiagonalCausalFromBottomRightMask(self.q_seqinfo, self.k_seqinfo, self._batch_sizes)

    def make_local_attention(self, window_size: int) -> BlockDiagonalCausalLocalAttentionMask:
        """These texts, each causal from its top left, with a window of ``window_size`` keys."""
        return BlockDiagonalCausalLocalAttentionMask(self.q_seqinfo, self.k_seqinfo, self._batch_sizes, window_size)

    def make_local_attention_from_bottomright(
        self, window_size: int
    ) -> BlockDiagonalCausalLocalAttentionFromBottomRightMask:
        """These texts, each causal from its bottom right, with a window of ``window_size`` keys."""
        return BlockDiagonalCausalLocalAttentionFromBottomRightMask(
            self.q_seqinfo, self.k_seqinfo, self._batch_sizes, window_size
        )


@dataclass
class BlockDiagonalCausalMask(BlockDiagonalMask):
    """`BlockDiagonalMask`, each text causal, aligned at its top left."""

    top_left: ClassVar[bool] = True

    def pattern(self) -> Pattern | None:
        return Causal()


@dataclass
class BlockDiagonalCausalFromBottomRightMask(BlockDiagonalMask):
    """`BlockDiagonalMask`, each text causal, aligned at its bottom right; it has no fewer keys than queries."""

    def __post_init__(self) -> None:
        pairs = zip(self.q_seqinfo.intervals(), self.k_seqinfo.intervals(), strict=True)
        for number, ((q0, q1), (k0, k1)) in enumerate(pairs):
            if k1 - k0 < q1 - q0:
                got = f"block {number} has {q1 - q0} queries and {k1 - k0} keys"
                raise wrong("kv_seqlen", "must not be below q_seqlen", got, "The first queries would see nothing.")

    def pattern(self) -> Pattern | None:
        return Causal()


@dataclass
class BlockDiagonalCausalLocalAttentionMask(BlockDiagonalCausalMask):
    """`BlockDiagonalCausalMask` with a window of ``_window_size`` keys, the query's own among them."""

    _window_size: int = 0

    def __post_init__(self) -> None:
        position("window_size", self._window_size, at_least=1)

    def pattern(self) -> Pattern | None:
        return causal_window(self._window_size)


@dataclass
class BlockDiagonalCausalLocalAttentionFromBottomRightMask(BlockDiagonalCausalFromBottomRightMask):
    """`BlockDiagonalCausalFromBottomRightMask` with a window of ``_window_size`` keys, the query's own among them."""

    _window_size: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        position("window_size", self._window_size, at_least=1)

    def pattern(self) -> Pattern | None:
        return causal_window(self._window_size)


# --- Keys with gaps --------------------------------------------------------------------------------------------------


@dataclass
class BlockDiagonalPaddedKeysMask(Blocks):
    """xFormers' mask of texts whose keys lie in blocks of as many slots, of which each text uses the first ones."""

    @classmethod
    def from_seqlens(
        cls,
        q_seqlen: Sequence[int],
        kv_padding: int,
        kv_seqlen: Sequence[int],
        causal_diagonal: Any = None,
        *,
        device: torch.device | None = None,
    ) -> Any:
        """The mask of these numbers of queries, slots of a block and keys; ``causal_diagonal`` is not used."""
        return cls(*_padded(q_seqlen, kv_padding, kv_seqlen, device))

    def make_local_attention(self, window_left: int, window_right: int) -> BlockDiagonalLocalAttentionPaddedKeysMask:
        """These texts with a window, aligned at the bottom right."""
        return BlockDiagonalLocalAttentionPaddedKeysMask(self.q_seqinfo, self.k_seqinfo, window_left, window_right)

    def make_paged(self, block_tables: Tensor, page_size: int, paged_type: Any) -> Any:
        """These texts with their keys in pages: a mask of ``paged_type``."""
        slots = check_pages(block_tables, page_size)
        keys = SeqLenInfoOfSome.from_seqlens_padded(
            _of_some(self.k_seqinfo).seqlen_py, slots, device=self.k_seqinfo.device
        )
        return _class("paged_type", paged_type)(self.q_seqinfo, keys, block_tables, page_size)


@dataclass
class BlockDiagonalCausalWithOffsetPaddedKeysMask(BlockDiagonalPaddedKeysMask):
    """`BlockDiagonalPaddedKeysMask`, each text causal, aligned at its bottom right."""

    causal_diagonal: Any = None

    def pattern(self) -> Pattern | None:
        return Causal()


@dataclass
class BlockDiagonalLocalAttentionPaddedKeysMask(BlockDiagonalPaddedKeysMask):
    """`BlockDiagonalPaddedKeysMask` with a window of keys on both sides, aligned at the bottom right."""

    window_left: int
    window_right: int

    @classmethod
    def from_seqlens_local(
        cls, q_seqlen: Sequence[int], kv_padding: int, kv_seqlen: Sequence[int], window_left: int, window_right: int
    ) -> Any:
        """The mask of these numbers of queries, slots of a block and keys, with a window."""
        return cls(*_padded(q_seqlen, kv_padding, kv_seqlen, None), window_left, window_right)

    def pattern(self) -> Pattern | None:
        return Window(self.window_left, self.window_right)


@dataclass
class BlockDiagonalCausalLocalAttentionPaddedKeysMask(BlockDiagonalPaddedKeysMask):
    """`BlockDiagonalCausalWithOffsetPaddedKeysMask` with a window of ``_window_size`` keys."""

    _window_size: int

    @classmethod
    def from_seqlens_local(
        cls, q_seqlen: Sequence[int], kv_padding: int, kv_seqlen: Sequence[int], window_size: int
    ) -> Any:
        """The mask of these numbers of queries, slots of a block and keys, with a window."""
        return cls(*_padded(q_seqlen, kv_padding, kv_seqlen, None), window_size)

    def pattern(self) -> Pattern | None:
        return causal_window(self._window_size)


@dataclass
class BlockDiagonalGappyKeysMask(Blocks):
    """xFormers' mask of texts whose keys lie anywhere, with gaps between them; texts may share keys."""

    @classmethod
    def from_seqlens(
        cls,
        q_seqlen: Sequence[int],
        kv_seqstarts: Sequence[int],
        kv_seqlen: Sequence[int],
        *,
        device: torch.device | None = None,
    ) -> Any:
        """The mask of these numbers of queries, places where keys begin, with the total behind, and numbers of keys."""
        q_seqlen, kv_seqlen = lengths("q_seqlen", q_seqlen), lengths("kv_seqlen", kv_seqlen)
        _check_as_many("kv_seqlen", kv_seqlen, q_seqlen)
        starts = lengths("kv_seqstarts", kv_seqstarts)
        if len(starts) != len(q_seqlen) + 1:
            got = f"there are {len(starts)} and {len(q_seqlen)} blocks"
            raise wrong(
                "kv_seqstarts", "must hold one number more than there are blocks", got, "The total is the last."
            )
        keys = SeqLenInfoOfSome(starts, device, kv_seqlen)
        return cls(SeqLenInfo.from_seqlens(q_seqlen, device=device), keys)

    def make_paged(self, block_tables: Tensor, page_size: int, notional_padding: int, paged_type: Any) -> Any:
        """These texts with their keys in pages: a mask of ``paged_type``.

        Args:
            block_tables: ``(N, pages of a text)``.
            page_size: keys of a page.
            notional_padding: the keys of text ``n`` are counted from ``n * notional_padding`` on; whole pages.
            paged_type: the class.
        """
        check_pages(block_tables, page_size)
        if position("notional_padding", notional_padding, at_least=0) % page_size:
            got = f"{notional_padding} is no multiple of {page_size}"
            raise wrong("notional_padding", "must be a multiple of page_size", got, "Round it up.")
        sizes = _of_some(self.k_seqinfo).seqlen_py
        starts = [first - n * notional_padding for n, first in enumerate(self.k_seqinfo.seqstart_py[:-1])]
        ends = [first + size for first, size in zip(starts, sizes, strict=True)]
        keys = SeqLenInfoOfSome([*starts, -1], self.k_seqinfo.device, ends)
        return _class("paged_type", paged_type)(self.q_seqinfo, keys, block_tables, page_size)


@dataclass
class BlockDiagonalCausalWithOffsetGappyKeysMask(BlockDiagonalGappyKeysMask):
    """`BlockDiagonalGappyKeysMask`, each text causal, aligned at its bottom right."""

    def pattern(self) -> Pattern | None:
        return Causal()


def _padded(
    q_seqlen: Sequence[int], kv_padding: int, kv_seqlen: Sequence[int], device: torch.device | None
) -> tuple[SeqLenInfo, SeqLenInfoOfSome]:
    q_seqlen, kv_seqlen = lengths("q_seqlen", q_seqlen), lengths("kv_seqlen", kv_seqlen)
    _check_as_many("kv_seqlen", kv_seqlen, q_seqlen)
    keys = SeqLenInfoOfSome.from_seqlens_padded(kv_seqlen, kv_padding, device=device)
    return SeqLenInfo.from_seqlens(q_seqlen, device=device), keys


def _of_some(info: SeqLenInfo) -> SeqLenInfoOfSome:
    assert isinstance(info, SeqLenInfoOfSome)
    return info


def _check_as_many(name: str, given: Sequence[Any], wanted: Sequence[Any]) -> None:
    if len(given) != len(wanted):
        got = f"there are {len(given)} and {len(wanted)}"
        raise wrong(name, "must hold as many entries as there are blocks of queries", got, "Give an empty block 0.")


def _lengths_of(name: str, tensors: Sequence[Tensor]) -> list[int]:
    """The length of each text of tensors ``(rows, length, ...)``."""
    found = [check_tensor(name, x) for x in sequence(name, tensors, "a sequence of tensors", f"{name}=[a, b]")]
    for x in found:
        if x.dim() < 2:
            raise wrong(name, "must be (rows, length, ...) each", f"one is {describe(x)}", "Use unsqueeze.")
    return [x.shape[1] for x in found for _ in range(len(x))]


def _class(name: str, kind: Any) -> type[Any]:
    if not isinstance(kind, type):
        way_out = "For example PagedBlockDiagonalPaddedKeysMask."
        raise wrong(name, "must be a class of masks", f"it is {describe(kind)}", way_out)
    return kind


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([x.reshape(1, -1, *x.shape[2:]) for x in tensors], 1)
