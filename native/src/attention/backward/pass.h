// The gradient of attention, in memory linear in the length (Dao et al. 2022; Dao 2023): weights are recomputed from
// the logsumexp of each row, five products for each block.
//
//   P = 2^(exponent * (S - peak) - shift)  dP = V dO'            delta_i = dO_i . O_i - dlse_i
//   dS = P (dP - delta)                    dV += P dO            dK += dS Q             dQ += dS' K
//
// One task owns a chunk of keys of one batch row and key head: dK and dV are its own sums over the queries of the
// group's heads. dQ is a sum over chunks: each tile of queries adds them in ascending order, by a ticket that tasks
// wait for (tasks start in that order, so there is no deadlock). Chunks follow from the width alone, so results do not
// depend on the number of threads.
#pragma once

#include "../../library.h"
#include "../../simd/elements.h"
#include "../../simd/vector.h"
#include "../../task.h"
#include "../../tiles/operands.h"
#include "../../tiles/shapes.h"
#include "../problem.h"
#include "../scores.h"
#include "../softmax.h"
#include "../visibility.h"

namespace limelight::LL_NAMESPACE {
namespace {

constexpr int64_t MAX_CHUNK_KEYS = 512, CHUNK_FLOATS = 65536;

LL_INLINE int64_t chunk_keys(int64_t key_columns, int64_t value_columns) {
    return clamp(CHUNK_FLOATS / (key_columns + value_columns) / BLOCK_KEYS, (int64_t)1, MAX_CHUNK_KEYS / BLOCK_KEYS) *
           BLOCK_KEYS;
}

// The constants and arrays of a backward pass.
struct BackwardPass {
    const Problem& problem;
    const ll_gradients& gradients;
    Operand value_rows;             // V as the left operand
    Operand key_rows;               // K as add_over_keys reads it
    const uint8_t* nonfinite_keys;  // (B, Hkv, Lk): whether a key is not finite
    const uint8_t *nonfinite_queries,
        *nonfinite_grads;         // (B, Hq, Lq): of queries, of the output's gradient
    Float *delta, *peak, *shift;  // (B, Hq, Lq)
    Float* query_sums;            // (B, Hq, Lq, key_columns), where elements are not floats
    int64_t key_columns, value_columns, value_steps, chunk;

    bool needs(const ll_tensor& gradient) const { return gradient.data != nullptr; }
};

// The gradient of a distance table within a chunk, for one head: sums over queries and keys at each distance.
struct DistanceSums {
    Float* sums;
    int64_t first, count;  // indices [first, first + count) of the table, which has an entry for each distance
};

struct BackwardScratch {
    Factor *packed_query, *packed_grad;        // queries along the lanes
    Factor *query_rows, *grad_rows;            // right operands: [QUERIES / FOLD][columns]
    Float *scores, *grads;                     // [BLOCK_KEYS][QUERIES]: S, then P; dP, then dS
    Float* keep_scale;                         // [BLOCK_KEYS][QUERIES]: 1 / (1 - p), or 0 where dropped
    Float* derivatives;                        // of soft caps: [soft cap][BLOCK_KEYS][QUERIES]
    Factor* factors;                           // weights or dS as factors, where these are not floats
    Factor* key_rows;                          // [BLOCK_KEYS / FOLD][columns]; masked blocks only
    uint8_t* seen;                             // [BLOCK_KEYS][QUERIES]; masked blocks only
    Float *query_sum, *key_sums, *value_sums;  // dQ of the tile, dK and dV of the chunk
    Float* row_sums;                           // [rule][QUERIES]
    Float *query_floats, *vector_sums;         // [QUERIES][columns]; additive attention only
    Float* distances;                          // [rule][queries + chunk]

