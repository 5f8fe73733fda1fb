// Elements as they lie in memory, read and written as numbers. Rounding is to the nearest, ties to even; NaN stays NaN.
#pragma once

#include "vector.h"

namespace limelight::LL_NAMESPACE {
namespace {

#if defined(LL_OF_BFLOAT16)

LL_INLINE Numbers widen(Halves v) {
#if defined(LL_AVX512)
    Words bits = (Words)_mm512_cvtepu16_epi32((__m256i)v);  // GCC 12 would take four steps
#else
    Words bits = __builtin_convertvector(v, Words);
#endif
    return bits_as<Numbers>(bits << 16);
}

LL_INLINE Halves narrow(Numbers v) {
    Words bits = bits_as<Words>(v);
    Words rounded = (bits + (((bits >> 16) & 1) + 0x7fff)) >> 16;
    Words quiet = (bits >> 16) | 0x40;  // rounding must not carry a NaN into an infinity
    return __builtin_convertvector(v != v ? quiet : rounded, Halves);
}

LL_INLINE Number read(const Stored* from) { return bits_as<Number>((uint32_t)*from << 16); }

#elif defined(LL_OF_FLOAT16)

LL_INLINE Numbers widen(Halves v) {
#if defined(LL_AVX512)
    return (Numbers)_mm512_cvtph_ps((__m256i)v);
#elif defined(LL_AVX2)
    return (Numbers)_mm256_cvtph_ps((__m128i)v);
#elif defined(LL_NEON)
    return (Numbers)vcvt_f32_f16((float16x4_t)v);
#else
    Words h = __builtin_convertvector(v, Words);
    Numbers size = bits_as<Numbers>((h & 0x7fff) << 13) * 0x1p112f;  // right for what is below 2^16, subnormal or not
    Words special = (h & 0x7c00) == 0x7c00 ? spread_word(0x7f800000) : Words{};
    return bits_as<Numbers>(bits_as<Words>(size) | special | (h & 0x8000) << 16);
#endif
}

LL_INLINE Halves narrow(Numbers v) {
#if defined(LL_AVX512)
    return (Halves)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(LL_AVX2)
    return (Halves)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT);
#elif defined(LL_NEON)
    return (Halves)vcvt_f16_f32((float32x4_t)v);
#else
    Words bits = bits_as<Words>(v), sign = bits & 0x80000000u;
    bits ^= sign;
    Words normal = (bits + 0xc8000fff + ((bits >> 13) & 1)) >> 13;  // the exponent moved by 112, and half a step
    // Below 2^-14: the addition of 1/2 leaves the rounded subnormal in the low bits.
    Words small = bits_as<Words>(bits_as<Numbers>(bits) + 0.5f) - 0x3f000000u;
    Words half = bits < 0x38800000u ? small : normal;
    half = bits >= 0x477ff000u ? spread_word(0x7c00) : half;               // rounds to 2^16 or beyond: infinity
    half = bits > 0x7f800000u ? 0x7e00u | ((bits >> 13) & 0x3ffu) : half;  // NaN
    return __builtin_convertvector(half | sign >> 16, Halves);
#endif
}

LL_INLINE Number read(const Stored* from) {
    Halves v{};
    v[0] = *from;
    return widen(v)[0];
}

#else

LL_INLINE Number read(const Stored* from) { return *from; }

#endif

constexpr bool CONVERTED = sizeof(Stored) != sizeof(Number);

// (A memcpy of an unknown size becomes a loop over eight bytes, which keeps few lines of memory on their way.)
LL_INLINE void copy_numbers(const Number* from, int64_t count, Number* to) {
    int64_t d = 0;
    for (; d + LANES <= count; d += LANES) store(to + d, load<Numbers>(from + d));
    for (; d < count; ++d) to[d] = from[d];
}

// `count` elements as numbers; `room` numbers are written, zeros beyond the elements.
LL_INLINE void read_row(const Stored* from, int64_t count, Number* to, int64_t room) {
    int64_t d = 0;
    if constexpr (CONVERTED) {
#if defined(LL_OF_BFLOAT16) || defined(LL_OF_FLOAT16)
        for (; d + LANES <= count; d += LANES) store(to + d, widen(load<Halves>(from + d)));
        for (; d < count; ++d) to[d] = read(from + d);
#endif
    } else {
        copy_numbers((const Number*)from, count, to);
        d = count;
    }
    for (; d < room; ++d) to[d] = 0;
}

// A vector of elements as numbers; the last one of a row may have fewer.
LL_INLINE Numbers read_vector(const Stored* from) {
#if defined(LL_OF_BFLOAT16) || defined(LL_OF_FLOAT16)
    return widen(load<Halves>(from));
#else
    return load<Numbers>(from);
#endif
}

LL_INLINE Numbers read_some(const Stored* from, int64_t count) {
    if (count >= LANES) return read_vector(from);
#if defined(LL_AVX512)
    unsigned there = (1u << count) - 1;
#if defined(LL_OF_FLOAT64)
    return (Numbers)_mm512_maskz_loadu_pd((__mmask8)there, from);
#elif defined(LL_OF_BFLOAT16) || defined(LL_OF_FLOAT16)
    return widen((Halves)_mm256_maskz_loadu_epi16((__mmask16)there, from));
#else
    return (Numbers)_mm512_maskz_loadu_ps((__mmask16)there, from);
#endif
#else
    alignas(64) Number some[LANES];
    read_row(from, count, some, LANES);
    return load<Numbers>(some);
#endif
}

// The same of numbers.
LL_INLINE Numbers load_some(const Number* from, int64_t count) {
    if (count >= LANES) return load<Numbers>(from);
    Numbers some{};
    for (int64_t x = 0; x < count; ++x) some[x] = from[x];
    return some;
}

LL_INLINE void write_row(const Number* from, int64_t count, Stored* to) {
    if constexpr (CONVERTED) {
#if defined(LL_OF_BFLOAT16) || defined(LL_OF_FLOAT16)
        int64_t d = 0;
        for (; d + LANES <= count; d += LANES) store(to + d, narrow(load<Numbers>(from + d)));
        if (d == count) return;
        Numbers last{};
        for (int64_t x = d; x < count; ++x) last[x - d] = from[x];
        Halves rounded = narrow(last);
        for (int64_t x = d; x < count; ++x) to[x] = rounded[x - d];
#endif
    } else copy_numbers(from, count, (Number*)to);
}

// The same past the caches.
LL_INLINE void stream_row(const Number* from, int64_t count, Stored* to) {
    int64_t d = 0;
    if constexpr (!CONVERTED)
        for (; d + LANES <= count; d += LANES) stream((Number*)to + d, load<Numbers>(from + d));
    write_row(from + d, count - d, to + d);
}

}  // namespace
}  // namespace limelight::LL_NAMESPACE
