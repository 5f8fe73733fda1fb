// Score rules: bias, ALiBi, distance table, soft cap.
#pragma once

#include "../library.h"
#include "../simd/elementary.h"
#include "../simd/elements.h"
#include "../simd/vector.h"
#include "../tiles/shapes.h"
#include "blocks.h"
#include "visibility.h"

namespace limelight::LL_NAMESPACE {
namespace {

// f(score, key of the block, first query of the vector) -> score, for every score of the block.
template <class F> LL_INLINE void each_score(Number* scores, int keys, int queries, F f) {
    for (int j = 0; j < keys; ++j)
        for (int i = 0; i < queries; i += LANES) {
            Number* at = scores + j * QUERIES + i;
            store(at, f(load<Numbers>(at), j, i));
        }
}

// Key position minus query position of the block's first key and the tile's first query.
LL_INLINE int32_t first_distance(const Tile& tile, const Block& block) {
    int64_t distance = block.begin + tile.segment->key_offset - tile.query_position(0);
    return (int32_t)clamp<int64_t>(distance, -(1 << 30), 1 << 30);
}

LL_INLINE Numbers absolute_distance(int32_t first, int j, int i) {
    Ints distance = spread_int(first + j - i) - iota();
    return __builtin_convertvector(distance < 0 ? -distance : distance, Numbers);
}

// A tensor of a rule holds numbers, or elements as query and key do.
struct BiasRow {
    const void* from;
    int64_t step;
    bool stored;
    BiasRow(const ll_rule& rule, const Tile& tile, const Block& block, int i) : step(rule.tensor.strides[3]) {
        stored = CONVERTED && rule.stored != 0;
        const ll_tensor& bias = rule.tensor;
        int64_t at = tile.row * bias.strides[0] + tile.head * bias.strides[1] +
                     (tile.first_query + i) * bias.strides[2] + block.begin * step;
        from = (const char*)bias.data + at * (int64_t)(stored ? sizeof(Stored) : sizeof(Number));
    }
    LL_INLINE Number operator[](int64_t j) const {
        return stored ? read((const Stored*)from + j * step) : ((const Number*)from)[j * step];
    }
    // Memory is asked for what the next block will read when this one reads number j: no machine foresees so many short
    // rows. Line by line, since what is read meanwhile would wait behind a block asked for at once.
    LL_INLINE void ask_ahead(int64_t j) const {
        int64_t later = j + BLOCK_KEYS;
        __builtin_prefetch(
            stored ? (const char*)((const Stored*)from + later) : (const char*)((const Number*)from + later), 0, 2);
    }
    LL_INLINE Numbers vector(int64_t j) const {  // LANES keys that lie side by side
        return stored ? read_vector((const Stored*)from + j) : load<Numbers>((const Number*)from + j);
    }
};

inline void add_bias(const ll_call& call, const ll_rule& rule, const Tile& tile, const Block& block, Number scale,
                     Number* scores) {
    if (rule.tensor.strides[2] == 0) {
        BiasRow bias(rule, tile, block, 0);
        each_score(scores, block.count, tile.count,
                   [&](Numbers s, int j, int) { return multiply_add(s, spread(scale), spread(bias[j])); });
        return;
    }
    // The bias lies along the keys, the scores along the queries: squares of it are turned.
    int whole = rule.tensor.strides[3] == 1 ? block.count / LANES * LANES : 0;
    for (int first = 0; first < tile.count; first += LANES)
        for (int j = 0; j < whole; j += LANES) {
            Numbers rows[LANES];
            for (int i = 0; i < LANES; ++i) {
                if (first + i >= tile.count) {
                    rows[i] = Numbers{};
                    continue;
                }
                BiasRow row(rule, tile, block, first + i);
                rows[i] = row.vector(j);
                if (block.begin + j + BLOCK_KEYS < call.keys) row.ask_ahead(j);
            }
            turn_square(rows);
            for (int i = 0; i < LANES; ++i) {
                Number* at = scores + (j + i) * QUERIES + first;
                store(at, multiply_add(load<Numbers>(at), spread(scale), rows[i]));
            }
        }
    for (int i = 0; i < tile.count; ++i) {
        BiasRow bias(rule, tile, block, i);
        for (int j = whole; j < block.count; ++j) {
            Number* at = scores + j * QUERIES + i;
            *at = multiply_add(spread(*at), spread(scale), spread(bias[j]))[0];
        }
    }
}

LL_INLINE Number slope_of(const ll_rule& rule, const Tile& tile) {
    return ((const Number*)rule.tensor.data)[tile.row * rule.tensor.strides[0] + tile.head * rule.tensor.strides[1]];
}

inline void add_alibi(const ll_rule& rule, const Tile& tile, const Block& block, Number scale, Number* scores) {
    Number slope = slope_of(rule, tile);
    int32_t first = first_distance(tile, block);
    each_score(scores, block.count, tile.count, [&](Numbers s, int j, int i) {
        return multiply_add(s, spread(scale), absolute_distance(first, j, i) * -slope);
    });
}

// The entry of a distance table for the block's first key and the tile's first query, and the last entry.
struct Places {
    int64_t first, last;
    Places(const ll_rule& rule, const Tile& tile, const Block& block)
        : first(first_distance(tile, block) + (int64_t)rule.parameters[0]), last((int64_t)rule.parameters[1] - 1) {}
};

// The distance falls by one from query to query: laid out backwards, the entries of a key row are one vector load.
inline void add_table(const ll_rule& rule, const Tile& tile, const Block& block, Number scale, Number* scores) {
    const Number* table = (const Number*)rule.tensor.data + tile.head * rule.tensor.strides[1];
    Places places(rule, tile, block);
    Number backwards[BLOCK_KEYS + QUERIES];
    for (int x = 0; x < block.count + QUERIES; ++x)
        backwards[x] =
            table[clamp<int64_t>(places.first + block.count - 1 - x, 0, places.last) * rule.tensor.strides[3]];
    each_score(scores, block.count, tile.count, [&](Numbers s, int j, int i) {
        return multiply_add(s, spread(scale), load<Numbers>(backwards + block.count - 1 - j + i));
    });
}

// `slopes`, where given, takes the derivative of each soft cap in turn: [soft cap][BLOCK_KEYS][QUERIES].
inline void apply_rules(const ll_call& call, const Tile& tile, const Block& block, Number* scores, Number* slopes) {
    Number scale = call.scale == 0.0 ? 1 : (Number)call.scale;  // zero is already in the packed queries
    for (int r = 0; r < call.rule_count; ++r) {
        const ll_rule& rule = call.rules[r];
        Number limit = (Number)rule.parameters[0];
        switch (rule.kind) {
            case LL_BIAS: add_bias(call, rule, tile, block, scale, scores); break;
            case LL_ALIBI: add_alibi(rule, tile, block, scale, scores); break;
            case LL_DISTANCE_TABLE: add_table(rule, tile, block, scale, scores); break;
            case LL_SOFTCAP:
                each_score(scores, block.count, tile.count, [&](Numbers s, int j, int i) {
                    Numbers share = tanh_of(s * scale / limit);
                    if (slopes) store(slopes + j * QUERIES + i, 1 - share * share);
                    return limit * share;
                });
                if (slopes) slopes += BLOCK_KEYS * QUERIES;
                break;
        }
        scale = 1;  // the first rule has applied it
    }
}

}  // namespace
}  // namespace limelight::LL_NAMESPACE