    BackwardScratch(Arena& arena, const BackwardPass& pass, int64_t queries) {
        const Problem& problem = pass.problem;
        int64_t square = BLOCK_KEYS * QUERIES, wide = max(pass.key_columns, pass.value_columns);
        packed_query = arena.take<Factor>(packed_size(problem.call));
        packed_grad = arena.take<Factor>(pass.value_steps * QUERIES);
        query_rows = arena.take<Factor>(QUERIES / FOLD * pass.key_columns);
        grad_rows = arena.take<Factor>(QUERIES / FOLD * pass.value_columns);
        scores = arena.take<Float>(square);
        grads = arena.take<Float>(square);
        keep_scale = arena.take<Float>(problem.dropout_threshold ? square : 0);
        derivatives = arena.take<Float>(problem.softcaps * square);
        factors = arena.take<Factor>(FOLD > 1 ? square / FOLD : 0);
        key_rows = arena.take<Factor>(BLOCK_KEYS / FOLD * wide);
        seen = arena.take<uint8_t>(square);
        query_sum = arena.take<Float>(QUERIES * pass.key_columns);
        key_sums = arena.take<Float>(pass.chunk * pass.key_columns);
        value_sums = arena.take<Float>(pass.chunk * pass.value_columns);
        row_sums = arena.take<Float>(LL_MAX_RULES * QUERIES);
        query_floats = arena.take<Float>(problem.call.compare ? QUERIES * pass.key_columns : 0);
        vector_sums = arena.take<Float>(problem.call.compare ? QUERIES * pass.key_columns : 0);
        int64_t tables = 0;
        for (int64_t r = 0; r < problem.call.rule_count; ++r)
            tables += problem.call.rules[r].kind == LL_DISTANCE_TABLE && pass.needs(pass.gradients.rules[r]);
        distances = arena.take<Float>(tables ? LL_MAX_RULES * (queries + pass.chunk + 1) : 0);
    }
};

// The rows of a tile, with their gradients, ready for the products.
struct LoadedTile {
    alignas(64) Float peak[QUERIES], shift[QUERIES], delta[QUERIES];
    alignas(64) Int valid[QUERIES];  // -1 for queries of the tile, 0 for the lanes beyond
    uint8_t nonfinite_queries[QUERIES], nonfinite_grads[QUERIES];
    bool any_nonfinite = false;
};

// Prefetches a tile while the one before it is computed. (Always inlined: GCC removes calls of a function that only
// prefetches, as if it had no effect.)
LL_INLINE void prefetch_tile(const BackwardPass& pass, const Tile& tile) {
    const ll_call& call = pass.problem.call;
    const ll_tensor& grad = pass.gradients.grad_output;
    prefetch_rows(row_at<const Stored>(call.query, tile.row, tile.head, tile.first_query), call.query.strides[2],
                  tile.count, call.width);
    prefetch_rows(row_at<const Stored>(grad, tile.row, tile.head, tile.first_query), grad.strides[2], tile.count,
                  call.value_width);
}

// Starts row `at` of (B, Hq, Lq), and writes its share of the sink's gradient. The peak is -inf where no key is seen.
inline void begin_row(const BackwardPass& pass, int64_t at, Float peak, double shift) {
    const ll_call& call = pass.problem.call;
    pass.peak[at] = peak, pass.shift[at] = (Float)shift;
    if (!pass.gradients.sink) return;
    Float sink = ((const Float*)call.sink)[at / call.queries % call.query_heads];
    Float share = peak == -INF ? 0 : (Float)__builtin_exp2(sink_log2(pass.problem, sink, peak) - shift);
    ((Float*)pass.gradients.sink)[at] = peak == -INF ? 0 : -share * pass.delta[at];
}

// Weights are recomputed with an error as large as the rounding of the logsumexp: too much above this limit.
constexpr Float MAX_EXACT_LOGSUMEXP = 256;
LL_INLINE bool is_large(Float logsumexp) {
    return logsumexp > MAX_EXACT_LOGSUMEXP || (logsumexp < -MAX_EXACT_LOGSUMEXP && logsumexp != -INF);
}

// Whether delta cannot be computed as dO . O: it is not finite, possibly because of the value of a dropped key.
LL_INLINE bool is_unknown(const BackwardPass& pass, Float delta) {
    return pass.problem.dropout_threshold && delta - delta != 0;
}

inline void load_tile(const BackwardPass& pass, const Tile& tile, BackwardScratch& scratch, LoadedTile& loaded) {
    const ll_call& call = pass.problem.call;
    const Stored* query = row_at<const Stored>(call.query, tile.row, tile.head, tile.first_query);
    const Stored* grad = row_at<const Stored>(pass.gradients.grad_output, tile.row, tile.head, tile.first_query);
    int64_t query_stride = call.query.strides[2], grad_stride = pass.gradients.grad_output.strides[2];
    int64_t at = (tile.row * call.query_heads + tile.head) * call.queries + tile.first_query;
    for (int i = 0; i < QUERIES; ++i) {
        bool valid = i < tile.count;
        loaded.valid[i] = -(Int)valid;
        loaded.peak[i] = valid ? pass.peak[at + i] : 0;
        loaded.shift[i] = valid ? pass.shift[at + i] : 0;
        loaded.delta[i] = valid ? pass.delta[at + i] : 0;
        loaded.nonfinite_queries[i] = valid && pass.nonfinite_queries[at + i];
        loaded.nonfinite_grads[i] = valid && pass.nonfinite_grads[at + i];
        loaded.any_nonfinite |= loaded.nonfinite_queries[i] || loaded.nonfinite_grads[i];
    }
    pack_queries(pass.problem, tile, scratch.packed_query);
    pack(grad, grad_stride, tile.count, call.value_width, 1, scratch.packed_grad);
    if (call.compare)
        for (int i = 0; i < tile.count; ++i)
            read_row(query + i * query_stride, call.width, scratch.query_floats + i * pass.key_columns,
                     pass.key_columns);
    else
        fold_rows(query, query_stride, tile.count, call.width, pass.key_columns, loaded.nonfinite_queries,
                  scratch.query_rows);
    fold_rows(grad, grad_stride, tile.count, call.value_width, pass.value_columns, loaded.nonfinite_grads,
              scratch.grad_rows);
}

}  // namespace
}  // namespace limelight::LL_NAMESPACE
