// Tile sizes, and the type of a product's operands.
//
// A *factor* is what one step of a product multiplies: a float, or a pair of bfloat16 elements where the instruction
// set has a dot product of pairs (LL_PAIRS). FOLD is the number of elements in a factor.
#pragma once

#include "../simd/vector.h"

namespace limelight::LL_NAMESPACE {
namespace {

#if defined(LL_AMX)
constexpr int QUERIES = 64;  // queries of a tile
#else
constexpr int QUERIES = 48;
#endif
constexpr int BLOCK_KEYS = 128;  // keys of a block, at most
constexpr int MAP_SIDE = 64;     // side of a tile of the mask's bit map
#if defined(LL_AMX)
constexpr int BLOCK_STEP = 32;
#elif defined(LL_PAIRS)
constexpr int BLOCK_STEP = 2;  // every block of keys begins at a multiple
#else
constexpr int BLOCK_STEP = 1;
#endif

#if defined(LL_PAIRS)
typedef uint32_t Factor;
typedef UintVec FactorVec;
constexpr int FOLD = 2;  // elements of a factor
LL_INLINE Vec multiply_add(UintVec a, UintVec b, Vec c) {
    return (Vec)_mm512_dpbf16_ps((__m512)c, (__m512bh)a, (__m512bh)b);
}
#else
typedef Float Factor;
typedef Vec FactorVec;
constexpr int FOLD = 1;
#endif

// Whether rows of elements can be left and right operands (tiles/operands.h) as they lie in memory; and whether also in
// pages: not on AMX tiles, which write the scores of 16 keys at a time, while a page may end after any key.
constexpr bool LEFT_IN_PLACE = sizeof(Factor) == FOLD * sizeof(Stored),
               RIGHT_IN_PLACE = sizeof(Factor) == sizeof(Stored);
constexpr bool PAGES_IN_PLACE = LEFT_IN_PLACE && BLOCK_STEP <= 2;

template <class F>
struct VectorOf;
template <>
struct VectorOf<Float> {
    typedef Vec Type;
    static constexpr int VALUES = 1;
};
template <>
struct VectorOf<uint32_t> {
    typedef UintVec Type;
    static constexpr int VALUES = 2;
};
LL_INLINE Vec broadcast_factor(Float x) { return broadcast(x); }
LL_INLINE UintVec broadcast_factor(uint32_t x) { return broadcast_uint(x); }

LL_INLINE int64_t folded(int64_t count) { return (count + FOLD - 1) / FOLD; }

// Factors along the width of a row.
#if defined(LL_AMX)
constexpr int TILE = 16;  // rows, and factors of a row, of a tile register
LL_INLINE int64_t steps_along(int64_t width) { return round_up(folded(width), TILE); }
#else
LL_INLINE int64_t steps_along(int64_t width) { return folded(width); }
#endif

#if defined(LL_AVX512) || defined(LL_NEON) || defined(LL_WIDE)
constexpr int PANEL_KEYS = 8;     // keys x vectors of queries: 24 accumulators of 32 registers
constexpr int VALUE_VECTORS = 4;  // 6 rows x 4 vectors of columns
#else
constexpr int PANEL_KEYS = 4;     // 12 accumulators of 16 registers
constexpr int VALUE_VECTORS = 2;  // 6 rows x 2 vectors of columns
#endif
constexpr int PANEL_VECTORS = QUERIES / LANES % 3 == 0 ? 3 : 4;
constexpr int MAX_PANEL_KEYS = 2 * PANEL_KEYS;  // beside one vector of queries
constexpr int PANEL_QUERIES = PANEL_VECTORS * LANES;
constexpr int VALUE_ROWS = 6;
static_assert(QUERIES % PANEL_QUERIES == 0);

constexpr int MAX_QUERIES = 16;  // of a document that is computed by decode()

}  // namespace
}  // namespace limelight::LL_NAMESPACE
