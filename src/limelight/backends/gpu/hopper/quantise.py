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
WEIGHT = 256.0  # the float8 value that stands for a weight of 1 in the kernel
GROUP = 32  # keys within which the kernel reads values in another order


class Quantised(NamedTuple):
    """The float8 tensors that the kernel reads, and the scale of each block."""

    query: Tensor  # (B, Hq, Lq, D) float8
    key: Tensor  # (B, Hkv, Lk, D) float8
    value: Tensor  # (B, Hkv, Dv, whole blocks of keys) float8, keys in the order of `key_order`
    query_scales: Tensor  # (B, Hq, blocks of queries) float32
    key_scales: Tensor  # (B, Hkv, blocks of keys)
    value_shares: Tensor  # (B, Hkv, blocks of keys): the block's scale over the head's, times `WEIGHT`
    value_scales: Tensor  # (B, Hkv): the factor from sums of the kernel to outputs


def quantise(query: Tensor, key: Tensor, value: Tensor, keys: int) -> Quantised:
    """Rotate and quantise ``(B, H, L, W)`` tensors in float32, in blocks of 64 queries and of ``keys`` keys."""
    rotation = rotation_matrix(query.shape[-1], query.device)
    query8, query_scales = in_blocks(query.float() @ rotation, QUERIES)
    key8, key_scales = in_blocks(key.float() @ rotation, keys)
    value8, value_scales = in_blocks(value.float(), keys)
    B, H, L, W = value.shape
    padded = torch.zeros((B, H, -(-L // keys) * keys, W), dtype=value8.dtype, device=value.device)
    padded[:, :, :L] = value8
    transposed = padded[:, :, key_order(padded.shape[2], value.device)].mT.contiguous()
    whole = value_scales.amax(-1)
    shares = value_scales / whole[..., None] * WEIGHT
    return Quantised(query8, key8, transposed, query_scales, key_scales, shares, whole / WEIGHT)


def in_blocks(x: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """``(float8, scales)`` of ``(B, H, L, W)``: ``x`` is about the first times the scale of its block of ``rows``."""
    L = x.shape[2]
    padded = torch.nn.functional.pad(x, (0, 0, 0, -L % rows))
    blocks = padded.reshape(*x.shape[:2], -1, rows, x.shape[3])
    scales = (blocks.abs().amax((3, 4)) / MAX).clamp(min=torch.finfo(torch.float32).tiny)
    quantised = (blocks / scales[..., None, None]).to(torch.float8_e4m3fn)
    return quantised.flatten(2, 3)[:, :, :L].contiguous(), scales


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
