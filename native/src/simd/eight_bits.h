// Elements of 8 bits, and their conversion to stored elements, which is exact: of int8 from -127 to 127 and of float8
// (e4m3fn and e5m2), every number fits into every stored type.
#pragma once

#include "../../include/limelight.h"
#include "elements.h"

namespace limelight::LL_NAMESPACE {
namespace {

typedef float SingleVec __attribute__((vector_size(4 * LANES)));
typedef int32_t SingleInt __attribute__((vector_size(4 * LANES)));
typedef uint8_t ByteVec __attribute__((vector_size(LANES)));
typedef int8_t SignedByteVec __attribute__((vector_size(LANES)));
template <>
struct Anywhere<ByteVec> {
    typedef ByteVec Type __attribute__((aligned(1), may_alias));
};

// As floats. The bits of a float8 are those of a float, shifted, but for the bias of the exponent: a product with a
// power of two makes up for it, and gives subnormal numbers too.
LL_INLINE SingleVec widen_bytes(int64_t kind, ByteVec bytes) {
    if (kind == LL_INT8) {
#if defined(LL_AVX512) && !defined(LL_OF_FLOAT64)
        return (SingleVec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32((__m128i)bytes));
#else
        return __builtin_convertvector(__builtin_convertvector((SignedByteVec)bytes, SingleInt), SingleVec);
#endif
    }
#if defined(LL_AVX512) && !defined(LL_OF_FLOAT64)
    UintVec bits = (UintVec)_mm512_cvtepu8_epi32((__m128i)bytes);
#else
    UintVec bits = __builtin_convertvector(bytes, UintVec);
#endif
    UintVec size = bits & 0x7f, sign = (bits & 0x80) << 24;
    bool e4m3 = kind == LL_FLOAT8_E4M3;
    SingleVec value = bit_cast<SingleVec>(size << (e4m3 ? 20 : 21)) * (e4m3 ? 0x1p120f : 0x1p112f);
    UintVec special = e4m3 ? size == 0x7f : size >= 0x7c,
            nonfinite = e4m3 ? broadcast_uint(0x7fc00000) : (size & 3) << 21 | 0x7f800000;
    UintVec found = special != 0 ? nonfinite : bit_cast<UintVec>(value);
    return bit_cast<SingleVec>(found | sign);
}

LL_INLINE void store_single(Stored* to, SingleVec v) {
#if defined(LL_OF_FLOAT64)
    store(to, __builtin_convertvector(v, Vec));
#elif defined(LL_OF_BFLOAT16)
    store(to, __builtin_convertvector(bit_cast<UintVec>(v) >> 16, HalfVec));
#elif defined(LL_OF_FLOAT16)
    store(to, narrow(v));
#else
    store(to, v);
#endif
}

#if defined(LL_PAIRS)

// bfloat16 by the 7 bits of the size: a permutation of bytes looks up 64 numbers at a time.
struct ByteTable {
    alignas(64) uint8_t low[128], high[128];
};
constexpr ByteTable byte_table(int64_t kind) {
    ByteTable table{};
    for (unsigned n = 0; n < 128; ++n) {
        float value = 0;
        unsigned exponent = kind == LL_FLOAT8_E4M3 ? n >> 3 : n >> 2, digits = kind == LL_FLOAT8_E4M3 ? 3 : 2;
        int bias = kind == LL_FLOAT8_E4M3 ? 7 : 15;
        if (kind == LL_INT8) value = (float)n;
        else {
            unsigned fraction = n & ((1u << digits) - 1);
            value = (float)(exponent ? fraction + (1u << digits) : fraction);
            for (int power = (int)(exponent ? exponent : 1) - bias - (int)digits; power != 0;
                 power += power < 0 ? 1 : -1)
                value *= power < 0 ? 0.5f : 2.0f;
        }
        uint32_t bits = __builtin_bit_cast(uint32_t, value) >> 16;
        if (kind == LL_FLOAT8_E4M3 && n == 127) bits = 0x7fc0;
        if (kind == LL_FLOAT8_E5M2 && n >= 124) bits = 0x7f80 | (n & 3) << 5;
        table.low[n] = (uint8_t)bits, table.high[n] = (uint8_t)(bits >> 8);
    }
    return table;
}
constexpr ByteTable BYTE_TABLES[LL_EIGHT_BITS] = {byte_table(LL_INT8), byte_table(LL_FLOAT8_E4M3),
                                                  byte_table(LL_FLOAT8_E5M2)};

// Rows of bytes as elements, one after the other in `to`.
inline __attribute__((noinline)) void read_bytes(int64_t kind, const uint8_t* from, int64_t stride, int rows,
                                                 int64_t width, Stored* to) {
    const ByteTable& table = BYTE_TABLES[kind];
    __m512i low_first = _mm512_load_si512(table.low), low_second = _mm512_load_si512(table.low + 64);
    __m512i high_first = _mm512_load_si512(table.high), high_second = _mm512_load_si512(table.high + 64);
    const __m512i order = _mm512_set_epi64(7, 3, 6, 2, 5, 1, 4, 0), signs = _mm512_set1_epi8((char)0x80);
    auto widen = [&](__m512i bytes, __m512i& first, __m512i& second) __attribute__((always_inline)) {
        bytes = _mm512_permutexvar_epi64(order, bytes);
        __m512i size = kind == LL_INT8 ? _mm512_abs_epi8(bytes) : bytes;
        __m512i low = _mm512_permutex2var_epi8(low_first, size, low_second);
        __m512i high = _mm512_permutex2var_epi8(high_first, size, high_second);
        high = _mm512_ternarylogic_epi32(high, bytes, signs, 0xf8);  // high | (bytes & signs)
        first = _mm512_unpacklo_epi8(low, high), second = _mm512_unpackhi_epi8(low, high);
    };
    for (int j = 0; j < rows; ++j, from += stride, to += width) {
        __m512i first, second;
        int64_t d = 0;
        for (; d + 64 <= width; d += 64) {
            widen(_mm512_loadu_si512(from + d), first, second);
            _mm512_storeu_si512(to + d, first), _mm512_storeu_si512(to + d + 32, second);
        }
        if (d == width) continue;
        __mmask64 there = ((__mmask64)1 << (width - d)) - 1;
        widen(_mm512_maskz_loadu_epi8(there, from + d), first, second);
        _mm512_mask_storeu_epi16(to + d, (__mmask32)there, first);
        if (width - d > 32) _mm512_mask_storeu_epi16(to + d + 32, (__mmask32)(there >> 32), second);
    }
}

#else

// Rows of bytes as elements, one after the other in `to`.
inline __attribute__((noinline)) void read_bytes(int64_t kind, const uint8_t* from, int64_t stride, int rows,
                                                 int64_t width, Stored* to) {
    for (int j = 0; j < rows; ++j, from += stride, to += width)
        for (int64_t d = 0; d < width; d += LANES) {
            ByteVec bytes{};
            int64_t count = min<int64_t>(LANES, width - d);
            if (count == LANES) bytes = load<ByteVec>(from + d);
            else
                for (int64_t x = 0; x < count; ++x) bytes[x] = from[d + x];
            Stored widened[LANES];
            store_single(count == LANES ? to + d : widened, widen_bytes(kind, bytes));
            for (int64_t x = 0; count < LANES && x < count; ++x) to[d + x] = widened[x];
        }
}

#endif

}  // namespace
}  // namespace limelight::LL_NAMESPACE
