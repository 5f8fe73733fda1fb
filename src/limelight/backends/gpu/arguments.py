"""Kernel arguments of a call: strided tensors, compile-time constants, scoring and dropout."""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ...forms.pages import Pages
from ...forms.segments import SEGMENT_BYTES
from ...forms.spans import SPAN_BYTES
from ..contract import Call
from .constants import KernelConstants
from .machine import interpreted
from .score_rules import RuleArguments, kernel_rules
from .tuning import NOTHING, Needs, Tile, width
from .visibility import Visibility

LOG2_E = 1.4426950408889634
_PLAIN_TENSORS = frozenset((Tensor, torch.nn.Parameter))


def unsupported_tensors(call: Call) -> list[str]:
    """Why kernels cannot read the tensors of a call; empty where they can."""
    reasons = []
    if call.query.dtype is torch.float64:
        reasons.append("the dtype is torch.float64; GPU kernels compute float32, float16 and bfloat16")
    if not _PLAIN_TENSORS.issuperset((type(call.query), type(call.key), type(call.value))):
        reasons.append("query, key or value is a tensor subclass; GPU kernels read plain memory")
    return reasons


def with_unit_stride(tensor: Tensor) -> Tensor:
    """The tensor, detached, with a last stride of 1 and no lazy negation; copied only where one of them is missing."""
    tensor = tensor.detach()
    if tensor.is_neg():
        tensor = tensor.resolve_neg()
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def reasons_against_pages(call: Call) -> list[str]:
    """Why keys and values that lie in pages must be gathered; empty where Triton's kernels read them in place."""
    if all(tensor.stride(-1) == 1 and not tensor.is_neg() for tensor in (call.key, call.value)):
        return []
    return ["key or value would be copied: its last stride is not 1, or it is lazily negated"]


def stored_strides(call: Call, tensor: Tensor) -> tuple[Any, ...]:
    """Strides of batch row (or page), head and key of keys or values; and of pages the page table on the device, with
    the number of its columns."""
    strides = tensor.stride()[:3]
    if call.pages is None:
        return strides
    table = page_table(call.pages, tensor.device)
    return (*strides, table, table.shape[1])


_tables: WeakKeyDictionary[Pages, dict[torch.device, Tensor]] = WeakKeyDictionary()


def page_table(pages: Pages, device: torch.device) -> Tensor:
    """The page table on the device, cached as long as it exists. The number of its columns is a multiple of 16, so that
    one compiled kernel serves any number of them."""
    copies = _tables.setdefault(pages, {})
    if device not in copies:
        added = -pages.table.shape[1] % 16
        copies[device] = torch.nn.functional.pad(pages.table, (0, added)).to(device)
    return copies[device]


def constants(
    call: Call, rules: RuleArguments, visible: Visibility, pack: int, splits: int, tile: Tile
) -> KernelConstants:
    """The compile-time constants of a kernel for a call.

    Args:
        call: the call.
        rules: the arguments of its score rules.
        visible: its visibility tables.
        pack: query heads of a group that share a tile.
        splits: parts in which the keys are computed side by side.
        tile: the tile of the kernel.
    """
    return KernelConstants(
        D=call.shapes.D,
        WIDTH=width(call.shapes.D),
        VALUE_D=call.shapes.Dv,
        VALUE_WIDTH=width(call.shapes.Dv),
        RULE_KINDS=rules.kinds,
        SCALE_FIRST=scales_first(call),
        ADDITIVE=call.compare is not None,
        DROPOUT=call.dropout > 0,
        SINK=call.sink is not None and splits == 1,
        SEGMENT_TABLE=visible.work is not None,
        INTERVALS=visible.intervals,
        INTERVAL_ARRAYS=visible.begins is not None,
        MAP_ROWS=visible.map_rows,
        PACK=pack,
        SPLITS=splits,
        ROWS=tile.rows,
        BLOCK=tile.keys,
        PAGE=0 if call.pages is None else call.pages.size,
    )


def needs(call: Call) -> Needs:
    """What a call needs registers and shared memory for, beside plain scores."""
    lowered, kinds = call.lowered, kernel_rules(call)
    facts = {
        Needs.RULES: bool(call.scores),
        Needs.PAIRS: any(kind.of_pairs for kind in kinds),
        Needs.DISTANCES: any(kind.of_distances for kind in kinds),
        Needs.MAP: lowered.tiles is not None,
        Needs.DOCUMENTS: len(lowered.segments) > SEGMENT_BYTES,
        Needs.INTERVALS: lowered.arrays is not None or len(lowered.spans or b"") > SPAN_BYTES,
        Needs.DROPOUT: call.dropout > 0,
        Needs.ENTROPY: call.observe is not None and call.observe.entropy,
        Needs.COMPARE: call.compare is not None,
        Needs.PAGES: call.pages is not None,
    }
    return reduce(or_, (need for need, there in facts.items() if there), NOTHING)


def scales_first(call: Call) -> bool:
    """Whether scores are scaled before anything else; a positive scale without rules is part of the softmax instead."""
    return bool(call.scores) or call.compare is not None or call.scale <= 0


def scoring(call: Call, rules: RuleArguments) -> tuple[Any, ...]:
    """Scale, factor of the softmax in base 2, vector of the comparison with its strides, arguments of the rules."""
    compare: tuple[Any, ...] | None = None
    if call.compare is not None:
        vector = call.compare.vector.detach().resolve_neg().expand(call.shapes.Hq, call.shapes.D)
        compare = (vector, vector.stride())
    factor = LOG2_E * (1.0 if scales_first(call) else call.scale)
    return call.scale, factor, compare, rules.operands, rules.numbers


def sink(call: Call) -> Tensor | None:
    """The sink's logits, ``(Hq,)`` contiguous; ``None`` where the call has no sink."""
    return None if call.sink is None else call.sink.detach().contiguous()


def empty_logsumexp(call: Call) -> Tensor:
    """The logsumexp of a query that sees no key: minus infinity, or its sink; ``(1, Hq or 1, 1)`` float32."""
    if call.sink is None:
        return torch.full((1, 1, 1), -torch.inf, dtype=torch.float32, device=call.query.device)
    return call.sink.detach().to(torch.float32)[None, :, None]


def dropout(call: Call) -> tuple[Any, ...]:
    """The threshold of a random word, the factor of weights that are kept, the seed, and documents per batch row."""
    seed: Any = 0
    if call.dropout:
        seed = call.seed.to(call.query.device).reshape(1) if isinstance(call.seed, Tensor) else int(call.seed)
        if interpreted():  # which would hold an integer from 2^31 to 2^32 in 32 bits
            seed = torch.as_tensor(seed, dtype=torch.int64, device="cpu").reshape(1)
    documents = call.layout.documents if call.layout else 1
    return int(call.dropout * 2.0**32), 1.0 / (1.0 - call.dropout), seed, documents
