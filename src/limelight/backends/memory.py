"""A pool of output buffers on the CPU: freed buffers of large results are reused by later calls.

The system clears every page of new memory, and the C library returns blocks larger than 32 MiB to it as soon as they
are freed: a fifth of the time of a windowed call over 16k tokens. So the pool keeps references to the storages of large
results, and reuses those that have no other reference. They are ordinary storages of PyTorch: a result may be resized,
and its storage freed, shared or moved. The pool holds at most ``MAX_POOL_BYTES`` bytes (256 MiB, or the value of the
environment variable ``LIMELIGHT_KEEP_MIB``; 0 switches it off).
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

MIN_POOLED_BYTES = 2**20  # smaller results are not pooled


def _pool_size(mebibytes: str) -> int:
    if not mebibytes.isdecimal():
        raise ValueError(f"LIMELIGHT_KEEP_MIB must be a whole number of MiB, 0 to keep nothing; it is {mebibytes!r}.")
    return int(mebibytes) * 2**20


MAX_POOL_BYTES = _pool_size(os.environ.get("LIMELIGHT_KEEP_MIB", "256"))

MAX_CANDIDATES = 16  # storages of the pool that are tried before a new one is allocated

# Every change is a single operation of a deque, which is atomic.
_pool: deque[torch.UntypedStorage] = deque()


def empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """`torch.empty` on the CPU, for a result."""
    if math.prod(shape) * dtype.itemsize < MIN_POOLED_BYTES:
        return torch.empty(shape, dtype=dtype, device="cpu")
    return _allocate_like(torch.empty(shape, dtype=dtype, device="meta"))


def empty_like(tensor: Tensor) -> Tensor:
    """`torch.empty_like` on the CPU, for a result, with the same strides."""
    if tensor.nbytes < MIN_POOLED_BYTES:
        return torch.empty_like(tensor)
    return _allocate_like(torch.empty_like(tensor, device="meta"))


def zeros(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """`torch.zeros` on the CPU, for a result. One too large for the pool comes from calloc, whose pages take no memory
    until they are written to.
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


def _allocate_like(like: Tensor) -> Tensor:
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
    """A tensor in a storage, with the shape and strides of another. Made by ``set_``, since the result of an autograd
    function may be changed in place, which is an error for a view.
    """
    return torch.empty(0, dtype=like.dtype, device="cpu").set_(storage, 0, like.shape, like.stride())


def _take(size: int) -> torch.UntypedStorage | None:
    """Take a free storage of ``size`` to ``2 * size`` bytes from the pool; ``None`` if there is none."""
    for _ in range(min(MAX_CANDIDATES, len(_pool))):
        try:
            storage = _pool.popleft()
        except IndexError:  # another thread took it
            break
        # Free: no tensor refers to it, and the two references in Python are this variable and the argument.
        if storage_references(storage) > 1 or sys.getrefcount(storage) > 2:
            _pool.append(storage)
        elif storage.resizable() and not storage.is_shared():  # otherwise an array or another process may still read it
            if size <= storage.nbytes() <= 2 * size:
                return storage
            if storage.nbytes() >= MIN_POOLED_BYTES:
                _pool.append(storage)
    return None


def _keep(storage: torch.UntypedStorage) -> None:
    _pool.append(storage)
    while sum([kept.nbytes() for kept in _pool.copy()]) > MAX_POOL_BYTES:
        try:
            _pool.popleft()  # the oldest; where it is in use, PyTorch frees it with its tensor
        except IndexError:
            break
