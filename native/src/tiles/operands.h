// Operands in the layouts that the products read.
//
//   packed    [panel][step][PANEL_QUERIES]   the queries of a tile, along the lanes
//   left      [row][step]                    rows whose elements are broadcast (keys); in place where possible
//   right     [step][columns]                rows read as vectors (values); in place where possible; with pairs, two
//                                            rows are interleaved
//   weights   down: [step over keys][query]; across: [key][step over queries]
#pragma once

#include "../simd/elements.h"
#include "../simd/vector.h"
#include "shapes.h"

namespace limelight::LL_NAMESPACE {
namespace {

// One factor in each lane, of the floats of an even and an odd step (the odd one is unused when factors are floats).
LL_INLINE FactorVec fold(Vec even, Vec odd) {
#if defined(LL_PAIRS)
    __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)odd, (__m512)even);  // 16 of even steps, then 16 of odd steps
    const __m512i interleave = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22,
                                                6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return (UintVec)_mm512_permutexvar_epi16(interleave, both);
#else
    (void)odd;
    return even;
#endif
}

// Packs rows of a tile for the score product, times `factor`; missing rows and steps are zero. (Vectors without any row
// are not written: the product does not read them.)
inline void pack(const Stored* from, int64_t stride, int count, int64_t width, Float factor, Factor* packed) {
    alignas(64) Float rows[LANES][64];
    int64_t steps = steps_along(width);
    for (int first = 0; first < count; first += LANES) {
        Factor* to = packed + first / PANEL_QUERIES * steps * PANEL_QUERIES + first % PANEL_QUERIES;
        for (int64_t d = folded(width); d < steps; ++d) store(to + d * PANEL_QUERIES, FactorVec{});
        for (int64_t d = 0; d < width; d += 64) {  // 64 elements of LANES rows, then transposed
            int64_t length = min<int64_t>(64, width - d), padded = round_up(length, LANES);
            for (int i = 0; i < LANES; ++i) {
                if (first + i < count) read_row(from + (first + i) * stride + d, length, rows[i], padded);
                else
                    for (int64_t x = 0; x < padded; ++x) rows[i][x] = 0;
            }
            for (int64_t x = 0; x < padded; x += LANES) {
                Vec square[LANES];
                for (int i = 0; i < LANES; ++i) square[i] = load<Vec>(rows[i] + x);
                transpose(square);
                for (int64_t k = 0; k < min<int64_t>(LANES, length - x); k += FOLD)
                    store(to + (d + x + k) / FOLD * PANEL_QUERIES,
                          fold(square[k] * factor, square[k + FOLD - 1] * factor));
            }
        }
    }
}

// Whether every element of a row is finite.
inline bool finite_row(const Stored* from, int64_t count) {
#if defined(LL_OF_BFLOAT16) || defined(LL_OF_FLOAT16)
#if defined(LL_OF_BFLOAT16)
    constexpr uint16_t EXPONENT = 0x7f80;  // the exponent of infinity and NaN
#else
    constexpr uint16_t EXPONENT = 0x7c00;
#endif
    typedef int16_t Flags __attribute__((vector_size(2 * LANES)));
    Flags bad{};
    int64_t d = 0;
    for (; d + LANES <= count; d += LANES) bad |= (load<HalfVec>(from + d) & EXPONENT) == EXPONENT;
    bool rest = false;
    for (; d < count; ++d) rest |= (from[d] & EXPONENT) == EXPONENT;
    return !rest && !any(__builtin_convertvector(bad, IntVec));
#else
    Vec bad{};
    int64_t d = 0;
    for (; d + LANES <= count; d += LANES) {
        Vec x = load<Vec>(from + d);
        bad += x - x;
    }
    Float rest = 0;
    for (; d < count; ++d) rest += from[d] - from[d];
    return reduce_add(bad) + rest == 0;
#endif
}

