// RMS norm, forward and backward.
#pragma once

#include "../library.h"
#include "../simd/elements.h"
#include "../simd/vector.h"
#include "rows.h"

namespace limelight::LL_NAMESPACE {
namespace {

constexpr int64_t PARTS = 8;  // the rows are divided into so many, each with its own sum of the weight's gradient

struct NormJob {
    const ll_norm& norm;
    const Float* weight;  // offset included
    Float* sums;          // (PARTS, columns)
    int64_t columns, rows_per_task;
};

// The sum of f(first element of a vector) over a row, in four partial sums.
template <class F>
LL_INLINE Float sum_along(int64_t width, F f) {
    Vec parts[4] = {};
    int64_t d = 0;
    for (; d + 4 * LANES <= width; d += 4 * LANES)
        for (int p = 0; p < 4; ++p) parts[p] += f(d + p * LANES);
    for (int p = 0; d < width; d += LANES, ++p) parts[p] += f(d);
    return reduce_add((parts[0] + parts[1]) + (parts[2] + parts[3]));
}

inline void norm_task(void* context, int64_t n) {
    const NormJob& job = *(const NormJob*)context;
    const ll_norm& norm = job.norm;
    for (int64_t row = n * job.rows_per_task, stop = min(row + job.rows_per_task, norm.rows); row < stop; ++row) {
        const Stored* states = at(norm.states, row * norm.state_stride);
        Stored* result = at(norm.result, row * norm.width);
        Float squares = sum_along(norm.width, [&](int64_t d) {
            Vec x = read_partial(states + d, norm.width - d);
            return x * x;
        });
        Float inverse = 1 / (Float)__builtin_sqrt(squares / (Float)norm.width + (Float)norm.epsilon);
        for (int64_t d = 0; d < norm.width; d += LANES) {
            Vec x = read_partial(states + d, norm.width - d);
            write_partial(x * inverse * load<Vec>(job.weight + d), norm.width - d, result + d);
        }
        if (norm.inverse) ((Float*)norm.inverse)[row] = inverse;
    }
}

// With h = grad * weight and i = inverse: grad_states = i h - x i^3 mean(h x), grad_weight = sum over rows of grad x i.
inline void norm_backward_task(void* context, int64_t n) {
    const NormJob& job = *(const NormJob*)context;
    const ll_norm& norm = job.norm;
    Float* sums = job.sums + n * job.columns;
    for (int64_t row = n * job.rows_per_task, stop = min(row + job.rows_per_task, norm.rows); row < stop; ++row) {
        const Stored *states = at(norm.states, row * norm.state_stride), *grad = at(norm.grad, row * norm.width);
        Float inverse = ((const Float*)norm.inverse)[row];
        Float mean_term = 0;
        if (norm.grad_states)
            mean_term = inverse * inverse * inverse / (Float)norm.width * sum_along(norm.width, [&](int64_t d) {
                            return read_partial(grad + d, norm.width - d) * load<Vec>(job.weight + d) *
                                   read_partial(states + d, norm.width - d);
                        });
        for (int64_t d = 0; d < norm.width; d += LANES) {
            Vec x = read_partial(states + d, norm.width - d), g = read_partial(grad + d, norm.width - d) * inverse;
            if (norm.grad_states)
                write_partial(g * load<Vec>(job.weight + d) - x * mean_term, norm.width - d,
                              at(norm.grad_states, row * norm.width) + d);
            if (norm.grad_weight) store(sums + d, multiply_add(g, x, load<Vec>(sums + d)));
        }
    }
}

// Allocates the weight as floats and, after it, zeroed partial sums of its gradient.
inline bool prepare(NormJob& job, int64_t parts) {
    Float* memory = (Float*)scratch(sizeof(Float) * (size_t)((1 + parts) * job.columns));
    if (!memory) return false;
    const ll_norm& norm = job.norm;
    __builtin_memset(memory, 0, sizeof(Float) * (size_t)((1 + parts) * job.columns));
    read_row(at(norm.weight, 0), norm.width, memory, job.columns);
    for (int64_t d = 0; d < norm.width; ++d) memory[d] += (Float)norm.offset;
    job.weight = memory, job.sums = memory + job.columns;
    return true;
}

inline int norm(const ll_norm& norm) {
    NormJob job{norm, nullptr, nullptr, round_up(norm.width, LANES), max<int64_t>(1, TASK / norm.width)};
    if (!prepare(job, 0)) return OUT_OF_MEMORY;
    parallel(norm.threads, (norm.rows + job.rows_per_task - 1) / job.rows_per_task, norm_task, &job, norm.threads);
    return DONE;
}

inline int norm_backward(const ll_norm& norm) {
    NormJob job{norm, nullptr, nullptr, round_up(norm.width, LANES), (norm.rows + PARTS - 1) / PARTS};
    if (!prepare(job, PARTS)) return OUT_OF_MEMORY;
    int64_t parts = job.rows_per_task ? (norm.rows + job.rows_per_task - 1) / job.rows_per_task : 0;
    parallel(norm.rows * norm.width < TASK ? 1 : norm.threads, parts, norm_backward_task, &job);
    if (!norm.grad_weight) return DONE;
    for (int64_t part = 1; part < parts; ++part)
        for (int64_t d = 0; d < norm.width; ++d) job.sums[d] += job.sums[part * job.columns + d];
    write_row(job.sums, norm.width, at(norm.grad_weight, 0));
    return DONE;
}

}  // namespace
}  // namespace limelight::LL_NAMESPACE
