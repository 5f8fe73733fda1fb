// Which keys the queries of a tile see: intervals of each query, and their union.
#pragma once

#include "../library.h"
#include "../simd/vector.h"
#include "../tiles/reach.h"
#include "../tiles/shapes.h"

namespace limelight::LL_NAMESPACE {
namespace {

// Consecutive queries of one segment, batch row and head.
struct Tile {
    const ll_segment* segment;
    int64_t row, head, key_head;
    int64_t dropout_row;
    int64_t first_query;  // token index
    int count;            // queries, 1 to QUERIES
    int64_t query_position(int i) const { return first_query + i + segment->query_offset; }
};

// Blocks of keys, and pairs of keys in a factor, are counted from the first key of a document, so that its bits do not
// depend on where it lies in a batch, or on where its parts lie. With a tile map they are counted from key 0 of the
// call: blocks end where columns of the map do. Returns the remainder, modulo BLOCK_STEP, of the keys where they begin.
LL_INLINE int64_t block_phase(const ll_call& call, const ll_segment& segment) {
    if (BLOCK_STEP == 1 || call.tiles.state) return 0;
    int64_t before = segment.keys_before & (BLOCK_STEP - 1);
    return (segment.key_begin - (before <= segment.key_begin ? before : 0)) & (BLOCK_STEP - 1);
}

// The last key up to `key` at which a block may begin.
LL_INLINE int64_t block_start(int64_t key, int64_t phase, int step = BLOCK_STEP) {
    return key - ((key - phase) & (step - 1));
}

struct Visibility {
    int64_t phase;                                                       // of blocks of keys, see block_phase
    int count;                                                           // intervals per query
    int64_t starts[LL_MAX_SPANS][QUERIES], ends[LL_MAX_SPANS][QUERIES];  // key indices
    int64_t last_start, first_end;                                       // of the first intervals of all queries
    int range_count;
    Range ranges[LL_MAX_SPANS * QUERIES];  // the union over the queries, ascending
};

// Interval k of each query of the tile, as key indices; it may be empty.
LL_INLINE void compute_intervals(const ll_call& call, const Tile& tile, int k, int64_t* starts, int64_t* ends) {
    const ll_segment& segment = *tile.segment;
    int64_t key_begin = segment.key_begin, key_end = segment.key_end;
    if (call.intervals.starts) {
        const ll_intervals& lists = call.intervals;
        int64_t at =
            k * lists.interval_stride + tile.row * lists.row_stride + tile.head * lists.head_stride + tile.first_query;
        for (int i = 0; i < tile.count; ++i) {
            starts[i] = max<int64_t>(lists.starts[at + i], key_begin);
            ends[i] = min<int64_t>(lists.ends[at + i], key_end);
        }
        return;
    }
    const ll_span span = call.spans[k];
    int64_t offset = segment.key_offset;
    for (int i = 0; i < tile.count; ++i) {
        int64_t position = tile.query_position(0) + i;
        int64_t begin = max(span.start, position + span.start_offset);
        int64_t end = min(span.end, position + span.end_offset);
        if (span.chunk != 0) {
            int64_t base = floor_div(position, span.chunk) * span.chunk;
            begin = max(begin, base + span.chunk_start);
            end = min(end, base + span.chunk_end);
        }
        bool excluded = position < span.query_from || position >= span.query_to;
        starts[i] = excluded ? 0 : max(begin - offset, key_begin);
        ends[i] = excluded ? 0 : min(end - offset, key_end);
    }
}

// Sorts ranges by begin, drops empty ones, and merges those that touch after `begin` is moved down to where a block may
// begin; returns how many remain. Insertion sort: the input is nearly sorted.
inline int merge_ranges(Range* ranges, int count, int step = 1, int64_t phase = 0) {
    for (int i = 1; i < count; ++i) {
        Range moving = ranges[i];
        int j = i;
        for (; j > 0 && ranges[j - 1].begin > moving.begin; --j) ranges[j] = ranges[j - 1];
        ranges[j] = moving;
    }
    int kept = 0;
    for (int i = 0; i < count; ++i) {
        if (ranges[i].end <= ranges[i].begin) continue;
        if (kept > 0 && block_start(ranges[i].begin, phase, step) <= ranges[kept - 1].end)
            ranges[kept - 1].end = max(ranges[kept - 1].end, ranges[i].end);
        else ranges[kept++] = ranges[i];
    }
    return kept;
}

inline void find_visible(const ll_call& call, const Tile& tile, Visibility& visible) {
    int intervals = (int)(call.intervals.starts ? call.intervals.count : call.span_count);
    visible.phase = block_phase(call, *tile.segment);
    visible.count = intervals;
    for (int k = 0; k < intervals; ++k) compute_intervals(call, tile, k, visible.starts[k], visible.ends[k]);
    visible.last_start = LL_LOWEST, visible.first_end = LL_HIGHEST;
    int total = 0;
    for (int i = 0; i < tile.count; ++i) {
        Range own[LL_MAX_SPANS];
        for (int k = 0; k < intervals; ++k) own[k] = {visible.starts[k][i], visible.ends[k][i]};
        int kept = intervals == 1 ? own[0].begin < own[0].end : merge_ranges(own, intervals);
        for (int k = 0; k < intervals; ++k) {
            Range range = k < kept ? own[k] : Range{0, 0};
            visible.starts[k][i] = range.begin, visible.ends[k][i] = range.end;
            if (k == 0) {
                visible.last_start = max(visible.last_start, range.begin);
                visible.first_end = min(visible.first_end, range.end);
            }
            if (k >= kept) continue;
            // Neighbouring queries see nearly the same keys: extend the last range instead of appending one for each
            // query.
            Range& last = visible.ranges[total - (total > 0)];
            if (total > 0 && range.begin >= last.begin && range.begin <= last.end) last.end = max(last.end, range.end);
            else visible.ranges[total++] = range;
        }
    }
    // So that no two blocks overlap after rounding.
    visible.range_count = merge_ranges(visible.ranges, total, BLOCK_STEP, visible.phase);
}

// Whether every query of the tile sees all of [begin, end).
inline bool all_see(const Visibility& visible, int queries, int64_t begin, int64_t end) {
    if (visible.last_start <= begin && end <= visible.first_end) return true;
    for (int i = 0; visible.count > 1 && i < queries; ++i) {
        bool inside = false;
        for (int k = 0; k < visible.count; ++k) inside |= visible.starts[k][i] <= begin && end <= visible.ends[k][i];
        if (!inside) return false;
    }
    return visible.count > 1;
}

}  // namespace
}  // namespace limelight::LL_NAMESPACE
