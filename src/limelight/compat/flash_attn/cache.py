"""flash-attention's function of decoding: new keys are written into a cache, which is read in place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...forms.layouts import Layout, Padded, Paged
from ...forms.layouts.portion import Portion
from ...forms.segments import FIELDS
from ...nn.positions import InterleavedPairs, Rotation, SplitHalves
from ...tensors.shapes import check_tensor, describe, flag, position, wrong
from .. import arguments
from .settings import attend, check_dims, meaning

_SLOTS = 16  # kernels read pages in place whose size is a multiple of it


@torch.no_grad()
def flash_attn_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    rotary_cos: Tensor | None = None,
    rotary_sin: Tensor | None = None,
    cache_seqlens: int | Tensor | None = None,
    cache_batch_idx: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    block_table: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    alibi_slopes: Tensor | None = None,
    num_splits: int = 0,
    return_softmax_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """``flash_attn.flash_attn_with_kvcache``: ``k`` and ``v`` are written into the cache, then ``q`` attends to it.

    Caches are read where they lie, rows chosen by ``cache_batch_idx`` and pages included (as `limelight.Paged`). A copy
    is made of rows that ``cache_batch_idx`` chooses, if they have a ``cache_leftpad``, slopes of their own, or keys
    beyond the last multiple of 16 slots, and of pages with slopes of each row. There are no gradients, as there.

    Args:
        q: ``(B, Lq, Hq, D)``.
        k_cache: ``(rows, S, Hkv, D)``, or ``(number of pages, page size, Hkv, D)`` with ``block_table``; changed.
        v_cache: the same with ``Dv``; changed.
        k: ``(B, L, Hkv, D)``, written from index ``cache_seqlens`` on.
        v: ``(B, L, Hkv, Dv)``.
        rotary_cos: ``(positions, R / 2)``: the first ``R`` features of ``k`` and ``q`` are rotated by the angles of
            positions ``cache_seqlens``, ``cache_seqlens + 1`` and so on; those of ``q`` all by that of
            ``cache_seqlens`` where neither ``causal`` nor a window is given.
        rotary_sin: the same shape.
        cache_seqlens: keys that each row holds before the call, an int or ``(B,)``; by default the whole cache.
        cache_batch_idx: ``(B,)``, the row of the cache of each row of ``q``; by default the first ``B``.
        cache_leftpad: ``(B,)``, the index of the first key of each row; the slots before it are not seen.
        block_table: ``(B, M)`` int32, the pages of each row.
        softmax_scale: factor of the dot product; ``1 / sqrt(D)`` by default.
        causal: the last query has the position of the last key, and sees no later one.
        window_size: ``(left, right)`` keys before and after the query's own, -1 for no limit; ints or a tensor.
        softcap: scores become ``softcap * tanh(score / softcap)``; 0 and below is off.
        rotary_interleaved: whether features 0 and 1, 2 and 3, ... are pairs; else ``i`` and ``R / 2 + i``.
        alibi_slopes: ``(Hq,)`` or ``(B, Hq)``.
        num_splits: ignored; kernels divide the keys among threads as it is fastest.
        return_softmax_lse: return ``(output, logsumexp)`` with ``logsumexp`` ``(B, Hq, Lq)`` float32.

    Returns:
        ``(B, Lq, Hq, Dv)``, and the logsumexp when asked for.

    Raises:
        ArgumentError: new keys do not fit into the cache, what flash-attention refuses (rotation without new keys, new
            keys without ``cache_seqlens``, pages with ``cache_batch_idx`` or ``cache_leftpad``), or what
            `limelight.attention` refuses. Whatever is raised, the cache is as it was before the call.
    """
    cache = _cache(q, k_cache, v_cache, k, v, cache_seqlens, cache_batch_idx, cache_leftpad, block_table)
    pattern, scores = meaning(causal, window_size, softcap, alibi_slopes)
    if rotary_cos is not None or rotary_sin is not None:
        if k is None or rotary_cos is None or rotary_sin is None:
            rule = "must be given with rotary_sin, k and v"
            raise wrong("rotary_cos", rule, "one is missing", "Rotate queries yourself where there are no new keys.")
        pairs = InterleavedPairs() if flag("rotary_interleaved", rotary_interleaved) else SplitHalves()
        own = q.shape[1] if pattern is not None else 1
        k = _rotated(k, cache.angles(rotary_cos, rotary_sin, k.shape[1]), pairs)
        q = _rotated(q, cache.angles(rotary_cos, rotary_sin, own), pairs)
    settings = {
        "pattern": pattern, "scores": scores, "scale": arguments.scale("softmax_scale", softmax_scale), "dropout": 0.0,
        "observed": flag("return_softmax_lse", return_softmax_lse),
    }  # fmt: skip
    split = alibi_slopes is not None and alibi_slopes.dim() == 2 and alibi_slopes.shape[0] > 1
    with nullcontext() if k is None or v is None else cache.appended(k, v):
        output, logsumexp = cache.attend(q, split, **settings)
    return output if logsumexp is None else (output, logsumexp)


@dataclass
class _Cache:
    """Keys and values of ``B`` rows, and where those of each row lie."""

    keys: Tensor  # (rows, S, Hkv, D), or pages
    values: Tensor
    held: int | Tensor  # keys of each row before the call: an int, or (B,)
    new: int  # keys that are appended
    rows: Tensor | None  # (B,) of the cache; None for the first ones
    first: Tensor | None  # (B,), the first key of each row
    table: Tensor | None  # (B, M), its pages

    @property
    def total(self) -> int | Tensor:
        return self.held + self.new

    def angles(self, cosine: Tensor, sine: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of ``count`` positions from the first new one on, ``(B | 1, 1, count, R / 2)``."""
        if check_tensor("rotary_cos", cosine).dim() != 2 or cosine.shape != check_tensor("rotary_sin", sine).shape:
            got = f"it is {describe(cosine)}, and `rotary_sin` {describe(sine)}"
            raise wrong("rotary_cos", "and rotary_sin must both be (positions, R / 2)", got, "Compute both alike.")
        held = self.held if isinstance(self.held, Tensor) else torch.tensor([self.held], device="cpu")
        at = held.to(cosine.device)[:, None] + torch.arange(count, device=cosine.device)
        if at.numel() and int(at.max()) >= len(cosine):
            got = f"it has {len(cosine)}, and the last token has position {int(at.max())}"
            raise wrong("rotary_cos", "must have a row for each position", got, "Compute more of them.")
        return cosine[at][:, None], sine[at][:, None]

    @contextmanager
    def appended(self, k: Tensor, v: Tensor) -> Iterator[None]:
        """New keys and values stand behind those that are held; where the block raises, their slots are restored."""
        slots = self._slots(k)
        before = self.keys[slots].clone(), self.values[slots].clone()
        try:
            self.keys[slots], self.values[slots] = k, v
            yield
        except BaseException:
            self.keys[slots], self.values[slots] = before
            raise

    def _slots(self, k: Tensor) -> Any:
        """The index of the new keys in a buffer: of rows or pages, and of slots."""
        if isinstance(self.held, int) and self.table is None:
            return slice(len(k)) if self.rows is None else self.rows, slice(self.held, self.held + self.new)
        held = self.held if isinstance(self.held, Tensor) else torch.full((len(k),), self.held, device=k.device)
        at = held.to(k.device)[:, None] + torch.arange(self.new, device=k.device)
        if self.table is not None:
            size = self.keys.shape[1]
            return self.table.to(at.device, torch.int64).gather(1, at // size), at % size
        return (torch.arange(len(k), device=k.device) if self.rows is None else self.rows)[:, None], at

    def attend(self, q: Tensor, split: bool, **settings: Any) -> tuple[Tensor, Tensor | None]:
        """Output ``(B, Lq, Hq, Dv)`` and logsumexp ``(B, Hq, Lq)``; ``split`` where scores differ between the rows."""
        B, Lq, Hq, _ = q.shape
        keys, values, table = self.keys, self.values, self.table
        if self.rows is not None and self.first is None and not split:
            size = keys.shape[1] // _SLOTS * _SLOTS  # a row of the cache is a page
            if 0 < size >= self._longest():
                keys, values = keys[:, :size], values[:, :size]
            table = self.rows[:, None]
        if table is not None and not split:
            layout = self.paged(Lq, table)
            flat = q.reshape(1, B * Lq, Hq, q.shape[3]).transpose(1, 2)
            output, seen = attend(flat, keys.transpose(1, 2), values.transpose(1, 2), layout=layout, **settings)
            output = output[0].transpose(0, 1).reshape(B, Lq, Hq, values.shape[3])
            return output, None if seen is None else seen[0].reshape(Hq, B, Lq).transpose(0, 1)
        if table is not None:
            keys, values = (x[table.long().clamp(0, len(x) - 1)].flatten(1, 2) for x in (keys, values))
        else:
            keys, values = (x[:B] if self.rows is None else x[self.rows] for x in (keys, values))
        last = self._longest()
        keys, values = (x[:, :last].transpose(1, 2) for x in (keys, values))
        output, logsumexp = attend(q.transpose(1, 2), keys, values, layout=self._layout(B, Lq), **settings)
        return output.transpose(1, 2), logsumexp

    def paged(self, Lq: int, table: Tensor | None = None) -> Paged:
        """The layout of ``Lq`` queries of each row whose keys lie in the pages of ``table``, else of its own."""
        table = self.table if table is None else table
        assert table is not None
        totals = self.total if isinstance(self.total, Tensor) else [self.total] * len(table)
        return Paged([Lq] * len(table), totals, table)

    def _longest(self) -> int:
        total = self.total
        return total if isinstance(total, int) else int(total.max()) if len(total) else 0

    def _layout(self, B: int, Lq: int) -> Layout | None:
        total = self.total
        if self.first is not None:
            return _ranges(self.first, total, Lq)
        return Padded(Lq, total) if isinstance(total, Tensor) else None


def _ranges(first: Tensor, end: int | Tensor, Lq: int) -> Layout:
    """The keys of each row are a range ``first .. end - 1`` of the cache, the last query at the last of them."""
    columns = dict.fromkeys(FIELDS, torch.zeros(len(first), dtype=torch.int64, device="cpu"))
    columns["row"] = columns["dropout_row"] = torch.arange(len(first), device="cpu")
    columns["query_end"] = columns["query_end"] + Lq
    columns["key_begin"], columns["key_end"] = first.cpu().long(), columns["key_end"] + torch.as_tensor(end).cpu()
    columns["query_offset"] = columns["key_end"] - Lq
    return Portion(torch.stack(list(columns.values()), 1))


def _cache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    seqlens: int | Tensor | None,
    rows: Tensor | None,
    leftpad: Tensor | None,
    table: Tensor | None,
) -> _Cache:
    """Check the arguments that describe the cache."""
    check_dims("(B, L, H, D)", q=q, k_cache=k_cache, v_cache=v_cache)
    B = len(q)
    if k_cache.shape[:3] != v_cache.shape[:3]:
        got = f"it is {describe(v_cache)}, and `k_cache` {describe(k_cache)}"
        raise wrong("v_cache", "must have the rows, slots and heads of `k_cache`", got, "Only its width may differ.")
    if (k is None) != (v is None):
        raise wrong("k", "must be given with v", "one is missing", "Append keys and values together.")
    if k is not None:
        check_dims("(B, L, H, D)", k=k, v=v)
    if k is not None and seqlens is None:
        way_out = "Give the number of keys that the cache holds before the call."
        raise wrong("cache_seqlens", "must be given with k and v", "it is None", way_out)
    if table is not None and (rows is not None or leftpad is not None):
        way_out = "Reorder the rows of block_table."
        raise wrong("block_table", "cannot be given with cache_batch_idx or cache_leftpad", "it is", way_out)
    for name, found in (("cache_seqlens", seqlens), ("cache_batch_idx", rows), ("cache_leftpad", leftpad)):
        if isinstance(found, Tensor) or (name != "cache_seqlens" and found is not None):
            _check_numbers(name, check_tensor(name, found), B)
    if table is not None and (check_tensor("block_table", table).dim() != 2 or len(table) != B):
        raise wrong("block_table", f"must have a row for each of {B} rows", f"it is {describe(table)}", "Pass (B, M).")
    if rows is None and table is None and len(k_cache) < B:
        got = f"it has {len(k_cache)}, and `q` {B}"
        raise wrong("k_cache", "must have a row for each row of `q`", got, "Pass cache_batch_idx to choose rows.")
    size = k_cache.shape[1] * (1 if table is None else table.shape[1])
    new = 0
    if k is not None and v is not None:
        new = k.shape[1]
        for name, given, kept in (("k", k, k_cache), ("v", v, v_cache)):
            _check_new(name, given, kept, (B, new))
    held = _uniform(size if seqlens is None else seqlens)
    longest = held if isinstance(held, int) else int(held.max()) if len(held) else 0
    if longest + new > size:
        got = f"it has {size} slots for a row, which holds {longest} keys and gets {new}"
        raise wrong("k_cache", "must have room for the new keys", got, "Allocate more slots, or more pages of the row.")
    if rows is not None:
        rows = rows.long()
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(k_cache):
            got = f"they run from {int(rows.min())} to {int(rows.max())}"
            raise wrong("cache_batch_idx", f"must be among the {len(k_cache)} rows of `k_cache`", got, "Count from 0.")
    cache = _Cache(k_cache, v_cache, held, new, rows, leftpad, table)
    if table is not None:  # before anything is written
        cache.paged(q.shape[1]).stored(k_cache.shape[1]).check(len(k_cache))
    if leftpad is not None and bool((leftpad.cpu() > torch.as_tensor(cache.total).cpu()).any()):
        got, way_out = f"it is {leftpad.tolist()}, and rows hold {cache.total}", "It is the index of a row's first key."
        raise wrong("cache_leftpad", "must not exceed the number of keys of its row", got, way_out)
    return cache


