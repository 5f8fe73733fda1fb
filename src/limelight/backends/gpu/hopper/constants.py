"""The compile-time constants of `flash3`'s backward kernel, beside `limelight.backends.gpu.constants`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class OwnerConstants:
    """Which tiles a launch owns, which sums it computes, and how blocks of the other side move.

    "First" are queries and keys, "second" the gradient of the output and values.
    """

    KEYS: bool  # it owns tiles of keys; else of queries
    OF_FIRST: bool  # it sums gradients of queries, or of keys
    OF_SECOND: bool  # it sums gradients of values
    CARRY: bool  # the product of a block's score gradients is issued with the products of the next block
    STAGES: int  # blocks of what is first in shared memory
    SECOND_STAGES: int  # of what is second
