"""The compile-time constants of `flash3`'s forward kernel, beside those that all GPU kernels have."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Variant:
    """One way to run the forward kernel: which warps copy, in which number format, through how many buffers."""

    STAGES: int  # blocks of keys, and of values, in shared memory
    REGISTERS: int  # of a thread that computes, where a warp of its own copies
    FLOAT8: bool  # queries, keys, values and weights are multiplied in 8 bits
    ALONE: bool  # a program is one warpgroup, which copies for itself; else two, and a warp that copies
