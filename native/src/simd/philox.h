// The random numbers of dropout: a function of seed, batch row, head, query position and key position.
#pragma once

#include "vector.h"

namespace limelight::LL_NAMESPACE {
namespace {

// Philox4x32-10 (Salmon et al. 2011). Half of the lanes are computed at a time, each in the low half of a 64-bit lane,
// as the 32 x 32 -> 64 bit multiplication requires; the high halves are never read.
typedef uint64_t UlongVec __attribute__((vector_size(4 * LANES)));

constexpr uint32_t PHILOX_0 = 0xD2511F53u, PHILOX_2 = 0xCD9E8D57u, PHILOX_KEY_0 = 0x9E3779B9u,
                   PHILOX_KEY_1 = 0xBB67AE85u;

// The 64-bit products of the low halves.
LL_INLINE UlongVec low_product(UlongVec a, uint64_t b) {
    UlongVec factor = b - UlongVec{};
#if defined(LL_AVX512) && !defined(LL_OF_FLOAT64)
    return (UlongVec)_mm512_mul_epu32((__m512i)a, (__m512i)factor);
#elif defined(LL_AVX2) && !defined(LL_OF_FLOAT64)
    return (UlongVec)_mm256_mul_epu32((__m256i)a, (__m256i)factor);
#else
    return (a & 0xffffffffu) * factor;
#endif
}

// The four 32-bit outputs for the counters (group of four keys, query of the lane, head, row). `low` and `high` hold
// the queries of even and odd lanes. In the first three rounds most products do not depend on the lane, and are scalar.
struct Philox {
    UlongVec low, high;  // even lanes, odd lanes, after the multiplication of the second round
    uint32_t seed_0, seed_1, head_low, row;

    LL_INLINE Philox(UintVec queries, uint32_t head, uint32_t dropout_row, uint64_t seed)
        : seed_0((uint32_t)seed), seed_1((uint32_t)(seed >> 32)), row(dropout_row) {
        uint64_t product = (uint64_t)head * PHILOX_2;
        head_low = (uint32_t)product;
        UintVec first = queries ^ ((uint32_t)(product >> 32) ^ seed_0);
        low = low_product((UlongVec)first, PHILOX_0);
        high = low_product((UlongVec)first >> 32, PHILOX_0);
    }

    struct Half {
        UlongVec word[4];
    };

    LL_INLINE Half half(UlongVec second, uint32_t group) const {
        uint32_t key_0 = seed_0 + PHILOX_KEY_0, key_1 = seed_1 + PHILOX_KEY_1;
        uint64_t first = (uint64_t)group * PHILOX_0;
        uint64_t other = (uint64_t)((uint32_t)(first >> 32) ^ row ^ seed_1) * PHILOX_2;
        uint32_t c0 = (uint32_t)(other >> 32) ^ head_low ^ key_0, c1 = (uint32_t)other;
        UlongVec c2 = (second >> 32) ^ (uint64_t)((uint32_t)first ^ key_1), c3 = second;
        key_0 += PHILOX_KEY_0, key_1 += PHILOX_KEY_1;
        first = (uint64_t)c0 * PHILOX_0;
        UlongVec product = low_product(c2, PHILOX_2);
        UlongVec d0 = (product >> 32) ^ (uint64_t)(c1 ^ key_0), d1 = product;
        UlongVec d2 = c3 ^ (uint64_t)((uint32_t)(first >> 32) ^ key_1), d3 = (UlongVec{} + (uint64_t)(uint32_t)first);
#pragma GCC unroll 7
        for (int round = 3; round < 10; ++round) {
            key_0 += PHILOX_KEY_0, key_1 += PHILOX_KEY_1;
            UlongVec even = low_product(d0, PHILOX_0), odd = low_product(d2, PHILOX_2);
            d0 = (odd >> 32) ^ d1 ^ (uint64_t)key_0, d1 = odd;
            d2 = (even >> 32) ^ d3 ^ (uint64_t)key_1, d3 = even;
        }
        return {{d0, d1, d2, d3}};
    }

    // f(w, output w of each lane) for w = 0 to 3.
    template <class F>
    LL_INLINE void words(uint32_t group, F f) const {
        Half even = half(low, group), odd = half(high, group);
        for (int w = 0; w < 4; ++w) f(w, (UintVec)((even.word[w] & 0xffffffffu) | odd.word[w] << 32));
    }
};

}  // namespace
}  // namespace limelight::LL_NAMESPACE
