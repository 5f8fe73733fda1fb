"""`Quantized`: keys or values of 8 bits, with a scale for each token and head."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..tensors.shapes import FLOATS, check_dense, describe, wrong
from ..tensors.tracing import readable

#: The dtypes of 8 bits, and the largest number of each that is used.
LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0}
_NAMES = {str(dtype).removeprefix("torch."): dtype for dtype in LARGEST}


def eight_bits(name: str, dtype: object) -> torch.dtype:
    """A dtype of 8 bits, or the one of that name: int8, float8_e4m3fn or float8_e5m2.

    Args:
        name: of the argument, for errors.
        dtype: a dtype or its name.

    Raises:
        ArgumentError: it is none of them.
    """
    found = _NAMES.get(dtype) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or found not in LARGEST:
        got = f"it is {dtype!r}"
        raise wrong(name, f"must be one of {', '.join(_NAMES)}", got, "int8 is the most exact of them.")
    return found


@dataclass(frozen=True, eq=False, repr=False)
class Quantized:
    """Keys or values of 8 bits, with a scale for each token and head: ``scale * data``, in half the memory of bfloat16.

    `limelight.attention` takes one in the place of its key, and one in that of its value. The result is exact attention
    over `dense`, so the one approximation is the rounding to 8 bits. The CPU kernels read the bytes in place; for other
    backends, and with a comparison other than the dot product, they are made dense first (`limelight.explain` says
    which). There is no gradient.

    With ``rotated``, ``data`` holds the keys or values times a Hadamard matrix, ``x H``, which is orthogonal: it
    spreads a feature with large numbers over all of them, so that less is lost by rounding. Since ``q H . k H =
    q . k``, the kernels rotate queries and outputs instead of keys and values. ``H`` has blocks along its diagonal, of
    the largest power of two that divides the width. (QuaRot, Ashkboos et al. 2024, arXiv:2404.00456.)

    Args:
        data: ``(B, Hkv, Lk, D)`` int8 from -127 to 127, float8_e4m3fn or float8_e5m2; any leading dimensions.
        scale: ``(B, Hkv, Lk, 1)`` float32; float64 for tensors of float64.
        rotated: whether `dense` is to be rotated back.

    Raises:
        ArgumentError: another dtype, shape or device; an infinite scale; the number -128, which is not used, since it
            has no opposite.

    Example:
        >>> import torch, limelight
        >>> query, key, value = torch.randn(3, 1, 8, 100, 64)
        >>> key8, value8 = (limelight.Quantized.of(x, "int8", rotate=True) for x in (key, value))
        >>> error = limelight.attention(query, key8, value8) - limelight.attention(query, key, value)
        >>> bool(error.abs().max() < 0.02)
        True
    """

    data: Tensor
    scale: Tensor
    rotated: bool = False

    def __post_init__(self) -> None:
        data, scale = check_dense("data", self.data), check_dense("scale", self.scale)
        eight_bits("data", data.dtype)
        if data.dim() < 1 or scale.shape != (*data.shape[:-1], 1):
            got = f"{tuple(scale.shape)} stands beside data of shape {tuple(data.shape)}"
            raise wrong(
                "scale", "must have the shape of `data`, with 1 in the place of its width", got, "See Quantized."
            )
        if scale.dtype not in (torch.float32, torch.float64) or scale.device != data.device:
            got = f"it is {describe(scale)} on {scale.device}, and `data` is on {data.device}"
            raise wrong("scale", "must be float32 (or float64), on the device of `data`", got, "Convert it with .to().")
        if readable(scale) and not scale.is_meta and bool(scale.isinf().any()):
            got, way_out = "an infinity is among its numbers", "NaN makes a row NaN."
            raise wrong("scale", "must be finite, or NaN", got, way_out)
        _check_bool("rotated", self.rotated)
        if data.dtype is torch.int8 and readable(data) and not data.is_meta and bool((data == -128).any()):
            raise wrong("data", "must hold numbers from -127 to 127", "-128 is among them", "Clamp it to -127.")

    @classmethod
    def of(cls, tensor: Tensor, dtype: str | torch.dtype = "int8", *, rotate: bool = False) -> Quantized:
        """A tensor rounded to 8 bits: ``scale = max |x| / M`` of each row, ``data = round(x / scale)``.

        ``M`` is 127 for int8, 448 for float8_e4m3fn, 57344 for float8_e5m2. A row of zeros has the scale 0. One that is
        not finite becomes NaN as a whole.

        Args:
            tensor: ``(..., D)``, any float dtype.
            dtype: int8, float8_e4m3fn or float8_e5m2, as a dtype or by name.
            rotate: whether rows are rotated before.

        Raises:
            ArgumentError: another dtype, or a gradient is wanted of the tensor.
        """
        found = eight_bits("dtype", dtype)
        _check_bool("rotate", rotate)
        if check_dense("tensor", tensor).dtype not in FLOATS or not tensor.dim() or not tensor.shape[-1]:
            rule = "must be float32, bfloat16, float16 or float64, with a width"
            raise wrong("tensor", rule, f"it is {describe(tensor)}", "Convert it with .to().")
        if torch.is_grad_enabled() and tensor.requires_grad:
            raise wrong("tensor", "is rounded, which has no gradient", "one is wanted", "Use .detach() or no_grad().")
        rows = tensor if tensor.dtype is torch.float64 else tensor.to(torch.float32)
        rows = hadamard(rows) if rotate else rows
        largest, most = rows.abs().amax(-1, keepdim=True), LARGEST[found]
        scale = torch.where(largest.isfinite(), largest / most, torch.nan)
        share = rows / torch.where(scale > 0, scale, 1.0)
        share = torch.where(scale > 0, share.round() if found is torch.int8 else share, 0.0)
        return cls.trusted(share.clamp(-most, most).to(found), scale, rotate)

    @classmethod
    def trusted(cls, data: Tensor, scale: Tensor, rotated: bool) -> Quantized:
        """One of tensors that are known to fit: without the checks."""
        made = object.__new__(cls)
        made.__dict__.update(data=data, scale=scale, rotated=rotated)
        return made

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """``scale * data``, rotated back where it is `rotated`; computed in the dtype of ``scale``, then rounded.

        Raises:
            ArgumentError: ``dtype`` is not one of floats.
        """
        if dtype not in FLOATS:
            raise wrong(
                "dtype", "must be float32, bfloat16, float16 or float64", f"it is {dtype!r}", "See torch.dtype."
            )
        rows = self.data.to(self.scale.dtype) * self.scale
        return (hadamard(rows) if self.rotated else rows).to(dtype)

    def map(self, change: Callable[[Tensor], Tensor]) -> Quantized:
        """``change`` of data and scale, which keeps the last dimension: a slice, a selection of rows, a view."""
        return self.trusted(change(self.data), change(self.scale), self.rotated)

    @property
    def shape(self) -> torch.Size:
        """The shape of ``data``, that of the tensor that was rounded."""
        return self.data.shape

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of ``data``, one of 8 bits; `dense` gives a tensor of any other."""
        return self.data.dtype

    @property
    def device(self) -> torch.device:
        """The device of ``data``, on which ``scale`` lies too."""
        return self.data.device

    @property
    def nbytes(self) -> int:
        """Memory of data and scales."""
        return self.data.nbytes + self.scale.nbytes

    def dim(self) -> int:
        """How many dimensions ``data`` has."""
        return self.data.dim()

    def __repr__(self) -> str:
        turned = ", rotated" if self.rotated else ""
        return f"Quantized({str(self.dtype).removeprefix('torch.')}, {tuple(self.shape)}{turned})"


def _check_bool(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise wrong(name, "must be True or False", f"it is {value!r}", "True where rows are rotated.")


def hadamard(rows: Tensor) -> Tensor:
    """``rows`` ``(..., D)`` times a symmetric Hadamard matrix that is its own inverse (Sylvester's, divided by the root
    of its size); where ``D`` is no power of two, by blocks of the largest one that divides it.
    """
    D = rows.shape[-1]
    size, span, turned = D & -D, 1, rows
    while span < size:
        first, second = turned.reshape(*rows.shape[:-1], D // (2 * span), 2, span).unbind(-2)
        turned = torch.stack((first + second, first - second), -2)
        span *= 2
    return turned.reshape(rows.shape) * (1 / math.sqrt(size))
