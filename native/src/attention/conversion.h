// Converts the keys and values of a call to the layouts that products read, once for all tiles.
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
#include "tiling.h"
#include "visibility.h"

namespace limelight::LL_NAMESPACE {
namespace {

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

    // Whether a batch row reads a piece that holds some of these keys.
    bool has_some(int64_t row, Range keys) const {
        for (int64_t piece = keys.begin / KEYS; piece * KEYS < keys.end; ++piece)
            if (has(row, piece)) return true;
        return false;
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
                Range keys{block_start(visible.ranges[k].begin, visible.phase), visible.ranges[k].end};
                if (row < 0 && rows == 1)
                    for (int64_t b = 0; b < call.batch; ++b) mark(b, keys);
                else mark(tile.row, keys);
            }
        }
    }
    void mark(int64_t row, Range keys) {
        int64_t begin = keys.begin / KEYS, end = (keys.end + KEYS - 1) / KEYS;
        __builtin_memset(read + row * total + begin, 1, (size_t)(end - begin));
    }
};

// Consecutive keys of a batch row (-1: of every one), and where they begin in an operand.
struct KeyRun {
    int64_t row, first, last, at;
    int64_t task;  // the number of the first task that converts keys of the run

    int64_t pieces() const { return (last - first + Pieces::KEYS - 1) / Pieces::KEYS; }
};

// The keys of an operand: as they lie in the call, but for those that the operand's tiles do not read; or, for a right
// operand, those of each segment where blocks that are counted from its first key begin at a whole step.
struct KeyRuns {
    KeyRun all;
    KeyRun* runs = &all;
    int64_t count = 1, length = 0;  // length: rows of the operand
    int64_t* shift = nullptr;       // see Operand
    bool failed = false;

    KeyRuns() = default;
    KeyRuns(const KeyRuns&) = delete;
    ~KeyRuns() { free(shift); }

    void as_in_call(const ll_call& call, const Pieces& wanted) {
        all = {-1, wanted.first * Pieces::KEYS, min(call.keys, wanted.last * Pieces::KEYS), 0, 0};
        all.last = max(all.first, all.last);
        length = all.last - all.first;
    }

    // Whether some segment has blocks that do not begin at multiples of BLOCK_STEP.
    static bool are_needed(const ll_call& call) {
        bool needed = false;
        for (int64_t s = 0; BLOCK_STEP > 1 && s < call.segment_count; ++s)
            needed |= block_phase(call, call.segments[s]) != 0;
        return needed;
    }

    void by_segment(const ll_call& call) {
        int64_t segments = call.segment_count, bytes = (int64_t)sizeof(int64_t) * (segments + call.batch);
        shift = (int64_t*)malloc((size_t)(bytes + (int64_t)sizeof(KeyRun) * segments));
        failed = !shift;
        if (failed) return;
        int64_t *of_segment = shift, *ends = shift + segments, newest[BLOCK_STEP];
        runs = (KeyRun*)(ends + call.batch), count = 0;
        for (int64_t& run : newest) run = -1;
        for (int64_t s = 0; s < segments; ++s) {  // those of one phase share keys that they have in common
            const ll_segment& segment = call.segments[s];
            int64_t phase = block_phase(call, segment), first = block_start(segment.key_begin, phase);
            int64_t& last = newest[phase];
            KeyRun* before = last < 0 ? nullptr : runs + last;
            if (before && before->row == segment.row && first >= before->first && first <= before->last)
                before->last = max(before->last, segment.key_end);
            else {
                last = count;
                runs[count++] = {segment.row, first, max(first, segment.key_end), 0, 0};
            }
            of_segment[s] = last;
        }
        place(call, ends);
        for (int64_t s = 0; s < segments; ++s) shift[s] = runs[of_segment[s]].at - runs[of_segment[s]].first;
    }

    bool differ_by_row() const {
        bool differ = false;
        for (int64_t n = 0; n < count; ++n) differ |= runs[n].row >= 0;
        return differ;
    }

