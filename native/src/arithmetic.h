// Elementary functions on vectors: exact where the promises need it (-inf -> 0, NaN -> NaN), within 2 ulp elsewhere.

constexpr float LOG2_E = 1.44269504088896341f;
constexpr double LN_2 = 0.693147180559945309;

// 2^x for x below 127. -inf gives exactly 0, NaN gives NaN; results below 2^-126 may become 0.
LL_INLINE Floats exp2_of(Floats x) {
    // Adding 1.5 * 2^23 rounds to an integer n; the extra 127 leaves n's biased exponent in the low bits.
    constexpr float MAGIC = 12582912.0f + 127.0f;
    x = larger(spread(-127.0f), x);
    Floats shifted = x + MAGIC;
    Floats f = x - (shifted - MAGIC);  // in [-1/2, 1/2]
    Floats power = bits_as<Floats>(bits_as<Ints>(shifted) << 23);  // 2^n; n = -127 gives 0
    // Minimax for the relative error, with an exact 1 at f = 0 (a maximum that did not move must scale by exactly 1).
    // Estrin's order: half as long a chain of dependent operations as Horner's.
    Floats square = f * f;
    Floats low = multiply_add(spread(0x1.62e430p-1f), f, spread(1.0f));
    Floats middle = multiply_add(spread(0x1.c6aee8p-5f), f, spread(0x1.ebfbdcp-3f));
    Floats high = multiply_add(spread(0x1.5f3e54p-10f), f, spread(0x1.3b2d4cp-7f));
    high = multiply_add(spread(0x1.41fbbcp-13f), square, high);
    Floats y = multiply_add(multiply_add(high, square, middle), square, low);
    return y * power;
}

// tanh: an odd polynomial near zero (Cephes), 1 - 2 / (e^2|x| + 1) elsewhere.
LL_INLINE Floats tanh_of(Floats x) {
    Floats size = bits_as<Floats>(bits_as<Ints>(x) & 0x7fffffff);
    Floats square = x * x;
    Floats y = spread(-5.70498872745e-3f);
    y = multiply_add(y, square, spread(2.06390887954e-2f));
    y = multiply_add(y, square, spread(-5.37397155531e-2f));
    y = multiply_add(y, square, spread(1.33314422036e-1f));
    y = multiply_add(y, square, spread(-3.33332819422e-1f));
    Floats near = multiply_add(y * square, x, x);
    Floats bounded = size > 10.0f ? spread(10.0f) : size;  // NaN stays; tanh(10) rounds to 1
    Floats far = 1.0f - 2.0f / (exp2_of(bounded * (2.0f * LOG2_E)) + 1.0f);
    far = x < 0.0f ? -far : far;
    return size < 0.625f ? near : far;
}

// Philox4x32-10 (Salmon et al. 2011) of the counter (group, query position, head, row), one counter per lane.
struct PhiloxWords { Words word[4]; };

LL_INLINE void wide_product(Words a, uint32_t b, Words& high, Words& low) {
    typedef uint64_t Longs __attribute__((vector_size(8 * LANES)));
    Longs product = __builtin_convertvector(a, Longs) * (uint64_t)b;
    high = __builtin_convertvector(product >> 32, Words);
    low = a * b;
}

LL_INLINE PhiloxWords philox(Words c0, Words c1, Words c2, Words c3, uint64_t seed) {
    uint32_t key0 = (uint32_t)seed, key1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < 10; ++round) {
        Words high0, low0, high1, low1;
        wide_product(c0, 0xD2511F53u, high0, low0);
        wide_product(c2, 0xCD9E8D57u, high1, low1);
        Words next0 = high1 ^ c1 ^ key0, next2 = high0 ^ c3 ^ key1;
        c0 = next0, c1 = low1, c2 = next2, c3 = low0;
        key0 += 0x9E3779B9u, key1 += 0xBB67AE85u;
    }
    return {{c0, c1, c2, c3}};
}
