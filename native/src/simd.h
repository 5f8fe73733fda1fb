// Vectors of float32 and of 32-bit integers, LANES wide, in the compiler's own vector types.
// Everything below compiles once per instruction set inside a namespace of its own (see kernel.cpp).
#define LL_INLINE inline __attribute__((always_inline))

#if defined(LL_AVX512) || defined(LL_WIDE)
constexpr int LANES = 16;
#elif defined(LL_AVX2)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));

constexpr float INFINITE = __builtin_inff();

// Unaligned loads and stores. (Through memcpy GCC 12 passes stored accumulators by way of the stack.)
template <class V>
struct Anywhere {
    typedef V Type __attribute__((aligned(4), may_alias));
};

template <class V>
LL_INLINE V load(const void* from) { return *(const typename Anywhere<V>::Type*)from; }

template <class V>
LL_INLINE void store(void* to, V v) { *(typename Anywhere<V>::Type*)to = v; }

LL_INLINE Floats spread(float x) { return x - Floats{}; }  // x - 0, not 0 + x: keeps -0, and folds to one broadcast
LL_INLINE Ints spread(int32_t x) { return x - Ints{}; }
LL_INLINE Words spread(uint32_t x) { return x - Words{}; }

template <class To, class From>
LL_INLINE To bits_as(From v) {
    To to;
    static_assert(sizeof to == sizeof v);
    __builtin_memcpy(&to, &v, sizeof v);
    return to;
}

LL_INLINE Ints iota() {
    Ints v{};
    for (int i = 0; i < LANES; ++i) v[i] = i;
    return v;
}

// a * b + c, rounded once where the instruction set can.
LL_INLINE Floats multiply_add(Floats a, Floats b, Floats c) {
#if defined(LL_AVX512)
    return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(LL_AVX2)
    return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(LL_WIDE)
    struct Halves { __m256 low, high; };
    auto x = bits_as<Halves>(a), y = bits_as<Halves>(b), z = bits_as<Halves>(c);
    return bits_as<Floats>(Halves{_mm256_fmadd_ps(x.low, y.low, z.low), _mm256_fmadd_ps(x.high, y.high, z.high)});
#else
    return a * b + c;
#endif
}

// The larger of two; when either is NaN, the second.
LL_INLINE Floats larger(Floats a, Floats b) {
#if defined(LL_AVX512)
    return (Floats)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(LL_AVX2)
    return (Floats)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return a > b ? a : b;
#endif
}

LL_INLINE bool any(Ints mask) {
#if defined(LL_AVX512)
    return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif defined(LL_AVX2)
    return _mm256_movemask_ps((__m256)mask) != 0;
#else
    int32_t found = 0;
    for (int i = 0; i < LANES; ++i) found |= mask[i];
    return found != 0;
#endif
}

LL_INLINE float sum_of_lanes(Floats v) {
    float sums[LANES];
    store(sums, v);
    for (int width = LANES / 2; width >= 1; width /= 2)
        for (int i = 0; i < width; ++i) sums[i] += sums[i + width];
    return sums[0];
}

template <class T>
LL_INLINE T least(T a, T b) { return b < a ? b : a; }
template <class T>
LL_INLINE T most(T a, T b) { return a < b ? b : a; }
template <class T>
LL_INLINE T clamp(T x, T low, T high) { return least(most(x, low), high); }

LL_INLINE int64_t floor_div(int64_t a, int64_t b) { return a / b - ((a % b != 0) && ((a < 0) != (b < 0))); }
LL_INLINE int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }
