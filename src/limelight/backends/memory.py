"""Memory of large results on the CPU, kept for the next call.

The system clears every page of new memory before a program sees it, and the C library gives what is larger than 32 MiB
back as soon as it is free: of a windowed call over 16k tokens a fifth of the time. So the storages of large results are
remembered here, and one that nothing else refers to any more serves the next result. They are PyTorch's own: a result
may be resized, its storage freed, shared or moved. At most ``MOST`` bytes are kept from being freed (256 MiB; the
environment's ``LIMELIGHT_KEEP_MIB`` says otherwise, 0 keeps nothing).
"""

from __future__ import annotations

import math
import os
import sys
from collections import deque
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..tensors.torch_internals import storage_references
from .contract import out_of_memory

LEAST = 2**20  # bytes of a result from which on it is kept


def _most(mebibytes: str) -> int:
    if not mebibytes.isdecimal():
        raise ValueError(f"LIMELIGHT_KEEP_MIB must be a whole number of MiB, 0 to keep nothing; it is {mebibytes!r}.")
    return int(mebibytes) * 2**20


MOST = _most(os.environ.get("LIMELIGHT_KEEP_MIB", "256"))

LOOKED_AT = 16  # remembered storages that a call looks at before it takes new memory

# Every change is one step of a deque, which no other thread comes between.
_kept: deque[torch.UntypedStorage] = deque()


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


def zeros(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """`torch.zeros` on the CPU, for a result. More than is kept is memory that nobody has touched, by calloc: the
    system never makes the pages that nothing is written to.
    """
    size = math.prod(shape) * dtype.itemsize
    if size <= max(LEAST, MOST):
        return empty(shape, dtype).zero_()
    try:
        cleared = np.zeros(size + 64, dtype=np.uint8)
    except MemoryError as error:
        raise out_of_memory(f"{size:,} bytes of a gradient", error) from error
    first = -cleared.ctypes.data % 64  # as aligned as PyTorch's own
    storage = torch.frombuffer(cleared[first : first + size], dtype=torch.uint8).untyped_storage()
    return _tensor(storage, torch.empty(shape, dtype=dtype, device="meta"))


def _of(like: Tensor) -> Tensor:
    size = like.numel() * like.itemsize
    storage = _take(size) if size <= MOST else None
    if storage is None:
        try:
            storage = torch.empty(size, dtype=torch.uint8, device="cpu").untyped_storage()
        except RuntimeError as error:
            raise out_of_memory(f"{size:,} bytes of a result", str(error).splitlines()[0]) from error
    made = _tensor(storage, like)
    if size <= MOST:
        _keep(storage)
    return made


def _tensor(storage: torch.UntypedStorage, like: Tensor) -> Tensor:
    """A tensor that looks like another, in a storage. Set, not viewed: whoever changes the result of an autograd
    function in place may.
    """
    return torch.empty(0, dtype=like.dtype, device="cpu").set_(storage, 0, like.shape, like.stride())


def _take(size: int) -> torch.UntypedStorage | None:
    """A remembered storage that is free, at least ``size`` bytes and at most twice as many."""
    for _ in range(min(LOOKED_AT, len(_kept))):
        try:
            storage = _kept.popleft()
        except IndexError:  # another thread was faster
            break
        # Neither a tensor nor anybody in Python refers to it: the two are this variable and the argument.
        if storage_references(storage) > 1 or sys.getrefcount(storage) > 2:
            _kept.append(storage)
        elif storage.resizable() and not storage.is_shared():  # otherwise an array or another process may still read it
            if size <= storage.nbytes() <= 2 * size:
                return storage
            if storage.nbytes() >= LEAST:
                _kept.append(storage)
    return None


def _keep(storage: torch.UntypedStorage) -> None:
    _kept.append(storage)
    while sum([kept.nbytes() for kept in _kept.copy()]) > MOST:
        try:
            _kept.popleft()  # the oldest; in use, it is PyTorch's alone from now on
        except IndexError:
            break
