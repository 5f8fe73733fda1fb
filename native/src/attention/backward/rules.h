// Gradients of score rules.
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

LL_INLINE Number* bias_gradient(const ll_tensor& to, const Tile& tile, int64_t i, int64_t j) {
    return (Number*)to.data + tile.row * to.strides[0] + tile.head * to.strides[1] + i * to.strides[2] +
           j * to.strides[3];
}

// Numbers of `to` that one pair alone has are written, never read, and past the caches: there are too many for them.
inline void bias_slopes(const ll_call& call, const ll_tensor& to, const Tile& tile, const Block& block,
                        const Number* grads, Number* row_sums) {
    if (to.strides[3] == 0) {  // summed over keys, which other chunks share: added when it is this chunk's turn
        for (int j = 0; j < block.count; ++j)
            for (int i = 0; i < tile.count; i += LANES)
                store(row_sums + i, load<Numbers>(row_sums + i) + load<Numbers>(grads + j * QUERIES + i));
        return;
    }
    if (to.strides[2] == 0) {  // summed over queries: first those of the tile
        for (int j = 0; j < block.count; ++j) {
            Numbers sum{};
            for (int i = 0; i < tile.count; i += LANES) sum += load<Numbers>(grads + j * QUERIES + i);
            *bias_gradient(to, tile, 0, block.begin + j) += sum_of_lanes(sum);
        }
        return;
    }
    bool alone = (call.batch == 1 || to.strides[0] != 0) && (call.query_heads == 1 || to.strides[1] != 0);
    int whole = to.strides[3] == 1 ? block.count / LANES * LANES : 0;
    for (int first = 0; first < tile.count; first += LANES)
        for (int j = 0; j < whole; j += LANES) {
            Numbers rows[LANES];
            for (int i = 0; i < LANES; ++i) rows[i] = load<Numbers>(grads + (j + i) * QUERIES + first);
            turn_square(rows);
            for (int i = 0; i < least(LANES, tile.count - first); ++i) {
                Number* at = bias_gradient(to, tile, tile.first_query + first + i, block.begin + j);
                alone ? stream(at, rows[i]) : store(at, load<Numbers>(at) + rows[i]);
            }
        }
    for (int i = 0; i < tile.count; ++i)
        for (int j = whole; j < block.count; ++j) {
            Number* at = bias_gradient(to, tile, tile.first_query + i, block.begin + j);
            *at = alone ? grads[j * QUERIES + i] : *at + grads[j * QUERIES + i];
        }
}

// Where a tile's queries see none of the keys [from, to): of gradients that nobody has cleared.
inline void clear_bias_slopes(const Reverse& reverse, const Tile& tile, int64_t from, int64_t to) {
    for (int64_t r = 0; from < to && r < reverse.problem.call.rule_count; ++r)
        for (int i = 0; reverse.wanted.uncleared >> r & 1 && i < tile.count; ++i) {
            Number* at = bias_gradient(reverse.wanted.rules[r], tile, tile.first_query + i, from);
            int64_t x = 0, count = to - from;
            for (; x < count && (uintptr_t)(at + x) % VECTOR_BYTES != 0; ++x) at[x] = 0;
            for (; x + LANES <= count; x += LANES) stream(at + x, Numbers{});
            for (; x < count; ++x) at[x] = 0;
        }
}

inline void alibi_slopes(const Tile& tile, const Block& block, const Number* grads, Number* row_sums) {
    int32_t first = first_distance(tile, block);
    for (int j = 0; j < block.count; ++j)
        for (int i = 0; i < tile.count; i += LANES)
            store(row_sums + i, load<Numbers>(row_sums + i) -
                                    load<Numbers>(grads + j * QUERIES + i) * absolute_distance(first, j, i));
}

inline void table_slopes(const ll_rule& rule, const Tile& tile, const Block& block, const Number* grads,
                         DistanceSums& to) {
    Places places(rule, tile, block);
    for (int j = 0; j < block.count; ++j)
        for (int i = 0; i < tile.count; ++i)
            to.sums[clamp<int64_t>(places.first + j - i, 0, places.last) - to.first] += grads[j * QUERIES + i];
}

// grads: dS of the final score, becomes that of scale * q . k: the rules backwards.
inline void rule_slopes(const Reverse& reverse, const Tile& tile, const Block& block, ReverseScratch& scratch,
                        DistanceSums* distances) {
    const ll_call& call = reverse.problem.call;
    const Number* slopes = scratch.slopes + reverse.problem.softcaps * BLOCK_KEYS * QUERIES;
    for (int64_t r = call.rule_count - 1; r >= 0; --r) {
        const ll_rule& rule = call.rules[r];
        const ll_tensor& to = reverse.wanted.rules[r];
        if (rule.kind == LL_SOFTCAP) {
            slopes -= BLOCK_KEYS * QUERIES;
            each_score(scratch.grads, block.count, tile.count, [&](Numbers s, int j, int i) {
                return s == 0 ? Numbers{} : s * load<Numbers>(slopes + j * QUERIES + i);
            });
        } else if (reverse.wants(to)) {
            Number* row_sums = scratch.row_sums + r * QUERIES;
            if (rule.kind == LL_BIAS) bias_slopes(call, to, tile, block, scratch.grads, row_sums);
            if (rule.kind == LL_ALIBI) alibi_slopes(tile, block, scratch.grads, row_sums);
            if (rule.kind == LL_DISTANCE_TABLE) table_slopes(rule, tile, block, scratch.grads, distances[r]);
        }
    }
}

}  // namespace
}  // namespace limelight::LL_NAMESPACE