def _check_numbers(name: str, numbers: Tensor, B: int) -> None:
    if tuple(numbers.shape) != (B,) or numbers.dtype.is_floating_point or numbers.dtype == torch.bool:
        rule = f"must be ({B},) whole numbers, one for each row of `q`"
        raise wrong(name, rule, f"it is {describe(numbers)}", "Use torch.int32.")
    if len(numbers) and int(numbers.min()) < 0:
        raise wrong(name, "must not be negative", f"its smallest is {int(numbers.min())}", "They count from 0.")


def _check_new(name: str, given: Tensor, cache: Tensor, lead: Sequence[int]) -> None:
    wanted = (*lead, *cache.shape[2:])
    if tuple(given.shape) != wanted or given.dtype != cache.dtype:
        got = f"it is {describe(given)}, and the cache {describe(cache)}"
        raise wrong(name, f"must be {wanted} of the dtype of `{name}_cache`", got, "Convert it with .to().")
    if given.device != cache.device:
        got = f"{given.device} is not {cache.device}"
        raise wrong(name, f"must be on the device of `{name}_cache`", got, "Move it with .to().")


def _uniform(lengths: int | Tensor) -> int | Tensor:
    """The lengths of rows, as one number where they are equal, so that the cache is cut instead of padded."""
    if not isinstance(lengths, Tensor):
        return position("cache_seqlens", lengths, at_least=0)
    return int(lengths[0]) if len(lengths) and bool((lengths == lengths[0]).all()) else lengths.long()


def _rotated(heads: Tensor, angles: tuple[Tensor, Tensor], pairs: InterleavedPairs | SplitHalves) -> Tensor:
    """Heads ``(B, L, H, D)`` rotated in float32 (float64 for float64) by cosines and sines."""
    if not 0 < 2 * angles[0].shape[-1] <= heads.shape[-1]:
        got = f"it has angles for {2 * angles[0].shape[-1]} features, and a head has {heads.shape[-1]}"
        raise wrong(
            "rotary_cos", "must be (positions, R / 2) with R at most D", got, "Half as many angles as features."
        )
    dtype = torch.float64 if heads.dtype == torch.float64 else torch.float32
    cosine, sine = (x.to(dtype).expand(-1, -1, heads.shape[1], -1) for x in angles)
    rotation = Rotation.by(cosine, sine, pairs)
    return rotation.rotate(heads.to(dtype).transpose(1, 2)).transpose(1, 2).to(heads.dtype)
