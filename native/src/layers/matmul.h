// The product of two matrices, by the register tile of products.h: result = left * right + bias, in numbers.
//
// A task owns some panels of PANEL_COLUMNS columns, and some rows. It lays its columns of the right matrix side by side, once,
// and takes BLOCK_ROWS rows at a time: of MATRIX_STEPS steps the left matrix lies in the second cache, one panel's part of
// the right one in the first, and their sums are added to a square of results. So a long sum is one of short sums, in an order
// in which neither threads nor other rows show.
#pragma once

#include "../library.h"
#include "../simd/elements.h"
#include "../simd/vector.h"
#include "../task.h"
#include "../tiles/register_tile.h"
#include "../tiles/shapes.h"

namespace limelight::LL_NAMESPACE {
namespace {

#if !defined(LL_OF_BFLOAT16) && !defined(LL_OF_FLOAT16)

constexpr int64_t PANEL_COLUMNS = VALUE_VECTORS * LANES, MAX_PANELS = 4;
constexpr int64_t MATRIX_STEPS = 96;
constexpr int64_t BLOCK_ROWS = 40 * VALUE_ROWS;
constexpr int64_t MAX_STEPS = 2016;  // of the right matrix that are laid at a time
static_assert(MAX_STEPS % MATRIX_STEPS == 0);

struct MatrixScratch {
    int64_t max_steps;
    Float* right;  // [panel][max_steps][PANEL_COLUMNS]
    Float* left;   // [BLOCK_ROWS][MATRIX_STEPS], or the other way where the left matrix lies along its rows
    Float* block;  // [panel][BLOCK_ROWS][PANEL_COLUMNS]

