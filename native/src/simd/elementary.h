// Elementary functions on vectors: exact where the promises need it (-inf -> 0, NaN -> NaN), within 2 ulp elsewhere.
#pragma once

#include "vector.h"

namespace limelight::LL_NAMESPACE {
namespace {

constexpr double EXACT_LOG2_E = 1.44269504088896340736;
constexpr Number LOG2_E = (Number)EXACT_LOG2_E;
constexpr double LN_2 = 0.693147180559945309;

#if defined(LL_OF_FLOAT64)

constexpr int MANTISSA = 52, EXPONENT_BIAS = 1023;

// 2^f for f in [-1/2, 1/2]: ln(2)^k / k! * f^k up to k = 13, within 1e-17; exactly 1 at f = 0.
LL_INLINE Numbers exp2_near_zero(Numbers f) {
    constexpr double TERMS[] = {
        0x1.816193166d0f7p-40, 0x1.c3bd650fc2983p-36, 0x1.e8cac7351bb22p-32, 0x1.e4cf5158b8ec7p-28,
        0x1.b5253d395e7c1p-24, 0x1.62c0223a5c822p-20, 0x1.ffcbfc588b0c5p-17, 0x1.430912f86c786p-13,
        0x1.5d87fe78a6730p-10, 0x1.3b2ab6fba4e77p-7,  0x1.c6b08d704a0bfp-5,  0x1.ebfbdff82c58ep-3,
        0x1.62e42fefa39efp-1,
    };
    Numbers y = spread(TERMS[0]);
    for (int k = 1; k < 13; ++k) y = multiply_add(y, f, spread(TERMS[k]));
    return multiply_add(y, f, spread(1.0));
}

#else

constexpr int MANTISSA = 23, EXPONENT_BIAS = 127;

// 2^f for f in [-1/2, 1/2]: minimax for the relative error, with an exact 1 at f = 0 (a maximum that did not move must
// scale by exactly 1). Estrin's order: half as long a chain of dependent operations as Horner's.
LL_INLINE Numbers exp2_near_zero(Numbers f) {
    Numbers square = f * f;
    Numbers low = multiply_add(spread(0x1.62e430p-1f), f, spread(1.0f));
    Numbers middle = multiply_add(spread(0x1.c6aee8p-5f), f, spread(0x1.ebfbdcp-3f));
    Numbers high = multiply_add(spread(0x1.5f3e54p-10f), f, spread(0x1.3b2d4cp-7f));
    high = multiply_add(spread(0x1.41fbbcp-13f), square, high);
    return multiply_add(multiply_add(high, square, middle), square, low);
}

#endif

// Adding it rounds to an integer n, and leaves n's biased exponent in the low bits.
[[maybe_unused]] constexpr Number MAGIC = (Number)1.5 * (Number)((int64_t)1 << MANTISSA) + (Number)EXPONENT_BIAS;

// 2^x for x below the largest exponent. -inf gives exactly 0, NaN gives NaN; subnormal results may become 0.
LL_INLINE Numbers exp2_of(Numbers x) {
#if defined(LL_AVX512)  // two instructions do the splitting and the scaling; the bits are those of the steps below
#if defined(LL_OF_FLOAT64)
    Numbers f = (Numbers)_mm512_reduce_pd((__m512d)x, _MM_FROUND_TO_NEAREST_INT);
    return (Numbers)_mm512_scalef_pd((__m512d)exp2_near_zero(f), (__m512d)(x - f));
#else
    Numbers f = (Numbers)_mm512_reduce_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT);
    return (Numbers)_mm512_scalef_ps((__m512)exp2_near_zero(f), (__m512)(x - f));
#endif
#else
    x = larger(spread(-(Number)EXPONENT_BIAS), x);
    Numbers shifted = x + MAGIC;
    Numbers f = x - (shifted - MAGIC);                                     // in [-1/2, 1/2]
    Numbers power = bits_as<Numbers>(bits_as<Ints>(shifted) << MANTISSA);  // 2^n; the least n gives 0
    return exp2_near_zero(f) * power;
#endif
}

// A weight: 2^x for x below the largest exponent, to be computed under FlushSubnormals; -inf gives exactly 0, NaN gives NaN.
// 2^f for f in [0, 1), minimax for the relative error, exactly 1 at f = 0: within 1.1 ulp, and within 1e-7 of itself where
// weights are multiplied as bfloat16. No order of the terms is quicker: the machine overlaps the chains of several weights.
LL_INLINE Numbers weight_of(Numbers x) {
#if defined(LL_OF_FLOAT64)
    return exp2_of(x);
#else
#if defined(LL_AVX512)
    Numbers f = x - (Numbers)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEG_INF);  // (`reduce` would round f down)
#else
    x = larger(spread(-(Number)EXPONENT_BIAS), x);
    Numbers shifted = x + MAGIC;
    shifted = shifted - MAGIC > x ? shifted - 1 : shifted;  // rounded down
    Numbers f = x - (shifted - MAGIC);
#endif
#if defined(LL_PAIRS)
    Numbers y = multiply_add(spread(0x1.e97508p-10f), f, spread(0x1.277852p-7f));
    y = multiply_add(y, f, spread(0x1.c91ce6p-5f));
    y = multiply_add(y, f, spread(0x1.ebdb56p-3f));
    y = multiply_add(y, f, spread(0x1.62e4bap-1f));
#else
    Numbers y = multiply_add(spread(0x1.c54174p-13f), f, spread(0x1.46d64ep-10f));
    y = multiply_add(y, f, spread(0x1.3d0b92p-7f));
    y = multiply_add(y, f, spread(0x1.c68912p-5f));
    y = multiply_add(y, f, spread(0x1.ebfd58p-3f));
    y = multiply_add(y, f, spread(0x1.62e42cp-1f));
#endif
    y = multiply_add(y, f, spread(1.0f));
#if defined(LL_AVX512)
    return (Numbers)_mm512_scalef_ps((__m512)y, (__m512)x);
#else
    return y * bits_as<Numbers>(bits_as<Ints>(shifted) << MANTISSA);
#endif
#endif
}

