"""Attention in which each key head of each row has keys of its own number: the heads are folded into one row.

The heads of all rows lie end to end in buffers ``(T, D)``. In a call every head of every row is a segment with its own
queries and keys, so no padding is stored, read or computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...forms.layouts import Portion
from ...forms.observations import Observe, current_watcher
from ...forms.patterns import Causal, Explicit
from ...forms.quantized import Quantized
from ...forms.scores import ScoreRule
from ...forms.segments import pack, unpack
from ...forms.settings import Settings
from ...operator.attention import attention
from ...operator.calling import prepare, run
from ...tensors.shapes import wrong
from .policies import Numbers
from .precision import Cached

RECEIVED = Observe(received=True)


@dataclass(frozen=True, eq=False)
class Heads:
    """Where the keys of each head lie: the heads of row 0, those of row 1, ..., ``R = B * Hkv`` in all.

    Args:
        number: ``Hkv``.
        start: ``(R,)``, the first place of each head in the buffers.
        count: ``(R,)``, how many keys it has.
    """

    number: int
    start: Numbers
    count: Numbers

    def places(self) -> Numbers:
        """``(sum of count,)``: the places of all keys, head after head."""
        return ranges(self.start, self.count)

    def padded(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """``(B, Hkv, n)`` with ``n`` the keys of the longest head: the place of each key, and which of them exist."""
        n = np.arange(int(self.count.max(initial=0)))
        exists = n < self.count[:, None]
        places, shape = np.where(exists, self.start[:, None] + n, 0), (-1, self.number, len(n))
        return torch.from_numpy(places).to(device).view(shape), torch.from_numpy(exists).to(device).view(shape)

    def segments(self, heads: slice, L: int, first: Numbers, count: Numbers) -> Portion:
        """The layout of a folded call of some of the heads, in which the last query of a head stands at its last key.

        Args:
            heads: the key heads.
            L: queries of a row.
            first: ``(B,)``, the first of them that exists.
            count: ``(B,)``, how many exist.
        """
        starts, counts = (x.reshape(-1, self.number)[:, heads].flatten() for x in (self.start, self.count))
        each = len(counts) // max(len(first), 1)
        begin = np.arange(len(counts)) * L + np.repeat(first, each)
        end = begin + np.repeat(count, each)
        columns: dict[str, Any] = {
            "row": 0, "query_begin": begin, "query_end": end, "key_begin": starts, "key_end": starts + counts,
            "query_offset": counts - end, "key_offset": -starts,
        }  # fmt: skip
        return Portion(torch.from_numpy(unpack(pack(len(counts), **columns)).copy()))


def attend(
    query: Tensor,
    folded: tuple[Cached, Cached],
    heads: Heads,
    first: Numbers,
    count: Numbers,
    settings: dict[str, Any],
    *,
    received: bool,
    watched: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Causal attention of the last queries of each row to the keys of its heads.

    Args:
        query: ``(B, Hq, L, D)``.
        folded: keys ``(1, 1, T, D)`` and values ``(1, 1, T, Dv)``.
        heads: where those of each head lie.
        first: ``(B,)``, the first query of a row that exists.
        count: ``(B,)``, how many exist.
        settings: further arguments of `limelight.attention`.
        received: whether the received weight is wanted.
        watched: whether a watcher (`limelight.watching`) sees the call.

    Returns:
        ``(B, Hq, L, Dv)``, zeros for queries that do not exist; and ``(T,)``, the weight that each key receives, the
        mean over the query heads of its group, or ``None``.
    """
    if watched and current_watcher() is not None:
        return _padded(query, folded, heads, first, count, settings, received)
    B, Hq, L, _ = query.shape
    outputs, weight = [], None
    for chosen, sink in _parts(heads.number, Hq, settings.get("sink")):
        queries = _fold(query, heads.number, chosen)
        layout, observe = heads.segments(chosen, L, first, count), RECEIVED if received else None
        call = {name: value for name, value in settings.items() if name != "name"}
        made = Settings(**{**call, "sink": sink, "layout": layout, "observe": observe})
        result = run(prepare(queries, *folded, made), None)
        outputs.append(_unfold(result.output, B, chosen.stop - chosen.start, L))
        if result.observations is not None and result.observations.received is not None:
            mean = result.observations.received[0].mean(0)
            weight = mean if weight is None else weight + mean
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1), weight


