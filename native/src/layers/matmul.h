// The product of two matrices, with the register tile of tiles/register_tile.h: result = left * right + bias, in
// float32 or float64.
//
// A task owns some panels of PANEL_COLUMNS columns and some rows. It packs its columns of the right matrix once, and
// computes BLOCK_ROWS rows at a time: MATRIX_STEPS steps of the left matrix stay in the L2 cache, one panel's part of
// the right one in L1, and their products are added to a block of results. So a long sum is a sum of short sums, in an
// order that depends neither on threads nor on other rows.
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
constexpr int64_t MAX_STEPS = 2016;  // of the right matrix that are packed at a time
static_assert(MAX_STEPS % MATRIX_STEPS == 0);

struct MatrixScratch {
    int64_t max_steps;
    Float* right;  // [panel][max_steps][PANEL_COLUMNS]
    Float* left;   // [BLOCK_ROWS][MATRIX_STEPS], or transposed where the left matrix is
    Float* block;  // [panel][BLOCK_ROWS][PANEL_COLUMNS]

    MatrixScratch(Arena& arena, const ll_matmul& args) : max_steps(min(args.steps, MAX_STEPS)) {
        right = arena.take<Float>(MAX_PANELS * max_steps * PANEL_COLUMNS);
        left = arena.take<Float>(BLOCK_ROWS * MATRIX_STEPS);
        block = arena.take<Float>(MAX_PANELS * BLOCK_ROWS * PANEL_COLUMNS);
    }
};

struct MatrixJob {
    const ll_matmul& args;
    int64_t panels, columns;  // panels of a task; tasks in a row of tasks
    int64_t rows;             // rows of a task
    int status;
};

// Packs steps [first, first + steps) of `count` columns of the right matrix; the other columns of the panel are zero.
inline void pack_right(const ll_matmul& args, int64_t first, int64_t steps, int64_t column, int64_t count, Float* to) {
    const Float* from = (const Float*)args.right + first * args.right_step + column * args.right_column;
    if (args.right_column == 1) {
        for (int64_t k = 0; k < steps; ++k)
            read_row(from + k * args.right_step, count, to + k * PANEL_COLUMNS, PANEL_COLUMNS);
        return;
    }
    for (int64_t c = 0; c < PANEL_COLUMNS; c += LANES)
        for (int64_t k = 0; k < steps; k += LANES) {  // transposed in squares
            Vec block[LANES];
            for (int x = 0; x < LANES; ++x)
                block[x] = c + x < count ? read_partial(from + (c + x) * args.right_column + k, steps - k) : Vec{};
            transpose(block);
            for (int x = 0; x < min<int64_t>(LANES, steps - k); ++x) store(to + (k + x) * PANEL_COLUMNS + c, block[x]);
        }
}

// Packs steps [first, first + steps) of `rows` rows of the left matrix.
inline Left<Float> pack_left(const ll_matmul& args, int64_t first, int64_t steps, int64_t row, int64_t rows,
                             Float* to) {
    const Float* from = (const Float*)args.left + row * args.left_row + first * args.left_step;
    if (args.left_step == 1) {
        for (int64_t r = 0; r < rows; ++r) copy_floats(from + r * args.left_row, steps, to + r * MATRIX_STEPS);
        return {to, MATRIX_STEPS, 1, 0, steps, nullptr};
    }
    for (int64_t k = 0; k < steps; ++k) copy_floats(from + k * args.left_step, rows, to + k * BLOCK_ROWS);
    return {to, 1, BLOCK_ROWS, 0, steps, nullptr};
}

