"""Which calls the library can serve, and a call as it reads it (``ll_call``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ...forms.lowering import Lowered
from ...tensors import tracing
from ...tensors.shapes import PLAIN
from ..contract import Call, Scales, unknown_positions
from . import library, rules
from .addresses import SUM_OPTIONS, plain, row
from .library import ELEMENTS
from .structures import CALL, QUANTIZED, SEGMENT, SPAN

if TYPE_CHECKING:
    from numpy.typing import NDArray

FARTHEST_DISTANCE = 2**30  # the kernels count distances in 32 bits
READS_PAGES = True  # whether the kernels read keys and values in pages
PAGE_SIZE = 16  # keys of a page are a multiple of it
MAX_DISTANCES = 2**24  # of a table of biases, unless queries and keys are more

_SEED_BITS = 2**64 - 1
_SEGMENT_SIZE, _SPAN_SIZE = SEGMENT.size, SPAN.size
_NO_ARRAYS, _NO_PAGES = (0,) * 6, (0,) * 4
_pack = CALL.packer(
    "element", "shapes", "query", "key", "value", "output", "logsumexp", "sink", "compare", "scale",
    "dropout", "seed", "threads", "segment_count", "span_count", "intervals", "tiles", "pages", "rules", "rule_count",
    "observation", "quantized",
)  # fmt: skip
_pack_quantized = QUANTIZED.packer("element", "rotated", "key_scale", "value_scale")
#: `ll_eight_bits` of each dtype of 8 bits.
EIGHT_BITS = {torch.int8: 0, torch.float8_e4m3fn: 1, torch.float8_e5m2: 2}


def reasons_against(call: Call) -> list[str]:
    """Why the library cannot serve the call; empty when it can."""
    reasons = [] if library.available() else [library.why_missing()]
    query = call.query
    if not query.is_cpu:
        reasons.append(f"the tensors lie on {query.device}; it runs on the CPU")
    if query.dtype not in ELEMENTS:
        reasons.append(f"the dtype is {query.dtype}; it computes {', '.join(map(str, ELEMENTS))}")
    if not (type(query) in PLAIN and type(call.key) in PLAIN and type(call.value) in PLAIN):
        reasons.append("a tensor subclass is among query, key and value; it reads plain memory")
    if call.sink is not None or call.scores or call.compare is not None or call.observe is not None:
        reasons += _reasons_against_operands(call)
    if call.layout is not None:
        reasons += unknown_positions(call)
    if call.scores:
        reasons += rules.reasons_against(call.scores)
    # Inside a transform the positions may be unknown here; `attention.forward` checks them.
    if reasons or call.layout is None or call.layout.near or tracing.is_transformed():
        return reasons
    return reasons_against_distances(call)


def reasons_against_distances(call: Call) -> list[str]:
    """Why the kernels cannot count, or have no room for a table of, the distances of a call whose layout may place
    queries far from keys.
    """
    needed = call.observe is not None and call.observe.distance
    if not (needed or any(rule.needs_positions for rule in call.scores)):
        return []
    low, high = rules.distances(call)
    if max(-low, high) > FARTHEST_DISTANCE:
        return [f"it counts distances up to 2^30, but those of {call.layout!r} run from {low} to {high}"]
    most = max(MAX_DISTANCES, call.shapes.Lq + call.shapes.Lk)
    if high - low >= most and rules.reads_distances(call.scores):
        return [f"it would need a table of a bias for each distance from {low} to {high}; it has room for {most:,}"]
    return []


def _reasons_against_operands(call: Call) -> list[str]:
    """Why the tensors beside query, key and value cannot be read."""
    found = call.operands
    if call.observe is not None:
        found += call.observe.tensors()
    for tensor in found:
        if type(tensor) not in PLAIN:
            break
    else:
        return []
    return ["a tensor subclass is among the sink, the score rules' tensors and what is observed; it reads plain memory"]


def reasons_against_pages(call: Call) -> list[str]:
    """Why keys and values that lie in pages must be gathered; empty where the kernels read them in place."""
    if not READS_PAGES:
        return ["its kernels read no pages"]
    assert call.pages is not None
    reasons = []
    if call.pages.size % PAGE_SIZE:
        reasons.append(f"a page has {call.pages.size} keys; it reads pages of a multiple of {PAGE_SIZE}")
    if call.key.stride(3) != 1 or call.value.stride(3) != 1:
        reasons.append("the last stride of key or value is not 1")
    return reasons


def reasons_against_eight_bits(call: Call) -> list[str]:
    """Why keys and values of 8 bits must be made dense; empty where the kernels read them."""
    if call.pages is not None and (reasons := reasons_against_pages(call)):
        return reasons
    assert call.scales is not None
    if not all(type(scale) in PLAIN and scale.is_cpu for scale in (call.scales.key, call.scales.value)):
        return ["a scale is a tensor subclass; it reads plain memory"]
    return []


def memory(call: Call) -> int:
    """Bytes taken beside inputs and outputs: scratch of each thread, sums over queries when observing, and copies of
    keys and values that cannot be read as they lie.
    """
    B, _, Hkv, Lq, Lk, D, Dv = call.shapes
    number = 8 if call.query.dtype is torch.float64 else 4
    scratch = number * (48 * D + 128 * 48 + 176 * (Dv + 16)) + 128 * 48
    seen = 0 if call.observe is None else 2 * number * B * call.shapes.Hq * Lq + min(2**26, 64 * Lk)
    whole = Dv % 16 == 0 and call.value.stride(2) == Dv
    copied = (
        number * (D + Dv)
        if call.query.dtype.itemsize < 4 or call.scales is not None
        else 0
        if whole
        else number * (Dv + 16)
    )
    return torch.get_num_threads() * scratch + seen + B * Hkv * Lk * copied


def packed(
    call: Call,
    query: tuple[int, ...],
    key: tuple[int, ...],
    value: tuple[int, ...],
    output: tuple[int, ...],
    kept: list[Any],
    logsumexp: int = 0,
    observation: int = 0,
) -> bytes:
    """``ll_call``, followed by its segments and spans.

    Args:
        call: the call.
        query: ``ll_tensor`` of the query, as `addresses.readable` gives it; then those of key, value and output.
        key: that of the key.
        value: that of the value.
        output: that of the output.
        kept: receives what the addresses in it point to, beside the tensors above.
        logsumexp: address of memory for it, or 0.
        observation: address of ``ll_observation``, or 0.
    """
    lowered = call.lowered
    segments, spans, pages = lowered.segments, lowered.spans or b"", _NO_PAGES
    if call.pages is not None:
        table = call.pages.table
        segments = call.pages.segments(segments)
        pages = (table.data_ptr(), table.numel(), call.key.shape[0], call.pages.size)
    sink = compare = described = 0
    if call.sink is not None:
        kept.append(plain("sink", call.sink, call.query.dtype))
        sink = kept[-1].data_ptr()
    if call.compare is not None:
        vector = plain("vector", call.compare.vector, call.query.dtype)
        kept.append(vector.expand(call.shapes.Hq, call.shapes.D).contiguous())
        compare = kept[-1].data_ptr()
    quantized = 0 if call.scales is None else _quantized(call, call.scales, kept)
    if call.scores:
        described = library.address(rules.packed(call, kept), kept)
    words = _pack(
        ELEMENTS[call.query.dtype], call.shapes, query, key, value, output, logsumexp, sink, compare, call.scale,
        call.dropout, int(call.seed) & _SEED_BITS if call.dropout else 0, torch.get_num_threads(),
        len(segments) // _SEGMENT_SIZE, len(spans) // _SPAN_SIZE,
        _NO_ARRAYS if lowered.arrays is None else _intervals(lowered),
        _NO_ARRAYS if lowered.tiles is None else _tiles(lowered),
        pages, described, len(call.scores), observation, quantized,
    )  # fmt: skip
    return words + segments + spans


def _quantized(call: Call, scales: Scales, kept: list[Any]) -> int:
    """The address of ``ll_quantized``."""
    number = SUM_OPTIONS[call.query.dtype]["dtype"]
    rows = []
    for scale in (scales.key, scales.value):
        kept.append(scale if scale.dtype is number and not scale.is_neg() else scale.to(number))
        rows.append(row(kept[-1]))
    return library.address(_pack_quantized(EIGHT_BITS[call.key.dtype], int(scales.rotated), *rows), kept)


def _stride(array: NDArray[Any], axis: int) -> int:
    """In elements; 0 where the axis is broadcast."""
    return 0 if array.shape[axis] == 1 else array.strides[axis] // array.itemsize


def _intervals(lowered: Lowered) -> tuple[int, ...]:
    assert lowered.arrays is not None
    starts, ends = lowered.arrays.starts, lowered.arrays.ends
    strides = (starts.strides[0] // starts.itemsize, _stride(starts, 1), _stride(starts, 2))
    return (starts.ctypes.data, ends.ctypes.data, len(starts), *strides)


def _tiles(lowered: Lowered) -> tuple[int, ...]:
    assert lowered.tiles is not None
    state, bits = lowered.tiles.state, lowered.tiles.bits
    strides = (_stride(state, 0), _stride(state, 1), _stride(state, 2))
    return (state.ctypes.data, *strides, bits.ctypes.data, lowered.tiles.rows)
