"""The forward context: positions, layout, cache and source of one forward pass, passed to every layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..forms.layouts import Layout
from ..forms.patterns import Pattern
from ..forms.quantized import Quantized
from ..forms.scores import ScoreRule
from ..operator.attention import attention
from ..tensors.shapes import describe, wrong
from .cache import Step
from .positions import Rotary, Rotation


@dataclass
class ForwardContext:
    """The positions of the tokens of one forward pass, and what they attend to beside their own text.

    Args:
        layout: which tokens exist, in which document; passed to the operator unchanged. With a `source` it describes
            the tokens as queries and of the source as keys.
        positions: ``(B | 1, L)`` int64, the position of each token in its document.
        segments: ``(B, L)`` int64, the segment (token type) of each token; ``None`` for segment 0 everywhere.
        scores: score rules that all layers share (T5's relative bias), applied after those of a layer.
        source: ``(B, Lk, source width)``, the states that keys and values are computed from in cross-attention;
            ``None`` for self-attention.
        source_positions: ``(B | 1, Lk)`` int64, the positions of the source; needed only when keys are rotated.
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
        """The context of texts without padding, at positions 0 to L - 1, or of those of a layout.

        Args:
            states: ``(B, L, ...)``, the tokens or their states.
            source: ``(B, Lk, source width)``, what cross-attention attends to, at positions 0 to Lk - 1; or ``None``.
            layout: which tokens exist and in which document, for self-attention: positions are counted in each
                document (`limelight.Packed`).

        Raises:
            ArgumentError: states without a length, a layout of other sizes.
        """
        if not isinstance(states, Tensor) or states.is_nested or states.dim() < 2:
            got = f"they are {describe(states)}"
            raise wrong("states", "must be a tensor (B, L, width)", got, "One text is a batch of one: states[None].")
        if layout is not None:
            if source is not None:
                got = f"it is {layout}"
                raise wrong("layout", "must be None beside a `source`", got, "Call ForwardContext(...) yourself.")
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
        """The argument of a layer as a `ForwardContext`: itself, that of a layout, or for ``None`` of whole texts."""
        if isinstance(context, ForwardContext):
            return context
        if context is not None and not isinstance(context, Layout):
            rule, got = "must be a ForwardContext, a layout or None", f"it is {describe(context)}"
            raise wrong("context", rule, got, "Give ForwardContext.of(states) or a layout.")
        return cls.of(states, layout=context)

    def cached(self, layer: nn.Module) -> tuple[Tensor, Tensor] | None:
        """Keys and values of the `source` that a cross-attention layer has cached in an earlier pass.

        Args:
            layer: the calling layer.

        Returns:
            ``(B, Hkv, Lk, D)`` and ``(B, Hkv, Lk, Dv)``, or ``None`` where the layer must compute them.
        """
        if self.source is None or self.cache is None:
            return None
        return self.cache.cached_source(layer)

    def extend(
        self, layer: nn.Module, pattern: Pattern | None, key: Tensor, value: Tensor
    ) -> tuple[Tensor | Quantized, Tensor | Quantized, Layout | None]:
        """Hand the keys and values of a layer to the cache, where there is one.

        Args:
            layer: the calling layer.
            pattern: which keys its queries may see.
            key: ``(B, Hkv, L, D)``, or ``(B, Hkv, Lk, D)`` of a `source`.
            value: ``(B, Hkv, L, Dv)``, or ``(B, Hkv, Lk, Dv)``.

        Returns:
            The keys and values that the queries attend to, cached ones among them (of a cache of 8 bits as
            `limelight.Quantized`), and the layout of queries and keys.
        """
        if self.cache is None:
            return key, value, self.layout
        if self.source is not None:
            return *self.cache.keep_source(layer, key, value), self.layout
        return self.cache.extend(layer, pattern, key, value)

    def attend(self, layer: nn.Module, query: Tensor, key: Tensor, value: Tensor, **settings: Any) -> Tensor:
        """`limelight.attention` to the keys of a layer and to those that the cache holds of it: `extend` and the call.

        A cache that keeps other keys for each head (`limelight.nn.Keep`) serves layers that call this alone.

        Args:
            layer: the calling layer.
            query: ``(B, Hq, L, D)``.
            key: ``(B, Hkv, L, D)``, or ``(B, Hkv, Lk, D)`` of a `source`.
            value: ``(B, Hkv, L, Dv)``, or ``(B, Hkv, Lk, Dv)``.
            settings: further arguments of `limelight.attention`, without ``layout`` and ``observe``.

        Returns:
            ``(B, Hq, L, Dv)``.
        """
        if self._keeps_some:
            assert self.cache is not None
            return self.cache.attend(layer, query, key, value, settings)
        keys, values, layout = self.extend(layer, settings.get("pattern"), key, value)
        mixed = attention(query, keys, values, layout=layout, **settings)
        assert isinstance(mixed, Tensor)  # no observation was requested; a watcher keeps its own
        return mixed

    @property
    def _keeps_some(self) -> bool:
        """Whether the keys of a text are chosen by a policy."""
        return self.cache is not None and self.cache.keep is not None and self.source is None

    def rotation(self, rotary: Rotary, dtype: torch.dtype) -> Rotation:
        """The cosines and sines of ``rotary`` for queries, computed once for all the layers that share it."""
        return self._rotation(rotary, dtype, of_source=False)

    def key_rotation(self, rotary: Rotary, dtype: torch.dtype) -> Rotation:
        """The cosines and sines of ``rotary`` for keys, those of the `source` in cross-attention.

        Raises:
            ArgumentError: there is a `source` without positions.
        """
        return self._rotation(rotary, dtype, of_source=self.source is not None)

    def _rotation(self, rotary: Rotary, dtype: torch.dtype, of_source: bool) -> Rotation:
        if (rotary, dtype, of_source) not in self._rotations:
            positions = self.source_positions if of_source else self.positions
            if positions is None:
                raise wrong(
                    "source_positions",
                    "must be given when keys of a `source` are rotated by their positions",
                    "it is None",
                    "Give ForwardContext(source_positions=...), or make the layer without `rotary`.",
                )
            self._check_cached_keys(rotary)
            lengths = None
            if rotary.scaling is not None and self.layout is not None and self.layout.spread and not of_source:
                lengths = self.layout.text_lengths(positions)
            self._rotations[rotary, dtype, of_source] = rotary.at(positions, dtype, lengths)
        return self._rotations[rotary, dtype, of_source]

    def _check_cached_keys(self, rotary: Rotary) -> None:
        grows = None if rotary.scaling is None else rotary.scaling.length_dependent_from
        if self.cache is not None and grows is not None and self.cache.longest > grows:
            raise wrong(
                "cache",
                f"cannot hold more than {grows} tokens of a row with {rotary.scaling}: beyond, it changes the rotation "
                "of earlier keys",
                f"a row has {self.cache.longest}",
                "Run the text without a cache, or choose another scaling, such as YaRN.",
            )
