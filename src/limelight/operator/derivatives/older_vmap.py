"""Batches of PyTorch's older vmap: those of ``is_grads_batched=True``, ``jacobian(vectorize=True)`` and gradcheck."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...tensors.shapes import PLAIN
from ...tensors.torch_internals import (
    add_batch_dim,
    has_storage,
    is_transform_tensor,
    legacy_vmap_level,
    remove_batch_dim,
)


def is_batched(tensors: Sequence[Tensor | None]) -> bool:
    """Whether some of the tensors are batches of the older vmap, which have no memory."""
    for tensor in tensors:
        if tensor is not None and not has_storage(tensor):
            return tensor.layout is torch.strided and type(tensor) in PLAIN and not is_transform_tensor(tensor)
    return False


def one_by_one(rule: Callable[..., Sequence[Any]], ctx: Any, tensors: Sequence[Tensor | None]) -> tuple[Any, ...]:
    """``rule(ctx, *tensors)`` of batches of the older vmap, applied to each entry by itself: neither the kernels nor
    the definition can read such a batch.

    Raises:
        RuntimeError: the batches are nested.
    """
    level = legacy_vmap_level()
    if level != 1:
        raise RuntimeError(
            "limelight.attention takes batched gradients of one level, but several is_grads_batched=True or "
            "jacobian(vectorize=True) are nested. Use torch.func.jacrev, or torch.func.vjp under torch.vmap."
        )
    size = next(len(remove_batch_dim(t, level, 1, 0)) for t in tensors if t is not None and is_batched((t,)))
    entries = [None if t is None else remove_batch_dim(t, level, size, 0).unbind() for t in tensors]
    found = [rule(ctx, *[None if entry is None else entry[n] for entry in entries]) for n in range(size)]
    return tuple(
        [
            None if parts[0] is None else add_batch_dim(torch.stack(parts), 0, level)
            for parts in zip(*found, strict=True)
        ]
    )
