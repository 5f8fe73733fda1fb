// Keys and values of int8 in decoding, where the instruction set adds products of two pairs of 16-bit integers
// (LL_PAIRS, not on Intel's cores): queries and weights are rounded to 16 bits, relative to the largest of a query, and
// of a row's weights in a unit of keys. That is closer than bfloat16, sums are exact, and it takes as long as bfloat16.
#pragma once

#include "../../simd/vector.h"
#include "../pages.h"
#include "panels.h"
#include "pieces.h"

namespace limelight::LL_NAMESPACE {
namespace {

#if defined(LL_PAIRS) && !defined(LL_AMX)

constexpr bool HAS_INTEGERS = true;
LL_INLINE __m512i read_integers(const int8_t* from, int64_t count) {
    return _mm512_cvtepi8_epi16(_mm256_maskz_loadu_epi8(count >= PIECE ? ~0u : (1u << count) - 1, from));
}
constexpr Float INTEGER_MAX = 32767, INTEGER_LEAST = 0x1p-110f;  // smaller numbers count as zero
// Rounded to integers of 16 bits, in pairs: those of `first`, then those of `second`.
LL_INLINE UintVec pair_integers(Vec first, Vec second) {
    __m256i low = _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32((__m512)first));
    __m256i high = _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32((__m512)second));
    return (UintVec)_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}
struct IntegerKeys {
    typedef int8_t Element;
    typedef Factor Query;
    typedef IntVec Sum;
    static constexpr int PARTS = 1;
    struct Piece {
        UintVec part[1];
    };
    static LL_INLINE Piece read(const int8_t* from, int64_t count) { return {{(UintVec)read_integers(from, count)}}; }
};

// A query as integers of 16 bits, in place; returns their scale. One that is not finite stays; the scale is NaN.
inline Float round_query(Float* row, int64_t columns) {
    Float largest = 0, finite = 0, most = min<Float>(INTEGER_MAX, (Float)(0x7fffffff / 128 / columns));
    for (int64_t d = 0; d < columns; ++d) {
        largest = max(largest, row[d] < 0 ? -row[d] : row[d]);
        finite += row[d] - row[d];
    }
    if (finite != 0) return finite;
    Vec by = broadcast(largest > INTEGER_LEAST ? most / largest : 0);
    for (int64_t d = 0; d < columns; d += PIECE)
        store(row + d / 2, pair_integers(load<Vec>(row + d) * by, load<Vec>(row + d + LANES) * by));
    return largest / most;
}

// Values of int8 are multiplied by weights of 16 bits, relative to the largest of their row in the unit.
class IntegerWeights {
    alignas(64) Factor pairs[MAX_ROWS][UNIT / 2];
    Float shares[MAX_ROWS];

public:
    IntegerWeights(const Float* from, int rows, int keys) {
        for (int r = 0; r < rows; ++r) {
            Vec first = load_partial(from + r * SCORE_ROW, min(keys, LANES));
            Vec second = keys > LANES ? load_partial(from + r * SCORE_ROW + LANES, keys - LANES) : Vec{};
            Float largest = reduce_max(max(max(first, -first), max(second, -second)));
            shares[r] = largest / INTEGER_MAX + (reduce_add(first - first) + reduce_add(second - second));  // NaN stays
            Vec by = broadcast(largest > INTEGER_LEAST ? INTEGER_MAX / largest : 0);
            store(pairs[r], pair_integers(first * by, second * by));
        }
    }
    LL_INLINE UintVec of(int row, int key) const { return pairs[row][key / 2] - UintVec{}; }
    LL_INLINE Float share(int row) const { return shares[row]; }
};

struct IntegerValues {
    typedef int8_t Element;
    typedef IntegerWeights Factors;
    struct Sums {
        IntVec part[PIECE_PARTS];
    };
    struct Pairs {
        UintVec part[PIECE_PARTS];
    };
    static constexpr int STEP = 2;
    static LL_INLINE Pairs read(const int8_t* from, const int8_t* next, int64_t count) {
        __m512i even = read_integers(from, count), odd = read_integers(next, count);
        return {{(UintVec)_mm512_unpacklo_epi16(even, odd), (UintVec)_mm512_unpackhi_epi16(even, odd)}};
    }
    static LL_INLINE Piece floats(const Sums& sums, const IntegerWeights& weights, int row) {
        Vec share = broadcast(weights.share(row));
        return {{__builtin_convertvector(sums.part[0], Vec) * share,
                 __builtin_convertvector(sums.part[PIECE_PARTS - 1], Vec) * share}};
    }
    static LL_INLINE IntVec lane(IntVec n) { return ((n >> 3) << 2) + (n & 3) + ((n >> 2) & 1) * LANES; }
};

#else

constexpr bool HAS_INTEGERS = false;
typedef StoredKeys IntegerKeys;
typedef StoredValues IntegerValues;
inline Float round_query(Float*, int64_t) { return 1; }

#endif

}  // namespace
}  // namespace limelight::LL_NAMESPACE
