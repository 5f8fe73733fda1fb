// Scores of a tile of queries and a block of keys: product, score rules, masks.
#pragma once

#include "../library.h"
#include "../simd/elements.h"
#include "../simd/hadamard.h"
#include "../simd/vector.h"
#include "../tiles/amx.h"
#include "../tiles/operands.h"
#include "../tiles/register_tile.h"
#include "../tiles/shapes.h"
#include "additive.h"
#include "blocks.h"
#include "pages.h"
#include "problem.h"
#include "rules.h"
#include "visibility.h"

namespace limelight::LL_NAMESPACE {
namespace {

// Sets the scores of keys outside the intervals of their query to -inf.
inline void mask_by_intervals(const Visibility& visible, const Tile& tile, const Block& block, Float* scores) {
    alignas(64) Int starts[LL_MAX_SPANS][QUERIES] = {}, ends[LL_MAX_SPANS][QUERIES] = {};
    for (int k = 0; k < visible.count; ++k)
        for (int i = 0; i < tile.count; ++i) {
            starts[k][i] = (Int)clamp<int64_t>(visible.starts[k][i] - block.begin, 0, BLOCK_KEYS);
            ends[k][i] = (Int)clamp<int64_t>(visible.ends[k][i] - block.begin, 0, BLOCK_KEYS);
        }
    auto mask = [&](Vec s, int j, int i) {
        IntVec inside{};
        for (int k = 0; k < visible.count; ++k)
            inside |= (load<IntVec>(starts[k] + i) <= j) & (load<IntVec>(ends[k] + i) > j);
        return inside ? s : broadcast(-INF);
    };
    if (visible.count != 1) return for_each_score(scores, block.count, tile.count, mask);
    // One interval for each query: only keys before the last start, or from the first end on, are masked for some
    // query.
    int last_start = 0, first_end = block.count;
    for (int i = 0; i < tile.count; ++i) {
        last_start = max(last_start, (int)starts[0][i]);
        first_end = min(first_end, (int)ends[0][i]);
    }
    last_start = min(last_start, block.count), first_end = max(first_end, last_start);
    for_each_score(scores, last_start, tile.count, mask);
    for_each_score(scores + first_end * QUERIES, block.count - first_end, tile.count,
                   [&](Vec s, int j, int i) { return mask(s, first_end + j, i); });
}

// The 64 bits of the tile map that hold the visible keys of a query in a column of tiles.
inline uint64_t map_word(const ll_call& call, const Tile& tile, int64_t query, int64_t column) {
    int32_t state = map_row(call, tile, query)[column];
    if (state < 0) return state == -2 ? ~(uint64_t)0 : 0;
    int64_t rows = call.tiles.bit_rows;
    return call.tiles.bits[state * rows + (rows == MAP_SIDE ? query % MAP_SIDE : 0)];
}

// Sets the scores of keys whose bit in the tile map is 0 to -inf.
inline void mask_by_bits(const ll_call& call, const Tile& tile, const Block& block, Float* scores) {
    alignas(64) Int words[2][QUERIES] = {};
    int64_t loaded = -1;
    for (int j = 0; j < block.count; ++j) {
        int64_t key = block.begin + j, column = key / MAP_SIDE;
        if (column != loaded) {
            loaded = column;
            for (int i = 0; i < tile.count; ++i) {
                uint64_t word = map_word(call, tile, tile.first_query + i, column);
                words[0][i] = (Int)(uint32_t)word, words[1][i] = (Int)(uint32_t)(word >> 32);
            }
        }
        const Int* half = words[key % MAP_SIDE / 32];
        Int bit = (Int)(1u << (key % 32));
        for (int i = 0; i < tile.count; i += LANES) {
            Float* at = scores + j * QUERIES + i;
            store(at, (load<IntVec>(half + i) & bit) != 0 ? load<Vec>(at) : broadcast(-INF));
        }
    }
}

// peak[query]: the maximum score over the keys of the block.
inline void max_of(const Tile& tile, const Block& block, const Float* scores, Float* peak) {
    for (int i = 0; i < tile.count; i += LANES) {
        Vec peak_here = broadcast(-INF);
        for (int j = 0; j < block.count; ++j) peak_here = max(peak_here, load<Vec>(scores + j * QUERIES + i));
        store(peak + i, peak_here);
    }
}

// The number of factors of a tile of queries, packed for score_block; behind them room for its rotated queries.
LL_INLINE int64_t packed_size(const ll_call& call) {
    if (call.compare) return call.width * QUERIES * (int64_t)(sizeof(Float) / sizeof(Factor));
    return steps_along(call.width) * QUERIES + (rotates(call) ? call.width * QUERIES : 0);
}

// Rotated rows of a tile of queries, one after the other.
inline void rotate_rows(const Stored* from, int64_t stride, int count, int64_t width, Stored* to) {
    Float* row = (Float*)__builtin_alloca(sizeof(Float) * (size_t)width);
    for (int i = 0; i < count; ++i) {
        read_row(from + i * stride, width, row, width);
        hadamard(row, width);
        write_row(row, width, to + i * width);
    }
}

inline void pack_queries(const Problem& problem, const Tile& tile, Factor* to) {
    const ll_tensor& query = problem.call.query;
    const Stored* from = row_at<const Stored>(query, tile.row, tile.head, tile.first_query);
    int64_t stride = query.strides[2], width = problem.call.width;
    if (problem.call.compare) return transpose_queries(from, stride, tile.count, width, (Float*)to);
    if (rotates(problem.call)) {
        Stored* rotated = (Stored*)(to + steps_along(width) * QUERIES);
        rotate_rows(from, stride, tile.count, width, rotated);
        from = rotated, stride = width;
    }
    pack(from, stride, tile.count, width, problem.query_factor, to);
}

// scores[key][query]: -inf where masked. peak[query]: the maximum over the block, in which NaN may be lost.
inline void score_block(const Problem& problem, const Tile& tile, const Visibility& visible, const Block& block,
                        const VisiblePart& part, const Factor* packed, Float* scores, Float* peak,
                        Float* derivatives = nullptr) {
    const ll_call& call = problem.call;
    for (int i = 0; i < QUERIES; i += LANES) store(peak + i, broadcast(-INF));
    if (call.compare)
        for_each_page(call, *tile.segment, keys_read(call, tile, block), [&](int64_t key, int64_t count) {
            additive_scores(key_row(call, call.key, tile, key), call.key.strides[2], (int)count, (const Float*)packed,
                            tile.count, compare_vector(call, tile.head), call.width,
                            scores + (key - block.begin) * QUERIES);
        });
    else
        for_each_run(call, problem.keys, tile, block, [&](const Factor* key, int begin, int end) {
            score_product(key, problem.keys.stride, begin, end, packed, tile.count, problem.steps, scores, peak,
                          part.of_queries);
        });
    bool changed = call.compare || call.rule_count > 0 || block.masked_by_intervals || block.masked_by_bits;
    if (!changed) return;
    if (call.rule_count > 0) apply_rules(problem, tile, block, scores, derivatives);
    if (block.masked_by_intervals) mask_by_intervals(visible, tile, block, scores);
    if (block.masked_by_bits) mask_by_bits(call, tile, block, scores);
    max_of(tile, block, scores, peak);
}

}  // namespace
}  // namespace limelight::LL_NAMESPACE
