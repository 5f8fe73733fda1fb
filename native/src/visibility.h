// Which keys the queries of one tile see: intervals per query, and the runs of keys that some query sees.

#if defined(LL_AMX)
constexpr int QUERIES = 64;      // queries of a tile
#else
constexpr int QUERIES = 48;
#endif
constexpr int BLOCK_KEYS = 128;  // keys handled at a time
constexpr int MAP_SIDE = 64;   // side of a tile of bits
#if defined(LL_AMX)
constexpr int BLOCK_STEP = 32;
#elif defined(LL_PAIRS)
constexpr int BLOCK_STEP = 2;  // blocks begin at a multiple
#else
constexpr int BLOCK_STEP = 1;
#endif

struct Range { int64_t begin, end; };

// A run of queries of one segment, one batch row and one head.
struct Tile {
    const ll_segment* segment;
    int64_t row, head, key_head;
    int64_t dropout_row;
    int64_t first_query;  // token index
    int count;            // queries, 1 to QUERIES
    int64_t query_position(int i) const { return first_query + i + segment->query_offset; }
};

struct Visibility {
    int count;  // intervals per query
    int64_t starts[LL_MAX_SPANS][QUERIES], ends[LL_MAX_SPANS][QUERIES];  // key indices
    int64_t last_start, first_end;  // of the first intervals of all queries
    int range_count;
    Range ranges[LL_MAX_SPANS * QUERIES];  // the union over the queries, ascending
};

// Interval k of each query of the tile, empty ones anyhow.
LL_INLINE void list_intervals(const ll_call& call, const Tile& tile, int k, int64_t* starts, int64_t* ends) {
    const ll_segment& segment = *tile.segment;
    int64_t key_begin = segment.key_begin, key_end = segment.key_end;
    if (call.intervals.starts) {
        const ll_intervals& lists = call.intervals;
        int64_t at = k * lists.interval_stride + tile.row * lists.row_stride + tile.head * lists.head_stride + tile.first_query;
        for (int i = 0; i < tile.count; ++i) {
            starts[i] = most<int64_t>(lists.starts[at + i], key_begin);
            ends[i] = least<int64_t>(lists.ends[at + i], key_end);
        }
        return;
    }
    const ll_span span = call.spans[k];
    int64_t offset = segment.key_offset;
    for (int i = 0; i < tile.count; ++i) {
        int64_t position = tile.query_position(0) + i;
        int64_t begin = most(span.start, position + span.start_offset);
        int64_t end = least(span.end, position + span.end_offset);
        if (span.chunk != 0) {
            int64_t base = floor_div(position, span.chunk) * span.chunk;
            begin = most(begin, base + span.chunk_start);
            end = least(end, base + span.chunk_end);
        }
        bool guarded = position < span.query_from || position >= span.query_to;
        starts[i] = guarded ? 0 : most(begin - offset, key_begin);
        ends[i] = guarded ? 0 : least(end - offset, key_end);
    }
}

// Sorts ranges by their begin and joins those that touch once they begin at a multiple of `step`; returns how many are
// left. Nearly sorted input is the rule.
inline int unite(Range* ranges, int count, int step = 1) {
    for (int i = 1; i < count; ++i) {
        Range moving = ranges[i];
        int j = i;
        for (; j > 0 && ranges[j - 1].begin > moving.begin; --j) ranges[j] = ranges[j - 1];
        ranges[j] = moving;
    }
    int kept = 0;
    for (int i = 0; i < count; ++i) {
        if (ranges[i].end <= ranges[i].begin) continue;
        if (kept > 0 && ranges[i].begin - ranges[i].begin % step <= ranges[kept - 1].end)
            ranges[kept - 1].end = most(ranges[kept - 1].end, ranges[i].end);
        else
            ranges[kept++] = ranges[i];
    }
    return kept;
}

inline void see(const ll_call& call, const Tile& tile, Visibility& visible) {
    int intervals = (int)(call.intervals.starts ? call.intervals.count : call.span_count);
    visible.count = intervals;
    for (int k = 0; k < intervals; ++k) list_intervals(call, tile, k, visible.starts[k], visible.ends[k]);
    visible.last_start = LL_LOWEST, visible.first_end = LL_HIGHEST;
    int total = 0;
    for (int i = 0; i < tile.count; ++i) {
        Range own[LL_MAX_SPANS];
        for (int k = 0; k < intervals; ++k) own[k] = {visible.starts[k][i], visible.ends[k][i]};
        int kept = intervals == 1 ? own[0].begin < own[0].end : unite(own, intervals);
        for (int k = 0; k < intervals; ++k) {
            Range range = k < kept ? own[k] : Range{0, 0};
            visible.starts[k][i] = range.begin, visible.ends[k][i] = range.end;
            if (k == 0) {
                visible.last_start = most(visible.last_start, range.begin);
                visible.first_end = least(visible.first_end, range.end);
            }
            if (k >= kept) continue;
            // Neighbouring queries see nearly the same keys: widen the last run rather than list each.
            Range& last = visible.ranges[total - (total > 0)];
            if (total > 0 && range.begin >= last.begin && range.begin <= last.end)
                last.end = most(last.end, range.end);
            else
                visible.ranges[total++] = range;
        }
    }
    visible.range_count = unite(visible.ranges, total, BLOCK_STEP);  // no block reaches back into the one before
}

// Does every query of the tile see all of [begin, end)?
inline bool everyone_sees(const Visibility& visible, int queries, int64_t begin, int64_t end) {
    if (visible.last_start <= begin && end <= visible.first_end) return true;
    for (int i = 0; visible.count > 1 && i < queries; ++i) {
        bool inside = false;
        for (int k = 0; k < visible.count; ++k) inside |= visible.starts[k][i] <= begin && end <= visible.ends[k][i];
        if (!inside) return false;
    }
    return visible.count > 1;
}

