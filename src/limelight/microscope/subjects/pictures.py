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
        self.patches = Patches(config.num_channels, height, width, side)

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


def _pair(size: Any) -> tuple[int, int]:
    """A size along both sides."""
    if isinstance(size, int):
        return size, size
    return (int(size[0]), int(size[1])) if isinstance(size, (list, tuple)) and len(size) == 2 else (0, 0)
