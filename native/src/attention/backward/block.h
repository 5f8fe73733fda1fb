// The gradients of one tile of queries and one block of keys.
#pragma once

#include "../../library.h"
#include "../../simd/vector.h"
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

// scores -> P, grads -> dS, of VECTORS vectors of queries from `i` on; kept: what dropout multiplies by, or null. Selected, never
// multiplied by zero: dP of a pair that is not seen may be anything.
template <int VECTORS, bool DROPOUT>
LL_INLINE void slopes_of(const Loaded& loaded, int i, int keys, Number exponent, Number* scores, Number* grads,
                         const Number* kept) {
    Numbers peak[VECTORS], less[VECTORS], delta[VECTORS];
    Ints real[VECTORS];
    for (int v = 0; v < VECTORS; ++v) {
        peak[v] = subtracted(load<Numbers>(loaded.peak + i + v * LANES));
        less[v] = -load<Numbers>(loaded.less + i + v * LANES);
        delta[v] = load<Numbers>(loaded.delta + i + v * LANES);
        real[v] = load<Ints>(loaded.real + i + v * LANES);
    }
    for (int at = i; at < i + keys * QUERIES; at += QUERIES)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) {
            int x = at + v * LANES;
            Numbers score = load<Numbers>(scores + x), grad = load<Numbers>(grads + x);
            Ints seen = real[v] & (score != -INFINITE);
            Numbers weight = seen ? weight_of(multiply_add(score - peak[v], spread(exponent), less[v])) : Numbers{},
                    given = weight;
            if constexpr (DROPOUT) {
                Numbers factor = load<Numbers>(kept + x);
                grad = factor == 0 ? Numbers{} : grad * factor;
                given = seen ? weight * factor : Numbers{};
            }
            store(scores + x, given);
            store(grads + x, seen ? weight * (grad - delta[v]) : Numbers{});
        }
}

template <bool DROPOUT>
inline void weights_and_slopes(const Problem& problem, const Tile& tile, const Block& block, const Loaded& loaded,
                               ReverseScratch& scratch) {
    FlushSubnormals scope;
    // On matrix registers every lane counts, and those beyond the queries must be zero.
    int queries = BLOCK_STEP > 2 ? QUERIES : tile.count, i = 0;
    for (; i + 2 * LANES < queries; i += 3 * LANES)
        slopes_of<3, DROPOUT>(loaded, i, block.count, problem.exponent, scratch.scores, scratch.grads, scratch.kept);
    for (; i < queries; i += LANES)
        slopes_of<1, DROPOUT>(loaded, i, block.count, problem.exponent, scratch.scores, scratch.grads, scratch.kept);
}

// to(j, i, column) += weights[j][i] * from(j, i)[column] for the seen pairs whose row was set aside.
template <class Aside, class To, class From>
inline void add_aside(const Tile& tile, const Block& block, const uint8_t* seen, const Number* weights, int64_t width,
                      Aside aside, To to, From from) {
    for (int j = 0; j < block.count; ++j)
        for (int i = 0; i < tile.count; ++i)
            if (aside(j, i) && seen[j * QUERIES + i])
                for (int64_t c = 0; c < width; ++c) to(j, i, c) += weights[j * QUERIES + i] * read(from(j, i) + c);
}

// dK += dS Q, dQ += dS' K, for scores that are products.
inline void product_slopes(const Reverse& reverse, const Tile& tile, const Block& block, const Loaded& loaded,
                           const Reach* of_queries, const Reach* of_keys, bool careful_keys, const uint8_t* keys_aside,
                           Number* key_sums, ReverseScratch& scratch) {
    const ll_call& call = reverse.problem.call;
    int64_t key_columns = reverse.key_columns;
    if (reverse.wants(reverse.wanted.key)) {
        const Factor* slopes = fold_across(scratch.grads, block.count, scratch.factors);
        gather(slopes, scratch.query_rows, block.count, tile.count, key_sums, key_columns, of_keys);
    }
    const Stored* key = line<const Stored>(call.key, tile.row, tile.key_head, block.begin);
    if (reverse.wants(reverse.wanted.query)) {
        const Factor* slopes = fold_down(scratch.grads, block.count, tile.count, scratch.factors);
        const Factor* rows = reverse.key_rows.step(tile.row, tile.key_head, block.begin);
        if (careful_keys) {
            mix_rows(key, call.key.strides[2], block.count, call.width, key_columns, keys_aside, scratch.key_rows);
            rows = scratch.key_rows;
        }
        mix(slopes, rows, block.count, tile.count, scratch.query_sum, key_columns, of_queries);
    }
    if (loaded.any_aside)
        add_aside(
            tile, block, scratch.seen, scratch.grads, call.width, [&](int, int i) { return loaded.query_aside[i]; },
            [&](int j, int, int64_t c) -> Number& { return key_sums[j * key_columns + c]; },
            [&](int, int i) { return line<const Stored>(call.query, tile.row, tile.head, tile.first_query + i); });
    if (careful_keys)
        add_aside(
            tile, block, scratch.seen, scratch.grads, call.width, [&](int j, int) { return keys_aside[j]; },
            [&](int, int i, int64_t c) -> Number& { return scratch.query_sum[place(i, c, key_columns)]; },
            [&](int j, int) { return key + j * call.key.strides[2]; });
}

