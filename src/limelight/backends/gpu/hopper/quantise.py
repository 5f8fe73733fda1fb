"""Queries, keys and values in 8 bits (float8 e4m3), so that little is lost: one scale for each block, and a rotation.

A number that stands far out makes the scale of its block, and of no other. Before, queries and keys are rotated by one
orthogonal matrix, random signs times a Hadamard matrix, which leaves ``q . k`` as it is and spreads what stands out in
one dimension over all of them (FlashAttention 3, Shah et al. 2024, section 3.3).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

QUERIES = 64  # rows of a block of queries that share a scale
MOST = 448.0  # the largest number of e4m3
WEIGHT = 256.0  # a weight of 1, in the weights of the kernel, which are 8-bit numbers too
GROUP = 32  # keys within which the kernel reads values in another order


class Quantised(NamedTuple):
    """What the kernel reads: numbers, and what each block of them stands for."""

    query: Tensor  # (B, Hq, Lq, D) float8
    key: Tensor  # (B, Hkv, Lk, D) float8
    value: Tensor  # (B, Hkv, Dv, whole blocks of keys) float8, keys in the order of `order`
    query_scales: Tensor  # (B, Hq, blocks of queries) float32
    key_scales: Tensor  # (B, Hkv, blocks of keys)
    value_shares: Tensor  # (B, Hkv, blocks of keys): of the scale that the whole head has, times `WEIGHT`
    value_scales: Tensor  # (B, Hkv): what one of the sums of the kernel stands for


def quantise(query: Tensor, key: Tensor, value: Tensor, keys: int) -> Quantised:
    """In blocks of 64 queries and of ``keys`` keys. Tensors are ``(B, H, L, W)``; computed in float32."""
    rotation = rotated(query.shape[-1], query.device)
    query8, query_scales = in_blocks(query.float() @ rotation, QUERIES)
    key8, key_scales = in_blocks(key.float() @ rotation, keys)
    value8, value_scales = in_blocks(value.float(), keys)
    B, H, L, W = value.shape
    padded = torch.zeros((B, H, -(-L // keys) * keys, W), dtype=value8.dtype, device=value.device)
    padded[:, :, :L] = value8
    turned = padded[:, :, order(padded.shape[2], value.device)].mT.contiguous()
    whole = value_scales.amax(-1)
    shares = value_scales / whole[..., None] * WEIGHT
    return Quantised(query8, key8, turned, query_scales, key_scales, shares, whole / WEIGHT)


def in_blocks(x: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """``(float8, scales)``: ``x`` is about the first times the scale of its block of ``rows``."""
    L = x.shape[2]
    padded = torch.nn.functional.pad(x, (0, 0, 0, -L % rows))
    blocks = padded.reshape(*x.shape[:2], -1, rows, x.shape[3])
    scales = (blocks.abs().amax((3, 4)) / MOST).clamp(min=torch.finfo(torch.float32).tiny)
    numbers = (blocks / scales[..., None, None]).to(torch.float8_e4m3fn)
    return numbers.flatten(2, 3)[:, :, :L].contiguous(), scales


@lru_cache(maxsize=16)
def rotated(width: int, device: torch.device) -> Tensor:
    """``(width, next power of two)``: rows of an orthogonal matrix, signs by a fixed seed; ``q @ r @ (k @ r).T`` is
    ``q @ k.T``."""
    size = 1 << (width - 1).bit_length()
    matrix = torch.ones((1, 1), dtype=torch.float32, device="cpu")
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    signs = torch.randint(0, 2, (width, 1), generator=torch.Generator().manual_seed(0), device="cpu").float() * 2 - 1
    return (signs * matrix[:width] / math.sqrt(size)).to(device)


def order(length: int, device: torch.device) -> Tensor:
    """Which key stands in each place of the kernel's values, for whole groups of 32.

    A thread has the weights of the columns ``8 (2 h + e) + 2 q + f`` in the places where a product of 8-bit numbers
    looks for ``16 h + 4 q + 2 e + f``. A sum does not mind the order of its terms, so the values move, not the weights.
    """
    place = torch.arange(length, device=device).reshape(-1, 2, 2, 4, 2)
    return place.permute(0, 1, 3, 2, 4).flatten()
