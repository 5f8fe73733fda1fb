// Vectors of LANES floats, and of integers as wide, in the compiler's own vector types.
#pragma once

#include "../target.h"

namespace limelight::LL_NAMESPACE {
namespace {

typedef Float Vec __attribute__((vector_size(VECTOR_BYTES)));
typedef Int IntVec __attribute__((vector_size(VECTOR_BYTES)));
typedef uint32_t UintVec __attribute__((vector_size(4 * LANES)));  // 32 bits in each lane
typedef uint16_t HalfVec __attribute__((vector_size(2 * LANES)));  // 16 bits in each lane

constexpr Float INF = (Float)__builtin_inf();

// Unaligned loads and stores. (Through memcpy, GCC 12 spills stored accumulators to the stack.)
template <class V>
struct Anywhere {
    typedef V Type __attribute__((aligned(2), may_alias));
};

template <class V>
LL_INLINE V load(const void* from) {
    return *(const typename Anywhere<V>::Type*)from;
}

template <class V>
LL_INLINE void store(void* to, V v) {
    *(typename Anywhere<V>::Type*)to = v;
}

// A non-temporal store where the address is aligned: the cache line is not read before it is written. For results that
// are too large to stay in a cache until they are read. `end_streams` is the fence before another thread reads them.
LL_INLINE void stream(Float* to, Vec v) {
#if defined(LL_AVX512)
    if ((uintptr_t)to % VECTOR_BYTES == 0) return _mm512_stream_si512((__m512i*)to, (__m512i)v);
#endif
    store(to, v);
}
LL_INLINE void end_streams() {
#if defined(LL_AVX512)
    _mm_sfence();
#endif
}

LL_INLINE Vec broadcast(Float x) { return x - Vec{}; }  // x - 0, not 0 + x: keeps -0, and folds to one broadcast
LL_INLINE IntVec broadcast_int(Int x) { return x - IntVec{}; }
LL_INLINE UintVec broadcast_uint(uint32_t x) { return x - UintVec{}; }

template <class To, class From>
LL_INLINE To bit_cast(From v) {
    To to;
    static_assert(sizeof to == sizeof v);
    __builtin_memcpy(&to, &v, sizeof v);
    return to;
}

LL_INLINE IntVec iota() {
    IntVec v{};
    for (int i = 0; i < LANES; ++i) v[i] = i;
    return v;
}

// Lane i of the result is lane[i] of `v`, or of the concatenation of `a` and `b`.
LL_INLINE Vec shuffle(Vec a, Vec b, IntVec lane) {
#if defined(__clang__)
    Vec v{};
    for (int i = 0; i < LANES; ++i) v[i] = lane[i] < LANES ? a[lane[i]] : b[lane[i] - LANES];
    return v;
#else
    return __builtin_shuffle(a, b, lane);
#endif
}
LL_INLINE Vec shuffle(Vec v, IntVec lane) {
#if defined(__clang__)
    return shuffle(v, v, lane);
#else
    return __builtin_shuffle(v, lane);
#endif
}

// a * b + c, rounded once where the instruction set has a fused multiply-add.
LL_INLINE Vec multiply_add(Vec a, Vec b, Vec c) {
#if defined(LL_AVX512) && defined(LL_OF_FLOAT64)
    return (Vec)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(LL_AVX512)
    return (Vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(LL_AVX2) && defined(LL_OF_FLOAT64)
    return (Vec)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#elif defined(LL_AVX2)
    return (Vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(LL_NEON) && defined(LL_OF_FLOAT64)
    return (Vec)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
#elif defined(LL_NEON)
    return (Vec)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#elif defined(LL_WIDE)
    struct Pair {
        __m256 low, high;
    };
    auto x = bit_cast<Pair>(a), y = bit_cast<Pair>(b), z = bit_cast<Pair>(c);
    return bit_cast<Vec>(Pair{_mm256_fmadd_ps(x.low, y.low, z.low), _mm256_fmadd_ps(x.high, y.high, z.high)});
#else
    return a * b + c;
#endif
}

// The maximum of each lane; where either is NaN, the lane of `b`.
LL_INLINE Vec max(Vec a, Vec b) {
#if defined(LL_AVX512) && !defined(LL_OF_FLOAT64)
    return (Vec)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(LL_AVX2) && !defined(LL_OF_FLOAT64)
    return (Vec)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return a > b ? a : b;
#endif
}

LL_INLINE bool any(IntVec mask) {
#if defined(LL_AVX512)
    return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif defined(LL_AVX2)
    return _mm256_movemask_ps((__m256)mask) != 0;
#else
    Int found = 0;
    for (int i = 0; i < LANES; ++i) found |= mask[i];
    return found != 0;
#endif
}

// Whether a > b in any lane.
LL_INLINE bool any_greater(Vec a, Vec b) {
#if defined(LL_AVX512) && defined(LL_OF_FLOAT64)
    return _mm512_cmp_pd_mask((__m512d)a, (__m512d)b, _CMP_GT_OQ) != 0;
#elif defined(LL_AVX512)
    return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GT_OQ) != 0;
#else
    return any(a > b);
#endif
}

// Transposes LANES vectors: lane j of vector i becomes lane i of vector j.
LL_INLINE void transpose(Vec* rows) {
    IntVec lane = iota();
#pragma GCC unroll 8
    for (int step = 1; step < LANES; step *= 2) {
        IntVec lower = (lane & step) == 0;  // lanes that stay in the first of the two rows
        IntVec first = lower ? lane : lane + (LANES - step), second = lower ? lane + step : lane + LANES;
#pragma GCC unroll 16
        for (int i = 0; i < LANES; ++i)
            if (!(i & step)) {
                Vec a = rows[i], b = rows[i + step];
                rows[i] = shuffle(a, b, first), rows[i + step] = shuffle(a, b, second);
            }
    }
}

// The sum of all lanes. The upper half is added to the lower half, and so on: the same order for every instruction set.
LL_INLINE Float reduce_add(Vec v) {
#if (defined(LL_AVX512) || defined(LL_AVX2)) && !defined(LL_OF_FLOAT64)
#if defined(LL_AVX512)
    __m256 eight = _mm256_add_ps(_mm512_extractf32x8_ps((__m512)v, 0), _mm512_extractf32x8_ps((__m512)v, 1));
#else
    __m256 eight = (__m256)v;
#endif
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
#else
    Float sums[LANES];
    store(sums, v);
    for (int width = LANES / 2; width >= 1; width /= 2)
        for (int i = 0; i < width; ++i) sums[i] += sums[i + width];
    return sums[0];
#endif
}

// The maximum of all lanes; NaN may be lost, as in max().
LL_INLINE Float reduce_max(Vec v) {
#pragma GCC unroll 4
    for (int step = LANES / 2; step >= 1; step /= 2) v = max(v, shuffle(v, iota() ^ step));
    return v[0];
}

// During its lifetime, results below the smallest normal number are flushed to zero: an operation on a subnormal number
// costs some hundred cycles.
struct FlushSubnormals {
#if defined(__SSE2__)
    unsigned before = __builtin_ia32_stmxcsr();
    FlushSubnormals() { __builtin_ia32_ldmxcsr(before | 0x8000u); }
    ~FlushSubnormals() { __builtin_ia32_ldmxcsr(before); }
#else
    FlushSubnormals() {}
#endif
    FlushSubnormals(const FlushSubnormals&) = delete;
};

template <class T>
LL_INLINE T min(T a, T b) {
    return b < a ? b : a;
}
template <class T>
LL_INLINE T max(T a, T b) {
    return a < b ? b : a;
}
template <class T>
LL_INLINE T clamp(T x, T low, T high) {
    return min(max(x, low), high);
}

// The last index in [0, count) for which holds(index) is true, by bisection: true for index 0, and false for all after
// the last one.
template <class F>
LL_INLINE int64_t index_of_last(int64_t count, F holds) {
    int64_t low = 0, high = count - 1;
    while (low < high) {
        int64_t middle = (low + high + 1) / 2;
        if (holds(middle)) low = middle;
        else high = middle - 1;
    }
    return low;
}

LL_INLINE int64_t floor_div(int64_t a, int64_t b) { return a / b - ((a % b != 0) && ((a < 0) != (b < 0))); }
LL_INLINE int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

}  // namespace
}  // namespace limelight::LL_NAMESPACE
