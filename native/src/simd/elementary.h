// Elementary functions on vectors. exp2 maps -inf to exactly 0 and NaN to NaN; errors are within 2 ulp.
#pragma once

#include "vector.h"

namespace limelight::LL_NAMESPACE {
namespace {

constexpr double EXACT_LOG2_E = 1.44269504088896340736;
constexpr Float LOG2_E = (Float)EXACT_LOG2_E;
constexpr double LN_2 = 0.693147180559945309;

#if defined(LL_OF_FLOAT64)

constexpr int MANTISSA = 52, EXPONENT_BIAS = 1023;

// 2^f for f in [-1/2, 1/2]: ln(2)^k / k! * f^k up to k = 13, within 1e-17; exactly 1 at f = 0.
LL_INLINE Vec exp2_reduced(Vec f) {
    constexpr double TERMS[] = {
        0x1.816193166d0f7p-40, 0x1.c3bd650fc2983p-36, 0x1.e8cac7351bb22p-32, 0x1.e4cf5158b8ec7p-28,
        0x1.b5253d395e7c1p-24, 0x1.62c0223a5c822p-20, 0x1.ffcbfc588b0c5p-17, 0x1.430912f86c786p-13,
        0x1.5d87fe78a6730p-10, 0x1.3b2ab6fba4e77p-7,  0x1.c6b08d704a0bfp-5,  0x1.ebfbdff82c58ep-3,
        0x1.62e42fefa39efp-1,
    };
    Vec y = broadcast(TERMS[0]);
    for (int k = 1; k < 13; ++k) y = multiply_add(y, f, broadcast(TERMS[k]));
    return multiply_add(y, f, broadcast(1.0));
}

#else

constexpr int MANTISSA = 23, EXPONENT_BIAS = 127;

// 2^f for f in [-1/2, 1/2]: minimax for the relative error, and exactly 1 at f = 0 (a maximum that did not change must
// scale by exactly 1). Estrin's scheme: its chain of dependent operations is half as long as Horner's.
LL_INLINE Vec exp2_reduced(Vec f) {
    Vec square = f * f;
    Vec low = multiply_add(broadcast(0x1.62e430p-1f), f, broadcast(1.0f));
    Vec middle = multiply_add(broadcast(0x1.c6aee8p-5f), f, broadcast(0x1.ebfbdcp-3f));
    Vec high = multiply_add(broadcast(0x1.5f3e54p-10f), f, broadcast(0x1.3b2d4cp-7f));
    high = multiply_add(broadcast(0x1.41fbbcp-13f), square, high);
    return multiply_add(multiply_add(high, square, middle), square, low);
}

#endif

// Adding it rounds to an integer n and leaves n's biased exponent in the low bits.
[[maybe_unused]] constexpr Float ROUNDING_CONSTANT =
    (Float)1.5 * (Float)((int64_t)1 << MANTISSA) + (Float)EXPONENT_BIAS;

// 2^x for x below the largest exponent. -inf gives exactly 0, NaN gives NaN; subnormal results may become 0.
LL_INLINE Vec exp2(Vec x) {
#if defined(LL_AVX512)  // two instructions split and scale; the results equal those of the code below
#if defined(LL_OF_FLOAT64)
    Vec f = (Vec)_mm512_reduce_pd((__m512d)x, _MM_FROUND_TO_NEAREST_INT);
    return (Vec)_mm512_scalef_pd((__m512d)exp2_reduced(f), (__m512d)(x - f));
#else
    Vec f = (Vec)_mm512_reduce_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT);
    return (Vec)_mm512_scalef_ps((__m512)exp2_reduced(f), (__m512)(x - f));
#endif
#else
    x = max(broadcast(-(Float)EXPONENT_BIAS), x);
    Vec shifted = x + ROUNDING_CONSTANT;
    Vec f = x - (shifted - ROUNDING_CONSTANT);                         // in [-1/2, 1/2]
    Vec power = bit_cast<Vec>(bit_cast<IntVec>(shifted) << MANTISSA);  // 2^n; the smallest n gives 0
    return exp2_reduced(f) * power;
#endif
}

// An attention weight: 2^x for x below the largest exponent, to be computed under FlushSubnormals; -inf gives exactly
// 0, NaN gives NaN. 2^f for f in [0, 1) is minimax for the relative error and exactly 1 at f = 0: within 1.1 ulp, and
// within a relative 1e-7 where weights are rounded to bfloat16. No other scheme than Horner's is faster: the processor
// overlaps the chains of several weights.
LL_INLINE Vec exp2_weight(Vec x) {
#if defined(LL_OF_FLOAT64)
    return exp2(x);
#else
#if defined(LL_AVX512)
    Vec f = x - (Vec)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEG_INF);  // (_mm512_reduce_ps would round f)
#else
    x = max(broadcast(-(Float)EXPONENT_BIAS), x);
#if defined(LL_AVX2)
    Vec down = (Vec)_mm256_floor_ps((__m256)x), shifted = down + ROUNDING_CONSTANT, f = x - down;
#else
    Vec shifted = x + ROUNDING_CONSTANT;
    shifted = shifted - ROUNDING_CONSTANT > x ? shifted - 1 : shifted;  // round down
    Vec f = x - (shifted - ROUNDING_CONSTANT);
#endif
#endif
#if defined(LL_PAIRS)
    Vec y = multiply_add(broadcast(0x1.e97508p-10f), f, broadcast(0x1.277852p-7f));
    y = multiply_add(y, f, broadcast(0x1.c91ce6p-5f));
    y = multiply_add(y, f, broadcast(0x1.ebdb56p-3f));
    y = multiply_add(y, f, broadcast(0x1.62e4bap-1f));
#else
    Vec y = multiply_add(broadcast(0x1.c54174p-13f), f, broadcast(0x1.46d64ep-10f));
    y = multiply_add(y, f, broadcast(0x1.3d0b92p-7f));
    y = multiply_add(y, f, broadcast(0x1.c68912p-5f));
    y = multiply_add(y, f, broadcast(0x1.ebfd58p-3f));
    y = multiply_add(y, f, broadcast(0x1.62e42cp-1f));
#endif
    y = multiply_add(y, f, broadcast(1.0f));
#if defined(LL_AVX512)
    return (Vec)_mm512_scalef_ps((__m512)y, (__m512)x);
#else
    return y * bit_cast<Vec>(bit_cast<IntVec>(shifted) << MANTISSA);
#endif
#endif
}

