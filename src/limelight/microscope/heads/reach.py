"""How far the queries of each layer see, as far as a window or a causal pattern bounds it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch

from ...forms.observations import Observe, watching
from ..subjects import Subject
from .sums import Numbers

ANY = 1 << 30  # without a bound
SHORTEST = 256  # tokens of the run that finds windows; longer texts take a longer one

_FOUND: WeakKeyDictionary[Subject, dict[int, tuple[Reach, ...]]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Reach:
    """Which keys a query sees: from ``back`` tokens before it to ``ahead`` behind it.

    Args:
        back: `ANY` without a bound.
        ahead: 0 in a causal layer.
    """

    back: int = ANY
    ahead: int = ANY

    def sees(self, offsets: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Whether keys at these offsets, ``key - query``, are seen."""
        offsets = np.asarray(offsets)
        return np.asarray((offsets >= -self.back) & (offsets <= self.ahead))

    def even(self, present: Numbers, offsets: Sequence[int]) -> Numbers:
        """``(L, C)``: the even share of the key at each offset among the keys that are seen and present."""
        return np.asarray(self.sees(offsets) / np.maximum(self.total(present), 1.0)[:, None])

    def total(self, values: Numbers) -> Numbers:
        """For each query the sum over the keys that it sees of their ``(L, ...)`` values."""
        at = np.arange(len(values))
        sums = np.concatenate([np.zeros((1, *values.shape[1:])), values.cumsum(0)])
        found: Numbers = sums[np.minimum(at + self.ahead, len(values) - 1) + 1] - sums[np.maximum(at - self.back, 0)]
        return found

    def distance(self, present: Numbers) -> Numbers:
        """``(L,)``: the mean distance of each query to the keys that it sees and that are present; 0 without any."""
        at = np.arange(len(present), dtype=np.float64)
        before = Reach(self.back, 0)
        count, places = self.total(present), self.total(present * at)
        earlier, earlier_places = before.total(present), before.total(present * at)
        total = at * earlier - earlier_places + (places - earlier_places) - at * (count - earlier)
        mean: Numbers = np.divide(total, count, out=np.zeros_like(total), where=count > 0)
        return mean


def reaches_of(subject: Subject, length: int) -> tuple[Reach, ...]:
    """The reach of each layer for texts of so many tokens, found by one run over tokens without meaning.

    The first query of a run sees as many keys as lie ahead, the last one as many as lie back: so windows are found that
    no configuration has to name. Patterns that are no window (blocks, gaps) are read as the window of these two.

    Args:
        subject: the model.
        length: of the text.
    """
    size = max(SHORTEST, 1 << (length - 1).bit_length())
    if subject.limit is not None:
        size = min(size, subject.limit)
    known = _FOUND.setdefault(subject, {})
    if size not in known:
        known[size] = _found(subject, size)
    return known[size]


def _found(subject: Subject, size: int) -> tuple[Reach, ...]:
    ids = (torch.arange(size, device="cpu") % subject.vocabulary)[None]
    with watching(Observe(blocks=(1, size))) as seen:
        subject.run(ids)
    reaches = []
    for name in subject.attention_names:
        counts = seen[name].block_pairs
        assert counts is not None
        keys = counts.reshape(-1, size)[0].tolist()  # of each query
        reaches.append(Reach(*(ANY if count == size else int(count) - 1 for count in (keys[-1], keys[0]))))
    return tuple(reaches)
