"""A pool of output buffers on the CPU: freed buffers of large results are reused by later calls.

The system clears every page of new memory, and the C library returns blocks larger than 32 MiB to it as soon as they
are freed: a fifth of the time of a windowed call over 16k tokens. So the pool refers to the storages of large results,
and one that nothing else refers to is reused. They are PyTorch's own storages: a result may be resized, its storage
freed, shared or moved. The pool holds at most ``MAX_POOL_BYTES`` bytes (256 MiB, or what the environment variable
``LIMELIGHT_KEEP_MIB`` gives; 0 switches it off).
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

MIN_POOLED_BYTES = 2**20  # bytes; smaller results are not kept


def _pool_size(mebibytes: str) -> int:
    if not mebibytes.isdecimal():
        raise ValueError(f"LIMELIGHT_KEEP_MIB must be a whole number of MiB, 0 to keep nothing; it is {mebibytes!r}.")
    return int(mebibytes) * 2**20


MAX_POOL_BYTES = _pool_size(os.environ.get("LIMELIGHT_KEEP_MIB", "256"))

MAX_CANDIDATES = 16  # storages of the pool that a call looks at before it allocates a new one

# Every change is a single operation of a deque, which is atomic.
_kept: deque[torch.UntypedStorage] = deque()


def empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """`torch.empty` on the CPU, for a result."""
    if math.prod(shape) * dtype.itemsize < MIN_POOLED_BYTES:
        return torch.empty(shape, dtype=dtype, device="cpu")
    return _of(torch.empty(shape, dtype=dtype, device="meta"))


def empty_like(tensor: Tensor) -> Tensor:
    """`torch.empty_like` on the CPU, for a result, with the strides that it gives."""
    if tensor.nbytes < MIN_POOLED_BYTES:
        return torch.empty_like(tensor)
    return _of(torch.empty_like(tensor, device="meta"))


def zeros(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """`torch.zeros` on the CPU, for a result. One that the pool does not keep comes from calloc: its pages take no
    memory until they are written to.
    """
    size = math.prod(shape) * dtype.itemsize
    if size <= max(MIN_POOLED_BYTES, MAX_POOL_BYTES):
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
    storage = _take(size) if size <= MAX_POOL_BYTES else None
    if storage is None:
        try:
            storage = torch.empty(size, dtype=torch.uint8, device="cpu").untyped_storage()
        except RuntimeError as error:
            raise out_of_memory(f"{size:,} bytes of a result", str(error).splitlines()[0]) from error
    made = _tensor(storage, like)
    if size <= MAX_POOL_BYTES:
        _keep(storage)
    return made


def _tensor(storage: torch.UntypedStorage, like: Tensor) -> Tensor:
    """A tensor in a storage, with the shape and strides of another. Set, not viewed, since the result of an autograd
    function may be changed in place and a view of it may not.
    """
    return torch.empty(0, dtype=like.dtype, device="cpu").set_(storage, 0, like.shape, like.stride())


def _take(size: int) -> torch.UntypedStorage | None:
    """A free storage of the pool, of at least ``size`` bytes and at most twice as many."""
    for _ in range(min(MAX_CANDIDATES, len(_kept))):
        try:
            storage = _kept.popleft()
        except IndexError:  # another thread took it
            break
        # Free: no tensor refers to it, and the two references in Python are this variable and the argument.
        if storage_references(storage) > 1 or sys.getrefcount(storage) > 2:
            _kept.append(storage)
        elif storage.resizable() and not storage.is_shared():  # otherwise an array or another process may still read it
            if size <= storage.nbytes() <= 2 * size:
                return storage
            if storage.nbytes() >= MIN_POOLED_BYTES:
                _kept.append(storage)
    return None


def _keep(storage: torch.UntypedStorage) -> None:
    _kept.append(storage)
    while sum([kept.nbytes() for kept in _kept.copy()]) > MAX_POOL_BYTES:
        try:
            _kept.popleft()  # the oldest; where it is in use, PyTorch frees it with its tensor
        except IndexError:
            break
