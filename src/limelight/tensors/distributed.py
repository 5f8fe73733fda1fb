"""Tensors that are divided among processes (`torch.distributed.tensor.DTensor`)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .shapes import PLAIN


def local_part(tensor: Tensor) -> Tensor:
    """Return the part of a distributed tensor that this process holds; any other tensor is returned itself.

    ``DTensor`` is recognised by its method, since importing it takes longer than a layer may.
    """
    if type(tensor) in PLAIN or not hasattr(tensor, "to_local"):
        return tensor
    distributed: Any = tensor
    return distributed.to_local()  # type: ignore[no-any-return]