inline void reverse_block(const Reverse& reverse, const Tile& tile, const Visibility& visible, const Block& block,
                          int64_t chunk_begin, const Loaded& loaded, ReverseScratch& scratch, DistanceSums* distances) {
    const Problem& problem = reverse.problem;
    const ll_call& call = problem.call;
    alignas(64) Number unused[QUERIES] = {};
    Cut cut(visible, tile, block);
    Reach room;
    const Reach* of_keys = cut.of_keys(tile, block, room);
    score_block(problem, tile, visible, block, cut, scratch.packed_query, scratch.scores, unused,
                problem.softcaps ? scratch.slopes : nullptr);
    score_product(reverse.value_rows.row(tile.row, tile.key_head, block.begin), reverse.value_rows.stride, block.count,
                  scratch.packed_grad, tile.count, reverse.value_steps, scratch.grads, unused, cut.of_queries);

    const uint8_t* keys_aside = reverse.aside + (tile.row * call.key_heads + tile.key_head) * call.keys + block.begin;
    bool careful_keys = false;
    int64_t read =
        least(round_up(block.count, BLOCK_STEP), call.keys - block.begin);  // whole factors, with a weight of 0
    for (int64_t j = 0; j < read; ++j) careful_keys |= keys_aside[j] != 0;
    if (careful_keys || loaded.any_aside)
        for (int x = 0; x < block.count * QUERIES; ++x) scratch.seen[x] = scratch.scores[x] != -INFINITE;

    if (problem.drop_below) {
        Numbers kept = spread((Number)(1 / (1.0 - call.dropout)));
        each_dropped(problem, tile, block, [&](int j, int i, Ints dropped) {
            store(scratch.kept + j * QUERIES + i, dropped != 0 ? Numbers{} : kept);
        });
        weights_and_slopes<true>(problem, tile, block, loaded, scratch);
    } else weights_and_slopes<false>(problem, tile, block, loaded, scratch);
    if (call.rule_count > 0) rule_slopes(reverse, tile, block, scratch, distances);

    int64_t key_columns = reverse.key_columns, value_columns = reverse.value_columns, own = block.begin - chunk_begin;
    Number *key_sums = scratch.key_sums + own * key_columns, *value_sums = scratch.value_sums + own * value_columns;
    if (reverse.wants(reverse.wanted.value)) {
        const Factor* weights = fold_across(scratch.scores, block.count, scratch.factors);
        gather(weights, scratch.grad_rows, block.count, tile.count, value_sums, value_columns, of_keys);
    }
    if (call.compare) {
        const Stored* key = line<const Stored>(call.key, tile.row, tile.key_head, block.begin);
        for (int j = 0; j < block.count; ++j)
            additive_slopes(key + j * call.key.strides[2], scratch.query_numbers, scratch.grads + j * QUERIES,
                            tile.count, vector_of(call, tile.head), call.width, key_columns, scratch.query_sum,
                            key_sums + j * key_columns, scratch.vector_sums);
    } else
        product_slopes(reverse, tile, block, loaded, cut.of_queries, of_keys, careful_keys, keys_aside, key_sums,
                       scratch);
    if (loaded.any_aside)
        add_aside(
            tile, block, scratch.seen, scratch.scores, call.value_width,
            [&](int, int i) { return loaded.grad_aside[i]; },
            [&](int j, int, int64_t c) -> Number& { return value_sums[j * value_columns + c]; },
            [&](int, int i) {
                return line<const Stored>(reverse.wanted.grad_output, tile.row, tile.head, tile.first_query + i);
            });
}

}  // namespace
}  // namespace limelight::LL_NAMESPACE
