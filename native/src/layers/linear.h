// Products of matrices and few vectors.
#pragma once

#include "../library.h"
#include "../simd/elements.h"
#include "../simd/vector.h"
#include "rows.h"

namespace limelight::LL_NAMESPACE {
namespace {

constexpr int MATRIX_ROWS =
    4;  // read at once, a quarter of the matrix apart: memory answers several places faster than one
constexpr int PREFETCH_LINES = 16;              // that are asked for meanwhile
constexpr int VECTORS = 3;                      // that share a reading from the nearest cache
constexpr int LINE = 64 / (int)sizeof(Stored);  // elements that memory gives at a time

struct ProductJob {
    const ll_product& product;
    const Float* vectors;                // (rows, columns), zeros beyond `inputs`
    int64_t columns, piece;              // of outputs, MATRIX_ROWS times
    int64_t first[LL_MAX_MATRICES + 1];  // the number of each matrix's first piece
};

// The outputs `output`, `output + apart`, ...
template <int ROWS, int OUTPUTS>
LL_INLINE void multiply_tile(const ProductJob& job, const ll_matrix& by, int64_t row, int64_t output,
                             int64_t output_stride) {
    const ll_product& product = job.product;
    Vec sums[OUTPUTS][ROWS];
    for (int m = 0; m < OUTPUTS; ++m)
        for (int r = 0; r < ROWS; ++r) sums[m][r] = Vec{};
    const Stored* matrix = at(by.weight, output * by.weight_stride);
    const Float* vectors = job.vectors + row * job.columns;
    int64_t step_over = output_stride * by.weight_stride, prefetch_distance = PREFETCH_LINES * LINE, c = 0;
    auto step = [&](int m, int64_t place, Vec weight) {
#pragma GCC unroll 3
        for (int r = 0; r < ROWS; ++r)
            sums[m][r] = multiply_add(weight, load<Vec>(vectors + r * job.columns + place), sums[m][r]);
    };
    for (; c + LINE <= product.inputs; c += LINE)
#pragma GCC unroll 4
        for (int m = 0; m < OUTPUTS; ++m) {
            const Stored* from = matrix + m * step_over + c;
            __builtin_prefetch(from + prefetch_distance);
#pragma GCC unroll 4
            for (int x = 0; x < LINE; x += LANES) step(m, c + x, read_vector(from + x));
        }
    for (; c < product.inputs; c += LANES)
        for (int m = 0; m < OUTPUTS; ++m) step(m, c, read_partial(matrix + m * step_over + c, product.inputs - c));
    for (int r = 0; r < ROWS; ++r) {
        Float results[OUTPUTS];
        for (int m = 0; m < OUTPUTS; ++m) {
            results[m] = reduce_add(sums[m][r]);
            if (by.bias) results[m] += read(at(by.bias, output + m * output_stride));
        }
        for (int m = 0; m < OUTPUTS; ++m)
            write_row(results + m, 1, at(by.result, (row + r) * by.outputs + output + m * output_stride));
    }
}

template <int OUTPUTS>
LL_INLINE void multiply_rows(const ProductJob& job, const ll_matrix& by, int64_t output, int64_t output_stride) {
    int64_t row = 0, rows = job.product.rows;
    for (; row + VECTORS <= rows; row += VECTORS) multiply_tile<VECTORS, OUTPUTS>(job, by, row, output, output_stride);
    if (rows - row == 2) multiply_tile<2, OUTPUTS>(job, by, row, output, output_stride);
    else if (rows - row == 1) multiply_tile<1, OUTPUTS>(job, by, row, output, output_stride);
}

inline void multiply_task(void* context, int64_t n) {
    const ProductJob& job = *(const ProductJob*)context;
    int64_t number = 0;
    while (n >= job.first[number + 1]) ++number;
    const ll_matrix& by = job.product.matrices[number];
    int64_t output_stride = by.outputs / MATRIX_ROWS;
    int64_t output = (n - job.first[number]) * job.piece, stop = min(output + job.piece, output_stride);
    for (; output < stop; ++output) multiply_rows<MATRIX_ROWS>(job, by, output, output_stride);
    if (stop == output_stride)  // the last piece
        for (output = MATRIX_ROWS * output_stride; output < by.outputs; ++output) multiply_rows<1>(job, by, output, 0);
}

inline int multiply(const ll_product& product) {
    int64_t columns = round_up(product.inputs, LANES), outputs = 0;
    Float* vectors = (Float*)scratch(sizeof(Float) * (size_t)(product.rows * columns));
    if (!vectors) return OUT_OF_MEMORY;
    for (int64_t r = 0; r < product.rows; ++r)
        read_row(at(product.states, r * product.state_stride), product.inputs, vectors + r * columns, columns);
    for (int64_t n = 0; n < product.count; ++n) outputs += product.matrices[n].outputs;
    // Several pieces for each thread, so that the last one is not waited for long; their number shows nowhere.
    int64_t piece = max<int64_t>(TASK / 4 / max<int64_t>(1, product.inputs), outputs / (8 * product.threads));
    piece = (max<int64_t>(1, piece) + MATRIX_ROWS - 1) / MATRIX_ROWS;
    ProductJob job{product, vectors, columns, piece, {}};
    for (int64_t n = 0; n < product.count; ++n)
        job.first[n + 1] =
            job.first[n] + max<int64_t>(1, (product.matrices[n].outputs / MATRIX_ROWS + piece - 1) / piece);
    parallel(product.threads, job.first[product.count], multiply_task, &job, product.threads);
    return DONE;
}

}  // namespace
}  // namespace limelight::LL_NAMESPACE
