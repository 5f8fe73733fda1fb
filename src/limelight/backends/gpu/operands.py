"""A call as kernels take it: tensors, strides, tables on the device, and what is decided at compile time."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...forms.lowering import Lowered
from ...forms.scores import ALiBi, Bias, RelativeBias, ScoreRule, SoftCap
from ..contract import Call
from .form import Form
from .machine import interpreted
from .tuning import Tile, width

BIAS, ALIBI, DISTANCE_TABLE, SOFTCAP = range(4)
LOG2_E = 1.4426950408889634
_TENSORS = (Tensor, torch.nn.Parameter)
MOST_POSITION = 2**30  # positions are 32-bit numbers in the kernels


class Sight(NamedTuple):
    """Who sees whom, on the device."""

    work: Tensor | None  # (n, 2) int32: segment and first query of each tile; None when one segment is the whole call
    segments: Tensor | None  # (n, 8) int64
    segment: tuple[int, ...]  # query begin and end, key begin and end, offsets of queries and keys
    tiles: int  # tiles of queries
    rows: int  # batch rows that the grid counts: B, or 1 when each segment names its own
    spans: Tensor | None
    begins: Tensor | None
    ends: Tensor | None
    interval_strides: tuple[int, ...]
    states: Tensor | None
    bits: Tensor | None
    tile_strides: tuple[int, ...]
    intervals: int  # per query
    tile_rows: int  # queries of a tile of bits: 64, 1, or 0 without a map
    longest: int  # keys of the longest segment

    @property
    def operands(self) -> tuple[Any, ...]:
        """What kernels are given, in their order."""
        return (
            self.work, self.segments, self.segment, self.spans, self.begins, self.ends, self.interval_strides,
            self.states, self.bits, self.tile_strides,
        )  # fmt: skip


def sight(lowered: Lowered, queries: int, device: torch.device) -> Sight:
    """The lowering on the device, for tiles of ``queries``."""
    table = lowered.segment_table
    if len(table) == 1 and table[0, 0] == -1:
        _, query_begin, query_end, key_begin, key_end, query_offset, key_offset, _ = table[0].tolist()
        segment = (query_begin, query_end, key_begin, key_end, query_offset, key_offset)
        work, segments, tiles = None, None, -(-(query_end - query_begin) // queries)
        rows, longest = lowered.B, key_end - key_begin
    else:
        segment = (0,) * 6
        segments, work = _listed(lowered.segments, queries, device)
        tiles, rows = len(work), lowered.B if len(table) and table[0, 0] == -1 else 1
        longest = int((table[:, 4] - table[:, 3]).max(initial=0))
    begins = ends = states = bits = None
    interval_strides: tuple[int, ...] = (0, 0)
    tile_strides: tuple[int, ...] = (0, 0, 0)
    intervals, tile_rows = len(lowered.spans or b"") // 80, 0
    if lowered.arrays is not None:
        arrays = lowered.arrays
        begins, ends = _uploaded(lowered, "arrays", device, lambda: (arrays.starts, arrays.ends))
        intervals = len(begins)
        interval_strides = (begins.stride(0), 0 if begins.shape[1] == 1 else begins.stride(1))
    if lowered.tiles is not None:
        map_ = lowered.tiles
        states, bits = _uploaded(lowered, "tiles", device, lambda: (map_.state, map_.bits.view(np.int64)))
        tile_strides = tuple(0 if n == 1 else s for n, s in zip(states.shape[:3], states.stride(), strict=False))
        tile_rows = map_.rows
    spans = None if lowered.spans is None else _span_table(lowered.spans, device)
    return Sight(
        work, segments, segment, tiles, rows, spans, begins, ends, interval_strides, states, bits, tile_strides,
        intervals, tile_rows, longest,
    )  # fmt: skip


def all_segments(sight: Sight) -> tuple[Any, ...]:
    """What a kernel is given that goes through the segments itself."""
    count = 1 if sight.segments is None else len(sight.segments)
    return sight.segments, sight.segment, count, *sight.operands[3:]


def keys_of(sight: Sight, lowered: Lowered, keys: int, device: torch.device) -> Sight:
    """The same for tiles of ``keys``, at multiples of ``keys``."""
    table = lowered.segment_table
    if sight.work is None:
        key_begin, key_end = sight.segment[2:4]
        return sight._replace(tiles=max(0, -(-key_end // keys) - key_begin // keys))
    work = _listed_keys(lowered.segments, keys, device)
    return sight._replace(work=work, tiles=len(work), rows=lowered.B if table[0, 0] == -1 else 1)


@lru_cache(maxsize=64)
def _listed_keys(segments: bytes, keys: int, device: torch.device) -> Tensor:
    """The list of tiles of keys: segment and first key, a multiple of ``keys``; those with the longest way to go, of a
    causal pattern, first."""
    table = np.frombuffer(segments, np.int64).reshape(-1, 8)
    begin, end = table[:, 3] // keys, -(-table[:, 4] // keys)
    counts = np.where(table[:, 3] < table[:, 4], end - begin, 0)
    number = np.repeat(np.arange(len(table)), counts)
    within = np.arange(len(number)) - np.repeat(counts.cumsum() - counts, counts)
    work = np.stack([number, (begin[number] + within) * keys], axis=1).astype(np.int32)
    work = work[np.argsort(within, kind="stable")]
    return torch.from_numpy(np.ascontiguousarray(work)).to(device)


@lru_cache(maxsize=256)
def _span_table(spans: bytes, device: torch.device) -> Tensor:
    """Spans on the device; a pattern is copied there once, not at every call."""
    return torch.from_numpy(np.frombuffer(spans, np.int64).copy()).to(device)


@lru_cache(maxsize=64)
def _listed(segments: bytes, queries: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Segments on the device, and the list of tiles: those with the longest way to go last."""
    table = np.frombuffer(segments, np.int64).reshape(-1, 8)
    counts = -(-(table[:, 2] - table[:, 1]) // queries)
    number = np.repeat(np.arange(len(table)), counts)
    within = np.arange(len(number)) - np.repeat(counts.cumsum() - counts, counts)
    work = np.stack([number, table[number, 1] + within * queries], axis=1).astype(np.int32)
    work = work[np.argsort(within, kind="stable")]
    return torch.from_numpy(table.copy()).to(device), torch.from_numpy(np.ascontiguousarray(work)).to(device)


_copies: WeakKeyDictionary[Lowered, dict[tuple[str, torch.device], tuple[Tensor, ...]]] = WeakKeyDictionary()


def _uploaded(
    lowered: Lowered, what: str, device: torch.device, arrays: Callable[[], tuple[NDArray[Any], ...]]
) -> tuple[Tensor, ...]:
    """Arrays of a lowering on the device, kept as long as the lowering is."""
    mine = _copies.setdefault(lowered, {})
    if (what, device) not in mine:
        mine[what, device] = tuple(torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in arrays())
    return mine[what, device]


def far(lowered: Lowered) -> bool:
    """Some position does not fit the kernels' 32-bit numbers."""
    table = lowered.segment_table
    return bool(len(table) and np.abs(table[:, 5:7]).max() >= MOST_POSITION)


# --- Tensors ----------------------------------------------------------------------------------------------------------


def unreadable(call: Call) -> list[str]:
    """Why kernels cannot read the tensors of a call, as reasons."""
    reasons = []
    if call.query.dtype is torch.float64:
        reasons.append("the dtype is torch.float64; it computes float32, float16 and bfloat16")
    if not all(type(tensor) in _TENSORS for tensor in (call.query, call.key, call.value)):
        reasons.append("a tensor subclass is among query, key and value; it reads plain memory")
    return reasons


def readable(tensor: Tensor) -> Tensor:
    """The tensor with a last stride of 1 and no lazy sign; copied only when it has another."""
    tensor = tensor.detach()
    if tensor.is_neg():
        tensor = tensor.resolve_neg()
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


class Rules(NamedTuple):
    """Score rules: their kinds, and a tensor and numbers for each."""

    kinds: tuple[int, ...]
    operands: tuple[Tensor | None, ...]
    numbers: tuple[tuple[int | float, ...], ...]


def rules(call: Call) -> Rules:
    """The score rules of a call, in order."""
    found = [_RULES[type(rule)].packed(rule, call) for rule in call.scores]
    return Rules(tuple(f[0] for f in found), tuple(f[1] for f in found), tuple(f[2] for f in found))


Packed = tuple[int, Tensor | None, tuple[int | float, ...]]


def _bias(rule: Bias, call: Call) -> Packed:
    tensor = rule.tensor.detach().resolve_neg().expand(call.shapes.scores)
    return BIAS, tensor, tensor.stride()


def _alibi(rule: ALiBi, call: Call) -> Packed:
    slopes = rule.slopes.detach().resolve_neg()
    slopes = slopes.expand(call.shapes.B, call.shapes.Hq)
    return ALIBI, slopes, slopes.stride()


def distances(lowered: Lowered) -> tuple[int, int]:
    """The least and the greatest distance from a query to a key of its segment."""
    table = lowered.segment_table
    if not len(table):
        return 0, 0
    _, query_begin, query_end, key_begin, key_end, query_offset, key_offset, _ = table.T
    low = int((key_begin + key_offset - query_end + 1 - query_offset).min())
    return low, max(low, int((key_end - 1 + key_offset - query_begin - query_offset).max()))


def _relative_bias(rule: RelativeBias, call: Call) -> Packed:
    """The bias at every distance that occurs: ``O(Lq + Lk)`` numbers for each head."""
    low, high = distances(call.lowered)
    with torch.no_grad():
        biases = rule.over(low, high).detach().contiguous()
    return DISTANCE_TABLE, biases, (0 if len(biases) == 1 else biases.stride(0), low)


def _soft_cap(rule: SoftCap, call: Call) -> Packed:
    return SOFTCAP, None, (float(rule.limit),)


class Kind(NamedTuple):
    """What kernels need for a class of score rules.

    ``of_pairs``: they read a number for each pair. ``of_distances``: they read one for each distance. ``of_queries``:
    the gradient is one number for each query, which the kernel of query gradients sums.
    """

    packed: Callable[[Any, Call], Packed]
    of_pairs: bool = False
    of_distances: bool = False
    of_queries: bool = False


#: The score rules that kernels compute; any other is refused.
_RULES: dict[type[ScoreRule], Kind] = {
    Bias: Kind(_bias, of_pairs=True),
    ALiBi: Kind(_alibi, of_queries=True),
    RelativeBias: Kind(_relative_bias, of_distances=True),
    SoftCap: Kind(_soft_cap),
}


def kinds(call: Call) -> list[Kind]:
    """What each of the call's score rules needs."""
    return [_RULES[type(rule)] for rule in call.scores]


def unknown_rules(call: Call) -> list[str]:
    """Score rules that no kernel knows, as reasons."""
    return [f"it does not know the score rule {rule!r}" for rule in call.scores if type(rule) not in _RULES]


# --- The whole --------------------------------------------------------------------------------------------------------


def form_of(call: Call, rules: Rules, sight: Sight, pack: int, splits: int, tile: Tile) -> Form:
    """What the compiler is told of a call."""
    return Form(
        D=call.shapes.D,
        WIDTH=width(call.shapes.D),
        VALUE_D=call.shapes.Dv,
        VALUE_WIDTH=width(call.shapes.Dv),
        KINDS=rules.kinds,
        NATURAL=natural(call),
        ADDITIVE=call.compare is not None,
        DROPOUT=call.dropout > 0,
        SINK=call.sink is not None and splits == 1,
        TABLE=sight.work is not None,
        INTERVALS=sight.intervals,
        LISTED=sight.begins is not None,
        TILE_ROWS=sight.tile_rows,
        PACK=pack,
        SPLITS=splits,
        ROWS=tile.rows,
        BLOCK=tile.keys,
    )


def natural(call: Call) -> bool:
    """Scores are scaled before anything else happens to them; a plain positive scale can wait for the softmax."""
    return bool(call.scores) or call.compare is not None or call.scale <= 0


def scoring(call: Call, rules: Rules) -> tuple[Any, ...]:
    """Scale, factor of the softmax in base 2, operands of the comparison, of the rules, and their numbers."""
    compare: tuple[Any, ...] | None = None
    if call.compare is not None:
        vector = call.compare.vector.detach().resolve_neg().expand(call.shapes.Hq, call.shapes.D)
        compare = (vector, vector.stride())
    factor = LOG2_E * (1.0 if natural(call) else call.scale)
    return call.scale, factor, compare, rules.operands, rules.numbers


def of_nobody(call: Call) -> Tensor:
    """The logsumexp of a query that sees nothing: minus infinity, or the sink."""
    if call.sink is None:
        return torch.full((1, 1, 1), -torch.inf, dtype=torch.float32, device=call.query.device)
    return call.sink.detach().to(torch.float32)[None, :, None]


def chance(call: Call) -> tuple[Any, ...]:
    """Of the dropout: the threshold of a random word, the factor of what is kept, the seed, documents per row."""
    seed: Any = 0
    if call.dropout:
        seed = call.seed.to(call.query.device).reshape(1) if isinstance(call.seed, Tensor) else int(call.seed)
        if interpreted():  # which would give a number from 2^31 to 2^32 only 32 bits
            seed = torch.as_tensor(seed, dtype=torch.int64, device="cpu").reshape(1)
    documents = call.layout.documents if call.layout else 1
    return int(call.dropout * 2.0**32), 1.0 / (1.0 - call.dropout), seed, documents
