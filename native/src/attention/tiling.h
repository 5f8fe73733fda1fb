// Divides a call into tiles, and chooses the order in which they are computed.
#pragma once

#include <stdlib.h>

#include "../library.h"
#include "../simd/vector.h"
#include "../tiles/shapes.h"
#include "blocks.h"
#include "problem.h"
#include "visibility.h"

namespace limelight::LL_NAMESPACE {
namespace {

// Whether a segment is computed by decode(), which reads each key once for all query heads of its group. The rest of a
// batch does not change that, nor does a division of the document.
LL_INLINE bool is_short(const ll_segment& segment) {
    return max(segment.whole_queries, segment.query_end - segment.query_begin) <= MAX_QUERIES;
}

// The tiles of segments, for all batch rows and heads, in groups of up to `group_size` tiles of a head. Groups are
// numbered in the order (segment, batch row, head, group of the head).
struct Tiles {
    const ll_call& call;
    int group_size;
    bool short_too;           // whether short segments have groups
    bool last_first = false;  // whether the groups of a head are numbered backwards, see TileOrder
    int64_t* first;           // [segment_count + 1]: the number of the segment's first group
    int64_t few_segments[65];

    Tiles(const ll_call& c, int tiles_per_group, bool with_short)
        : call(c), group_size(tiles_per_group), short_too(with_short), first(few_segments) {
        if (c.segment_count > 64) first = (int64_t*)malloc(sizeof(int64_t) * (size_t)(c.segment_count + 1));
        if (!first) return;
        first[0] = 0;
        for (int64_t s = 0; s < c.segment_count; ++s) {
            int64_t rows = c.segments[s].row < 0 ? c.batch : 1;
            first[s + 1] = first[s] + rows * c.query_heads * groups(s);
        }
    }
    ~Tiles() {
        if (first != few_segments) free(first);
    }
    Tiles(const Tiles&) = delete;

    int64_t count() const { return first[call.segment_count]; }

    int64_t in_segment(int64_t s) const {
        const ll_segment& segment = call.segments[s];
        return (segment.query_end - segment.query_begin + QUERIES - 1) / QUERIES;
    }

    int64_t groups(int64_t s) const {
        return short_too || !is_short(call.segments[s]) ? (in_segment(s) + group_size - 1) / group_size : 0;
    }

    // The tiles of group n; returns how many there are.
    int at(int64_t n, Tile* tiles) const {
        int64_t s = index_of_last(call.segment_count, [&](int64_t segment) { return first[segment] <= n; });
        int64_t group_count = groups(s), rest = n - first[s],
                group = last_first ? group_count - 1 - rest % group_count : rest % group_count;
        int count = (int)min<int64_t>(group_size, in_segment(s) - group * group_size);
        for (int t = 0; t < count; ++t)
            tiles[t] = tile_of(s, rest / (group_count * call.query_heads), rest / group_count % call.query_heads,
                               group * group_size + t);
        return count;
    }

    // Tile `number` of a segment; `row` is used only for a segment of every batch row.
    Tile tile_of(int64_t s, int64_t row, int64_t head, int64_t number) const {
        const ll_segment& segment = call.segments[s];
        bool in_every_row = segment.row < 0;
        Tile tile;
        tile.segment = &segment;
        tile.row = in_every_row ? row : segment.row;
        tile.head = head;
        tile.key_head = head / (call.query_heads / call.key_heads);
        tile.dropout_row = in_every_row ? row * call.segment_count + segment.dropout_row : segment.dropout_row;
        tile.first_query = segment.query_begin + number * QUERIES;
        tile.count = (int)min<int64_t>(QUERIES, segment.query_end - tile.first_query);
        return tile;
    }
};

// A small call runs on one thread: waking another one takes about 2 microseconds.
inline int64_t worthwhile_threads(const ll_call& call) {
    double products = (double)call.batch * (double)call.query_heads * (double)call.queries * (double)call.keys *
                      (double)(call.width + call.value_width);
    return products < 4e5 ? 1 : call.threads;
}

// The order in which the tiles of a call are computed.
struct TileOrder {
    // Whether each thread starts with heads of its own (see `parallel`). The keys of a long text are read from the
    // last-level cache, which threads may share: then all threads work on one head, so that less has to stay in it.
    bool split_heads = false;
    // Whether a head's last tiles come first: under a causal pattern they take longest, and threads finish together.
    // Otherwise the first do, because hardware prefetchers follow ascending addresses: those of keys that a window has
    // not reached yet.
    bool last_first = false;

    TileOrder(const Problem& problem, const Tiles& tiles) {
        constexpr int64_t MAX_BYTES = (int64_t)4 << 20;  // of keys and values that a tile sees
        const ll_call& call = problem.call;
        auto keys_of = [&](int64_t s) { return call.segments[s].key_end - call.segments[s].key_begin; };
        int64_t longest = -1;
        for (int64_t s = 0; s < call.segment_count; ++s)
            if (tiles.groups(s) > 0 && (longest < 0 || keys_of(s) > keys_of(longest))) longest = s;
        if (tiles.count() == 0 || longest < 0) return;
        int64_t row = max<int64_t>(call.segments[longest].row, 0), last = tiles.in_segment(longest) - 1;
        auto seen = [&](int64_t number) {
            Visibility visible;
            find_visible(call, tiles.tile_of(longest, row, 0, number), visible);
            return seen_keys(visible);
        };
        int64_t bytes = (int64_t)sizeof(Factor) * (problem.steps + problem.value_columns / FOLD), keys = seen(last);
        split_heads = keys * bytes <= MAX_BYTES;
        last_first = keys > seen(last / 2);
    }
};

}  // namespace
}  // namespace limelight::LL_NAMESPACE
