"""Gluon's names in the versions of Triton that have what the kernels need. Only kernels import this module."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

# Triton 3.8 renames the bulk copy; 3.9 refuses the old name, and has it still.
copy_to_shared = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared

__all__ = [
    "TensorDescriptor",
    "copy_to_shared",
    "fence_async_shared",
    "gl",
    "gluon",
    "mbarrier",
    "warpgroup_mma",
    "warpgroup_mma_wait",
]
