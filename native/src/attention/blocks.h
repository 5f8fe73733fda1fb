// Blocks of keys that some query of a tile sees, and how far each query reaches into a block.
#pragma once

#include "../library.h"
#include "../simd/vector.h"
#include "../tiles/reach.h"
#include "../tiles/shapes.h"
#include "visibility.h"

namespace limelight::LL_NAMESPACE {
namespace {

// Whether queries of the tile see a column of the mask's tile map: none, some or all of them.
enum Column { NONE, SOME, ALL };

LL_INLINE const int32_t* map_row(const ll_call& call, const Tile& tile, int64_t query) {
    const ll_tile_map& map = call.tiles;
    int64_t line = map.bit_rows == MAP_SIDE ? query / MAP_SIDE : 0;
    return map.state + tile.row * map.row_stride + tile.head * map.head_stride + line * map.query_stride;
}

inline Column column_state(const ll_call& call, const Tile& tile, int64_t column) {
    int32_t first = map_row(call, tile, tile.first_query)[column];
    int32_t last =
        map_row(call, tile, tile.first_query + tile.count - 1)[column];  // at most two rows: QUERIES <= MAP_SIDE
    if (first == -1 && last == -1) return NONE;
    return first == -2 && last == -2 ? ALL : SOME;
}

// At most BLOCK_KEYS consecutive keys, and which masks hide some of its pairs.
struct Block {
    int64_t begin;
    int count;
    bool masked_by_intervals, masked_by_bits;
};

// How many keys some query of the tile sees.
inline int64_t seen_keys(const Visibility& visible) {
    int64_t keys = 0;
    for (int n = 0; n < visible.range_count; ++n) keys += visible.ranges[n].end - visible.ranges[n].begin;
    return keys;
}

// Iterates over the blocks that some query of the tile sees, in ascending order. The blocks depend on the pattern
// alone, not on threads, other rows or the values in the tensors, so results are reproducible bit by bit.
struct BlockWalk {
    const ll_call& call;
    const Tile& tile;
    const Visibility& visible;
    int64_t cursor, stop;  // keys in [first cursor, stop) are visited
    int range = 0;
    int step = BLOCK_STEP;

    BlockWalk(const ll_call& c, const Tile& t, const Visibility& v, int64_t from = LL_LOWEST, int64_t to = LL_HIGHEST)
        : call(c), tile(t), visible(v), cursor(from), stop(to) {}
    void restart() { range = 0, cursor = LL_LOWEST; }

    bool next(Block& block) {
        while (range < visible.range_count) {
            int64_t end = min(visible.ranges[range].end, stop);
            cursor = max(cursor, visible.ranges[range].begin);
            if (cursor >= end) {
                ++range;
                continue;
            }
            // A block begins at a whole factor; the mask hides a key that this adds, since no query sees it.
            cursor = block_start(cursor, visible.phase, step);
            block = {cursor, (int)min<int64_t>(BLOCK_KEYS, end - cursor), false, false};
            if (call.tiles.state) limit_to_map(block, end);
            cursor += block.count;
            bool skipped = call.tiles.state && column_state(call, tile, block.begin / MAP_SIDE) == NONE;
            if (skipped) continue;
            block.masked_by_intervals = !all_see(visible, tile.count, block.begin, cursor);
            return true;
        }
        return false;
    }

    // One column of the map, or two when some query may see each.
    void limit_to_map(Block& block, int64_t end) const {
        int64_t column = block.begin / MAP_SIDE, edge = (column + 1) * MAP_SIDE;
        Column state = column_state(call, tile, column);
        block.count = (int)(min(edge, end) - block.begin);
        block.masked_by_bits = state == SOME;
        if (state == NONE || edge >= end) return;
        Column beside = column_state(call, tile, column + 1);
        if (beside == NONE) return;
        block.count = (int)(min(edge + MAP_SIDE, end) - block.begin);
        block.masked_by_bits |= beside == SOME;
    }
};

// The visible part of a block that intervals mask partly; null for other blocks. Not used with AMX, whose tiles are as
// large as what could be skipped.
struct VisiblePart {
    const Reach* of_queries = nullptr;  // rows are queries, columns are keys
    Reach reach;

    VisiblePart(const Visibility& visible, const Tile& tile, const Block& block) {
        if (!block.masked_by_intervals || BLOCK_STEP > 2) return;
        of_queries = &reach;
        for (int i = 0; i < tile.count; ++i) {
            reach.begin[i] = BLOCK_KEYS, reach.end[i] = 0;
            for (int k = 0; k < visible.count; ++k) {
                int64_t begin = max<int64_t>(visible.starts[k][i] - block.begin, 0);
                int64_t end = min<int64_t>(visible.ends[k][i] - block.begin, block.count);
                if (begin >= end) continue;
                reach.begin[i] = min(reach.begin[i], (int)begin), reach.end[i] = max(reach.end[i], (int)end);
            }
        }
    }
    VisiblePart(const VisiblePart&) = delete;

    // Rows are keys, columns are queries; null where of_queries is.
    const Reach* of_keys(const Tile& tile, const Block& block, Reach& to) const {
        if (!of_queries) return nullptr;
        for (int j = 0; j < block.count; ++j) to.begin[j] = QUERIES, to.end[j] = 0;
        for (int i = tile.count - 1; i >= 0; --i)
            for (int j = reach.begin[i]; j < reach.end[i]; ++j) to.begin[j] = i, to.end[j] = max(to.end[j], i + 1);
        return &to;
    }
};

}  // namespace
}  // namespace limelight::LL_NAMESPACE
