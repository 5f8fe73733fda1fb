"""Sounds: the self-attention of an encoder over parts of a sound, of which there are few whatever its length."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...forms.observations import Observations, Observe
from ...text import Text
from .gathering import EXACT_WEIGHTS, Gatherer, Paths
from .record import Floats, Reading, number_units
from .refinement import BLOCKS
from .words import one_each

PARTS = 128  # of a sound, at most
JOINED = (1, 2, 5, 10, 15, 25, 50, 75, 100, 150)  # states of an encoder that make a part


class SoundGatherer(Gatherer):
    """Keeps what a `Reading` needs of an encoder's self-attention over a sound, whose tokens are parts of it.

    A part is one state of the encoder or several neighbouring ones: weights are sums over the states that are looked
    at, means over those that look. The silence that a sound is padded with has parts, too. They are no tokens, but
    queries see them: they are keys of an even spread, and ``heads.apart`` is the share that falls on them.

    Args:
        length: number of states that belong to the sound.
        seconds: from one state to the next.
        layers: number of layers.
        heads: the largest number of heads of a layer.
    """

    def __init__(self, length: int, seconds: float, layers: int, heads: int) -> None:
        self.join = _joined(length, layers * heads)
        self.seconds = seconds
        super().__init__(_parts(length, seconds, self.join), False, layers, heads, one_each)
        self.cells = torch.arange(length, device="cpu") // self.join
        self.observe = Observe(rows=torch.arange(length, device="cpu"))
        self.keys = self.length
        self.silence: list[Floats] = []

    def add(self, observations: Observations) -> None:
        """Keep the statistics of one layer, over the parts of the sound."""
        assert observations.rows is not None
        weights = self._by_part(observations.rows[0].detach().float().cpu())  # (H, parts, keys)
        _, length, self.keys = weights.shape
        heard = weights[..., :length]
        at = torch.arange(self.keys, device="cpu")
        away = (at - at[:length, None]).abs().to(weights)
        found = {
            "entropy": torch.special.entr(weights).sum(-1),
            "max_weight": weights.amax(-1),
            "distance": (weights * away).sum(-1),
            "received": heard.sum(1),
            "blocks": heard,
        }
        super().add(Observations(**{name: tensor[None] for name, tensor in found.items()}))
        silence = (weights.sum(-1) - heard.sum(-1)).mean(-1).numpy()
        self.silence.append(np.pad(silence, (0, self.heads - len(silence))))

    def _by_part(self, rows: Tensor) -> Tensor:
        """Join the weights of the sound's states on all states, ``(H, length, S)``, to those of parts."""
        heads, length, states = rows.shape
        keys = torch.arange(states, device="cpu") // self.join
        joined = rows.new_zeros(heads, length, int(keys[-1]) + 1).index_add_(2, keys, rows)
        queries = rows.new_zeros(heads, self.length, joined.shape[-1]).index_add_(1, self.cells, joined)
        return queries / torch.bincount(self.cells).to(rows.dtype)[:, None]

    def paths(self, keep_vectors: bool) -> Paths:
        units = number_units(self.tokens, self.words)
        return Paths(units[self.cells.numpy()], keep_vectors)

    def reading(self, paths: Paths, unknown: str | None) -> Reading:
        """Everything together, after the run."""
        found = super().reading(paths, unknown)
        return replace(found, keys=self.keys, heads=replace(found.heads, apart=np.stack(self.silence)))

    @property
    def notes(self) -> tuple[str, ...]:
        """What the tokens are, in sentences."""
        each = f"{self.join} states" if self.join > 1 else "one state"
        found = [
            f"A token is a part of the sound of {self.join * self.seconds:g} seconds ({each} of the encoder), named by "
            "the time when it begins: weights are sums over the states looked at, means over those that look."
        ]
        silent = self.keys - self.length
        if silent:
            found.append(
                f"The encoder reads {silent * self.join * self.seconds:.1f} seconds of silence behind the sound. What "
                "falls on it is left out of the maps and counted with tokens set apart."
            )
        return tuple(found)


def _joined(length: int, heads: int) -> int:
    """How many states make a part, with as many ``heads`` in all layers."""
    for join in JOINED:
        parts = -(-length // join)
        if parts <= BLOCKS or (parts <= PARTS and heads * parts**2 <= EXACT_WEIGHTS):
            return join
    return -(-length // BLOCKS)


def _parts(length: int, seconds: float, join: int) -> Text:
    """The parts as tokens, each named by the second when it begins."""
    tenths = join * seconds * 10
    digits = 1 if abs(tenths - round(tenths)) < 1e-6 else 2
    names = [f"{begin * seconds:.{digits}f} s" for begin in range(0, length, join)]
    spans, at = [], 0
    for name in names:
        spans.append((at, at + len(name)))
        at += len(name) + 1
    every: dict[str, Any] = {"ids": (0,) * len(names), "words": tuple(range(len(names)))}
    return Text(text=" ".join(names), tokens=tuple(names), spans=tuple(spans), special=(False,) * len(names), **every)
