// The product of two matrices, by the register tile of products.h: result = left * right + bias, in numbers.
//
// A task owns some panels of PANEL_COLUMNS columns, and some rows. It lays its columns of the right matrix side by side, once,
// and takes SQUARE_ROWS rows at a time: of MATRIX_STEPS steps the left matrix lies in the second cache, one panel's part of
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

constexpr int64_t PANEL_COLUMNS = VALUE_VECTORS * LANES, MOST_PANELS = 4;
constexpr int64_t MATRIX_STEPS = 96;
constexpr int64_t SQUARE_ROWS = 40 * VALUE_ROWS;
constexpr int64_t MOST_STEPS = 2016;  // of the right matrix that are laid at a time
static_assert(MOST_STEPS % MATRIX_STEPS == 0);

struct MatrixScratch {
    int64_t most_steps;
    Number* right;   // [panel][most_steps][PANEL_COLUMNS]
    Number* left;    // [SQUARE_ROWS][MATRIX_STEPS], or the other way where the left matrix lies along its rows
    Number* square;  // [panel][SQUARE_ROWS][PANEL_COLUMNS]

    MatrixScratch(Arena& arena, const ll_matmul& of) : most_steps(least(of.steps, MOST_STEPS)) {
        right = arena.take<Number>(MOST_PANELS * most_steps * PANEL_COLUMNS);
        left = arena.take<Number>(SQUARE_ROWS * MATRIX_STEPS);
        square = arena.take<Number>(MOST_PANELS * SQUARE_ROWS * PANEL_COLUMNS);
    }
};

struct MatrixJob {
    const ll_matmul& of;
    int64_t panels, columns;  // of a task; how many tasks lie side by side
    int64_t rows;             // of a task
    int status;
};

// Steps [first, first + steps) of `count` columns; zeros beyond them.
inline void lay_right(const ll_matmul& of, int64_t first, int64_t steps, int64_t column, int64_t count, Number* to) {
    const Number* from = (const Number*)of.right + first * of.right_step + column * of.right_column;
    if (of.right_column == 1) {
        for (int64_t k = 0; k < steps; ++k)
            read_row(from + k * of.right_step, count, to + k * PANEL_COLUMNS, PANEL_COLUMNS);
        return;
    }
    for (int64_t c = 0; c < PANEL_COLUMNS; c += LANES)
        for (int64_t k = 0; k < steps; k += LANES) {  // squares are turned
            Numbers square[LANES];
            for (int x = 0; x < LANES; ++x)
                square[x] = c + x < count ? read_some(from + (c + x) * of.right_column + k, steps - k) : Numbers{};
            turn_square(square);
            for (int x = 0; x < least<int64_t>(LANES, steps - k); ++x)
                store(to + (k + x) * PANEL_COLUMNS + c, square[x]);
        }
}

// Steps [first, first + steps) of some rows, close together whatever lies between them in memory.
inline Left<Number> lay_left(const ll_matmul& of, int64_t first, int64_t steps, int64_t row, int64_t rows, Number* to) {
    const Number* from = (const Number*)of.left + row * of.left_row + first * of.left_step;
    if (of.left_step == 1) {
        for (int64_t r = 0; r < rows; ++r) copy_numbers(from + r * of.left_row, steps, to + r * MATRIX_STEPS);
        return {to, MATRIX_STEPS, 1, 0, steps, nullptr};
    }
    for (int64_t k = 0; k < steps; ++k) copy_numbers(from + k * of.left_step, rows, to + k * SQUARE_ROWS);
    return {to, 1, SQUARE_ROWS, 0, steps, nullptr};
}

