// Additive attention (Bahdanau et al. 2015): s = sum over d of v[d] * tanh(q[d] + k[d]), in place of the score product.
//
// Its gradient is no matrix product, but another loop over pairs and width: with t = tanh(q[d] + k[d]) and dS,
//   g = dS v[d] (1 - t^2)          dq[d] += g          dk[d] += g          dv[d] += dS t
#pragma once

#include "../library.h"
#include "../simd/elementary.h"
#include "../simd/elements.h"
#include "../simd/vector.h"
#include "../tiles/shapes.h"

namespace limelight::LL_NAMESPACE {
namespace {

LL_INLINE const Float* compare_vector(const ll_call& call, int64_t head) {
    return (const Float*)call.compare + head * call.width;
}

// The queries of a tile along the lanes: [width][QUERIES]. Lanes beyond the last query are zero.
inline void transpose_queries(const Stored* from, int64_t stride, int count, int64_t width, Float* to) {
    for (int64_t d = 0; d < width; ++d)
        for (int i = 0; i < QUERIES; ++i) to[d * QUERIES + i] = i < count ? read(from + i * stride + d) : 0;
}

template <int VECTORS>
inline void additive_row(const Stored* key, const Float* transposed, const Float* vector, int64_t width,
                         Float* scores) {
    constexpr int64_t PIECE = 64;
    alignas(64) Float keys[PIECE];
    Vec sum[VECTORS];
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) sum[v] = Vec{};
    for (int64_t first = 0; first < width; first += PIECE) {
        int64_t count = min(PIECE, width - first);
        read_row(key + first, count, keys, count);
        for (int64_t d = 0; d < count; ++d, transposed += QUERIES) {
            Vec k = broadcast(keys[d]), factor = broadcast(vector[first + d]);
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; ++v)
                sum[v] = multiply_add(factor, tanh(load<Vec>(transposed + v * LANES) + k), sum[v]);
        }
    }
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) store(scores + v * LANES, sum[v]);
}

// scores[key][query], for whole vectors of queries.
inline void additive_scores(const Stored* key, int64_t stride, int keys, const Float* transposed, int queries,
                            const Float* vector, int64_t width, Float* scores) {
    for (int j = 0; j < keys; ++j, key += stride, scores += QUERIES) {
        int i = 0;
        for (; i + LANES < queries; i += 2 * LANES) additive_row<2>(key, transposed + i, vector, width, scores + i);
        if (i < queries) additive_row<1>(key, transposed + i, vector, width, scores + i);
    }
}

// The score of one query and one key, the width along the lanes: `query` is padded with zeros to whole vectors.
inline Float additive_pair(const Stored* key, const Float* query, const Float* vector, int64_t width) {
    Vec sum{};
    for (int64_t d = 0; d < width; d += LANES) {
        Vec t = tanh(load<Vec>(query + d) + read_partial(key + d, width - d));
        sum = multiply_add(load_partial(vector + d, width - d), t, sum);
    }
    return reduce_add(sum);
}

// The gradients for one key: grads[query] is dS of the pair. Queries, their sums and those of v are rows of `columns`
// floats. A pair with dS = 0 is skipped: it may be masked, and its elements anything.
inline void additive_backward(const Stored* key, const Float* queries, const Float* grads, int count,
                              const Float* vector, int64_t width, int64_t columns, Float* query_sums, Float* key_sum,
                              Float* vector_sums) {
    for (int64_t d = 0; d < columns; d += LANES) {
        Vec k = read_partial(key + d, width - d), factor = load_partial(vector + d, width - d), sum{};
        for (int i = 0; i < count; ++i) {
            if (grads[i] == 0) continue;
            int64_t at = i * columns + d;
            Vec t = tanh(load<Vec>(queries + at) + k), grad = broadcast(grads[i]);
            Vec g = grad * factor * multiply_add(-t, t, broadcast(1));
            sum += g;
            store(query_sums + at, load<Vec>(query_sums + at) + g);
            store(vector_sums + at, multiply_add(grad, t, load<Vec>(vector_sums + at)));
        }
        store(key_sum + d, load<Vec>(key_sum + d) + sum);
    }
}

}  // namespace
}  // namespace limelight::LL_NAMESPACE
