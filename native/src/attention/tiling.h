// Divides a call into tiles, converts its operands, and chooses the order in which tiles are computed.
#pragma once

#include <stdlib.h>

#include "../library.h"
#include "../simd/elements.h"
#include "../simd/vector.h"
#include "../task.h"
#include "../tiles/operands.h"
#include "../tiles/shapes.h"
#include "../tiles/sums.h"
#include "blocks.h"
#include "pages.h"
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

// --- Operands --------------------------------------------------------------------------------------------------------

// The keys that tiles read, in pieces: what no tile reads is not converted. They are found when an operand is first
// converted, once for keys and values.
struct Pieces {
    static constexpr int64_t KEYS = 128;  // of a piece

    int64_t first = 0, last;  // pieces outside of [first, last) are not read

    // All pieces of a call.
    explicit Pieces(const ll_call& c) : last(count_of(c)), call(c) {}

    // Those that the tiles of a call's segments read.
    Pieces(const ll_call& c, const Tiles& of, bool with_short)
        : last(count_of(c)), call(c), tiles(&of), short_too(with_short), total(last), rows(c.batch) {}
    Pieces(const Pieces&) = delete;
    ~Pieces() { free(read); }

    void find() {
        if (!tiles || read) return;
        bool few = last <= 2 || (call.segment_count == 1 && call.queries >= call.keys);
        if (few && !in_pages(call)) return;
        read = (uint8_t*)calloc((size_t)(rows * total) + 1, 1);
        if (!read) return;
        for (int64_t s = 0; s < call.segment_count; ++s)
            if (short_too || !is_short(call.segments[s])) mark_segment(s);
        while (first < last && !some(rows, first)) ++first;
        while (first < last && !some(rows, last - 1)) --last;
    }

    // Whether a batch row reads a piece; row -1: whether some row does.
    bool has(int64_t row, int64_t piece) const {
        return !read || (row < 0 ? some(rows, piece) : read[row * total + piece] != 0);
    }

private:
    const ll_call& call;
    const Tiles* tiles = nullptr;  // null: all pieces are read
    bool short_too = false;
    int64_t total = 0, rows = 0;
    uint8_t* read = nullptr;  // [batch row][piece]; null: all are read

    static int64_t count_of(const ll_call& call) { return (call.keys + KEYS - 1) / KEYS; }

    bool some(int64_t count, int64_t piece) const {
        for (int64_t row = 0; row < count; ++row)
            if (read[row * total + piece]) return true;
        return false;
    }

    void mark_segment(int64_t s) {
        int64_t row = call.segments[s].row, rows = row < 0 && call.intervals.row_stride != 0 ? call.batch : 1;
        int64_t heads = call.intervals.head_stride != 0 ? call.query_heads : 1;
        for (int64_t n = 0; n < rows * heads * tiles->in_segment(s); ++n) {
            Visibility visible;
            int64_t of_row = n / tiles->in_segment(s) / heads;
            Tile tile = tiles->tile_of(s, of_row, n / tiles->in_segment(s) % heads, n % tiles->in_segment(s));
            find_visible(call, tile, visible);
            for (int k = 0; k < visible.range_count; ++k) {
                if (row < 0 && rows == 1)
                    for (int64_t b = 0; b < call.batch; ++b) mark(b, visible.ranges[k]);
                else mark(tile.row, visible.ranges[k]);
            }
        }
    }
    // A block begins at a whole factor, in the same piece.
    void mark(int64_t row, Range keys) {
        int64_t begin = keys.begin / KEYS, end = (keys.end + KEYS - 1) / KEYS;
        __builtin_memset(read + row * total + begin, 1, (size_t)(end - begin));
    }
};

// Converts the keys or values of a call to the layout that a product reads, once: many tiles of queries read each.
struct OperandJob {
    const ll_call& call;
    const ll_tensor& from;
    int64_t rows, heads, length, width, columns;  // length: keys of the operand
    Factor* to;  // left: (rows, heads, length, steps_along(width)); right: as pack_rows writes it
    bool right;

    const Pieces& wanted;

    int64_t pieces() const { return wanted.last - wanted.first; }
    static int64_t right_size(int64_t length, int64_t columns) {
        return (length + BLOCK_STEP - 1) / BLOCK_STEP * packed_stride(columns);
    }