def _padded(
    query: Tensor,
    folded: tuple[Cached, Cached],
    heads: Heads,
    first: Numbers,
    count: Numbers,
    settings: dict[str, Any],
    received: bool,
) -> tuple[Tensor, Tensor | None]:
    """As `attend`, with all heads padded to one length, so that a watcher sees a call of the layer's own heads."""
    B, Hq, L, _ = query.shape
    places, exists = heads.padded(query.device)
    keys, values = (
        x.map(lambda part: part[0, 0, places]) if isinstance(x, Quantized) else x[0, 0, places] for x in folded
    )
    number = torch.arange(L) - torch.from_numpy(first)[:, None]  # (B, L): which existing query of its row
    new = torch.from_numpy(count)[:, None]
    last = torch.from_numpy(heads.count).view(B, -1, 1) - (new - number)[:, None]  # (B, Hkv, L): place of its own key
    seen = torch.arange(places.shape[2]) <= last[..., None]
    seen = seen & ((number >= 0) & (number < new))[:, None, :, None]
    pattern = Explicit(seen.repeat_interleave(Hq // heads.number, 1).to(query.device))
    call = {**settings, "pattern": pattern}
    if not received:
        return plain(attention(query, keys, values, **call)), None
    output, weight = observed(attention(query, keys, values, observe=RECEIVED, **call), heads.number)
    spread = weight.new_zeros(folded[0].shape[2])
    spread[places[exists]] = weight[exists]
    return output, spread


def plain(result: Any) -> Tensor:
    """The output of a call of `limelight.attention` of which nothing is observed."""
    assert isinstance(result, Tensor)  # no observation was requested; a watcher keeps its own
    return result


def observed(result: Any, heads: int) -> tuple[Tensor, Tensor]:
    """The output, and the received weight ``(B, Hkv, Lk)``, the mean over the query heads of each key head."""
    output, seen = result
    return output, seen.received.unflatten(1, (heads, -1)).mean(2)


def check_settings(settings: dict[str, Any]) -> None:
    """Refuse the settings of a call under which a query sees a key by its distance or index.

    Raises:
        ArgumentError: another pattern than `Causal`, a score rule of positions or indices, a comparison by heads.
    """
    rule, way_out = "cannot hold for keys that a policy chose, Cache(keep=...),", "Use a cache without `keep`."
    if settings.get("pattern") != Causal():
        got = f"it is {settings.get('pattern')!r}, by which a query sees a key by its place"
        raise wrong("pattern", f"{rule} unless it is Causal() or a causal Window", got, way_out)
    for one in settings.get("scores", ()):
        if not isinstance(one, ScoreRule) or one.needs_positions or one.tensors():
            got = f"there is {one!r}, which goes by the distance or the index of a key"
            way_out = "Use a cache without `keep`, or a model whose positions are rotary or added."
            raise wrong("scores", f"{rule} unless they change each score by itself (SoftCap)", got, way_out)
    compare = settings.get("compare")
    if compare is not None and compare.tensors():
        got = f"it is {compare!r}, which has numbers for each head"
        raise wrong("compare", f"{rule} unless it is the same for all heads", got, way_out)


def ranges(start: Numbers, count: Numbers) -> Numbers:
    """The numbers from each ``start`` on, ``count`` of them, one range behind the other."""
    shift: Numbers = np.repeat(start - (count.cumsum() - count), count)
    return shift + np.arange(len(shift), dtype=np.int64)


def _parts(heads: int, Hq: int, sink: Tensor | None) -> list[tuple[slice, Tensor | None]]:
    """The calls that a pass takes: of all key heads at once, or where each has sinks of its own, of one at a time."""
    if sink is None:
        return [(slice(0, heads), None)]
    G = Hq // heads
    return [(slice(head, head + 1), sink[head * G : (head + 1) * G]) for head in range(heads)]


def _fold(query: Tensor, heads: int, chosen: slice) -> Tensor:
    """Queries ``(B, Hq, L, D)`` of the ``chosen`` of the key heads as ``(1, G, B * chosen * L, D)``."""
    B, Hq, L, D = query.shape
    grouped = query.reshape(B, heads, Hq // heads, L, D)[:, chosen]
    return grouped.permute(2, 0, 1, 3, 4).reshape(1, Hq // heads, -1, D)


def _unfold(output: Tensor, B: int, heads: int, L: int) -> Tensor:
    """The inverse of `_fold`: ``(1, G, B * heads * L, Dv)`` as ``(B, heads * G, L, Dv)``."""
    G, Dv = output.shape[1], output.shape[3]
    return output.reshape(G, B, heads, L, Dv).permute(1, 2, 0, 3, 4).reshape(B, heads * G, L, Dv)
