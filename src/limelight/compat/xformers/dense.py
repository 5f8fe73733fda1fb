"""xFormers' masks of whole rows, and the base of all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...forms.coordinates import Where
from ...forms.layouts import Aligned, Layout
from ...forms.patterns import Causal, Pattern, Window
from ...forms.scores import Bias, ScoreRule
from ...tensors.devices import check_device
from ...tensors.shapes import check_tensor, describe, position, sequence, whole_number, wrong


class Arranged(NamedTuple):
    """A mask as settings of `limelight.attention`.

    Attributes:
        layout: the layout.
        pattern: the pattern; ``None`` for all keys.
        scores: the score rules.
        keys: ``(n,)``, which keys are gathered before the call; ``None`` where they are used as they lie.
        page_size: keys of a page, where they lie in pages.
    """

    layout: Layout | None = None
    pattern: Pattern | None = None
    scores: tuple[ScoreRule, ...] = ()
    keys: Tensor | None = None
    page_size: int = 0


class AttentionBias:
    """Base of xFormers' masks, which are passed as ``attn_bias`` of `memory_efficient_attention`."""

    def arranged(self, Lq: int, Lk: int) -> Arranged:
        """The settings of `limelight.attention` in a call of ``Lq`` queries and ``Lk`` keys.

        Raises:
            ArgumentError: the mask is made for other sizes.
        """
        raise NotImplementedError

    def materialize(
        self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> Tensor:
        """The whole mask, ``(..., Lq, Lk)``: what is added to the scores, minus infinity where a key is not seen."""
        sizes = sequence("shape", shape, "(..., Lq, Lk)", "shape=(30, 30)")
        if len(sizes) < 2:
            raise wrong("shape", "must be (..., Lq, Lk)", f"it is {describe(shape)}", "For example (30, 30).")
        Lq, Lk = (whole_number("shape", size, at_least=0) for size in sizes[-2:])
        device = check_device("device", device)
        layout, pattern, scores, keys, _ = self.arranged(Lq, Lk)
        coordinates = (layout or Aligned()).coordinates(1, Lq, Lk if keys is None else len(keys), device)
        seen = coordinates.together()
        if pattern is not None:
            seen = seen & pattern.allows(Where.of(coordinates, 1, 1))
        if keys is not None:
            gathered, seen = seen, torch.zeros((1, 1, Lq, Lk), dtype=torch.bool, device=device)
            for n, index in enumerate(keys.tolist()):  # a key may be one of several blocks
                seen[..., index] |= gathered[..., n]
        mask = torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill(~seen, -torch.inf)
        for rule in scores:
            assert isinstance(rule, Bias)
            mask = mask + rule.tensor.to(device, dtype)
        return mask.reshape(mask.shape[4 - len(shape) :] if len(shape) < 4 else mask.shape).expand(shape)

    def to(self, device: torch.device) -> Any:
        """The mask with its tensors on another device."""
        return self


class LowerTriangularMask(AttentionBias):
    """xFormers' causal mask aligned at the top left: query ``i`` sees the keys up to ``i``.

    Args:
        device: not used, as there.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        pass

    def add_bias(self, bias: Tensor) -> LowerTriangularMaskWithTensorBias:
        """This mask, and a tensor that is added to the scores."""
        return LowerTriangularMaskWithTensorBias(bias)

    def arranged(self, Lq: int, Lk: int) -> Arranged:
        return Arranged(Aligned(query_start=0), Causal())


class LowerTriangularMaskWithTensorBias(LowerTriangularMask):
    """`LowerTriangularMask`, and a tensor that is added to the scores.

    Args:
        bias: ``(B, H, Lq, Lk)``, or what broadcasts to it, with gradient.
    """

    def __init__(self, bias: Tensor) -> None:
        self._bias = check_tensor("bias", bias)

    def arranged(self, Lq: int, Lk: int) -> Arranged:
        return super().arranged(Lq, Lk)._replace(scores=(Bias(self._bias),))

    def to(self, device: torch.device) -> LowerTriangularMaskWithTensorBias:
        return LowerTriangularMaskWithTensorBias(self._bias.to(device))


@dataclass
class LocalAttentionFromBottomRightMask(AttentionBias):
    """xFormers' window, aligned at the bottom right: the last query has the position of the last key.

    Args:
        window_left: keys seen before the query's own position.
        window_right: keys seen after it.
    """

    window_left: int
    window_right: int

    def __post_init__(self) -> None:
        position("window_left", self.window_left, at_least=0)
        position("window_right", self.window_right, at_least=0)

    def arranged(self, Lq: int, Lk: int) -> Arranged:
        return Arranged(pattern=Window(self.window_left, self.window_right))


class LowerTriangularFromBottomRightMask(AttentionBias):
    """xFormers' causal mask aligned at the bottom right: the last query sees every key."""

    def make_local_attention(self, window_size: int) -> LowerTriangularFromBottomRightLocalAttentionMask:
        """This mask with a window of ``window_size`` keys, the query's own among them."""
        return LowerTriangularFromBottomRightLocalAttentionMask(window_size)

    def arranged(self, Lq: int, Lk: int) -> Arranged:
        return Arranged(pattern=Causal())


@dataclass
class LowerTriangularFromBottomRightLocalAttentionMask(LowerTriangularFromBottomRightMask):
    """`LowerTriangularFromBottomRightMask` with a window of ``_window_size`` keys, the query's own among them."""

    _window_size: int

    def __post_init__(self) -> None:
        position("window_size", self._window_size, at_least=1)

    def arranged(self, Lq: int, Lk: int) -> Arranged:
        return Arranged(pattern=causal_window(self._window_size))


def causal_window(size: int) -> Pattern:
    """Causal, of ``size`` keys, the query's own among them."""
    return Causal() & Window(size - 1, 0)
