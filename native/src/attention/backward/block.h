// The gradients of one tile of queries and one block of keys.
#pragma once

#include "../../library.h"
#include "../../simd/elementary.h"
#include "../../simd/vector.h"
#include "../../task.h"
#include "../../tiles/amx.h"
#include "../../tiles/operands.h"
#include "../../tiles/reach.h"
#include "../../tiles/register_tile.h"
#include "../../tiles/shapes.h"
#include "../../tiles/sums.h"
#include "../additive.h"
#include "../blocks.h"
#include "../problem.h"
#include "../scores.h"
#include "../softmax.h"
#include "../visibility.h"
#include "pass.h"
#include "rules.h"

namespace limelight::LL_NAMESPACE {
namespace {

// Replaces scores by P and grads by dS, for VECTORS vectors of queries from `i` on; keep_scale: of dropout, or null.
// Selected, never multiplied by zero: dP of a masked pair may be anything.
template <int VECTORS, bool DROPOUT>
LL_INLINE void score_gradients(const LoadedTile& loaded, int i, int keys, Float exponent, Float* scores, Float* grads,
                               const Float* keep_scale) {
    Vec peak[VECTORS], shift[VECTORS], delta[VECTORS];
    IntVec valid[VECTORS];
    for (int v = 0; v < VECTORS; ++v) {
        peak[v] = finite_peak(load<Vec>(loaded.peak + i + v * LANES));
        shift[v] = -load<Vec>(loaded.shift + i + v * LANES);
        delta[v] = load<Vec>(loaded.delta + i + v * LANES);
        valid[v] = load<IntVec>(loaded.valid + i + v * LANES);
    }
    for (int at = i; at < i + keys * QUERIES; at += QUERIES)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) {
            int x = at + v * LANES;
            Vec score = load<Vec>(scores + x), grad = load<Vec>(grads + x);
            IntVec seen = valid[v] & (score != -INF);
            Vec weight = seen ? exp2_weight(multiply_add(score - peak[v], broadcast(exponent), shift[v])) : Vec{},
                kept_weight = weight;
            if constexpr (DROPOUT) {
                Vec factor = load<Vec>(keep_scale + x);
                grad = factor == 0 ? Vec{} : grad * factor;
                kept_weight = (seen & (factor != 0)) ? weight * factor : Vec{};
            }
            store(scores + x, kept_weight);
            store(grads + x, seen ? weight * (grad - delta[v]) : Vec{});
        }
}

template <bool DROPOUT>
inline void weights_and_score_gradients(const Problem& problem, const Tile& tile, const Block& block,
                                        const LoadedTile& loaded, BackwardScratch& scratch) {
    FlushSubnormals scope;
    // AMX products read all QUERIES lanes: those beyond the queries must be zero.
    int queries = BLOCK_STEP > 2 ? QUERIES : tile.count, i = 0;
    for (; i + 2 * LANES < queries; i += 3 * LANES)
        score_gradients<3, DROPOUT>(loaded, i, block.count, problem.exponent, scratch.scores, scratch.grads,
                                    scratch.keep_scale);
    for (; i < queries; i += LANES)
        score_gradients<1, DROPOUT>(loaded, i, block.count, problem.exponent, scratch.scores, scratch.grads,
                                    scratch.keep_scale);
}

// to(j, i, column) += weights[j][i] * from(j, i)[column] for visible pairs with a non-finite row.
template <class Nonfinite, class To, class From>
inline void add_nonfinite(const Tile& tile, const Block& block, const uint8_t* seen, const Float* weights,
                          int64_t width, Nonfinite is_nonfinite, To to, From from) {
    for (int j = 0; j < block.count; ++j)
        for (int i = 0; i < tile.count; ++i)
            if (is_nonfinite(j, i) && seen[j * QUERIES + i])
                for (int64_t c = 0; c < width; ++c) to(j, i, c) += weights[j * QUERIES + i] * read(from(j, i) + c);
}

// dK += dS Q, dQ += dS' K, where scores are products.
inline void product_gradients(const BackwardPass& pass, const Tile& tile, const Block& block, const LoadedTile& loaded,
                              const Reach* of_queries, const Reach* of_keys, bool masked_keys,
                              const uint8_t* nonfinite_keys, Float* key_sums, BackwardScratch& scratch) {
    const ll_call& call = pass.problem.call;
    int64_t key_columns = pass.key_columns;
    if (pass.needs(pass.gradients.key)) {
        const Factor* factors = fold_across(scratch.grads, block.count, scratch.factors);
        add_over_queries(factors, scratch.query_rows, block.count, tile.count, key_sums, key_columns, of_keys);
    }
    const Stored* key = row_at<const Stored>(call.key, tile.row, tile.key_head, block.begin);
    if (pass.needs(pass.gradients.query)) {
        const Factor* factors = fold_down(scratch.grads, block.count, tile.count, scratch.factors);
        const Factor* rows = pass.key_rows.step(tile.row, tile.key_head, tile.segment - call.segments, block.begin);
        if (masked_keys) {
            pack_rows(key, call.key.strides[2], block.count, call.width, key_columns, nonfinite_keys, scratch.key_rows);
            rows = scratch.key_rows;
        }
        add_over_keys(factors, rows, block.count, tile.count, scratch.query_sum, key_columns, of_queries);
    }
    if (loaded.any_nonfinite)
        add_nonfinite(
            tile, block, scratch.seen, scratch.grads, call.width,
            [&](int, int i) { return loaded.nonfinite_queries[i]; },
            [&](int j, int, int64_t c) -> Float& { return key_sums[j * key_columns + c]; },
            [&](int, int i) { return row_at<const Stored>(call.query, tile.row, tile.head, tile.first_query + i); });
    if (masked_keys)
        add_nonfinite(
            tile, block, scratch.seen, scratch.grads, call.width, [&](int j, int) { return nonfinite_keys[j]; },
            [&](int, int i, int64_t c) -> Float& { return scratch.query_sum[sum_index(i, c, key_columns)]; },
            [&](int j, int) { return key + j * call.key.strides[2]; });
}

// Computes P of a block in scratch.scores, and dS in scratch.grads; `record_seen`: also which pairs are visible.
inline void block_weights(const BackwardPass& pass, const Tile& tile, const Visibility& visible, const Block& block,
                          const VisiblePart& part, const LoadedTile& loaded, bool record_seen,
                          BackwardScratch& scratch) {
    const Problem& problem = pass.problem;
    alignas(64) Float unused[QUERIES] = {};
    score_block(problem, tile, visible, block, part, scratch.packed_query, scratch.scores, unused,
                problem.softcaps ? scratch.derivatives : nullptr);
    score_product(pass.value_rows.row(tile.row, tile.key_head, block.begin), pass.value_rows.stride, 0, block.count,
                  scratch.packed_grad, tile.count, pass.value_steps, scratch.grads, unused, part.of_queries);
    for (int x = 0; record_seen && x < block.count * QUERIES; ++x) scratch.seen[x] = scratch.scores[x] != -INF;
    if (!problem.dropout_threshold) return weights_and_score_gradients<false>(problem, tile, block, loaded, scratch);
    Vec keep_scale = broadcast((Float)(1 / (1.0 - problem.call.dropout)));
    for_each_dropped(problem, tile, block, [&](int j, int i, IntVec dropped) {
        store(scratch.keep_scale + j * QUERIES + i, dropped != 0 ? Vec{} : keep_scale);
    });
    weights_and_score_gradients<true>(problem, tile, block, loaded, scratch);
}

// Recomputes delta of some rows as the sum of P dP, with the same products as dP. Where one key has nearly all the
// weight, dP - delta is a difference of nearly equal numbers, and its rounding error would multiply operands that may
// be as large as the scores.
inline void recompute_deltas(const BackwardPass& pass, const Tile& tile, const Visibility& visible, const bool* rows,
                             BackwardScratch& scratch, int& status) {
    const ll_gradients& gradients = pass.gradients;
    int64_t at = (tile.row * pass.problem.call.query_heads + tile.head) * pass.problem.call.queries + tile.first_query;
    LoadedTile loaded;
    load_tile(pass, tile, scratch, loaded);
    for (Float& delta : loaded.delta) delta = 0;  // so that dS is P dP
    alignas(64) Float sums[QUERIES] = {};
    BlockWalk walk(pass.problem.call, tile, visible);
    for (Block block; walk.next(block) && !should_stop(status);) {
        block_weights(pass, tile, visible, block, VisiblePart(visible, tile, block), loaded, false, scratch);
        for (int j = 0; j < block.count; ++j)
            for (int i = 0; i < tile.count; i += LANES)
                store(sums + i, load<Vec>(sums + i) + load<Vec>(scratch.grads + j * QUERIES + i));
    }
    for (int i = 0; i < tile.count; ++i)
        if (rows[i])
            pass.delta[at + i] =
                sums[i] - (gradients.grad_logsumexp ? ((const Float*)gradients.grad_logsumexp)[at + i] : 0);
}

// Recomputes the softmax of a tile for its rows with a large logsumexp, and delta for those where it is inexact.
inline void recompute_large_rows(const BackwardPass& pass, const Tile& tile, BackwardScratch& scratch, int& status) {
    const Problem& problem = pass.problem;
    int64_t at = (tile.row * problem.call.query_heads + tile.head) * problem.call.queries + tile.first_query;
    const Float* logsumexp = (const Float*)pass.gradients.logsumexp + at;
    bool large = false;
    for (int i = 0; i < tile.count; ++i) large |= is_large(logsumexp[i]) || is_unknown(pass, pass.delta[at + i]);
    if (!large) return;
    Visibility visible;
    find_visible(problem.call, tile, visible);
    pack_queries(problem, tile, scratch.packed_query);
    Softmax softmax;
    final_softmax(problem, tile, visible, nullptr, scratch.packed_query, scratch.scores, softmax, status, 0);
    const Float* sink = sink_of(problem.call, tile);
    auto begin = [&](int i) {
        begin_row(pass, at + i, softmax.peak[i],
                  log2_total_with_sink(problem, sink, softmax.peak[i], softmax.total[i]));
    };
    bool inexact[QUERIES], any_inexact = false;
    for (int i = 0; i < tile.count; ++i) {
        large = is_large(logsumexp[i]) && softmax.total[i] != 0;
        if (large) begin(i);
        inexact[i] = (large && pass.shift[at + i] < (Float)0.5) || is_unknown(pass, pass.delta[at + i]);
        any_inexact |= inexact[i];
    }
    if (!any_inexact) return;
    recompute_deltas(pass, tile, visible, inexact, scratch, status);
    for (int i = 0; i < tile.count; ++i)
        if (inexact[i]) begin(i);  // the sink's gradient follows from delta
}

inline void backward_block(const BackwardPass& pass, const Tile& tile, const Visibility& visible, const Block& block,
                           int64_t chunk_begin, const LoadedTile& loaded, BackwardScratch& scratch,
                           DistanceSums* distances) {
    const ll_call& call = pass.problem.call;
    VisiblePart part(visible, tile, block);
    Reach reach_of_keys;
    const Reach* of_keys = part.of_keys(tile, block, reach_of_keys);
    const uint8_t* nonfinite_keys =
        pass.nonfinite_keys + (tile.row * call.key_heads + tile.key_head) * call.keys + block.begin;
    bool masked_keys = false;
    int64_t read = min(round_up(block.count, BLOCK_STEP),
                       call.keys - block.begin);  // whole factors: the key beyond has a weight of 0
    for (int64_t j = 0; j < read; ++j) masked_keys |= nonfinite_keys[j] != 0;
    block_weights(pass, tile, visible, block, part, loaded, masked_keys || loaded.any_nonfinite, scratch);
    if (call.rule_count > 0) rules_backward(pass, tile, block, scratch, distances);

    int64_t key_columns = pass.key_columns, value_columns = pass.value_columns, own = block.begin - chunk_begin;
    Float *key_sums = scratch.key_sums + own * key_columns, *value_sums = scratch.value_sums + own * value_columns;
    if (pass.needs(pass.gradients.value)) {
        const Factor* weights = fold_across(scratch.scores, block.count, scratch.factors);
        add_over_queries(weights, scratch.grad_rows, block.count, tile.count, value_sums, value_columns, of_keys);
    }
    if (call.compare) {
        const Stored* key = row_at<const Stored>(call.key, tile.row, tile.key_head, block.begin);
        for (int j = 0; j < block.count; ++j)
            additive_backward(key + j * call.key.strides[2], scratch.query_floats, scratch.grads + j * QUERIES,
                              tile.count, compare_vector(call, tile.head), call.width, key_columns, scratch.query_sum,
                              key_sums + j * key_columns, scratch.vector_sums);
    } else
        product_gradients(pass, tile, block, loaded, part.of_queries, of_keys, masked_keys, nonfinite_keys, key_sums,
                          scratch);
    if (loaded.any_nonfinite)
        add_nonfinite(
            tile, block, scratch.seen, scratch.scores, call.value_width,
            [&](int, int i) { return loaded.nonfinite_grads[i]; },
            [&](int j, int, int64_t c) -> Float& { return value_sums[j * value_columns + c]; },
            [&](int, int i) {
                return row_at<const Stored>(pass.gradients.grad_output, tile.row, tile.head, tile.first_query + i);
            });
}

}  // namespace
}  // namespace limelight::LL_NAMESPACE
