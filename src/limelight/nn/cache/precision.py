"""In which precision a cache keeps keys and values: their own, or 8 bits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...forms.quantized import Quantized, eight_bits
from ...fused import quantise
from ...tensors.shapes import wrong

Cached = Tensor | Quantized  # keys or values of one layer
EightBits = str | torch.dtype  # a dtype of 8 bits, or its name


@dataclass(frozen=True)
class Precision:
    """How keys and values lie in the buffers of a store.

    Args:
        dtype: of 8 bits; ``None`` for that of keys and values, in two buffers. In 8 bits, data and scales of both lie
            in four.
        rotate: whether those of 8 bits are rotated.
    """

    dtype: torch.dtype | None = None
    rotate: bool = False

    @classmethod
    def of(cls, dtype: EightBits | None, rotate: bool) -> Precision:
        """The precision of the arguments of a `Cache`.

        Raises:
            ArgumentError: ``dtype`` has not 8 bits, or ``rotate`` is no bool.
        """
        if not isinstance(rotate, bool):
            raise wrong("rotate", "must be True or False", f"it is {rotate!r}", "Leave it out for True.")
        return DENSE if dtype is None else cls(eight_bits("dtype", dtype), rotate)

    def split(self, key: Tensor, value: Tensor) -> list[Tensor]:
        """What is written to each buffer, of new keys and values."""
        if self.dtype is None:
            return [key, value]
        key8, value8 = (quantise(x, self.dtype, self.rotate) for x in (key, value))
        return [key8.data.view(torch.int8), value8.data.view(torch.int8), key8.scale, value8.scale]

    def likes(self, key: Tensor, value: Tensor) -> list[Tensor]:
        """Tensors like those of `split`, without tokens."""
        if self.dtype is None:
            return [key, value]
        number = torch.float64 if key.dtype is torch.float64 else torch.float32
        empty = [x.new_empty((*x.shape[:2], 0, x.shape[3]), dtype=torch.int8) for x in (key, value)]
        return empty + [x.new_empty((*x.shape[:2], 0, 1), dtype=number) for x in (key, value)]

    def joined(self, buffers: list[Tensor]) -> tuple[Cached, Cached]:
        """Keys and values, of the buffers or the same part of each."""
        if self.dtype is None:
            return buffers[0], buffers[1]
        key, value, *scales = buffers
        return (
            Quantized.trusted(key.view(self.dtype), scales[0], self.rotate),
            Quantized.trusted(value.view(self.dtype), scales[1], self.rotate),
        )


DENSE = Precision()