    int64_t number_tasks(int64_t rows, int64_t heads) {
        int64_t tasks = 0;
        for (int64_t n = 0; n < count; ++n) {
            runs[n].task = tasks;
            tasks += runs[n].pieces() * heads * (runs[n].row < 0 ? rows : 1);
        }
        return tasks;
    }

    const KeyRun& of_task(int64_t task) const {
        return runs[index_of_last(count, [&](int64_t n) { return runs[n].task <= task; })];
    }

private:
    // Those of every batch row first, then in each row its own.
    void place(const ll_call& call, int64_t* ends) {
        int64_t common = 0;
        for (int64_t n = 0; n < count; ++n) {
            if (runs[n].row >= 0) continue;
            runs[n].at = common, common += round_up(runs[n].last - runs[n].first, BLOCK_STEP);
        }
        for (int64_t b = 0; b < call.batch; ++b) ends[b] = common;
        length = common;
        for (int64_t n = 0; n < count; ++n) {
            if (runs[n].row < 0) continue;
            int64_t& end = ends[runs[n].row];
            runs[n].at = end, end += round_up(runs[n].last - runs[n].first, BLOCK_STEP);
            length = max(length, end);
        }
    }
};

// Converts the keys or values of a call to the layout that a product reads, once: many tiles of queries read each.
struct OperandJob {
    const ll_call& call;
    const ll_tensor& from;
    const Pieces& wanted;
    const KeyRuns& runs;
    int64_t rows, map_size, width, columns;
    Factor* to;  // (rows, heads, map_size); left: rows of steps_along(width); right: as pack_rows writes it
    bool right;

    static int64_t right_size(int64_t length, int64_t columns) {
        return (length + BLOCK_STEP - 1) / BLOCK_STEP * packed_stride(columns);
    }

    void piece(int64_t n, int& status) const {
        const KeyRun& run = runs.of_task(n);
        int64_t number = n - run.task, map = number / run.pieces(), head = map % call.key_heads;
        int64_t row = run.row < 0 ? map / call.key_heads : run.row;
        int64_t offset = number % run.pieces() * Pieces::KEYS, first = run.first + offset, at = run.at + offset;
        int64_t count = min(Pieces::KEYS, run.last - first);
        if (!wanted.has_some(rows < call.batch ? -1 : row, {first, first + count})) return;
        Factor* own = to + (row * call.key_heads + head) * map_size;
        if (const ll_segment* segment = in_whole_steps(row, {first, first + count}))
            for_each_page(call, *segment, {first, first + count}, [&](int64_t key, int64_t together) {
                const Stored* found = key_row(call, from, *segment, row, head, key);
                convert({found, from.strides[2], width, (int)together}, own, at + key - first);
            });
        else convert(copied(row, head, first, (int)count, status), own, at);
    }

    // Writes some keys of a head to its part of the operand, from row `at` on; none without memory for them.
    __attribute__((noinline)) void convert(StridedRows keys, Factor* own, int64_t at) const {
        if (!keys.row) return;
        if (right)
            pack_rows(keys.row, keys.stride, keys.keys, width, columns, nullptr,
                      own + at / BLOCK_STEP * packed_stride(columns));
        else
            for (int j = 0; j < keys.keys; ++j) left_row(keys.at(j), width, own + (at + j) * steps_along(width));
    }

    // The segment of some keys, if they can be converted from where they lie, each page by itself, because pages begin
    // at whole steps of the operand; else null.
    const ll_segment* in_whole_steps(int64_t row, Range keys) const {
        if (call.quantized) return nullptr;
        if (!in_pages(call)) return call.segments;
        for (int64_t s = 0; s < call.segment_count; ++s) {
            const ll_segment& segment = call.segments[s];
            if ((segment.row >= 0 && segment.row != row) || keys.begin < segment.key_begin ||
                keys.end > segment.key_end)
                continue;
            bool whole = call.pages.size % BLOCK_STEP == 0 && (keys.begin + segment.page_offset) % BLOCK_STEP == 0;
            if (whole || keys_together(call, segment, keys.begin, keys.end) == keys.end - keys.begin) return &segment;
        }
        return nullptr;
    }

