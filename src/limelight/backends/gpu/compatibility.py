"""Triton's versions meet here and nowhere else: which are enough, and the names that moved.

This module does not import Triton; asking it for one of Gluon's names does, so only kernels ask.
"""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module, metadata, util
from typing import Any

OLDEST = (3, 5)  # from which on kernels take tuples
OLDEST_GLUON = (3, 7)  # for which the kernels in Gluon are written


@lru_cache(maxsize=1)
def version() -> tuple[int, int] | None:
    """Triton's version as (major, minor), without importing it; ``None`` where it is not installed."""
    if util.find_spec("triton") is None:
        return None
    for name in ("triton", "pytorch-triton", "triton-windows"):
        try:
            major, minor = metadata.version(name).split(".")[:2]
        except metadata.PackageNotFoundError:
            continue
        return int(major), int(minor)
    return None


def missing(oldest: tuple[int, int] = OLDEST) -> str:
    """Why there is no Triton to use, of a release from ``oldest`` on; empty when there is."""
    have = version()
    if have is None:
        return "Triton is not installed (pip install triton; it comes with PyTorch's CUDA builds)"
    if have < oldest:
        return f"Triton {have[0]}.{have[1]} is installed; it needs {oldest[0]}.{oldest[1]} or later"
    return ""


_HOPPER = "triton.experimental.gluon.language.nvidia.hopper"
_GLUON: dict[str, tuple[str, tuple[str, ...]]] = {  # name -> module, and its names in there; without, the module
    "gluon": ("triton.experimental.gluon", ()),
    "gl": ("triton.experimental.gluon.language", ()),
    "TensorDescriptor": ("triton.experimental.gluon.nvidia.hopper", ("TensorDescriptor",)),
    # Triton 3.8 renames the bulk copy; 3.9 refuses the old name, and has it still.
    "copy_to_shared": (f"{_HOPPER}.tma", ("async_load", "async_copy_global_to_shared")),
    **{
        name: (_HOPPER, (name,))
        for name in ("fence_async_shared", "mbarrier", "warpgroup_mma", "warpgroup_mma_wait")
    },
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Gluon's names, as the installed version has them."""
    if name not in _GLUON:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    place, names = _GLUON[name]
    module = import_module(place)
    return getattr(module, next(known for known in names if hasattr(module, known))) if names else module
