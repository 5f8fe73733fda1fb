"""All that depends on Triton's version: the oldest supported ones, and names that moved between them.

Importing this module does not import Triton; reading one of Gluon's names from it does, so only kernels do.
"""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module, metadata, util
from typing import Any

OLDEST = (3, 5)  # the first in which kernels take tuples
OLDEST_GLUON = (3, 7)  # the version that the Gluon kernels are written for


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
    """Why there is no Triton of version ``oldest`` or later; empty where there is."""
    have = version()
    if have is None:
        return "Triton is not installed (pip install triton; it comes with PyTorch's CUDA builds)"
    if have < oldest:
        return f"Triton {have[0]}.{have[1]} is installed; the kernels need {oldest[0]}.{oldest[1]} or later"
    return ""


_HOPPER = "triton.experimental.gluon.language.nvidia.hopper"
_GLUON: dict[str, tuple[str, tuple[str, ...]]] = {  # name -> (module, its names there); without names, the module
    "gluon": ("triton.experimental.gluon", ()),
    "gl": ("triton.experimental.gluon.language", ()),
    "TensorDescriptor": ("triton.experimental.gluon.nvidia.hopper", ("TensorDescriptor",)),
    # Triton 3.8 renames the bulk copy; 3.9 still has the old name, but raises an error when it is used.
    "copy_to_shared": (f"{_HOPPER}.tma", ("async_load", "async_copy_global_to_shared")),
    **{
        name: (_HOPPER, (name,))
        for name in ("fence_async_shared", "mbarrier", "warpgroup_mma", "warpgroup_mma_wait")
    },
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """One of Gluon's names, as the installed version defines it."""
    if name not in _GLUON:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    place, names = _GLUON[name]
    module = import_module(place)
    return getattr(module, next(known for known in names if hasattr(module, known))) if names else module
