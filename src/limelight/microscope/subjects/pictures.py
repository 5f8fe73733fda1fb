"""Encoders of pictures: their tokens are patches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...tensors.shapes import describe, wrong
from ...text import Text
from .transformers import TransformersSubject


class PictureSubject(TransformersSubject):
    """A model of transformers that reads pictures in patches (ViT, CLIP's vision tower, DINOv2, SigLIP).

    A patch is named by its row and column from the top left, ``r0c3``. Tokens before the patches are special: the class
    token, and registers.

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

    def _measure(self) -> None:
        config = self.model.config
        height, width = _pair(getattr(config, "image_size", None))
        side, across = _pair(getattr(config, "patch_size", None))
        if side != across or not side or not height:
            got = f"the configuration of {self.name} names {height} x {width} pixels and patches of {side} x {across}"
            raise wrong("model", "must read pictures in square patches", got, "Take a ViT.")
        self.vocabulary = 0
        self._pixels = config.num_channels, height, width
        self.grid = height // side, width // side, side

    def _few(self) -> dict[str, Tensor]:
        return {self.reads: torch.zeros(1, *self._pixels, dtype=self.model.dtype, device=self.model.device)}

    def _length(self, output: Any) -> int:
        length: int = output.last_hidden_state.shape[1]
        assert self.grid is not None
        self._before = length - self.grid[0] * self.grid[1]
        if self._before < 0:
            got = f"{self.name} has {length} states for {self.grid[0]} x {self.grid[1]} patches"
            raise wrong("model", "must have a state for each patch", got, "Take a ViT.")
        return length

    def read(self, given: Any) -> tuple[Text, Tensor]:
        pixels = self._numbers(given)
        assert self.grid is not None
        rows, columns, side = pixels.shape[2] // self.grid[2], pixels.shape[3] // self.grid[2], self.grid[2]
        self.grid = rows, columns, side
        names = [f"r{row}c{column}" for row in range(rows) for column in range(columns)]
        starts = [0]
        for name in names:
            starts.append(starts[-1] + len(name) + 1)
        special = ["[class]", *(f"[register {number}]" for number in range(1, self._before))][: self._before]
        n = len(special)
        text = Text(
            text=" ".join(names),
            ids=(0,) * (n + len(names)),
            tokens=(*special, *names),
            spans=((0, 0),) * n + tuple((start, start + len(name)) for start, name in zip(starts, names, strict=False)),
            words=(None,) * n + tuple(range(len(names))),
            special=(True,) * n + (False,) * len(names),
        )
        return text, pixels

    def _numbers(self, given: Any) -> Tensor:
        """A picture as the model reads it, ``(1, channels, height, width)``."""
        if not isinstance(given, Tensor):
            if self.processor is None or isinstance(given, (str, bytes)):
                rule = "must be a picture of PIL with a processor, or the numbers that one makes of it"
                what = describe(given) if self.processor is not None else "no processor was given"
                raise wrong("text", rule, what, "Pass processor=AutoImageProcessor.from_pretrained(...).")
            given = self.processor(images=given, return_tensors="pt")[self.reads]
        pixels: Tensor = given[None] if given.dim() == 3 else given
        whole = pixels.dim() == 4 and len(pixels) == 1 and pixels.shape[1] == self._pixels[0]
        if not whole or not pixels.is_floating_point():
            rule = f"must be one picture of floats, ({self._pixels[0]}, height, width)"
            raise wrong("text", rule, f"it is {describe(given)}", "A processor of transformers makes it of a picture.")
        return pixels

    def _inputs(self, ids: Tensor, lengths: Tensor | None, source: Tensor | None) -> dict[str, Any]:
        if lengths is not None or source is not None:
            raise wrong("lengths", "are for texts", f"{self.name} reads pictures", "Leave them out.")
        return self._source(ids)


def _pair(size: Any) -> tuple[int, int]:
    """A size along both sides."""
    if isinstance(size, int):
        return size, size
    return (int(size[0]), int(size[1])) if isinstance(size, (list, tuple)) and len(size) == 2 else (0, 0)