// tanh near zero, x + x^3 * (polynomials of Cephes).
LL_INLINE Numbers tanh_near_zero(Numbers x) {
    Numbers square = x * x;
#if defined(LL_OF_FLOAT64)
    Numbers above = multiply_add(spread(-9.64399179425052238628e-1), square, spread(-9.92877231001918586564e1));
    above = multiply_add(above, square, spread(-1.61468768441708447952e3));
    Numbers below = multiply_add(square + 1.12811678491632931402e2, square, spread(2.23548839060100448583e3));
    below = multiply_add(below, square, spread(4.84406305325125486048e3));
    return multiply_add(above / below * square, x, x);
#else
    Numbers y = spread(-5.70498872745e-3f);
    y = multiply_add(y, square, spread(2.06390887954e-2f));
    y = multiply_add(y, square, spread(-5.37397155531e-2f));
    y = multiply_add(y, square, spread(1.33314422036e-1f));
    y = multiply_add(y, square, spread(-3.33332819422e-1f));
    return multiply_add(y * square, x, x);
#endif
}

// tanh: as above near zero, 1 - 2 / (e^2|x| + 1) elsewhere.
LL_INLINE Numbers tanh_of(Numbers x) {
    constexpr Number ONE_FROM = sizeof(Number) == 8 ? 20 : 10;  // tanh of it rounds to 1
    Numbers size = x < 0 ? -x : x;
    Numbers bounded = size > ONE_FROM ? spread(ONE_FROM) : size;  // NaN stays
    Numbers far = 1 - 2 / (exp2_of(bounded * (2 * LOG2_E)) + 1);
    far = x < 0 ? -far : far;
    return size < (Number)0.625 ? tanh_near_zero(x) : far;
}

}  // namespace
}  // namespace limelight::LL_NAMESPACE