// tanh for |x| < 0.625: x + x^3 * (the polynomials of Cephes).
LL_INLINE Vec tanh_near_zero(Vec x) {
    Vec square = x * x;
#if defined(LL_OF_FLOAT64)
    Vec above = multiply_add(broadcast(-9.64399179425052238628e-1), square, broadcast(-9.92877231001918586564e1));
    above = multiply_add(above, square, broadcast(-1.61468768441708447952e3));
    Vec below = multiply_add(square + 1.12811678491632931402e2, square, broadcast(2.23548839060100448583e3));
    below = multiply_add(below, square, broadcast(4.84406305325125486048e3));
    return multiply_add(above / below * square, x, x);
#else
    Vec y = broadcast(-5.70498872745e-3f);
    y = multiply_add(y, square, broadcast(2.06390887954e-2f));
    y = multiply_add(y, square, broadcast(-5.37397155531e-2f));
    y = multiply_add(y, square, broadcast(1.33314422036e-1f));
    y = multiply_add(y, square, broadcast(-3.33332819422e-1f));
    return multiply_add(y * square, x, x);
#endif
}

// tanh: as above near zero, 1 - 2 / (e^2|x| + 1) elsewhere.
LL_INLINE Vec tanh(Vec x) {
    constexpr Float ONE_FROM = sizeof(Float) == 8 ? 20 : 10;  // from here on tanh rounds to 1
    Vec size = x < 0 ? -x : x;
    Vec bounded = size > ONE_FROM ? broadcast(ONE_FROM) : size;  // keeps NaN
    Vec far = 1 - 2 / (exp2(bounded * (2 * LOG2_E)) + 1);
    far = x < 0 ? -far : far;
    return size < (Float)0.625 ? tanh_near_zero(x) : far;
}

}  // namespace
}  // namespace limelight::LL_NAMESPACE