// Computes a block of results, or adds to it: the right matrix is packed from step `first` on.
inline void multiply_block(const ll_matmul& args, int64_t row, int64_t rows, int64_t column, int64_t columns,
                           int64_t first, int64_t steps, const MatrixScratch& own) {
    Float* result = (Float*)args.result + row * args.result_row + column;
    const Float* bias = args.bias ? (const Float*)args.bias + column : nullptr;
    bool accumulate = first > 0 || args.add;
    auto each_row = [&](auto f) {  // f(row of the result, first column, columns, row of the block)
        for (int64_t c = 0; c < columns; c += PANEL_COLUMNS)
            for (int64_t r = 0; r < rows; ++r)
                f(result + r * args.result_row + c, c, min(PANEL_COLUMNS, columns - c),
                  own.block + (c / PANEL_COLUMNS * BLOCK_ROWS + r) * PANEL_COLUMNS);
    };
    each_row([&](const Float* from, int64_t c, int64_t count, Float* to) {
        if (accumulate || bias) read_row(accumulate ? from : bias + c, count, to, PANEL_COLUMNS);
        else
            for (int64_t x = 0; x < PANEL_COLUMNS; x += LANES) store(to + x, Vec{});
    });
    for (int64_t k = 0; k < steps; k += MATRIX_STEPS) {
        Left<Float> left = pack_left(args, first + k, min(MATRIX_STEPS, steps - k), row, rows, own.left);
        for (int64_t p = 0; p * PANEL_COLUMNS < columns; ++p)
            add_product(left, own.right + (p * own.max_steps + k) * PANEL_COLUMNS, PANEL_COLUMNS,
                        own.block + p * BLOCK_ROWS * PANEL_COLUMNS, PANEL_COLUMNS, (int)rows, PANEL_COLUMNS);
    }
    each_row([](Float* to, int64_t, int64_t count, const Float* from) { copy_floats(from, count, to); });
}

inline void matrix_task(void* context, int64_t n) {
    MatrixJob& job = *(MatrixJob*)context;
    const ll_matmul& args = job.args;
    Arena arena{thread_scratch<MatrixScratch>(job.status, args)};
    if (!arena.memory) return;
    MatrixScratch own(arena, args);
    int64_t column = n % job.columns * job.panels * PANEL_COLUMNS;
    int64_t columns = min(job.panels * PANEL_COLUMNS, args.columns - column);
    int64_t begin = n / job.columns * job.rows, end = min(begin + job.rows, args.rows);
    for (int64_t first = 0; first == 0 || first < args.steps; first += MAX_STEPS) {
        int64_t steps = min(MAX_STEPS, args.steps - first);
        for (int64_t c = 0; c < columns; c += PANEL_COLUMNS)
            pack_right(args, first, steps, column + c, min(PANEL_COLUMNS, columns - c), own.right + c * own.max_steps);
        for (int64_t row = begin; row < end && !should_stop(job.status); row += BLOCK_ROWS)
            multiply_block(args, row, min(BLOCK_ROWS, end - row), column, columns, first, steps, own);
    }
}

inline int matmul(const ll_matmul& args) {
    if (args.rows == 0 || args.columns == 0) return DONE;
    auto ceil_div = [](int64_t whole, int64_t part) { return (whole + part - 1) / part; };
    // About ten tasks for each thread, so that threads finish at about the same time: first with fewer rows, then with
    // fewer columns. Packing the right matrix takes as long as computing a dozen rows.
    int64_t tasks = args.threads > 1 ? 10 * args.threads : 1;
    int64_t panels = ceil_div(args.columns, PANEL_COLUMNS), blocks = ceil_div(args.rows, BLOCK_ROWS);
    MatrixJob job{args, clamp<int64_t>(panels * blocks / tasks, 1, MAX_PANELS), 0, 0, DONE};
    job.columns = ceil_div(panels, job.panels);
    job.panels = ceil_div(panels, job.columns);  // of equal size
    job.rows = ceil_div(blocks, clamp<int64_t>(ceil_div(tasks, job.columns), 1, blocks)) * BLOCK_ROWS;
    parallel(args.threads, ceil_div(args.rows, job.rows) * job.columns, matrix_task, &job);
    return job.status;
}

#endif

}  // namespace
}  // namespace limelight::LL_NAMESPACE
