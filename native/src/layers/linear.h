// Linear layers for few rows of states: result = states @ weight^T + bias, for several matrices.
#pragma once

#include "../library.h"
#include "../simd/elements.h"
#include "../simd/vector.h"
#include "rows.h"

namespace limelight::LL_NAMESPACE {
namespace {

constexpr int MATRIX_ROWS = 4;      // read at once, a quarter of the matrix apart: several streams are faster than one
constexpr int PREFETCH_LINES = 16;  // how far ahead each stream is prefetched
constexpr int VECTORS = 3;          // rows of states that share a read from the L1 cache
constexpr int LINE = 64 / (int)sizeof(Stored);  // elements of a cache line

struct ProductJob {
    const ll_product& product;
    const Float* vectors;                // (rows, columns), zeros beyond `inputs`
    int64_t columns, piece;              // piece: outputs of a task, divided by MATRIX_ROWS
    int64_t first[LL_MAX_MATRICES + 1];  // index of each matrix's first task
};

// OUTPUTS outputs, `output_stride` apart, for ROWS rows of states.
template <int ROWS, int OUTPUTS>
LL_INLINE void multiply_tile(const ProductJob& job, const ll_matrix& matrix, int64_t row, int64_t output,
                             int64_t output_stride) {
    const ll_product& product = job.product;
    Vec sums[OUTPUTS][ROWS];
    for (int m = 0; m < OUTPUTS; ++m)
        for (int r = 0; r < ROWS; ++r) sums[m][r] = Vec{};
    const Stored* weights = at(matrix.weight, output * matrix.weight_stride);
    const Float* vectors = job.vectors + row * job.columns;
    int64_t weight_stride = output_stride * matrix.weight_stride, prefetch_distance = PREFETCH_LINES * LINE, c = 0;
    auto step = [&](int m, int64_t column, Vec weight) {
#pragma GCC unroll 3
        for (int r = 0; r < ROWS; ++r)
            sums[m][r] = multiply_add(weight, load<Vec>(vectors + r * job.columns + column), sums[m][r]);
    };
    for (; c + LINE <= product.inputs; c += LINE)
#pragma GCC unroll 4
        for (int m = 0; m < OUTPUTS; ++m) {
            const Stored* from = weights + m * weight_stride + c;
            __builtin_prefetch(from + prefetch_distance);
#pragma GCC unroll 4
            for (int x = 0; x < LINE; x += LANES) step(m, c + x, read_vector(from + x));
        }
    for (; c < product.inputs; c += LANES)
        for (int m = 0; m < OUTPUTS; ++m) step(m, c, read_partial(weights + m * weight_stride + c, product.inputs - c));
    for (int r = 0; r < ROWS; ++r) {
        Float results[OUTPUTS];
        for (int m = 0; m < OUTPUTS; ++m) {
            results[m] = reduce_add(sums[m][r]);
            if (matrix.bias) results[m] += read(at(matrix.bias, output + m * output_stride));
        }
        for (int m = 0; m < OUTPUTS; ++m)
            write_row(results + m, 1, at(matrix.result, (row + r) * matrix.outputs + output + m * output_stride));
    }
}

template <int OUTPUTS>
LL_INLINE void multiply_rows(const ProductJob& job, const ll_matrix& matrix, int64_t output, int64_t output_stride) {
    int64_t row = 0, rows = job.product.rows;
    for (; row + VECTORS <= rows; row += VECTORS)
        multiply_tile<VECTORS, OUTPUTS>(job, matrix, row, output, output_stride);
    if (rows - row == 2) multiply_tile<2, OUTPUTS>(job, matrix, row, output, output_stride);
    else if (rows - row == 1) multiply_tile<1, OUTPUTS>(job, matrix, row, output, output_stride);
}

inline void multiply_task(void* context, int64_t n) {
    const ProductJob& job = *(const ProductJob*)context;
    int64_t m = 0;
    while (n >= job.first[m + 1]) ++m;
    const ll_matrix& matrix = job.product.matrices[m];
    int64_t output_stride = matrix.outputs / MATRIX_ROWS;
    int64_t output = (n - job.first[m]) * job.piece, stop = min(output + job.piece, output_stride);
    for (; output < stop; ++output) multiply_rows<MATRIX_ROWS>(job, matrix, output, output_stride);
    if (stop == output_stride)  // the last piece
        for (output = MATRIX_ROWS * output_stride; output < matrix.outputs; ++output)
            multiply_rows<1>(job, matrix, output, 0);
}

inline int multiply(const ll_product& product) {
    int64_t columns = round_up(product.inputs, LANES), outputs = 0;
    Float* vectors = (Float*)scratch(sizeof(Float) * (size_t)(product.rows * columns));
    if (!vectors) return OUT_OF_MEMORY;
    for (int64_t r = 0; r < product.rows; ++r)
        read_row(at(product.states, r * product.state_stride), product.inputs, vectors + r * columns, columns);
    for (int64_t n = 0; n < product.count; ++n) outputs += product.matrices[n].outputs;
    // Several tasks for each thread, so that none waits long for the last one; results do not depend on their number.
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