    void piece(int64_t n, int& status) const {
        int64_t map = n / pieces(), number = wanted.first + n % pieces();
        if (!wanted.has(rows < call.batch ? -1 : map / heads, number)) return;
        int64_t first = number * Pieces::KEYS, count = min(Pieces::KEYS, call.keys - first);
        int64_t at = first - wanted.first * Pieces::KEYS;  // in the prepared operand
        StridedRows rows{nullptr, from.strides[2], width, (int)count};
        if (must_copy(call)) rows = copied(map / heads, map % heads, first, (int)count, status);
        else rows.row = row_at<const Stored>(from, map / heads, map % heads, first);
        if (!rows.row) return;
        if (right)
            pack_rows(rows.row, rows.stride, count, width, columns, nullptr,
                      to + map * right_size(length, columns) + at / BLOCK_STEP * packed_stride(columns));
        else
            for (int j = 0; j < count; ++j)
                left_row(rows.at(j), width, to + (map * length + at + j) * steps_along(width));
    }

    // Rows of a head as elements, from pages or from 8 bits; zero where the keys belong to no segment. Null rows where
    // there is no memory.
    StridedRows copied(int64_t batch_row, int64_t head, int64_t first, int count, int& status) const {
        Stored* copy = (Stored*)scratch(sizeof(Stored) * (size_t)(count * width) + 1);
        if (!copy) {
            __atomic_store_n(&status, (int)OUT_OF_MEMORY, __ATOMIC_RELAXED);
            return {nullptr, width, width, count};
        }
        __builtin_memset(copy, 0, sizeof(Stored) * (size_t)(count * width));
        for (int64_t s = 0; s < call.segment_count; ++s) {
            const ll_segment& segment = call.segments[s];
            if (segment.row >= 0 && segment.row != batch_row) continue;
            Range keys{max(first, segment.key_begin), min(first + count, segment.key_end)};
            copy_rows(call, from, width, segment, batch_row, head, keys, first, copy);
        }
        return {copy, width, width, count};
    }
};

struct OperandTask {
    const OperandJob& job;
    int status;
};

inline void prepare_task(void* context, int64_t n) {
    OperandTask& task = *(OperandTask*)context;
    task.job.piece(n, task.status);
}

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
    void prepare(const ll_call& call, const ll_tensor& from, Pieces& wanted, int64_t width, int64_t columns,
                 bool right) {
        wanted.find();
        int64_t rows = from.strides[0] == 0 && !must_copy(call) ? min<int64_t>(1, call.batch) : call.batch;
        int64_t before = wanted.first * Pieces::KEYS, after = min(call.keys, wanted.last * Pieces::KEYS);
        int64_t length = max<int64_t>(after - before, 0);
        int64_t map_size = right ? OperandJob::right_size(length, columns) : length * steps_along(width);
        int64_t count = rows * call.key_heads * map_size;
        bytes = sizeof(Factor) * (size_t)(count + LANES);
        owned = (Factor*)borrow(bytes);
        failed = !owned;
        if (failed) return;
        OperandJob job{call, from, rows, call.key_heads, length, width, columns, owned, right, wanted};
        OperandTask task{job, DONE};
        parallel(count < 4096 ? 1 : call.threads, rows * call.key_heads * job.pieces(), prepare_task, &task,
                 rows * call.key_heads);
        failed = task.status != DONE;
        int64_t stride = right ? packed_stride(columns) : steps_along(width);
        operand = {owned - (right ? before / BLOCK_STEP : before) * stride,
                   rows < call.batch ? 0 : call.key_heads * map_size, map_size, stride};
    }

    // The left operand: its elements are broadcast.
    void left(const ll_call& call, const ll_tensor& from, Pieces& wanted, int64_t width) {
        bool even = from.strides[0] % FOLD == 0 && from.strides[1] % FOLD == 0 && from.strides[2] % FOLD == 0;
        bool whole = width == steps_along(width) * FOLD;
        if (sizeof(Factor) == FOLD * sizeof(Stored) && whole && even && !must_copy(call)) use_in_place(from);
        else prepare(call, from, wanted, width, 0, false);
    }

    // The right operand: its rows are read as vectors. Copied where rows are far apart, since they would map to the
    // same few cache sets, and where a last partial vector would be read beyond the row.
    void right(const ll_call& call, const ll_tensor& from, Pieces& wanted, int64_t width) {
        bool whole = width % LANES == 0 && from.strides[2] == width;
        if (FOLD == 1 && !CONVERTED && whole && !must_copy(call)) use_in_place(from);
        else prepare(call, from, wanted, width, round_up(width, LANES), true);
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
