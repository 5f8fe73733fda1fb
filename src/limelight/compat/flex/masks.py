"""FlexAttention's masks: functions of token indices, and the patterns of `limelight.attention` that they are."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ...forms.coordinates import Part, Where
from ...forms.layouts import Aligned, Layout
from ...forms.patterns import Blocks, Pattern, Predicate
from ...tensors.devices import check_device
from ...tensors.shapes import describe, position, whole_number, wrong
from .forms import Mask
from .patterns import EVERYTHING, arranged, both
from .recording import AXES, IndexByTensors, Recording, record

#: ``(b, h, q_idx, kv_idx)``, tensors without dimensions, to a bool one: whether the query sees the key.
MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
_SLAB = 2**24  # pairs that are evaluated at a time


class BlockMask:
    """FlexAttention's mask: which query sees which key, as `create_block_mask` found it in a function.

    Where the function is one of distances, chunks, first tokens, documents or lengths of each row, joined by ``&``,
    ``|``, ``~`` and `torch.where`, ``pattern`` says so: it takes no memory of the size of the mask. Anything else is
    evaluated for every pair and kept as a map of 64 x 64 tiles with a bit for each pair of a tile that is neither
    empty nor full. Print the mask to see which it is; print ``limelight.explain(q, k, v, layout=mask.layout,
    pattern=mask.pattern)`` for how a call of it is computed.

    Attributes:
        mask_mod: the function.
        shape: ``(B, H, Q_LEN, KV_LEN)``.
        seq_lengths: ``(Q_LEN, KV_LEN)``.
        BLOCK_SIZE: queries and keys of a block of `to_dense` and `sparsity`; results do not depend on it.
        layout: the layout of a call; `limelight.Packed` for documents laid end to end.
        pattern: the pattern of a call.
        whole: the pattern without a layout of its own: of the indices of tokens.
    """

    mask_mod: MaskMod
    shape: tuple[int, int, int, int]
    seq_lengths: tuple[int, int]
    BLOCK_SIZE: tuple[int, int]
    layout: Layout
    pattern: Pattern
    whole: Pattern

    def __init__(
        self,
        mask_mod: MaskMod,
        whole: Pattern,
        shape: tuple[int, int, int, int],
        block_size: tuple[int, int],
        device: torch.device,
    ) -> None:
        self.mask_mod, self.whole, self.shape, self.BLOCK_SIZE, self.device = mask_mod, whole, shape, block_size, device
        self.seq_lengths = shape[2:]
        self.layout, self.pattern = arranged(whole, *self.seq_lengths)

    def to_dense(self) -> Tensor:
        """``(B, H, blocks of queries, blocks of keys)`` int64: 1 where a query of the block sees a key of it."""
        B, H, Lq, Lk = self.shape
        rows, columns = self.BLOCK_SIZE
        found = torch.zeros(B, H, -(-Lq // rows), -(-Lk // columns), dtype=torch.int64, device=self.device)
        coordinates = Aligned(query_start=0).coordinates(B, Lq, Lk, self.device)
        step = max(1, _SLAB // max(1, B * H * Lk * rows)) * rows
        for first in range(0, Lq, step):
            last = min(first + step, Lq)
            at = Where.of(coordinates, B, H, Part(queries=slice(first, last)))
            seen = self.whole.allows(at).expand(B, H, last - first, Lk)
            padded = torch.nn.functional.pad(seen, (0, -Lk % columns, 0, (first - last) % rows))
            blocks = padded.unflatten(3, (-1, columns)).unflatten(2, (-1, rows)).any(5).any(3)  # type: ignore[no-untyped-call]
            found[:, :, first // rows : first // rows + blocks.shape[2]] = blocks
        return found

    def sparsity(self) -> float:
        """The percentage of blocks of which no pair is seen."""
        dense = self.to_dense()
        return 100.0 * (1.0 - float(dense.double().mean())) if dense.numel() else 0.0

    def numel(self) -> int:
        """The number of pairs of all heads and rows, seen or not."""
        B, H, Lq, Lk = self.shape
        return B * H * Lq * Lk

    def to(self, device: torch.device | str) -> BlockMask:
        """The mask on another device; the function is not called again."""
        return BlockMask(self.mask_mod, self.whole, self.shape, self.BLOCK_SIZE, check_device("device", device))

    def __repr__(self) -> str:
        return f"BlockMask(shape={self.shape}, pattern={self.pattern!r}, layout={self.layout!r})"


def create_block_mask(
    mask_mod: MaskMod,
    B: int | None,
    H: int | None,
    Q_LEN: int,
    KV_LEN: int,
    device: torch.device | str | None = None,
    BLOCK_SIZE: int | tuple[int, int] = 128,
    _compile: bool = False,
    separate_full_blocks: bool = True,
    compute_dq_write_order: bool = False,
    dq_kv_order: bool = True,
) -> BlockMask:
    """``torch.nn.attention.flex_attention.create_block_mask``: the mask of a function of indices, as a pattern.

    The function is recorded once, and nothing of the size of the mask is made where its operations are those of
    patterns (`BlockMask`). What it captures must not change afterwards.

    Args:
        mask_mod: from ``(b, h, q_idx, kv_idx)``, tensors without dimensions, to a bool one; `torch.vmap`'s rules hold.
        B: batch rows; ``None`` where the mask is the same for all.
        H: query heads; ``None`` where the mask is the same for all.
        Q_LEN: queries.
        KV_LEN: keys.
        device: of the arguments of the function, which should be that of the tensors it captures; by default the CPU.
        BLOCK_SIZE: of the blocks that `BlockMask.sparsity` counts.
        _compile: ignored, as are the rest, which speak of other kernels.
        separate_full_blocks: ignored.
        compute_dq_write_order: ignored.
        dq_kv_order: ignored.

    Raises:
        ArgumentError: the function takes other arguments, chooses by them in Python, or gives no bool tensor without
            dimensions.

    Example:
        >>> from limelight.compat.flex import create_block_mask
        >>> create_block_mask(lambda b, h, q, k: (q >= k) & (q - k < 256), None, None, 8192, 8192).pattern
        Causal() & Window(back=255, ahead=None)
    """
    sizes = _sizes(B, H, Q_LEN, KV_LEN)
    pair = (BLOCK_SIZE, BLOCK_SIZE) if isinstance(BLOCK_SIZE, int) else BLOCK_SIZE
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        rule = "must be the size of a block, or that of its queries and of its keys"
        raise wrong("BLOCK_SIZE", rule, f"it is {describe(BLOCK_SIZE)}", "For example 128.")
    rows, columns = (position("BLOCK_SIZE", size, at_least=1) for size in pair)
    where = check_device("device", "cpu" if device is None else device)
    return BlockMask(mask_mod, pattern_of(mask_mod, where), sizes, (rows, columns), where)


def _sizes(B: int | None, H: int | None, Q_LEN: int, KV_LEN: int) -> tuple[int, int, int, int]:
    """Rows, heads, queries and keys of a mask; one row and one head for ``None``."""
    named = {"B": 1 if B is None else B, "H": 1 if H is None else H, "Q_LEN": Q_LEN, "KV_LEN": KV_LEN}
    b, h, q, k = (whole_number(name, size, at_least=0) for name, size in named.items())
    return b, h, q, k


def pattern_of(mask_mod: MaskMod, device: torch.device) -> Pattern:
    """The pattern, by the indices of tokens, of a function of indices.

    Raises:
        ArgumentError: `create_block_mask` refuses it.
    """
    check_arguments("mask_mod", mask_mod, 4)
    recording = record("mask_mod", mask_mod, device)
    result = recording.result
    value = getattr(result, "value", result)
    if value.dtype != torch.bool:
        raise wrong("mask_mod", "must give a bool tensor", f"it gives {describe(value)}", "Compare, or use .bool().")
    return pattern_of_node(recording, result)


def pattern_of_node(recording: Recording, node: Any) -> Pattern:
    """The pattern of a bool number within a recorded function; what has no form is evaluated."""
    form = getattr(node, "form", None)
    if not isinstance(form, Mask):
        form = Mask(EVERYTHING, False)
    return form.pattern if form.exact else both(form.pattern, Predicate(_Evaluated(recording, node), fixed=True))


@dataclass(frozen=True, eq=False)
class _Evaluated:
    """A bool number within a recorded function, as that of a `Predicate`."""

    recording: Recording
    node: Any

    def __call__(self, at: Where) -> Tensor:
        indices = (at.batch, at.head, at.query_index, at.key_index)
        dimensions = [{letter: index.flatten()} for letter, index in zip(AXES, indices, strict=True)]
        return self.recording.evaluate(self.node, dimensions).to(at.query_index.device)

    def __repr__(self) -> str:
        return self.recording.name


_OF_TORCH: WeakKeyDictionary[Any, tuple[Any, BlockMask]] = WeakKeyDictionary()


def as_block_mask(mask: Any) -> BlockMask:
    """A `BlockMask`; one of PyTorch's is read by its function, or by its blocks where it has none.

    Raises:
        ArgumentError: it is neither, or one of PyTorch's that was sliced.
    """
    if isinstance(mask, BlockMask):
        return mask
    names = ("mask_mod", "seq_lengths", "BLOCK_SIZE", "kv_num_blocks", "to_dense")
    if not all(hasattr(mask, name) for name in names):
        raise wrong("block_mask", "must be a BlockMask", f"it is {describe(mask)}", "Use create_block_mask.")
    kept = _OF_TORCH.get(mask)
    if kept is not None and kept[0] is mask.mask_mod:
        return kept[1]
    name, device = getattr(mask.mask_mod, "__name__", ""), mask.kv_num_blocks.device
    if name == "_sliced_mask_mod_error":
        way_out = "Set its mask_mod, as PyTorch's documentation says."
        raise wrong("block_mask", "must have a function", "it was sliced, and its function is not known", way_out)
    whole = _pattern_of_blocks(mask) if name == "noop_mask" else pattern_of(mask.mask_mod, device)
    shape = (mask.shape[0], mask.shape[1], *mask.seq_lengths)
    made = BlockMask(mask.mask_mod, whole, shape, mask.BLOCK_SIZE, device)
    _OF_TORCH[mask] = mask.mask_mod, made
    return made


def _pattern_of_blocks(mask: Any) -> Pattern:
    table, (rows, columns) = mask.to_dense().bool(), mask.BLOCK_SIZE
    if bool(table.all()):
        return EVERYTHING
    if rows == columns:
        return Blocks(table, rows)

    def allows(at: Where) -> Tensor:
        row, head = at.batch % len(table), at.head % table.shape[1]
        seen: Tensor = table[row, head, at.query_index // rows, at.key_index // columns]
        return seen

    return Predicate(allows, fixed=True)


def create_mask(
    mod_fn: Callable[..., Tensor],
    B: int | None,
    H: int | None,
    Q_LEN: int,
    KV_LEN: int,
    device: torch.device | str | None = None,
) -> Tensor:
    """``torch.nn.attention.flex_attention.create_mask``: the whole mask, ``(B, H, Q_LEN, KV_LEN)`` bool.

    Args:
        mod_fn: a ``mask_mod``; or a ``score_mod``, of which the pairs are false that it makes minus infinity.
        B: batch rows; ``None`` for 1.
        H: query heads; ``None`` for 1.
        Q_LEN: queries.
        KV_LEN: keys.
        device: of the mask; by default the CPU.
    """
    sizes, where = _sizes(B, H, Q_LEN, KV_LEN), check_device("device", "cpu" if device is None else device)
    score = _count(mod_fn) == 5
    check_arguments("mod_fn", mod_fn, 5 if score else 4)
    function: Callable[..., Tensor] = mod_fn
    for dim in (3, 2, 1, 0):
        in_dims = tuple(0 if n == dim else None for n in range(4))
        function = torch.vmap(function, in_dims=(0, *in_dims) if score else in_dims)
    indices = [torch.arange(n, device=where) for n in sizes]
    with IndexByTensors():
        found = function(torch.zeros(sizes, device=where), *indices) if score else function(*indices)
    return ~torch.isneginf(found) if score else found


def and_masks(*mask_mods: MaskMod) -> MaskMod:
    """``torch.nn.attention.flex_attention.and_masks``: the function that is true where all of them are."""
    for mask_mod in mask_mods:
        check_arguments("mask_mods", mask_mod, 4)

    def and_mask(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        result = noop_mask(b, h, q_idx, kv_idx)
        for mask_mod in mask_mods:
            result = result & mask_mod(b, h, q_idx, kv_idx)
        return result

    return and_mask


def or_masks(*mask_mods: MaskMod) -> MaskMod:
    """``torch.nn.attention.flex_attention.or_masks``: the function that is true where any of them is."""
    for mask_mod in mask_mods:
        check_arguments("mask_mods", mask_mod, 4)

    def or_mask(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        result = ~noop_mask(b, h, q_idx, kv_idx)
        for mask_mod in mask_mods:
            result = result | mask_mod(b, h, q_idx, kv_idx)
        return result

    return or_mask


def noop_mask(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
    """``torch.nn.attention.flex_attention.noop_mask``: true; a query sees every key."""
    return b.new_ones((), dtype=torch.bool)


def _count(function: Any) -> int:
    """How many arguments a function needs; -1 where Python does not say."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return -1
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return -1
    return sum(p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)


def check_arguments(name: str, function: Any, count: int) -> None:
    """Raise where a function does not take ``count`` arguments: 4 indices, or a score before them."""
    if not callable(function):
        raise wrong(name, "must be callable", f"it is {describe(function)}", "Pass a function.")
    found = _count(function)
    if found not in (-1, count):
        arguments = "(b, h, q_idx, kv_idx)" if count == 4 else "(score, b, h, q_idx, kv_idx)"
        raise wrong(
            name, f"must take {arguments}", f"it takes {found} arguments", "A score_mod has a score before them."
        )