    MatrixScratch(Arena& arena, const ll_matmul& of) : max_steps(min(of.steps, MAX_STEPS)) {
        right = arena.take<Float>(MAX_PANELS * max_steps * PANEL_COLUMNS);
        left = arena.take<Float>(BLOCK_ROWS * MATRIX_STEPS);
        block = arena.take<Float>(MAX_PANELS * BLOCK_ROWS * PANEL_COLUMNS);
    }
};

struct MatrixJob {
    const ll_matmul& of;
    int64_t panels, columns;  // of a task; how many tasks lie side by side
    int64_t rows;             // of a task
    int status;
};

// Steps [first, first + steps) of `count` columns; zeros beyond them.
inline void pack_right(const ll_matmul& of, int64_t first, int64_t steps, int64_t column, int64_t count, Float* to) {
    const Float* from = (const Float*)of.right + first * of.right_step + column * of.right_column;
    if (of.right_column == 1) {
        for (int64_t k = 0; k < steps; ++k)
            read_row(from + k * of.right_step, count, to + k * PANEL_COLUMNS, PANEL_COLUMNS);
        return;
    }
    for (int64_t c = 0; c < PANEL_COLUMNS; c += LANES)
        for (int64_t k = 0; k < steps; k += LANES) {  // squares are turned
            Vec block[LANES];
            for (int x = 0; x < LANES; ++x)
                block[x] = c + x < count ? read_partial(from + (c + x) * of.right_column + k, steps - k) : Vec{};
            transpose(block);
            for (int x = 0; x < min<int64_t>(LANES, steps - k); ++x) store(to + (k + x) * PANEL_COLUMNS + c, block[x]);
        }
}

// Steps [first, first + steps) of some rows, close together whatever lies between them in memory.
inline Left<Float> pack_left(const ll_matmul& of, int64_t first, int64_t steps, int64_t row, int64_t rows, Float* to) {
    const Float* from = (const Float*)of.left + row * of.left_row + first * of.left_step;
    if (of.left_step == 1) {
        for (int64_t r = 0; r < rows; ++r) copy_floats(from + r * of.left_row, steps, to + r * MATRIX_STEPS);
        return {to, MATRIX_STEPS, 1, 0, steps, nullptr};
    }
    for (int64_t k = 0; k < steps; ++k) copy_floats(from + k * of.left_step, rows, to + k * BLOCK_ROWS);
    return {to, 1, BLOCK_ROWS, 0, steps, nullptr};
}

// A square of results; the right matrix is laid from step `first` on. They go on from what an earlier call left.
inline void multiply_block(const ll_matmul& of, int64_t row, int64_t rows, int64_t column, int64_t columns,
                           int64_t first, int64_t steps, const MatrixScratch& own) {
    Float* result = (Float*)of.result + row * of.result_row + column;
    const Float* start = of.bias ? (const Float*)of.bias + column : nullptr;
    bool on = first > 0 || of.add;
    auto each_row = [&](auto f) {  // f(row, first column, columns, place in the square)
        for (int64_t c = 0; c < columns; c += PANEL_COLUMNS)
            for (int64_t r = 0; r < rows; ++r)
                f(result + r * of.result_row + c, c, min(PANEL_COLUMNS, columns - c),
                  own.block + (c / PANEL_COLUMNS * BLOCK_ROWS + r) * PANEL_COLUMNS);
    };
    each_row([&](const Float* from, int64_t c, int64_t count, Float* to) {
        if (on || start) read_row(on ? from : start + c, count, to, PANEL_COLUMNS);
        else
            for (int64_t x = 0; x < PANEL_COLUMNS; x += LANES) store(to + x, Vec{});
    });
    for (int64_t k = 0; k < steps; k += MATRIX_STEPS) {
        Left<Float> left = pack_left(of, first + k, min(MATRIX_STEPS, steps - k), row, rows, own.left);
        for (int64_t p = 0; p * PANEL_COLUMNS < columns; ++p)
            add_product(left, own.right + (p * own.max_steps + k) * PANEL_COLUMNS, PANEL_COLUMNS,
                        own.block + p * BLOCK_ROWS * PANEL_COLUMNS, PANEL_COLUMNS, (int)rows, PANEL_COLUMNS);
    }
    each_row([](Float* to, int64_t, int64_t count, const Float* from) { copy_floats(from, count, to); });
}

inline void matrix_task(void* context, int64_t n) {
    MatrixJob& job = *(MatrixJob*)context;
    const ll_matmul& of = job.of;
    Arena arena{thread_scratch<MatrixScratch>(job.status, of)};
    if (!arena.memory) return;
    MatrixScratch own(arena, of);
    int64_t column = n % job.columns * job.panels * PANEL_COLUMNS;
    int64_t columns = min(job.panels * PANEL_COLUMNS, of.columns - column);
    int64_t begin = n / job.columns * job.rows, end = min(begin + job.rows, of.rows);
    for (int64_t first = 0; first == 0 || first < of.steps; first += MAX_STEPS) {
        int64_t steps = min(MAX_STEPS, of.steps - first);
        for (int64_t c = 0; c < columns; c += PANEL_COLUMNS)
            pack_right(of, first, steps, column + c, min(PANEL_COLUMNS, columns - c), own.right + c * own.max_steps);
        for (int64_t row = begin; row < end && !should_stop(job.status); row += BLOCK_ROWS)
            multiply_block(of, row, min(BLOCK_ROWS, end - row), column, columns, first, steps, own);
    }
}

inline int matmul(const ll_matmul& of) {
    if (of.rows == 0 || of.columns == 0) return DONE;
    auto parts = [](int64_t whole, int64_t part) { return (whole + part - 1) / part; };
    // Some ten tasks for each thread, so that the last one is not waited for long: first fewer rows, then fewer columns.
    // Laying the right matrix takes as long as a dozen rows.
    int64_t tasks = of.threads > 1 ? 10 * of.threads : 1;
    int64_t panels = parts(of.columns, PANEL_COLUMNS), blocks = parts(of.rows, BLOCK_ROWS);
    MatrixJob job{of, clamp<int64_t>(panels * blocks / tasks, 1, MAX_PANELS), 0, 0, DONE};
    job.columns = parts(panels, job.panels);
    job.panels = parts(panels, job.columns);  // alike
    job.rows = parts(blocks, clamp<int64_t>(parts(tasks, job.columns), 1, blocks)) * BLOCK_ROWS;
    parallel(of.threads, parts(of.rows, job.rows) * job.columns, matrix_task, &job);
    return job.status;
}

#endif

}  // namespace
}  // namespace limelight::LL_NAMESPACE
