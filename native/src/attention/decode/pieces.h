// Elements as they lie in memory, one vector register of them (a *piece*) at a time.
#pragma once

#include "../../simd/elements.h"
#include "../../simd/vector.h"
#include "../../tiles/shapes.h"

namespace limelight::LL_NAMESPACE {
namespace {

// A register holds two bfloat16 elements in each lane: part 0 has those of even, part 1 those of odd indices.
#if defined(LL_OF_BFLOAT16)
constexpr int PIECE_PARTS = 2;
#else
constexpr int PIECE_PARTS = 1;
#endif
constexpr int PIECE = PIECE_PARTS * LANES;  // elements
struct Piece {
    Vec part[PIECE_PARTS];
};

#if defined(LL_OF_BFLOAT16)
LL_INLINE Piece piece_of(UintVec both) { return {{bit_cast<Vec>(both << 16), bit_cast<Vec>(both & 0xffff0000u)}}; }
#endif

LL_INLINE Piece read_piece(const Stored* from) {
#if defined(LL_OF_BFLOAT16)
    return piece_of(load<UintVec>(from));
#else
    return {{read_vector(from)}};
#endif
}

// The first `count` elements of a piece, zeros beyond.
LL_INLINE Piece read_partial_piece(const Stored* from, int64_t count) {
    if (count >= PIECE) return read_piece(from);
#if defined(LL_OF_BFLOAT16) && defined(LL_AVX512)
    return piece_of((UintVec)_mm512_maskz_loadu_epi16((1u << count) - 1, from));
#elif defined(LL_OF_BFLOAT16)
    alignas(64) Stored partial[PIECE] = {};
    for (int64_t x = 0; x < count; ++x) partial[x] = from[x];
    return read_piece(partial);
#else
    return {{read_partial(from, count)}};
#endif
}

// Keys are multiplied as bfloat16 pairs where the instruction set has them, but widened to float on Intel's cores
// (AMX), which are faster that way.
#if defined(LL_PAIRS) && !defined(LL_AMX)
constexpr int KEY_PARTS = 1;
typedef Factor KeyFloat;
struct KeyPiece {
    UintVec part[KEY_PARTS];
};
LL_INLINE KeyPiece read_key(const Stored* from, int64_t count) {
    if (count >= PIECE) return {{load<UintVec>(from)}};
    return {{(UintVec)_mm512_maskz_loadu_epi16((1u << count) - 1, from)}};
}
#else
constexpr int KEY_PARTS = PIECE_PARTS;
typedef Float KeyFloat;
typedef Piece KeyPiece;
LL_INLINE KeyPiece read_key(const Stored* from, int64_t count) { return read_partial_piece(from, count); }
#endif
constexpr int KEY_FLOATS = KEY_PARTS * LANES;  // floats or factors that hold a piece of a query

#if defined(LL_PAIRS) && !defined(LL_AMX)
// Of integers of 16 bits, see integers.h.
LL_INLINE IntVec multiply_add(UintVec a, UintVec b, IntVec c) {
    return (IntVec)_mm512_dpwssd_epi32((__m512i)c, (__m512i)a, (__m512i)b);
}
#endif

// How keys are read and multiplied: as stored elements.
struct StoredKeys {
    typedef Stored Element;
    typedef KeyFloat Query;
    typedef Vec Sum;
    static constexpr int PARTS = KEY_PARTS;
    static LL_INLINE KeyPiece read(const Stored* from, int64_t count) { return read_key(from, count); }
};

}  // namespace
}  // namespace limelight::LL_NAMESPACE
