"""Memory of large results on the CPU, kept for the next call.

The system clears every page of new memory before a program sees it, and the C library gives what is larger than 32 MiB
back as soon as it is free: of a windowed call over 16k tokens a fifth of the time. So the memory of a large result
returns here when its last tensor is gone, and serves the next one. At most ``MOST`` bytes are kept (256 MiB; the
environment's ``LIMELIGHT_KEEP_MIB`` says otherwise, 0 keeps nothing).
"""

from __future__ import annotations

import math
import os
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LEAST = 2**20  # bytes of a result from which on it is kept


def _most(mebibytes: str) -> int:
    if not mebibytes.isdecimal():
        raise ValueError(f"LIMELIGHT_KEEP_MIB must be a whole number of MiB, 0 to keep nothing; it is {mebibytes!r}.")
    return int(mebibytes) * 2**20


MOST = _most(os.environ.get("LIMELIGHT_KEEP_MIB", "256"))

_Piece = NDArray[np.uint8]
# Every change is one step of a deque, which no other thread, and no finalizer, comes between.
_kept: deque[_Piece] = deque()


def empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """`torch.empty` on the CPU, for a result."""
    if math.prod(shape) * dtype.itemsize < LEAST:
        return torch.empty(shape, dtype=dtype, device="cpu")
    return _of(torch.empty(shape, dtype=dtype, device="meta"))


def empty_like(tensor: Tensor) -> Tensor:
    """`torch.empty_like` on the CPU, for a result, with the strides that it gives."""
    if tensor.nbytes < LEAST:
        return torch.empty_like(tensor)
    return _of(torch.empty_like(tensor, device="meta"))


def zeros_like(tensor: Tensor) -> Tensor:
    """`empty_like`, zeros."""
    return empty_like(tensor).zero_()


def zeros(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """`torch.zeros` on the CPU, for a result. More than is kept is memory that nobody has touched, by calloc: the
    system never makes the pages that nothing is written to.
    """
    size = math.prod(shape) * dtype.itemsize
    if size <= max(LEAST, MOST):
        return empty(shape, dtype).zero_()
    return _tensor(_lines(np.zeros(size + 64, dtype=np.uint8), size), torch.empty(shape, dtype=dtype, device="meta"))


def _of(like: Tensor) -> Tensor:
    size = like.numel() * like.itemsize
    if size > MOST:
        return torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device="cpu")
    piece = _take(size)
    lent = _lines(piece, size)
    weakref.finalize(lent, _give_back, piece).atexit = False
    return _tensor(lent, like)


def _lines(piece: _Piece, size: int) -> Any:
    """So many bytes of a piece that has 64 more, from a multiple of 64 on, as an array of its own."""
    first = -piece.ctypes.data % 64
    return piece[first : first + size]


def _tensor(memory: Any, like: Tensor) -> Tensor:
    """A tensor that looks like another, in memory that its storage holds. Set, not viewed: whoever changes the result
    of an autograd function in place may.
    """
    storage = torch.frombuffer(memory, dtype=torch.uint8).untyped_storage()
    return torch.empty(0, dtype=like.dtype, device="cpu").set_(storage, 0, like.shape, like.stride())


def _take(size: int) -> _Piece:
    for _ in range(len(_kept)):
        try:
            piece = _kept.popleft()
        except IndexError:  # another thread was faster
            break
        if size + 64 <= piece.nbytes <= 2 * size:
            return piece
        _kept.append(piece)
    return np.empty(size + 64, dtype=np.uint8)


def _give_back(piece: _Piece) -> None:
    _kept.append(piece)
    while sum(kept.nbytes for kept in _kept.copy()) > MOST:
        try:
            _kept.popleft()  # the oldest
        except IndexError:
            break