// `count` rows as the right operand; rows j with skip[j] (if not null) are zero, and so are columns beyond the width,
// and rows that only complete a factor.
inline void fold_rows(const Stored* from, int64_t stride, int64_t count, int64_t width, int64_t columns,
                      const uint8_t* skip, Factor* to) {
#if defined(LL_PAIRS)
    if (BLOCK_STEP > 2) __builtin_memset(to, 0, sizeof(Factor) * (size_t)(QUERIES / 2 * columns));  // whole tiles
    for (int64_t j = 0; j < count; j += 2, to += columns) {
        const Stored* even = skip && skip[j] ? nullptr : from + j * stride;
        const Stored* odd = j + 1 >= count || (skip && skip[j + 1]) ? nullptr : from + (j + 1) * stride;
        int64_t c = 0;
        if (even && odd)
            for (; c + LANES <= width; c += LANES)
                store(to + c, __builtin_convertvector(load<HalfVec>(even + c), UintVec) |
                                  __builtin_convertvector(load<HalfVec>(odd + c), UintVec) << 16);
        for (; c < columns; ++c) to[c] = c >= width ? 0 : (even ? even[c] : 0u) | (odd ? (uint32_t)odd[c] : 0u) << 16;
    }
#else
    for (int64_t j = 0; j < count; ++j)
        read_row(from + j * stride, skip && skip[j] ? 0 : width, to + j * columns, columns);
#endif
}

// A row as the left operand.
inline void left_row(const Stored* from, int64_t width, Factor* to) {
#if defined(LL_PAIRS)
    for (int64_t d = 0; d < 2 * steps_along(width); d += 2)
        to[d / 2] = (d < width ? from[d] : 0u) | (d + 1 < width ? (uint32_t)from[d + 1] : 0u) << 16;
#else
    read_row(from, width, to, width);
#endif
}

// weights[key][query] as factors along the keys: [folded(keys)][QUERIES], zeros up to whole tiles. In place when
// factors are floats.
LL_INLINE const Factor* fold_down(const Float* weights, int keys, int queries, Factor* to) {
#if defined(LL_PAIRS)
    for (int j = 0; j < round_up(keys, BLOCK_STEP); j += 2)
        for (int i = 0; i < queries; i += LANES) {
            Vec even = j < keys ? load<Vec>(weights + j * QUERIES + i) : Vec{};
            Vec odd = j + 1 < keys ? load<Vec>(weights + (j + 1) * QUERIES + i) : Vec{};
            store(to + j / 2 * QUERIES + i, fold(even, odd));
        }
    return to;
#else
    (void)keys, (void)queries, (void)to;
    return weights;
#endif
}

// weights[key][query] as factors along the queries: [keys][QUERIES / FOLD], zeros up to whole tiles. Lanes beyond the
// queries must be zero.
LL_INLINE const Factor* fold_across(const Float* weights, int keys, Factor* room) {
#if defined(LL_PAIRS)
    for (int j = 0; j < keys; ++j)
        for (int i = 0; i + 2 * LANES <= QUERIES; i += 2 * LANES) {
            Vec low = load<Vec>(weights + j * QUERIES + i), high = load<Vec>(weights + j * QUERIES + i + LANES);
            store(room + (j * QUERIES + i) / 2, (UintVec)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low));
        }
    if (QUERIES % (2 * LANES))  // half a vector of factors remains
        for (int j = 0; j < keys; ++j) {
            const Float* last = weights + (j + 1) * QUERIES - LANES;
            store(room + (j + 1) * (QUERIES / 2) - LANES / 2, (HalfVec)_mm512_cvtneps_pbh((__m512)load<Vec>(last)));
        }
    if (BLOCK_STEP > 2)
        __builtin_memset(room + keys * (QUERIES / 2), 0,
                         sizeof(Factor) * (size_t)((round_up(keys, 16) - keys) * (QUERIES / 2)));
    return room;
#else
    (void)keys, (void)room;
    return weights;
#endif
}

// The keys or values of a whole call in the layout that a product reads: in place, or converted once
// (attention/conversion.h).
struct Operand {
    const Factor* data = nullptr;
    int64_t batch_stride = 0, head_stride = 0,
            stride = 0;              // in factors; stride: per row, or per BLOCK_STEP rows
    const int64_t* shift = nullptr;  // of a right operand: for each segment, from a key to its row; null: none
    bool paged = false;              // read in pages (attention/pages.h): b is a page then, and n a place in it
    LL_INLINE const Factor* row(int64_t b, int64_t h, int64_t n) const {
        return data + b * batch_stride + h * head_stride + n * stride;
    }
    LL_INLINE const Factor* step(int64_t b, int64_t h, int64_t segment, int64_t key) const {
        return row(b, h, (key + (BLOCK_STEP > 1 && shift ? shift[segment] : 0)) / BLOCK_STEP);
    }
};

}  // namespace
}  // namespace limelight::LL_NAMESPACE
