// The product of two matrices, by the register tile of products.h: result = left * right + bias, in numbers.
//
// A task owns a panel of columns and some rows. It lays its columns of the right matrix side by side, [step][PANEL_COLUMNS],
// once, and brings a square of results, [row][PANEL_COLUMNS], from the second cache to the first for each MATRIX_STEPS steps,
// whose part of the right matrix stays in the first meanwhile. Sums of as many steps are added in order: a long sum is one of
// short sums, and neither threads nor other rows show in the bits.
#if !defined(LL_OF_BFLOAT16) && !defined(LL_OF_FLOAT16)

constexpr int64_t PANEL_COLUMNS = VALUE_VECTORS * LANES;
constexpr int64_t MATRIX_STEPS = 128;            // of the right matrix in the first cache
constexpr int64_t SQUARE_ROWS = 40 * VALUE_ROWS;  // of results in the second
constexpr int64_t MOST_STEPS = 4096;             // laid side by side at a time

struct MatrixScratch {
    Number* right;  // [steps][PANEL_COLUMNS]
    Number* left;   // [MATRIX_STEPS][SQUARE_ROWS], where it lies along the rows
    Number* square;

    MatrixScratch(Arena& arena, const ll_matmul& of) {
        right = arena.take<Number>(least(of.steps, MOST_STEPS) * PANEL_COLUMNS);
        left = arena.take<Number>(of.left_step == 1 ? 0 : MATRIX_STEPS * SQUARE_ROWS);
        square = arena.take<Number>(SQUARE_ROWS * PANEL_COLUMNS);
    }
};

struct MatrixJob {
    const ll_matmul& of;
    int64_t rows, columns;  // how many parts of each
    int64_t part;           // rows of a part
    int status;
};

// Steps [first, first + steps) of columns [column, column + count); zeros beyond the columns.
inline void lay_right(const ll_matmul& of, int64_t first, int64_t steps, int64_t column, int64_t count, Number* to) {
    const Number* from = (const Number*)of.right + first * of.right_step + column * of.right_column;
    if (of.right_column == 1) {
        for (int64_t k = 0; k < steps; ++k) read_row(from + k * of.right_step, count, to + k * PANEL_COLUMNS, PANEL_COLUMNS);
        return;
    }
    for (int64_t c = 0; c < PANEL_COLUMNS; c += LANES)
        for (int64_t k = 0; k < steps; k += LANES) {  // squares are turned
            Numbers square[LANES];
            for (int x = 0; x < LANES; ++x)
                square[x] = c + x < count ? read_some(from + (c + x) * of.right_column + k, steps - k) : Numbers{};
            turn_square(square);
            for (int x = 0; x < least<int64_t>(LANES, steps - k); ++x) store(to + (k + x) * PANEL_COLUMNS + c, square[x]);
        }
}

// Results of `count` columns; [first, first + steps) are the steps laid in own.right. They go on from what an earlier call left.
inline void add_square(const ll_matmul& of, int64_t row, int64_t rows, int64_t column, int64_t count, int64_t first,
                       int64_t steps, const MatrixScratch& own) {
    Number* result = (Number*)of.result + row * of.result_row + column;
    const Number* start = of.bias ? (const Number*)of.bias + column : nullptr;
    bool on = first > 0 || of.add;
    for (int64_t r = 0; r < rows; ++r) {
        Number* to = own.square + r * PANEL_COLUMNS;
        if (on || start) read_row(on ? result + r * of.result_row : start, count, to, PANEL_COLUMNS);
        else for (int64_t c = 0; c < PANEL_COLUMNS; c += LANES) store(to + c, Numbers{});
    }
    for (int64_t k = 0; k < steps; k += MATRIX_STEPS) {
        int64_t some = least(MATRIX_STEPS, steps - k);
        const Number* from = (const Number*)of.left + row * of.left_row + (first + k) * of.left_step;
        Left<Number> left{from, of.left_row, 1, 0, some, nullptr};
        if (of.left_step != 1) {  // along the rows
            for (int64_t x = 0; x < some; ++x) copy_numbers(from + x * of.left_step, rows, own.left + x * SQUARE_ROWS);
            left.at = own.left, left.row = 1, left.step = SQUARE_ROWS;
        }
        add_product(left, own.right + k * PANEL_COLUMNS, PANEL_COLUMNS, own.square, PANEL_COLUMNS, (int)rows, PANEL_COLUMNS);
    }
    for (int64_t r = 0; r < rows; ++r) copy_numbers(own.square + r * PANEL_COLUMNS, count, result + r * of.result_row);
}

inline void matrix_task(void* context, int64_t n) {
    MatrixJob& job = *(MatrixJob*)context;
    const ll_matmul& of = job.of;
    Arena arena{own_memory<MatrixScratch>(job.status, of)};
    if (!arena.memory) return;
    MatrixScratch own(arena, of);
    int64_t column = n % job.columns * PANEL_COLUMNS, count = least(PANEL_COLUMNS, of.columns - column);
    int64_t begin = n / job.columns * job.part, end = least(begin + job.part, of.rows);
    for (int64_t first = 0; first == 0 || first < of.steps; first += MOST_STEPS) {
        int64_t steps = least(MOST_STEPS, of.steps - first);
        lay_right(of, first, steps, column, count, own.right);
        for (int64_t row = begin; row < end; row += SQUARE_ROWS)
            add_square(of, row, least(SQUARE_ROWS, end - row), column, count, first, steps, own);
    }
}

inline int matmul(const ll_matmul& of) {
    // Several tasks for each thread, so that the last one is not waited for long, of as many rows as that leaves: laying
    // the right matrix takes as long as a dozen rows.
    MatrixJob job{of, 1, (of.columns + PANEL_COLUMNS - 1) / PANEL_COLUMNS, 0, DONE};
    int64_t squares = (of.rows + SQUARE_ROWS - 1) / SQUARE_ROWS;
    job.rows = clamp<int64_t>(12 * of.threads / most<int64_t>(job.columns, 1), 1, most<int64_t>(squares, 1));
    job.part = (squares + job.rows - 1) / job.rows * SQUARE_ROWS;
    parallel(of.threads, of.rows > 0 ? (of.rows + job.part - 1) / job.part * job.columns : 0, matrix_task, &job);
    return job.status;
}

#endif
