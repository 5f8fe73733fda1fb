// The gradient of attention, in memory linear in the length (Dao et al. 2022; Dao 2023): the weights are computed again
// from the logsumexp of each row, five products for each block.
//
//   P = 2^(exponent * (S - peak) - less)  dP = V dO'             delta_i = dO_i . O_i - dlse_i
//   dS = P (dP - delta)                   dV += P dO             dK += dS Q             dQ += dS' K
//
// One task owns a chunk of keys of one batch row and key head: dK and dV are its own sums over the queries of the group's
// heads. dQ is a sum over chunks: each tile of queries takes the chunks in ascending order, and a task waits for its turn
// there (tasks begin in that order, so the turn always comes). Chunks follow from the width alone: the same bits for any
// number of threads.
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

constexpr int64_t MOST_CHUNK_KEYS = 512, CHUNK_NUMBERS = 65536;

LL_INLINE int64_t chunk_keys(int64_t key_columns, int64_t value_columns) {
    return clamp(CHUNK_NUMBERS / (key_columns + value_columns) / BLOCK_KEYS, (int64_t)1, MOST_CHUNK_KEYS / BLOCK_KEYS) *
           BLOCK_KEYS;
}

// A backward pass, worked out once.
struct Reverse {
    const Problem& problem;
    const ll_gradients& wanted;
    Operand value_rows;                       // V as the left operand
    Operand key_rows;                         // K as `mix` reads it
    const uint8_t* aside;                     // (B, Hkv, Lk): keys that are not finite
    const uint8_t *query_aside, *grad_aside;  // (B, Hq, Lq): the same of queries and of the output's gradient
    Number *delta, *peak, *less;              // (B, Hq, Lq)
    Number* query_sums;                       // (B, Hq, Lq, key_columns), where elements are not numbers
    int64_t key_columns, value_columns, value_steps, chunk;

    bool wants(const ll_tensor& gradient) const { return gradient.data != nullptr; }
};

// Sums over queries for the distances of one head: a distance table's gradient within a chunk.
struct DistanceSums {
    Number* sums;
    int64_t first, count;  // places [first, first + count) of the table, which is as large as all distances
};

struct ReverseScratch {
    Factor *packed_query, *packed_grad;         // along the lanes
    Factor *query_rows, *grad_rows;             // right operands: [QUERIES / FOLD][columns]
    Number *scores, *grads;                     // [BLOCK_KEYS][QUERIES]: S, then P; dP, then dS
    Number* kept;                               // [BLOCK_KEYS][QUERIES]: what dropout multiplies by
    Number* slopes;                             // [soft cap][BLOCK_KEYS][QUERIES]
    Factor* factors;                            // weights as factors, where they differ from numbers
    Factor* key_rows;                           // [BLOCK_KEYS / FOLD][columns]; careful blocks only
    uint8_t* seen;                              // [BLOCK_KEYS][QUERIES]; careful blocks only
    Number *query_sum, *key_sums, *value_sums;  // dQ of the tile, dK and dV of the chunk
    Number* row_sums;                           // [rule][QUERIES]
    Number *query_numbers, *vector_sums;        // [QUERIES][columns]; additive comparison only
    Number* distances;                          // [rule][queries + chunk]

    ReverseScratch(Arena& arena, const Reverse& reverse, int64_t queries) {
        const Problem& problem = reverse.problem;
        int64_t square = BLOCK_KEYS * QUERIES, wide = most(reverse.key_columns, reverse.value_columns);
        packed_query = arena.take<Factor>(packed_size(problem.call));
        packed_grad = arena.take<Factor>(reverse.value_steps * QUERIES);
        query_rows = arena.take<Factor>(QUERIES / FOLD * reverse.key_columns);
        grad_rows = arena.take<Factor>(QUERIES / FOLD * reverse.value_columns);
        scores = arena.take<Number>(square);
        grads = arena.take<Number>(square);
        kept = arena.take<Number>(problem.drop_below ? square : 0);
        slopes = arena.take<Number>(problem.softcaps * square);
        factors = arena.take<Factor>(FOLD > 1 ? square / FOLD : 0);
        key_rows = arena.take<Factor>(BLOCK_KEYS / FOLD * wide);
        seen = arena.take<uint8_t>(square);
        query_sum = arena.take<Number>(QUERIES * reverse.key_columns);
        key_sums = arena.take<Number>(reverse.chunk * reverse.key_columns);
        value_sums = arena.take<Number>(reverse.chunk * reverse.value_columns);
        row_sums = arena.take<Number>(LL_MAX_RULES * QUERIES);
        query_numbers = arena.take<Number>(problem.call.compare ? QUERIES * reverse.key_columns : 0);
        vector_sums = arena.take<Number>(problem.call.compare ? QUERIES * reverse.key_columns : 0);
        int64_t tables = 0;
        for (int64_t r = 0; r < problem.call.rule_count; ++r)
            tables += problem.call.rules[r].kind == LL_DISTANCE_TABLE && reverse.wants(reverse.wanted.rules[r]);
        distances = arena.take<Number>(tables ? LL_MAX_RULES * (queries + reverse.chunk + 1) : 0);
    }
};