// A square of results; the right matrix is laid from step `first` on. They go on from what an earlier call left.
inline void add_square(const ll_matmul& of, int64_t row, int64_t rows, int64_t column, int64_t columns, int64_t first,
                       int64_t steps, const MatrixScratch& own) {
    Number* result = (Number*)of.result + row * of.result_row + column;
    const Number* start = of.bias ? (const Number*)of.bias + column : nullptr;
    bool on = first > 0 || of.add;
    auto each_row = [&](auto f) {  // f(row, first column, columns, place in the square)
        for (int64_t c = 0; c < columns; c += PANEL_COLUMNS)
            for (int64_t r = 0; r < rows; ++r)
                f(result + r * of.result_row + c, c, least(PANEL_COLUMNS, columns - c),
                  own.square + (c / PANEL_COLUMNS * SQUARE_ROWS + r) * PANEL_COLUMNS);
    };
    each_row([&](const Number* from, int64_t c, int64_t count, Number* to) {
        if (on || start) read_row(on ? from : start + c, count, to, PANEL_COLUMNS);
        else
            for (int64_t x = 0; x < PANEL_COLUMNS; x += LANES) store(to + x, Numbers{});
    });
    for (int64_t k = 0; k < steps; k += MATRIX_STEPS) {
        Left<Number> left = lay_left(of, first + k, least(MATRIX_STEPS, steps - k), row, rows, own.left);
        for (int64_t p = 0; p * PANEL_COLUMNS < columns; ++p)
            add_product(left, own.right + (p * own.most_steps + k) * PANEL_COLUMNS, PANEL_COLUMNS,
                        own.square + p * SQUARE_ROWS * PANEL_COLUMNS, PANEL_COLUMNS, (int)rows, PANEL_COLUMNS);
    }
    each_row([](Number* to, int64_t, int64_t count, const Number* from) { copy_numbers(from, count, to); });
}

inline void matrix_task(void* context, int64_t n) {
    MatrixJob& job = *(MatrixJob*)context;
    const ll_matmul& of = job.of;
    Arena arena{own_memory<MatrixScratch>(job.status, of)};
    if (!arena.memory) return;
    MatrixScratch own(arena, of);
    int64_t column = n % job.columns * job.panels * PANEL_COLUMNS;
    int64_t columns = least(job.panels * PANEL_COLUMNS, of.columns - column);
    int64_t begin = n / job.columns * job.rows, end = least(begin + job.rows, of.rows);
    for (int64_t first = 0; first == 0 || first < of.steps; first += MOST_STEPS) {
        int64_t steps = least(MOST_STEPS, of.steps - first);
        for (int64_t c = 0; c < columns; c += PANEL_COLUMNS)
            lay_right(of, first, steps, column + c, least(PANEL_COLUMNS, columns - c), own.right + c * own.most_steps);
        for (int64_t row = begin; row < end && !ended(job.status); row += SQUARE_ROWS)
            add_square(of, row, least(SQUARE_ROWS, end - row), column, columns, first, steps, own);
    }
}

inline int matmul(const ll_matmul& of) {
    if (of.rows == 0 || of.columns == 0) return DONE;
    auto parts = [](int64_t whole, int64_t part) { return (whole + part - 1) / part; };
    // Some ten tasks for each thread, so that the last one is not waited for long: first fewer rows, then fewer columns.
    // Laying the right matrix takes as long as a dozen rows.
    int64_t tasks = of.threads > 1 ? 10 * of.threads : 1;
    int64_t panels = parts(of.columns, PANEL_COLUMNS), squares = parts(of.rows, SQUARE_ROWS);
    MatrixJob job{of, clamp<int64_t>(panels * squares / tasks, 1, MOST_PANELS), 0, 0, DONE};
    job.columns = parts(panels, job.panels);
    job.panels = parts(panels, job.columns);  // alike
    job.rows = parts(squares, clamp<int64_t>(parts(tasks, job.columns), 1, squares)) * SQUARE_ROWS;
    parallel(of.threads, parts(of.rows, job.rows) * job.columns, matrix_task, &job);
    return job.status;
}

#endif

}  // namespace
}  // namespace limelight::LL_NAMESPACE
