// The sums of a tile: over keys for each query (the output, dQ), and over queries for each key (dK, dV).
//
// On AMX tiles the sums over keys are stored transposed, [column][query], because the weights can be only the right
// operand there; rows of V (or K) are the left one: of 32 keys, [16 columns][16 pairs] for each 16 columns.
#pragma once

#include "../simd/vector.h"
#include "amx.h"
#include "operands.h"
#include "reach.h"
#include "register_tile.h"
#include "shapes.h"

namespace limelight::LL_NAMESPACE {
namespace {

#if defined(LL_AMX)

LL_INLINE int64_t sum_index(int i, int64_t c, int64_t) { return c * QUERIES + i; }

// The size, in factors, of BLOCK_STEP packed rows.
LL_INLINE int64_t packed_stride(int64_t columns) { return columns * TILE; }

inline void pack_rows(const Stored* from, int64_t stride, int64_t count, int64_t width, int64_t columns,
                      const uint8_t* skip, Factor* to) {
    for (int64_t first = 0; first < count; first += BLOCK_STEP, to += packed_stride(columns)) {
        alignas(64) Factor pairs[TILE][TILE];
        for (int64_t c = 0; c < columns; c += TILE) {
            for (int64_t p = 0; p < TILE; ++p) {
                int64_t j = first + 2 * p, valid = min<int64_t>(TILE, width - c);
                const Stored *even = from + j * stride + c, *odd = even + stride;
                bool has_even = j < count && !(skip && skip[j]), has_odd = j + 1 < count && !(skip && skip[j + 1]);
                if (has_even && has_odd && valid == TILE)
                    store(pairs[p], __builtin_convertvector(load<HalfVec>(even), UintVec) |
                                        __builtin_convertvector(load<HalfVec>(odd), UintVec) << 16);
                else
                    for (int64_t x = 0; x < TILE; ++x)
                        pairs[p][x] =
                            x >= valid ? 0 : (has_even ? even[x] : 0u) | (has_odd ? (uint32_t)odd[x] : 0u) << 16;
            }
            Vec rows[TILE];  // transposed as 32-bit lanes
            for (int64_t p = 0; p < TILE; ++p) rows[p] = load<Vec>(pairs[p]);
            transpose(rows);
            for (int64_t x = 0; x < TILE; ++x) store(to + (c + x) * TILE, rows[x]);
        }
    }
}

// sums[query][column] += sum over keys of weights[key][query] * rows[key][column].
inline void add_over_keys(const Factor* weights, const Extent<Factor>* rows, int keys, int queries, Float* sums,
                          int64_t columns, const Reach*) {
    constexpr int64_t BYTES = sizeof(Factor);
    int64_t steps = (keys + BLOCK_STEP - 1) / BLOCK_STEP;
    for (int64_t c = 0; c < columns; c += TILE)
        tile_panels<true>((queries + TILE - 1) / TILE, rows->origin + c * TILE, TILE * BYTES, packed_stride(columns),
                          weights, QUERIES * BYTES, steps, sums + c * QUERIES, QUERIES * BYTES);
}

// sums[key][column] += sum over queries of weights[key][query] * rows[query][column]; rows as fold_rows writes them.
inline void add_over_queries(const Factor* weights, const Factor* rows, int keys, int, Float* sums, int64_t columns,
                             const Reach*) {
    constexpr int64_t BYTES = sizeof(Factor);
    for (int j = 0; j < keys; j += TILE)
        tile_panels<true>(columns / TILE, weights + j * (QUERIES / 2), QUERIES / 2 * BYTES, TILE, rows, columns * BYTES,
                          QUERIES / 2 / TILE, sums + j * columns, columns * BYTES);
}

// Multiplies the sums of query i by factor[i].
inline void scale_sums(Float* sums, const Float* factor, int queries, int64_t columns) {
    for (int64_t c = 0; c < columns; ++c)
        for (int i = 0; i < queries; i += LANES) {
            Float* at = sums + c * QUERIES + i;
            store(at, load<Vec>(at) * load<Vec>(factor + i));
        }
}

#else

LL_INLINE int64_t sum_index(int i, int64_t c, int64_t columns) { return i * columns + c; }

LL_INLINE int64_t packed_stride(int64_t columns) { return columns * BLOCK_STEP / FOLD; }

inline void pack_rows(const Stored* from, int64_t stride, int64_t count, int64_t width, int64_t columns,
                      const uint8_t* skip, Factor* to) {
    fold_rows(from, stride, count, width, columns, skip, to);
}

inline void add_over_keys(const Factor* weights, const Extent<Factor>* rows, int keys, int queries, Float* sums,
                          int64_t columns, const Reach* reach) {
    add_product<Factor>({weights, 1, QUERIES, 0, folded(keys), reach}, rows, columns, sums, columns, queries, columns);
}

inline void add_over_queries(const Factor* weights, const Factor* rows, int keys, int queries, Float* sums,
                             int64_t columns, const Reach* reach) {
    add_product<Factor>({weights, QUERIES / FOLD, 1, 0, folded(queries), reach}, rows, columns, sums, columns, keys,
                        columns);
}

inline void scale_sums(Float* sums, const Float* factor, int queries, int64_t columns) {
    for (int i = 0; i < queries; ++i) {
        if (factor[i] == 1) continue;
        Float* row = sums + i * columns;
        for (int64_t c = 0; c < columns; c += LANES) store(row + c, load<Vec>(row + c) * factor[i]);
    }
}

#endif

// The same of rows that lie together.
inline void add_over_keys(const Factor* weights, const Factor* rows, int keys, int queries, Float* sums,
                          int64_t columns, const Reach* reach) {
    Extent<Factor> all{rows, folded(keys)};
    add_over_keys(weights, &all, keys, queries, sums, columns, reach);
}

// The sums of query i as a row, in place unless sums are stored transposed: then LANES rows are transposed at a time
// into `scratch`. Queries must be read in ascending order from 0.
LL_INLINE const Float* sum_row(const Float* sums, int i, int64_t columns, Float* scratch) {
#if defined(LL_AMX)
    for (int64_t c = 0; c < columns && i % LANES == 0; c += LANES) {
        Vec rows[LANES];
        for (int x = 0; x < LANES; ++x) rows[x] = load<Vec>(sums + (c + x) * QUERIES + i);
        transpose(rows);
        for (int x = 0; x < LANES; ++x) store(scratch + x * columns + c, rows[x]);
    }
    return scratch + i % LANES * columns;
#else
    (void)scratch;
    return sums + i * columns;
#endif
}

}  // namespace
}  // namespace limelight::LL_NAMESPACE
