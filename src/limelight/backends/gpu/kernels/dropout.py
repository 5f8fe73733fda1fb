"""Random bits of dropout: Philox4x32-10 of (key position // 4, query position, head, row)."""

import triton
import triton.language as tl


@triton.jit
def seed_of(seed):
    """The seed as an int64; it is an integer argument, or in memory on the device."""
    return tl.load(seed) if seed.dtype.is_ptr() else seed.to(tl.int64)


@triton.jit
def _wide_product(a, B: tl.constexpr):
    product = a.to(tl.uint64) * B
    return (product >> 32).to(tl.uint32), product.to(tl.uint32)


@triton.jit
def philox(c0, c1, c2, c3, seed):
    """Four 32-bit words for each counter."""
    k0 = seed.to(tl.uint32)
    k1 = (seed >> 32).to(tl.uint32)
    for _ in tl.static_range(10):
        high0, low0 = _wide_product(c0, 0xD2511F53)
        high1, low1 = _wide_product(c2, 0xCD9E8D57)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0 = (k0.to(tl.uint64) + 0x9E3779B9).to(tl.uint32)
        k1 = (k1.to(tl.uint64) + 0xBB67AE85).to(tl.uint32)
    return c0, c1, c2, c3


@triton.jit
def kept(threshold, seed, row, head, query_position, key_position):
    """Whether each weight of a tile is kept; dropped when its word is below ``threshold``."""
    group = key_position >> 2
    zeros = group * 0 + query_position * 0
    w0, w1, w2, w3 = philox(
        (group + zeros).to(tl.uint32), (query_position + zeros).to(tl.uint32), (head + zeros).to(tl.uint32),
        (row + zeros).to(tl.uint32), seed,
    )  # fmt: skip
    place = key_position & 3
    word = tl.where(place < 2, tl.where(place == 0, w0, w1), tl.where(place == 2, w2, w3))
    return word.to(tl.int64) >= threshold
