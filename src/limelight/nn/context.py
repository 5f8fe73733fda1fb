"""What one forward pass carries from the model down to every layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..forms.layouts import Layout
from ..forms.patterns import Pattern
from ..forms.scores import ScoreRule
from ..tensors.shapes import describe, wrong
from .cache import Step
from .positions import Rotary, Rotation


@dataclass
class ForwardContext:
    """Where every token of one forward pass stands, and what it may look at beside its own text.

    Args:
        layout: which tokens exist, in which document; handed to the operator as it is. With a `source` it speaks of
            the tokens as queries and of the source as keys.
        positions: ``(B | 1, L)`` int64, the position of each token in its document.
        segments: ``(B, L)`` int64, the segment (token type) of each token; ``None`` for segment 0 everywhere.
        scores: score rules that all layers share (T5's relative bias), applied after those of a layer.
        source: ``(B, Lk, source width)``, the vectors that keys and values are made of; ``None`` for the tokens' own.
        source_positions: ``(B | 1, Lk)`` int64, where they stand; needed only when keys are turned by position.
        cache: the step of a `limelight.nn.Cache` to which layers add their keys and values; ``None`` for no cache.
        cross: the context of cross-attention, with its ``source``, for the layers of a decoder that has an encoder.
    """

    layout: Layout | None
    positions: Tensor
    segments: Tensor | None = None
    scores: Sequence[ScoreRule] = ()
    source: Tensor | None = None
    source_positions: Tensor | None = None
    cache: Step | None = None
    cross: ForwardContext | None = None
    _rotations: dict[tuple[Rotary, torch.dtype, bool], Rotation] = field(default_factory=dict)

    @classmethod
    def of(cls, states: Tensor, source: Tensor | None = None, *, layout: Layout | None = None) -> ForwardContext:
        """Those of texts ``(B, L, ...)`` that are all there, at positions 0 to L - 1: what a layer assumes unless told.

        Args:
            states: the tokens, or their vectors.
            source: see `ForwardContext.source`; its own positions are 0 to Lk - 1.
            layout: which tokens exist and in which document, for texts that look at themselves: positions are counted
                in each document (`limelight.Packed`).

        Raises:
            ArgumentError: states without a length, a layout of other sizes.
        """
        if not isinstance(states, Tensor) or states.is_nested or states.dim() < 2:
            got = f"they are {describe(states)}"
            raise wrong("states", "must be a tensor (B, L, width)", got, "One text is a batch of one: states[None].")
        if layout is not None:
            if source is not None:
                raise wrong(
                    "layout", "must be None beside a `source`", f"it is {layout}", "Make ForwardContext(...) yourself."
                )
            B, L = states.shape[:2]
            layout.check(B, L, L)
            at = layout.coordinates(B, L, L, states.device)
            return cls(layout, at.query_position.where(at.query_exists, 0))
        positions = torch.arange(states.shape[1], device=states.device)[None]
        if source is None:
            return cls(None, positions)
        return cls(None, positions, source=source, source_positions=cls.of(source).positions)

    @classmethod
    def given(cls, context: ForwardContext | Layout | None, states: Tensor) -> ForwardContext:
        """What a layer was given, as context: those of a layout, or of texts that are all there."""
        if isinstance(context, ForwardContext):
            return context
        if context is not None and not isinstance(context, Layout):
            got = f"it is {describe(context)}"
            raise wrong(
                "context",
                "must be ForwardContext, a layout or None",
                got,
                "Give ForwardContext.of(states) or a layout.",
            )
        return cls.of(states, layout=context)

    def remembered(
        self,
        layer: nn.Module,
        pattern: Pattern | None,
        states: Tensor,
        make: Callable[[Tensor], tuple[Tensor, Tensor]],
    ) -> tuple[Tensor, Tensor, Layout | None]:
        """What the queries of a ``layer`` look at: keys, values, with those that a cache holds, and where they stand.

        Args:
            layer: who asks.
            pattern: which keys its queries may see.
            states: the tokens' own vectors, of which keys and values are made unless there is a `source`.
            make: makes keys ``(B, Hkv, Lk, D)`` and values ``(B, Hkv, Lk, Dv)``.
        """
        if self.source is not None:
            source = self.source
            if self.cache is None:
                return *make(source), self.layout
            return *self.cache.once(layer, lambda: make(source)), self.layout
        key, value = make(states)
        if self.cache is None:
            return key, value, self.layout
        return self.cache.extend(layer, pattern, key, value)

    def rotation(self, rotary: Rotary, dtype: torch.dtype) -> Rotation:
        """The cosines and sines of ``rotary`` for queries, computed once for all the layers that share it."""
        return self._rotation(rotary, dtype, of_source=False)

    def key_rotation(self, rotary: Rotary, dtype: torch.dtype) -> Rotation:
        """The same for the tokens that keys are made of."""
        return self._rotation(rotary, dtype, of_source=self.source is not None)

    def _rotation(self, rotary: Rotary, dtype: torch.dtype, of_source: bool) -> Rotation:
        positions = self.source_positions if of_source else self.positions
        if positions is None:
            raise wrong(
                "source_positions",
                "must say where the tokens of `source` stand when keys are turned by their positions",
                "it is None",
                "Give ForwardContext(source_positions=...), or make the layer without `rotary`.",
            )
        grows = None if rotary.scaling is None else rotary.scaling.length_dependent_from
        if self.cache is not None and grows is not None and self.cache.longest > grows:
            raise wrong(
                "cache",
                f"cannot hold more than {grows} tokens of a row with {rotary.scaling}, which turns earlier keys anew",
                f"a row has {self.cache.longest}",
                "Run the text without a cache, or choose another scaling, such as YaRN.",
            )
        if (rotary, dtype, of_source) not in self._rotations:
            self._rotations[rotary, dtype, of_source] = rotary.at(positions, dtype)
        return self._rotations[rotary, dtype, of_source]