// The state that a column of the tile map has for the queries [first, first + count) of the map's rows.
enum Column { NOBODY, SOMEBODY, EVERYBODY };

LL_INLINE const int32_t* map_row(const ll_call& call, const Tile& tile, int64_t query) {
    const ll_tile_map& map = call.tiles;
    int64_t line = map.bit_rows == MAP_SIDE ? query / MAP_SIDE : 0;
    return map.state + tile.row * map.row_stride + tile.head * map.head_stride + line * map.query_stride;
}

inline Column column_state(const ll_call& call, const Tile& tile, int64_t column) {
    int32_t first = map_row(call, tile, tile.first_query)[column];
    int32_t last = map_row(call, tile, tile.first_query + tile.count - 1)[column];  // at most two rows: QUERIES <= MAP_SIDE
    if (first == -1 && last == -1) return NOBODY;
    return first == -2 && last == -2 ? EVERYBODY : SOMEBODY;
}

// At most BLOCK_KEYS neighbouring keys, and what has to be checked in them.
struct Block {
    int64_t begin;
    int count;
    bool cut_by_intervals, cut_by_bits;
};

// Keys that some query of the tile sees.
inline int64_t seen_keys(const Visibility& visible) {
    int64_t keys = 0;
    for (int n = 0; n < visible.range_count; ++n) keys += visible.ranges[n].end - visible.ranges[n].begin;
    return keys;
}

// Walks over the blocks that some query of the tile sees, in ascending order. It depends on the pattern alone, never on
// threads, other rows or the numbers in the tensors, so that results keep their bits.
struct BlockWalk {
    const ll_call& call;
    const Tile& tile;
    const Visibility& visible;
    int64_t cursor, stop;  // only keys in [first cursor, stop) are visited
    int range = 0;
    int step = BLOCK_STEP;

    BlockWalk(const ll_call& c, const Tile& t, const Visibility& v, int64_t from = LL_LOWEST, int64_t to = LL_HIGHEST)
        : call(c), tile(t), visible(v), cursor(from), stop(to) {}
    void restart() { range = 0, cursor = LL_LOWEST; }

    bool next(Block& block) {
        while (range < visible.range_count) {
            int64_t end = least(visible.ranges[range].end, stop);
            cursor = most(cursor, visible.ranges[range].begin);
            if (cursor >= end) {
                ++range;
                continue;
            }
            // A block begins with a whole factor; a key that this adds is cut, since nobody sees it.
            cursor -= cursor % step;
            block = {cursor, (int)least<int64_t>(BLOCK_KEYS, end - cursor), false, false};
            if (call.tiles.state) limit_to_map(block, end);
            cursor += block.count;
            bool skipped = call.tiles.state && column_state(call, tile, block.begin / MAP_SIDE) == NOBODY;
            if (skipped) continue;
            block.cut_by_intervals = !everyone_sees(visible, tile.count, block.begin, cursor);
            return true;
        }
        return false;
    }

    // One column of the map, or two when both have something to see.
    void limit_to_map(Block& block, int64_t end) const {
        int64_t column = block.begin / MAP_SIDE, edge = (column + 1) * MAP_SIDE;
        Column state = column_state(call, tile, column);
        block.count = (int)(least(edge, end) - block.begin);
        block.cut_by_bits = state == SOMEBODY;
        if (state == NOBODY || edge >= end) return;
        Column beside = column_state(call, tile, column + 1);
        if (beside == NOBODY) return;
        block.count = (int)(least(edge + MAP_SIDE, end) - block.begin);
        block.cut_by_bits |= beside == SOMEBODY;
    }
};

// Of rows of factors: the numbers outside of which each row is zero. A product leaves the others out.
struct Reach {
    int begin[BLOCK_KEYS], end[BLOCK_KEYS];
    static_assert(QUERIES <= BLOCK_KEYS);

    // Of `rows` rows together.
    Range of(int row, int rows) const {
        Range all{BLOCK_KEYS, 0};
        for (int r = row; r < row + rows; ++r) all = {least<int64_t>(all.begin, begin[r]), most<int64_t>(all.end, end[r])};
        return all;
    }
};

// How far the queries of a tile reach into a block that intervals cut; nothing is known of any other block. On matrix
// registers, whose tiles are as large as what could be left out, products are whole.
struct Cut {
    const Reach* of_queries = nullptr;  // rows are queries, numbers are keys
    Reach room;

    Cut(const Visibility& visible, const Tile& tile, const Block& block) {
        if (!block.cut_by_intervals || BLOCK_STEP > 2) return;
        of_queries = &room;
        for (int i = 0; i < tile.count; ++i) {
            room.begin[i] = BLOCK_KEYS, room.end[i] = 0;
            for (int k = 0; k < visible.count; ++k) {
                int64_t begin = most<int64_t>(visible.starts[k][i] - block.begin, 0);
                int64_t end = least<int64_t>(visible.ends[k][i] - block.begin, block.count);
                if (begin >= end) continue;
                room.begin[i] = least(room.begin[i], (int)begin), room.end[i] = most(room.end[i], (int)end);
            }
        }
    }
    Cut(const Cut&) = delete;

    // Rows are keys, numbers are queries; null where of_queries is.
    const Reach* of_keys(const Tile& tile, const Block& block, Reach& to) const {
        if (!of_queries) return nullptr;
        for (int j = 0; j < block.count; ++j) to.begin[j] = QUERIES, to.end[j] = 0;
        for (int i = tile.count - 1; i >= 0; --i)
            for (int j = room.begin[i]; j < room.end[i]; ++j) to.begin[j] = i, to.end[j] = most(to.end[j], i + 1);
        return &to;
    }
};
