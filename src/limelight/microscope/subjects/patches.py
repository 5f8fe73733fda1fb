"""The patches of a picture as tokens."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ...tensors.shapes import describe, wrong
from ...text import Text


@dataclass(frozen=True)
class Patches:
    """How a model cuts pictures.

    A patch is named by its row and column from the top left, ``r0c3``. Tokens before the patches are special: the class
    token, and registers.

    Args:
        channels: of a picture (3 for colours).
        height: in pixels.
        width: in pixels.
        side: of a patch, in pixels.
        before: number of tokens before the patches.
        mean: by channel, that a processor subtracts from values between 0 and 1; empty if it is not known.
        deviation: by channel, that it then divides by.
    """

    channels: int
    height: int
    width: int
    side: int
    before: int = 1
    mean: tuple[float, ...] = ()
    deviation: tuple[float, ...] = ()

    @property
    def grid(self) -> tuple[int, int, int]:
        """Rows, columns, and the pixels along a side of a patch."""
        return self.height // self.side, self.width // self.side, self.side

    @property
    def text(self) -> Text:
        """The tokens: names of patches, row by row."""
        rows, columns, _ = self.grid
        names = [f"r{row}c{column}" for row in range(rows) for column in range(columns)]
        special = ["[class]", *(f"[register {number}]" for number in range(1, self.before))][: self.before]
        spans, at = [(0, 0)] * self.before, 0
        for name in names:
            spans.append((at, at + len(name)))
            at += len(name) + 1
        return Text(
            text=" ".join(names),
            ids=(0,) * len(spans),
            tokens=(*special, *names),
            spans=tuple(spans),
            words=(*[None] * self.before, *range(len(names))),
            special=(True,) * self.before + (False,) * len(names),
        )

    def numbers(self, given: Any, processor: Any = None, name: str = "text") -> Tensor:
        """A picture as the model reads it, ``(1, channels, height, width)``.

        Args:
            given: these numbers, with or without the first dimension; or a picture of Pillow or the path of one.
            processor: an image processor of transformers, which resizes and normalises pictures.
            name: of the argument, for error messages.

        Raises:
            ArgumentError: something else, a picture without a processor, or a file that holds none.
        """
        sizes = f"({self.channels}, {self.height}, {self.width})"
        if not isinstance(given, Tensor):
            if processor is None:
                rule = f"must be the numbers of a picture, {sizes}, where there is no processor"
                way_out = "Pass processor=AutoImageProcessor.from_pretrained(...) with a model of transformers."
                raise wrong(name, rule, f"it is {describe(given)}", way_out)
            picture = opened(given, name) if isinstance(given, (str, os.PathLike)) else given
            picture = in_colour(picture) if self.channels == 3 else picture
            given = processor(images=picture, return_tensors="pt")["pixel_values"]
        pixels: Tensor = given[None] if given.dim() == 3 else given
        if tuple(pixels.shape) != (1, self.channels, self.height, self.width) or not pixels.is_floating_point():
            way_out = "The model's processor makes it of a picture."
            raise wrong(name, f"must be one picture of floats, {sizes}", f"it is {describe(given)}", way_out)
        return pixels

    def pixels(self, numbers: Tensor) -> npt.NDArray[np.uint8]:
        """The picture that the model reads, ``(height, width, 3)``: resized and cut to the model's size.

        Without the processor's mean and deviation, numbers between 0 and 1 are taken as they are, and others are
        stretched from the smallest to the largest.

        Args:
            numbers: ``(1, channels, height, width)``, as `numbers` returns them.
        """
        values = np.nan_to_num(numbers[0].detach().float().cpu().numpy())
        if self.mean:
            shape = (self.channels, 1, 1)
            values = values * np.reshape(self.deviation, shape) + np.reshape(self.mean, shape)
        elif values.min() < 0 or values.max() > 1:
            values = (values - values.min()) / max(float(np.ptp(values)), 1e-9)
        if self.channels != 3:
            values = np.repeat(values[:1], 3, axis=0)
        return np.asarray(np.rint(values.clip(0, 1) * 255).transpose(1, 2, 0), dtype=np.uint8)


def in_colour(picture: Any) -> Any:
    """A picture of Pillow with red, green and blue alone (of shades of grey, or with transparency); others as given."""
    return picture.convert("RGB") if callable(getattr(picture, "convert", None)) else picture


def opened(path: str | os.PathLike[str], name: str = "text") -> Any:
    """The picture in a file, by Pillow."""
    try:
        from PIL import Image  # image processors of transformers need it, too
    except ImportError as error:
        rule = "must be a tensor where pictures cannot be read"
        raise wrong("text", rule, "Pillow is not installed", "Try: pip install pillow.") from error
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except Exception as error:
        got = f"{os.fspath(path)!r:.80} is none ({type(error).__name__}: {error!s:.100})"
        raise wrong(name, "must name a picture file", got, "Give a PNG or JPEG file.") from error
