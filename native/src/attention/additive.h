// Additive comparison (Bahdanau et al. 2015): s = sum over d of v[d] * tanh(q[d] + k[d]), in place of the score product.
//
// Its gradient is no product of matrices, but one more walk over pairs and width: with t = tanh(q[d] + k[d]) and dS,
//   g = dS v[d] (1 - t^2)          dq[d] += g          dk[d] += g          dv[d] += dS t
#pragma once

#include "../library.h"
#include "../simd/elementary.h"
#include "../simd/elements.h"
#include "../simd/vector.h"
#include "../tiles/shapes.h"

namespace limelight::LL_NAMESPACE {
namespace {

LL_INLINE const Number* vector_of(const ll_call& call, int64_t head) {
    return (const Number*)call.compare + head * call.width;
}

// A tile's queries along the lanes: [width][QUERIES]. Lanes beyond the last query are zero.
inline void turn(const Stored* from, int64_t stride, int count, int64_t width, Number* to) {
    for (int64_t d = 0; d < width; ++d)
        for (int i = 0; i < QUERIES; ++i) to[d * QUERIES + i] = i < count ? read(from + i * stride + d) : 0;
}

template <int VECTORS>
inline void additive_row(const Stored* key, const Number* turned, const Number* vector, int64_t width, Number* scores) {
    constexpr int64_t PIECE = 64;
    alignas(64) Number numbers[PIECE];
    Numbers sum[VECTORS];
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) sum[v] = Numbers{};
    for (int64_t first = 0; first < width; first += PIECE) {
        int64_t some = least(PIECE, width - first);
        read_row(key + first, some, numbers, some);
        for (int64_t d = 0; d < some; ++d, turned += QUERIES) {
            Numbers k = spread(numbers[d]), factor = spread(vector[first + d]);
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; ++v)
                sum[v] = multiply_add(factor, tanh_of(load<Numbers>(turned + v * LANES) + k), sum[v]);
        }
    }
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) store(scores + v * LANES, sum[v]);
}

// scores[key][query], for whole vectors of queries.
inline void additive_scores(const Stored* key, int64_t stride, int keys, const Number* turned, int queries,
                            const Number* vector, int64_t width, Number* scores) {
    for (int j = 0; j < keys; ++j, key += stride, scores += QUERIES) {
        int i = 0;
        for (; i + LANES < queries; i += 2 * LANES) additive_row<2>(key, turned + i, vector, width, scores + i);
        if (i < queries) additive_row<1>(key, turned + i, vector, width, scores + i);
    }
}

// The score of one query and one key, the width along the lanes: `query` has zeros up to a whole vector.
inline Number additive_pair(const Stored* key, const Number* query, const Number* vector, int64_t width) {
    Numbers sum{};
    for (int64_t d = 0; d < width; d += LANES) {
        Numbers t = tanh_of(load<Numbers>(query + d) + read_some(key + d, width - d));
        sum = multiply_add(load_some(vector + d, width - d), t, sum);
    }
    return sum_of_lanes(sum);
}

// One key: slopes[query] is dS of the pair. Queries, their sums and those of the vector lie in rows of `columns`.
// A pair without a slope is left out: it may be one that is not seen, and hold anything.
inline void additive_slopes(const Stored* key, const Number* queries, const Number* slopes, int count,
                            const Number* vector, int64_t width, int64_t columns, Number* query_sums, Number* key_sum,
                            Number* vector_sums) {
    for (int64_t d = 0; d < columns; d += LANES) {
        Numbers k = read_some(key + d, width - d), factor = load_some(vector + d, width - d), sum{};
        for (int i = 0; i < count; ++i) {
            if (slopes[i] == 0) continue;
            int64_t at = i * columns + d;
            Numbers t = tanh_of(load<Numbers>(queries + at) + k), slope = spread(slopes[i]);
            Numbers g = slope * factor * multiply_add(-t, t, spread(1));
            sum += g;
            store(query_sums + at, load<Numbers>(query_sums + at) + g);
            store(vector_sums + at, multiply_add(slope, t, load<Numbers>(vector_sums + at)));
        }
        store(key_sum + d, load<Numbers>(key_sum + d) + sum);
    }
}

}  // namespace
}  // namespace limelight::LL_NAMESPACE
