"""Which backends compute the calls of this package: PyTorch's `sdpa_kernel`, by our names or by its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from .. import backends as all_backends
from ..backends.contract import BackendError
from ..operator import attention as operator
from ..tensors.shapes import describe, flag, wrong

#: Of PyTorch's `SDPBackend`, those that are kernels: each allows all of ours.
_KERNELS = ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION", "OVERRIDEABLE")

_chosen: tuple[str, ...] = ()  # in the order in which they are tried; empty outside of `sdpa_kernel`


@contextmanager
def sdpa_kernel(backends: Any, set_priority: bool = False) -> Iterator[None]:
    """``torch.nn.attention.sdpa_kernel``: only the named backends compute calls of `limelight.compat` in the block.

    As there, it holds for all threads, and a call that none of them can serve raises. What is computed does not depend
    on it.

    Args:
        backends: one of, or a list of, our names (`limelight.explain` prints them: ``"native"``, ``"flash2"``,
            ``"reference"``, ...) and `torch.nn.attention.SDPBackend`, whose ``MATH`` is ``"reference"`` and whose other
            members stand for all kernels.
        set_priority: try them in this order; else in the order of speed.

    Raises:
        ArgumentError: there is no such backend.

    Example:
        >>> import torch
        >>> from limelight.compat import scaled_dot_product_attention, sdpa_kernel
        >>> q = k = v = torch.randn(1, 2, 5, 8)
        >>> with sdpa_kernel("reference"):
        ...     scaled_dot_product_attention(q, k, v).shape
        torch.Size([1, 2, 5, 8])
    """
    global _chosen
    listed = list(backends) if isinstance(backends, (list, tuple, set)) else [backends]
    by_speed = [backend.NAME for backend in all_backends.BACKENDS]
    names = list(dict.fromkeys(name for one in listed for name in _names(one, by_speed)))
    if not names:
        raise wrong("backends", "must name a backend", "the list is empty", "Leave the block out for all of them.")
    if not flag("set_priority", set_priority):
        names.sort(key=lambda name: by_speed.index(name) if name in by_speed else len(by_speed))
    before, _chosen = _chosen, tuple(names)
    try:
        yield
    finally:
        _chosen = before


def _names(backend: Any, by_speed: Sequence[str]) -> list[str]:
    """Our names of what is meant by one of them, or by a member of `SDPBackend`."""
    name = backend if isinstance(backend, str) else getattr(backend, "name", None)
    every = [*by_speed, *(one.NAME for one in all_backends.ONLY_NAMED)]
    if name == "MATH":
        return ["reference"]
    if name in _KERNELS:
        return [own for own in by_speed if own != "reference"]
    if not isinstance(name, str) or name not in every:
        rule = f"must be of {', '.join(map(repr, every))} or members of torch.nn.attention.SDPBackend"
        raise wrong("backends", rule, f"one is {describe(backend)}", 'For example "native".')
    return [name]


def attention(query: Tensor, key: Tensor, value: Tensor, *, backend: str | None = None, **settings: Any) -> Any:
    """`limelight.attention`, by the backends that `sdpa_kernel` allows.

    Raises:
        BackendError: none of them can serve the call.
    """
    if backend is not None or not _chosen:
        return operator.attention(query, key, value, backend=backend, **settings)
    why = []
    for name in _chosen:
        try:
            return operator.attention(query, key, value, backend=name, **settings)
        except BackendError as error:
            why.append(str(error))
    raise BackendError(" ".join(why))
