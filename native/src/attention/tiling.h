// Divides a call into tiles, converts its operands, and chooses the order in which tiles are computed.
#pragma once

#include <stdlib.h>

#include "../library.h"
#include "../simd/elements.h"
#include "../simd/vector.h"
#include "../tiles/operands.h"
#include "../tiles/shapes.h"
#include "../tiles/sums.h"
#include "blocks.h"
#include "problem.h"
#include "visibility.h"

namespace limelight::LL_NAMESPACE {
namespace {

// The tiles of all segments, batch rows and heads, in groups of up to `group_size` tiles of a head. Groups are numbered
// in the order (segment, batch row, head, group of the head).
struct Tiles {
    const ll_call& call;
    int group_size;
    bool last_first = false;  // whether the groups of a head are numbered backwards, see TileOrder
    int64_t* first;           // [segment_count + 1]: the number of the segment's first group
    int64_t few_segments[65];

    Tiles(const ll_call& c, int tiles_per_group) : call(c), group_size(tiles_per_group), first(few_segments) {
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

    int64_t groups(int64_t s) const { return (in_segment(s) + group_size - 1) / group_size; }

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

// --- Operands --------------------------------------------------------------------------------------------------------

// Converts the keys or values of a call to the layout that a product reads, once: many tiles of queries read each.
struct OperandJob {
    const ll_tensor& from;
    int64_t rows, heads, length, width, columns;
    Factor* to;  // left: (rows, heads, length, steps_along(width)); right: as pack_rows writes it
    bool right;

    static constexpr int64_t PIECE = 128;  // rows of a task
    int64_t pieces() const { return (length + PIECE - 1) / PIECE; }
    static int64_t right_size(int64_t length, int64_t columns) {
        return (length + BLOCK_STEP - 1) / BLOCK_STEP * packed_stride(columns);
    }

    void piece(int64_t n) const {
        int64_t map = n / pieces(), first = n % pieces() * PIECE, count = min(PIECE, length - first);
        const Stored* row = row_at<const Stored>(from, map / heads, map % heads, first);
        if (right)
            pack_rows(row, from.strides[2], count, width, columns, nullptr,
                      to + map * right_size(length, columns) + first / BLOCK_STEP * packed_stride(columns));
        else
            for (int64_t j = 0; j < count; ++j)
                left_row(row + j * from.strides[2], width, to + (map * length + first + j) * steps_along(width));
    }
};

inline void prepare_task(void* context, int64_t n) { ((const OperandJob*)context)->piece(n); }

// An operand, and its memory if it is a converted copy.
struct PreparedOperand {
    Operand operand;
    Factor* owned = nullptr;
    size_t bytes = 0;
    bool failed = false;

    PreparedOperand() = default;
    PreparedOperand(const PreparedOperand&) = delete;
    ~PreparedOperand() { give_back(owned, bytes); }

    void use_in_place(const ll_tensor& from) {
        constexpr int64_t UNIT = (int64_t)(sizeof(Factor) / sizeof(Stored));
        operand = {(const Factor*)from.data, from.strides[0] / UNIT, from.strides[1] / UNIT, from.strides[2] / UNIT};
    }

    // A batch that repeats one row (stride 0) is converted once.
    void prepare(const ll_call& call, const ll_tensor& from, int64_t width, int64_t columns, bool right) {
        int64_t rows = from.strides[0] == 0 ? min<int64_t>(1, call.batch) : call.batch;
        int64_t map_size = right ? OperandJob::right_size(call.keys, columns) : call.keys * steps_along(width);
        int64_t count = rows * call.key_heads * map_size;
        bytes = sizeof(Factor) * (size_t)(count + LANES);
        owned = (Factor*)borrow(bytes);
        failed = !owned;
        if (failed) return;
        OperandJob job{from, rows, call.key_heads, call.keys, width, columns, owned, right};
        parallel(count < 4096 ? 1 : call.threads, rows * call.key_heads * job.pieces(), prepare_task, &job,
                 rows * call.key_heads);
        operand = {owned, from.strides[0] == 0 ? 0 : call.key_heads * map_size, map_size,
                   right ? packed_stride(columns) : steps_along(width)};
    }

    // The left operand: its elements are broadcast.
    void left(const ll_call& call, const ll_tensor& from, int64_t width) {
        bool even = from.strides[0] % FOLD == 0 && from.strides[1] % FOLD == 0 && from.strides[2] % FOLD == 0;
        bool whole = width == steps_along(width) * FOLD;
        if (sizeof(Factor) == FOLD * sizeof(Stored) && whole && even) use_in_place(from);
        else prepare(call, from, width, 0, false);
    }

    // The right operand: its rows are read as vectors. Copied where rows are far apart, since they would map to the
    // same few cache sets, and where a last partial vector would be read beyond the row.
    void right(const ll_call& call, const ll_tensor& from, int64_t width) {
        if (FOLD == 1 && !CONVERTED && width % LANES == 0 && from.strides[2] == width) use_in_place(from);
        else prepare(call, from, width, round_up(width, LANES), true);
    }
};

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
        int64_t longest = 0;
        for (int64_t s = 1; s < call.segment_count; ++s)
            if (call.segments[s].key_end - call.segments[s].key_begin >
                call.segments[longest].key_end - call.segments[longest].key_begin)
                longest = s;
        if (tiles.count() == 0 || tiles.in_segment(longest) == 0) return;
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
