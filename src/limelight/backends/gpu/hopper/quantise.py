"""Quantisation of queries, keys and values to float8 (e4m3), with one scale for each block and a rotation.

An outlier enlarges the scale of its own block alone. Before, queries and keys are rotated by one orthogonal matrix,
random signs times a Hadamard matrix, which preserves ``q . k`` and spreads an outlier of one feature over all of them
(FlashAttention 3, Shah et al. 2024, section 3.3).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

QUERIES = 64  # queries that share a scale
MAX = 448.0  # the largest finite value of e4m3
SPREAD = 60  # exponents of two between the scales of blocks of values of a head, at most
GROUP = 32  # keys within which the kernel reads values in another order


class Quantised(NamedTuple):
    """The float8 tensors that the kernel reads, and the scale of each block."""

    query: Tensor  # (B, Hq, Lq, D) float8
    key: Tensor  # (B, Hkv, Lk, D) float8
    value: Tensor  # (B, Hkv, Dv, whole blocks of keys) float8, keys in the order of `key_order`
    query_scales: Tensor  # (B, Hq, blocks of queries) float32
    key_scales: Tensor  # (B, Hkv, blocks of keys)
    value_exponents: Tensor  # (B, Hkv, blocks of keys): a block's scale is 2 to this power


def quantise(query: Tensor, key: Tensor, value: Tensor, keys: int) -> Quantised:
    """Rotate and quantise ``(B, H, L, W)`` tensors in float32, in blocks of 64 queries and of ``keys`` keys."""
    rotation = rotation_matrix(query.shape[-1], query.device)
    query8, query_scales = in_blocks(query.float() @ rotation, QUERIES)
    key8, key_scales = in_blocks(key.float() @ rotation, keys)
    value8, exponents = with_exponents(value.float(), keys)
    B, H, L, W = value.shape
    padded = torch.zeros((B, H, -(-L // keys) * keys, W), dtype=value8.dtype, device=value.device)
    padded[:, :, :L] = value8
    transposed = padded[:, :, key_order(padded.shape[2], value.device)].mT.contiguous()
    return Quantised(query8, key8, transposed, query_scales, key_scales, exponents)


def in_blocks(x: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """``(float8, scales)`` of ``(B, H, L, W)``: ``x`` is about the first times the scale of its block of ``rows``."""
    scales = least_scales(largest_of_blocks(x, rows))
    return scaled(x, scales, rows), scales


def with_exponents(x: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """As `in_blocks`, with scales that are powers of two, given by their exponents (float32).

    The kernel sums outputs in units of the last block's scale, so that none of its weights is multiplied by a scale,
    and 8 bits of a weight are enough for blocks of small values, too. Powers of two make a change of units exact. A
    scale is at least 2^-`SPREAD` of the largest of its head, so that no sum overflows; a block that needs a smaller one
    has the exponent NaN, so that what sees it is computed again, in 16 bits.
    """
    largest = largest_of_blocks(x, rows)
    exponents = least_scales(largest).log2().ceil()
    finite = exponents.nan_to_num(-torch.inf, -torch.inf)  # a value that is not spoils its own block alone
    floor = finite.amax(-1, keepdim=True) - SPREAD
    exponents = torch.where((exponents < floor) & (largest > 0), torch.nan, torch.maximum(exponents, floor))
    return scaled(x, exponents.exp2(), rows), exponents


def largest_of_blocks(x: Tensor, rows: int) -> Tensor:
    """The largest magnitude in each block of ``rows`` rows, ``(B, H, blocks)``."""
    largest = torch.nn.functional.pad(x.abs().amax(3), (0, -x.shape[2] % rows))
    return largest.reshape(*x.shape[:2], -1, rows).amax(3)


def least_scales(largest: Tensor) -> Tensor:
    """The least scales with which numbers of these magnitudes fit."""
    return (largest / MAX).clamp(min=torch.finfo(torch.float32).tiny)


def scaled(x: Tensor, scales: Tensor, rows: int) -> Tensor:
    """``x`` over the scales of its blocks, in float8."""
    each = scales.repeat_interleave(rows, 2)[:, :, : x.shape[2], None]
    return (x / each).to(torch.float8_e4m3fn).contiguous()


@lru_cache(maxsize=16)
def rotation_matrix(width: int, device: torch.device) -> Tensor:
    """Rows ``r`` of an orthogonal matrix, ``(width, next power of two)``: ``q @ r @ (k @ r).T`` is ``q @ k.T``.

    The rows are those of a Hadamard matrix with random signs, from a fixed seed.
    """
    size = 1 << (width - 1).bit_length()
    matrix = torch.ones((1, 1), dtype=torch.float32, device="cpu")
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    signs = torch.randint(0, 2, (width, 1), generator=torch.Generator().manual_seed(0), device="cpu").float() * 2 - 1
    return (signs * matrix[:width] / math.sqrt(size)).to(device)


def key_order(length: int, device: torch.device) -> Tensor:
    """The index of the key at each place of the kernel's values, ``(length,)``, a permutation within groups of 32.

    A thread holds the weights of the columns ``8 (2 h + e) + 2 q + f`` in the registers from which a float8 product
    reads ``16 h + 4 q + 2 e + f``. The order of the terms of a sum does not matter, so the values are permuted instead
    of moving weights between threads.
    """
    place = torch.arange(length, device=device).reshape(-1, 2, 2, 4, 2)
    return place.permute(0, 1, 3, 2, 4).flatten()
