// Score rules: bias, ALiBi, distance table, soft cap.
#pragma once

#include "../library.h"
#include "../simd/elementary.h"
#include "../simd/elements.h"
#include "../simd/vector.h"
#include "../tiles/shapes.h"
#include "blocks.h"
#include "problem.h"
#include "visibility.h"

namespace limelight::LL_NAMESPACE {
namespace {

// score = f(score, key of the block, first query of the vector) for every vector of scores of the block.
template <class F>
LL_INLINE void for_each_score(Float* scores, int keys, int queries, F f) {
    for (int j = 0; j < keys; ++j)
        for (int i = 0; i < queries; i += LANES) {
            Float* at = scores + j * QUERIES + i;
            store(at, f(load<Vec>(at), j, i));
        }
}

// Key position minus query position for the block's first key and the tile's first query.
LL_INLINE int32_t first_distance(const Tile& tile, const Block& block) {
    int64_t distance = block.begin + tile.segment->key_offset - tile.query_position(0);
    return (int32_t)clamp<int64_t>(distance, -(1 << 30), 1 << 30);
}

LL_INLINE Vec absolute_distance(int32_t first, int j, int i) {
    IntVec distance = broadcast_int(first + j - i) - iota();
    return __builtin_convertvector(distance < 0 ? -distance : distance, Vec);
}

// One query's row of a bias, which is stored as floats, or as elements like query and key.
struct BiasRow {
    const void* from;
    int64_t step;
    bool stored;
    BiasRow(const ll_rule& rule, const Tile& tile, const Block& block, int i) : step(rule.tensor.strides[3]) {
        stored = CONVERTED && rule.stored != 0;
        const ll_tensor& bias = rule.tensor;
        int64_t at = tile.row * bias.strides[0] + tile.head * bias.strides[1] +
                     (tile.first_query + i) * bias.strides[2] + block.begin * step;
        from = (const char*)bias.data + at * (int64_t)(stored ? sizeof(Stored) : sizeof(Float));
    }
    LL_INLINE Float operator[](int64_t j) const {
        return stored ? read((const Stored*)from + j * step) : ((const Float*)from)[j * step];
    }
    // Prefetches what the next block of keys reads at j: hardware prefetchers do not follow so many short rows. One
    // line for each line that is read: other loads would queue behind a whole block of prefetches.
    LL_INLINE void prefetch_next_block(int64_t j) const {
        int64_t later = j + BLOCK_KEYS;
        __builtin_prefetch(
            stored ? (const char*)((const Stored*)from + later) : (const char*)((const Float*)from + later), 0, 2);
    }
    LL_INLINE Vec vector(int64_t j) const {  // LANES consecutive keys
        return stored ? read_vector((const Stored*)from + j) : load<Vec>((const Float*)from + j);
    }
};

inline __attribute__((noinline)) void add_bias(const ll_call& call, const ll_rule& rule, const Tile& tile,
                                               const Block& block, Float scale, Float* scores) {
    if (rule.tensor.strides[2] == 0) {
        BiasRow bias(rule, tile, block, 0);
        for_each_score(scores, block.count, tile.count,
                       [&](Vec s, int j, int) { return multiply_add(s, broadcast(scale), broadcast(bias[j])); });
        return;
    }
    // Rows of the bias lie along the keys, vectors of scores along the queries: transposed in squares.
    int whole = rule.tensor.strides[3] == 1 ? block.count / LANES * LANES : 0;
    for (int first = 0; first < tile.count; first += LANES)
        for (int j = 0; j < whole; j += LANES) {
            Vec rows[LANES];
            for (int i = 0; i < LANES; ++i) {
                if (first + i >= tile.count) {
                    rows[i] = Vec{};
                    continue;
                }
                BiasRow row(rule, tile, block, first + i);
                rows[i] = row.vector(j);
                if (block.begin + j + BLOCK_KEYS < call.keys) row.prefetch_next_block(j);
            }
            transpose(rows);
            for (int i = 0; i < LANES; ++i) {
                Float* at = scores + (j + i) * QUERIES + first;
                store(at, multiply_add(load<Vec>(at), broadcast(scale), rows[i]));
            }
        }
    for (int i = 0; i < tile.count; ++i) {
        BiasRow bias(rule, tile, block, i);
        for (int j = whole; j < block.count; ++j) {
            Float* at = scores + j * QUERIES + i;
            *at = multiply_add(broadcast(*at), broadcast(scale), broadcast(bias[j]))[0];
        }
    }
}

LL_INLINE Float alibi_slope(const ll_rule& rule, const Tile& tile) {
    return ((const Float*)rule.tensor.data)[tile.row * rule.tensor.strides[0] + tile.head * rule.tensor.strides[1]];
}

inline void add_alibi(const ll_rule& rule, const Tile& tile, const Block& block, Float scale, Float* scores) {
    Float slope = alibi_slope(rule, tile);
    int32_t first = first_distance(tile, block);
    for_each_score(scores, block.count, tile.count, [&](Vec s, int j, int i) {
        return multiply_add(s, broadcast(scale), absolute_distance(first, j, i) * -slope);
    });
}

// The index into a distance table for the block's first key and the tile's first query, and the last index.
struct TableIndex {
    int64_t first, last;
    TableIndex(const ll_rule& rule, const Tile& tile, const Block& block)
        : first(first_distance(tile, block) + (int64_t)rule.parameters[0]), last((int64_t)rule.parameters[1] - 1) {}
};

// The distance falls by one from query to query: in a reversed copy, the entries of a key row are one vector load.
inline __attribute__((noinline)) void add_table(const ll_rule& rule, const Tile& tile, const Block& block, Float scale,
                                                Float* scores) {
    const Float* table = (const Float*)rule.tensor.data + tile.head * rule.tensor.strides[1];
    TableIndex index(rule, tile, block);
    Float backwards[BLOCK_KEYS + QUERIES];
    for (int x = 0; x < block.count + QUERIES; ++x)
        backwards[x] = table[clamp<int64_t>(index.first + block.count - 1 - x, 0, index.last) * rule.tensor.strides[3]];
    for_each_score(scores, block.count, tile.count, [&](Vec s, int j, int i) {
        return multiply_add(s, broadcast(scale), load<Vec>(backwards + block.count - 1 - j + i));
    });
}

// `derivatives`, if not null, receives the derivative of each soft cap: [soft cap][BLOCK_KEYS][QUERIES].
inline void apply_rules(const Problem& problem, const Tile& tile, const Block& block, Float* scores,
                        Float* derivatives) {
    const ll_call& call = problem.call;
    Float scale = problem.scale == 0 ? 1 : problem.scale;  // the packed queries are already multiplied by zero
    for (int r = 0; r < call.rule_count; ++r) {
        const ll_rule& rule = call.rules[r];
        Float limit = (Float)rule.parameters[0];
        switch (rule.kind) {
            case LL_BIAS: add_bias(call, rule, tile, block, scale, scores); break;
            case LL_ALIBI: add_alibi(rule, tile, block, scale, scores); break;
            case LL_DISTANCE_TABLE: add_table(rule, tile, block, scale, scores); break;
            case LL_SOFTCAP:
                for_each_score(scores, block.count, tile.count, [&](Vec s, int j, int i) {
                    Vec share = tanh(s * scale / limit);
                    if (derivatives) store(derivatives + j * QUERIES + i, 1 - share * share);
                    return limit * share;
                });
                if (derivatives) derivatives += BLOCK_KEYS * QUERIES;
                break;
        }
        scale = 1;  // applied by the first rule
    }
}

}  // namespace
}  // namespace limelight::LL_NAMESPACE
