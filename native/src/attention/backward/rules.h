// The gradients of score rules.
#pragma once

#include "../../library.h"
#include "../../simd/vector.h"
#include "../../tiles/shapes.h"
#include "../blocks.h"
#include "../rules.h"
#include "../visibility.h"
#include "pass.h"

namespace limelight::LL_NAMESPACE {
namespace {

LL_INLINE Float* bias_gradient_at(const ll_tensor& to, const Tile& tile, int64_t i, int64_t j) {
    return (Float*)to.data + tile.row * to.strides[0] + tile.head * to.strides[1] + i * to.strides[2] +
           j * to.strides[3];
}

// The gradient of a bias. Elements with a single contribution are stored with non-temporal stores, not accumulated:
// they exceed the caches.
inline void add_bias_gradient(const ll_call& call, const ll_tensor& to, const Tile& tile, const Block& block,
                              const Float* grads, Float* row_sums) {
    if (to.strides[3] == 0) {  // summed over keys, also of other chunks: added in the order of the chunks
        for (int j = 0; j < block.count; ++j)
            for (int i = 0; i < tile.count; i += LANES)
                store(row_sums + i, load<Vec>(row_sums + i) + load<Vec>(grads + j * QUERIES + i));
        return;
    }
    if (to.strides[2] == 0) {  // summed over queries: first over those of the tile
        for (int j = 0; j < block.count; ++j) {
            Vec sum{};
            for (int i = 0; i < tile.count; i += LANES) sum += load<Vec>(grads + j * QUERIES + i);
            *bias_gradient_at(to, tile, 0, block.begin + j) += reduce_add(sum);
        }
        return;
    }
    bool alone = (call.batch == 1 || to.strides[0] != 0) && (call.query_heads == 1 || to.strides[1] != 0);
    int whole = to.strides[3] == 1 ? block.count / LANES * LANES : 0;
    for (int first = 0; first < tile.count; first += LANES)
        for (int j = 0; j < whole; j += LANES) {
            Vec rows[LANES];
            for (int i = 0; i < LANES; ++i) rows[i] = load<Vec>(grads + (j + i) * QUERIES + first);
            transpose(rows);
            for (int i = 0; i < min(LANES, tile.count - first); ++i) {
                Float* at = bias_gradient_at(to, tile, tile.first_query + first + i, block.begin + j);
                alone ? stream(at, rows[i]) : store(at, load<Vec>(at) + rows[i]);
            }
        }
    for (int i = 0; i < tile.count; ++i)
        for (int j = whole; j < block.count; ++j) {
            Float* at = bias_gradient_at(to, tile, tile.first_query + i, block.begin + j);
            *at = alone ? grads[j * QUERIES + i] : *at + grads[j * QUERIES + i];
        }
}

// Writes zeros for the keys [from, to), which no query of the tile sees, to gradients that the caller has not cleared.
inline void clear_bias_gradient(const BackwardPass& pass, const Tile& tile, int64_t from, int64_t to) {
    for (int64_t r = 0; from < to && r < pass.problem.call.rule_count; ++r)
        for (int i = 0; pass.gradients.uncleared >> r & 1 && i < tile.count; ++i) {
            Float* at = bias_gradient_at(pass.gradients.rules[r], tile, tile.first_query + i, from);
            int64_t x = 0, count = to - from;
            for (; x < count && (uintptr_t)(at + x) % VECTOR_BYTES != 0; ++x) at[x] = 0;
            for (; x + LANES <= count; x += LANES) stream(at + x, Vec{});
            for (; x < count; ++x) at[x] = 0;
        }
}

inline void add_alibi_gradient(const Tile& tile, const Block& block, const Float* grads, Float* row_sums) {
    int32_t first = first_distance(tile, block);
    for (int j = 0; j < block.count; ++j)
        for (int i = 0; i < tile.count; i += LANES)
            store(row_sums + i,
                  load<Vec>(row_sums + i) - load<Vec>(grads + j * QUERIES + i) * absolute_distance(first, j, i));
}

inline void add_table_gradient(const ll_rule& rule, const Tile& tile, const Block& block, const Float* grads,
                               DistanceSums& to) {
    TableIndex index(rule, tile, block);
    for (int j = 0; j < block.count; ++j)
        for (int i = 0; i < tile.count; ++i)
            to.sums[clamp<int64_t>(index.first + j - i, 0, index.last) - to.first] += grads[j * QUERIES + i];
}

// grads: dS of the final scores, replaced by that of scale * q . k: the rules in reverse order.
inline void rules_backward(const BackwardPass& pass, const Tile& tile, const Block& block, BackwardScratch& scratch,
                           DistanceSums* distances) {
    const ll_call& call = pass.problem.call;
    const Float* derivatives = scratch.derivatives + pass.problem.softcaps * BLOCK_KEYS * QUERIES;
    for (int64_t r = call.rule_count - 1; r >= 0; --r) {
        const ll_rule& rule = call.rules[r];
        const ll_tensor& to = pass.gradients.rules[r];
        if (rule.kind == LL_SOFTCAP) {
            derivatives -= BLOCK_KEYS * QUERIES;
            for_each_score(scratch.grads, block.count, tile.count, [&](Vec s, int j, int i) {
                return s == 0 ? Vec{} : s * load<Vec>(derivatives + j * QUERIES + i);
            });
        } else if (pass.needs(to)) {
            Float* row_sums = scratch.row_sums + r * QUERIES;
            if (rule.kind == LL_BIAS) add_bias_gradient(call, to, tile, block, scratch.grads, row_sums);
            if (rule.kind == LL_ALIBI) add_alibi_gradient(tile, block, scratch.grads, row_sums);
            if (rule.kind == LL_DISTANCE_TABLE) add_table_gradient(rule, tile, block, scratch.grads, distances[r]);
        }
    }
}

}  // namespace
}  // namespace limelight::LL_NAMESPACE