    // Rows of a head as elements, from pages or from 8 bits; zero where the keys belong to no segment. Null rows where
    // there is no memory.
    StridedRows copied(int64_t row, int64_t head, int64_t first, int count, int& status) const {
        Stored* copy = (Stored*)scratch(sizeof(Stored) * (size_t)(count * width) + 1);
        if (!copy) {
            __atomic_store_n(&status, (int)OUT_OF_MEMORY, __ATOMIC_RELAXED);
            return {nullptr, width, width, count};
        }
        __builtin_memset(copy, 0, sizeof(Stored) * (size_t)(count * width));
        for (int64_t s = 0; s < call.segment_count; ++s) {
            const ll_segment& segment = call.segments[s];
            if (segment.row >= 0 && segment.row != row) continue;
            Range keys{max(first, segment.key_begin), min(first + count, segment.key_end)};
            copy_rows(call, from, width, segment, row, head, keys, first, copy);
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
    KeyRuns runs;
    Factor* owned = nullptr;
    size_t bytes = 0;
    bool failed = false;

    PreparedOperand() = default;
    PreparedOperand(const PreparedOperand&) = delete;
    ~PreparedOperand() { give_back(owned, bytes); }

    void use_in_place(const ll_call& call, const ll_tensor& from) {
        constexpr int64_t UNIT = (int64_t)(sizeof(Factor) / sizeof(Stored));
        operand = {(const Factor*)from.data,
                   from.strides[0] / UNIT,
                   from.strides[1] / UNIT,
                   from.strides[2] / UNIT,
                   nullptr,
                   in_pages(call)};
    }

    // A batch that repeats one row (stride 0) is converted once.
    void prepare(const ll_call& call, const ll_tensor& from, Pieces& wanted, int64_t width, int64_t columns,
                 bool right) {
        wanted.find();
        bool moved = right && KeyRuns::are_needed(call);
        if (moved) runs.by_segment(call);
        else runs.as_in_call(call, wanted);
        if (failed = runs.failed, failed) return;
        bool repeated = from.strides[0] == 0 && !must_copy(call) && !runs.differ_by_row();
        int64_t rows = repeated ? min<int64_t>(1, call.batch) : call.batch;
        int64_t map_size = right ? OperandJob::right_size(runs.length, columns) : runs.length * steps_along(width);
        int64_t count = rows * call.key_heads * map_size;
        bytes = sizeof(Factor) * (size_t)(count + LANES);
        owned = (Factor*)borrow(bytes);
        failed = !owned;
        if (failed) return;
        OperandJob job{call, from, wanted, runs, rows, map_size, width, columns, owned, right};
        OperandTask task{job, DONE};
        parallel(count < 4096 ? 1 : call.threads, runs.number_tasks(rows, call.key_heads), prepare_task, &task,
                 moved ? 1 : rows * call.key_heads);
        failed = task.status != DONE;
        int64_t stride = right ? packed_stride(columns) : steps_along(width);
        int64_t before = moved ? 0 : runs.all.first;
        operand = {owned - (right ? before / BLOCK_STEP : before) * stride,
                   rows < call.batch ? 0 : call.key_heads * map_size, map_size, stride, runs.shift};
    }

    // The left operand: its elements are broadcast.
    void left(const ll_call& call, const ll_tensor& from, Pieces& wanted, int64_t width) {
        bool even = from.strides[0] % FOLD == 0 && from.strides[1] % FOLD == 0 && from.strides[2] % FOLD == 0;
        bool whole = width == steps_along(width) * FOLD;
        if (LEFT_IN_PLACE && whole && even && in_place(call)) use_in_place(call, from);
        else prepare(call, from, wanted, width, 0, false);
    }

    // The right operand: its rows are read as vectors. Copied where rows are far apart, since they would map to the
    // same few cache sets, and where a last partial vector would be read beyond the row.
    void right(const ll_call& call, const ll_tensor& from, Pieces& wanted, int64_t width) {
        bool whole = width % LANES == 0 && from.strides[2] == width;
        if (RIGHT_IN_PLACE && whole && in_place(call)) use_in_place(call, from);
        else prepare(call, from, wanted, width, round_up(width, LANES), true);
    }
};

}  // namespace
}  // namespace limelight::LL_NAMESPACE
