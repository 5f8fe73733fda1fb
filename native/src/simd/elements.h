// Elements in memory, read and written as floats. Rounding is to nearest, ties to even; NaN stays NaN.
#pragma once

#include "vector.h"

namespace limelight::LL_NAMESPACE {
namespace {

#if defined(LL_OF_BFLOAT16)

LL_INLINE Vec widen(HalfVec v) {
#if defined(LL_AVX512)
    UintVec bits = (UintVec)_mm512_cvtepu16_epi32((__m256i)v);  // GCC 12 would emit four instructions
#else
    UintVec bits = __builtin_convertvector(v, UintVec);
#endif
    return bit_cast<Vec>(bits << 16);
}

LL_INLINE HalfVec narrow(Vec v) {
    UintVec bits = bit_cast<UintVec>(v);
    UintVec rounded = (bits + (((bits >> 16) & 1) + 0x7fff)) >> 16;
    UintVec quiet = (bits >> 16) | 0x40;  // rounding must not carry a NaN into an infinity
    return __builtin_convertvector(v != v ? quiet : rounded, HalfVec);
}

LL_INLINE Float read(const Stored* from) { return bit_cast<Float>((uint32_t)*from << 16); }

#elif defined(LL_OF_FLOAT16)

LL_INLINE Vec widen(HalfVec v) {
#if defined(LL_AVX512)
    return (Vec)_mm512_cvtph_ps((__m256i)v);
#elif defined(LL_AVX2)
    return (Vec)_mm256_cvtph_ps((__m128i)v);
#elif defined(LL_NEON)
    return (Vec)vcvt_f32_f16((float16x4_t)v);
#else
    UintVec h = __builtin_convertvector(v, UintVec);
    Vec size = bit_cast<Vec>((h & 0x7fff) << 13) * 0x1p112f;  // right below 2^16, subnormal or not
    UintVec special = (h & 0x7c00) == 0x7c00 ? broadcast_uint(0x7f800000) : UintVec{};
    return bit_cast<Vec>(bit_cast<UintVec>(size) | special | (h & 0x8000) << 16);
#endif
}

LL_INLINE HalfVec narrow(Vec v) {
#if defined(LL_AVX512)
    return (HalfVec)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(LL_AVX2)
    return (HalfVec)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT);
#elif defined(LL_NEON)
    return (HalfVec)vcvt_f16_f32((float32x4_t)v);
#else
    UintVec bits = bit_cast<UintVec>(v), sign = bits & 0x80000000u;
    bits ^= sign;
    UintVec normal =
        (bits + 0xc8000fff + ((bits >> 13) & 1)) >> 13;  // the exponent less 112, and half a unit in the last place
    // Below 2^-14: adding 1/2 leaves the rounded subnormal number in the low bits.
    UintVec small = bit_cast<UintVec>(bit_cast<Vec>(bits) + 0.5f) - 0x3f000000u;
    UintVec half = bits < 0x38800000u ? small : normal;
    half = bits >= 0x477ff000u ? broadcast_uint(0x7c00) : half;            // rounds to 2^16 or beyond: infinity
    half = bits > 0x7f800000u ? 0x7e00u | ((bits >> 13) & 0x3ffu) : half;  // NaN
    return __builtin_convertvector(half | sign >> 16, HalfVec);
#endif
}

LL_INLINE Float read(const Stored* from) {
    HalfVec v{};
    v[0] = *from;
    return widen(v)[0];
}

#else

LL_INLINE Float read(const Stored* from) { return *from; }

#endif

constexpr bool CONVERTED = sizeof(Stored) != sizeof(Float);

// (A memcpy of unknown size becomes a loop over eight bytes, which keeps few cache lines in flight.)
LL_INLINE void copy_floats(const Float* from, int64_t count, Float* to) {
    int64_t d = 0;
    for (; d + LANES <= count; d += LANES) store(to + d, load<Vec>(from + d));
    for (; d < count; ++d) to[d] = from[d];
}

// Reads `count` elements; `capacity` floats are written, zeros beyond the elements.
LL_INLINE void read_row(const Stored* from, int64_t count, Float* to, int64_t capacity) {
    int64_t d = 0;
    if constexpr (CONVERTED) {
#if defined(LL_OF_BFLOAT16) || defined(LL_OF_FLOAT16)
        for (; d + LANES <= count; d += LANES) store(to + d, widen(load<HalfVec>(from + d)));
        for (; d < count; ++d) to[d] = read(from + d);
#endif
    } else {
        copy_floats((const Float*)from, count, to);
        d = count;
    }
    for (; d < capacity; ++d) to[d] = 0;
}

// A vector of elements. read_partial: the first `count` of them, zeros beyond.
LL_INLINE Vec read_vector(const Stored* from) {
#if defined(LL_OF_BFLOAT16) || defined(LL_OF_FLOAT16)
    return widen(load<HalfVec>(from));
#else
    return load<Vec>(from);
#endif
}

LL_INLINE Vec read_partial(const Stored* from, int64_t count) {
    if (count >= LANES) return read_vector(from);
#if defined(LL_AVX512)
    unsigned there = (1u << count) - 1;
#if defined(LL_OF_FLOAT64)
    return (Vec)_mm512_maskz_loadu_pd((__mmask8)there, from);
#elif defined(LL_OF_BFLOAT16) || defined(LL_OF_FLOAT16)
    return widen((HalfVec)_mm256_maskz_loadu_epi16((__mmask16)there, from));
#else
    return (Vec)_mm512_maskz_loadu_ps((__mmask16)there, from);
#endif
#else
    alignas(64) Float partial[LANES];
    read_row(from, count, partial, LANES);
    return load<Vec>(partial);
#endif
}

// The first `count` floats of a vector, zeros beyond.
LL_INLINE Vec load_partial(const Float* from, int64_t count) {
    if (count >= LANES) return load<Vec>(from);
    Vec partial{};
    for (int64_t x = 0; x < count; ++x) partial[x] = from[x];
    return partial;
}

LL_INLINE void write_row(const Float* from, int64_t count, Stored* to) {
    if constexpr (CONVERTED) {
#if defined(LL_OF_BFLOAT16) || defined(LL_OF_FLOAT16)
        int64_t d = 0;
        for (; d + LANES <= count; d += LANES) store(to + d, narrow(load<Vec>(from + d)));
        if (d == count) return;
        Vec last{};
        for (int64_t x = d; x < count; ++x) last[x - d] = from[x];
        HalfVec rounded = narrow(last);
        for (int64_t x = d; x < count; ++x) to[x] = rounded[x - d];
#endif
    } else copy_floats(from, count, (Float*)to);
}

// write_row with non-temporal stores where elements are floats.
LL_INLINE void stream_row(const Float* from, int64_t count, Stored* to) {
    int64_t d = 0;
    if constexpr (!CONVERTED)
        for (; d + LANES <= count; d += LANES) stream((Float*)to + d, load<Vec>(from + d));
    write_row(from + d, count - d, to + d);
}

}  // namespace
}  // namespace limelight::LL_NAMESPACE
