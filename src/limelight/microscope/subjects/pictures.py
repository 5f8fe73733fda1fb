"""Encoders of pictures, of transformers: their tokens are patches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...tensors.shapes import wrong
from ...text import Text
from .patches import Patches
from .transformers import TransformersSubject


class PictureSubject(TransformersSubject):
    """A model of transformers that reads pictures in patches (ViT, CLIP's vision tower, DINOv2, SigLIP).

    Args:
        model: the model; of one that reads text too, its vision tower.
        tokenizer: its image processor, or a processor that has one; numbers are read without.

    Raises:
        ArgumentError: no layer of the model can be observed, or its queries are not its patches.
    """

    reads = "pixel_values"
    patches: Patches

    def __init__(self, model: Any, tokenizer: Any = None) -> None:
        self.processor = getattr(tokenizer, "image_processor", tokenizer)
        super().__init__(model)
        self.grid = self.patches.grid

    def _measure(self) -> None:
        config = self.model.config
        height, width = _pair(getattr(config, "image_size", None))
        side, across = _pair(getattr(config, "patch_size", None))
        if side != across or not side or not height:
            got = f"the configuration of {self.name} names {height} x {width} pixels and patches of {side} x {across}"
            raise wrong("model", "must read pictures in square patches", got, "Take a ViT.")
        self.vocabulary = 0
        channels = config.num_channels
        self.patches = Patches(channels, height, width, side, 1, *_normalisation(self.processor, channels))

    def _few(self) -> dict[str, Tensor]:
        sizes = self.patches.channels, self.patches.height, self.patches.width
        return {self.reads: torch.zeros(1, *sizes, dtype=self.model.dtype, device=self.model.device)}

    def _length(self, output: Any) -> int:
        length: int = output.last_hidden_state.shape[1]
        rows, columns, _ = self.patches.grid
        self.patches = replace(self.patches, before=length - rows * columns)
        if self.patches.before < 0:
            got = f"{self.name} has {length} states for {rows} x {columns} patches"
            raise wrong("model", "must have a state for each patch", got, "Take a ViT.")
        return length

    def read(self, given: Any, name: str = "text", *, extrapolate: bool = False) -> tuple[Text, Tensor]:
        return self.patches.text, self.patches.numbers(given, self.processor, name)

    def tokenize(self, text: str) -> Text:
        raise wrong("model", "must read text", f"{self.name} reads pictures", "limelight.look takes a picture.")

    def _inputs(self, ids: Tensor, lengths: Tensor | None, source: Tensor | None) -> dict[str, Any]:
        if lengths is not None or source is not None:
            raise wrong("lengths", "are for texts", f"{self.name} reads pictures", "Leave them out.")
        return self._source(ids)


def _normalisation(processor: Any, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation by which a processor normalises each channel; empty where it names none."""
    found = []
    for name in ("image_mean", "image_std"):
        values = getattr(processor, name, None)
        if not isinstance(values, (list, tuple)) or len(values) != channels:
            return (), ()
        found.append(tuple(float(value) for value in values))
    return (found[0], found[1]) if getattr(processor, "do_normalize", True) else ((0.0,) * channels, (1.0,) * channels)


def _pair(size: Any) -> tuple[int, int]:
    """A size along both sides."""
    if isinstance(size, int):
        return size, size
    return (int(size[0]), int(size[1])) if isinstance(size, (list, tuple)) and len(size) == 2 else (0, 0)