// A tile of queries with its gradient, ready for the products.
struct Loaded {
    alignas(64) Number peak[QUERIES], less[QUERIES], delta[QUERIES];
    alignas(64) Int real[QUERIES];  // -1 for queries of the tile, 0 for the lanes beyond
    uint8_t query_aside[QUERIES], grad_aside[QUERIES];
    bool any_aside = false;
};

// Its memory is on the way while the tile before is computed. (Inlined in any case: GCC leaves out the call of a function that
// only asks, as one without effect.)
LL_INLINE void ask_tile(const Reverse& reverse, const Tile& tile) {
    const ll_call& call = reverse.problem.call;
    const ll_tensor& grad = reverse.wanted.grad_output;
    ask_rows(line<const Stored>(call.query, tile.row, tile.head, tile.first_query), call.query.strides[2], tile.count,
             call.width);
    ask_rows(line<const Stored>(grad, tile.row, tile.head, tile.first_query), grad.strides[2], tile.count,
             call.value_width);
}

// Row `at` of (B, Hq, Lq), and its share of the sink's gradient. A row that has seen nothing has the peak -inf.
inline void begin_row(const Reverse& reverse, int64_t at, Number peak, double less) {
    const ll_call& call = reverse.problem.call;
    reverse.peak[at] = peak, reverse.less[at] = (Number)less;
    if (!reverse.wanted.sink) return;
    Number sink = ((const Number*)call.sink)[at / call.queries % call.query_heads];
    Number share = peak == -INFINITE ? 0 : (Number)__builtin_exp2(sink_power(reverse.problem, sink, peak) - less);
    ((Number*)reverse.wanted.sink)[at] = peak == -INFINITE ? 0 : -share * reverse.delta[at];
}

// The logsumexp tells the weights of a row, to a rounding step of its own size: too little of a large one.
constexpr Number MOST_TOLD = 256;
LL_INLINE bool is_large(Number logsumexp) {
    return logsumexp > MOST_TOLD || (logsumexp < -MOST_TOLD && logsumexp != -INFINITE);
}

// The scores of a tile are summed once more for its rows with a large logsumexp.
inline void weigh_large_rows(const Reverse& reverse, const Tile& tile, ReverseScratch& scratch, int& status) {
    const Problem& problem = reverse.problem;
    int64_t at = (tile.row * problem.call.query_heads + tile.head) * problem.call.queries + tile.first_query;
    const Number* logsumexp = (const Number*)reverse.wanted.logsumexp + at;
    bool large = false;
    for (int i = 0; i < tile.count; ++i) large |= is_large(logsumexp[i]);
    if (!large) return;
    Visibility visible;
    see(problem.call, tile, visible);
    pack_queries(problem, tile, scratch.packed_query);
    Softmax softmax;
    final_softmax(problem, tile, visible, nullptr, scratch.packed_query, scratch.scores, softmax, status);
    const Number* sink = sink_of(problem.call, tile);
    for (int i = 0; i < tile.count; ++i)
        if (is_large(logsumexp[i]) && softmax.total[i] != 0)
            begin_row(reverse, at + i, softmax.peak[i], log_closed(problem, sink, softmax.peak[i], softmax.total[i]));
}

inline void load_tile(const Reverse& reverse, const Tile& tile, ReverseScratch& scratch, Loaded& loaded) {
    const ll_call& call = reverse.problem.call;
    const Stored* query = line<const Stored>(call.query, tile.row, tile.head, tile.first_query);
    const Stored* grad = line<const Stored>(reverse.wanted.grad_output, tile.row, tile.head, tile.first_query);
    int64_t query_stride = call.query.strides[2], grad_stride = reverse.wanted.grad_output.strides[2];
    int64_t at = (tile.row * call.query_heads + tile.head) * call.queries + tile.first_query;
    for (int i = 0; i < QUERIES; ++i) {
        bool real = i < tile.count;
        loaded.real[i] = -(Int)real;
        loaded.peak[i] = real ? reverse.peak[at + i] : 0;
        loaded.less[i] = real ? reverse.less[at + i] : 0;
        loaded.delta[i] = real ? reverse.delta[at + i] : 0;
        loaded.query_aside[i] = real && reverse.query_aside[at + i];
        loaded.grad_aside[i] = real && reverse.grad_aside[at + i];
        loaded.any_aside |= loaded.query_aside[i] || loaded.grad_aside[i];
    }
    pack_queries(reverse.problem, tile, scratch.packed_query);
    pack(grad, grad_stride, tile.count, call.value_width, 1, scratch.packed_grad);
    if (call.compare)
        for (int i = 0; i < tile.count; ++i)
            read_row(query + i * query_stride, call.width, scratch.query_numbers + i * reverse.key_columns,
                     reverse.key_columns);
    else
        fold_rows(query, query_stride, tile.count, call.width, reverse.key_columns, loaded.query_aside,
                  scratch.query_rows);
    fold_rows(grad, grad_stride, tile.count, call.value_width, reverse.value_columns, loaded.grad_aside,
              scratch.grad_rows);
}

}  // namespace
}  // namespace limelight::LL_NAMESPACE
