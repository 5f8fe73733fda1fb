// Gated activations, and the sum of two tensors.
#pragma once

#include "../library.h"
#include "../simd/elementary.h"
#include "../simd/elements.h"
#include "../simd/vector.h"
#include "rows.h"

namespace limelight::LL_NAMESPACE {
namespace {

// s = 1 / (1 + e^-x), and 1 - s without cancellation.
struct Sigmoid {
    Vec value, complement;
    LL_INLINE explicit Sigmoid(Vec x) {
        Vec power = max(broadcast(2 - (Float)EXPONENT_BIAS), x * LOG2_E);  // below this s is 0 to working precision
        Vec e = exp2(-power);
        value = 1 / (1 + e), complement = e * value;
    }
};

inline void gate_task(void* context, int64_t n) {
    const ll_gate& job = *(const ll_gate*)context;
    Vec linear = broadcast((Float)job.linear), cubic = broadcast((Float)job.cubic);
    for (int64_t i = n * TASK, stop = min(i + TASK, job.count); i < stop; i += LANES) {
        Vec x = read_partial(at(job.gate, i), stop - i), up = read_partial(at(job.up, i), stop - i);
        Sigmoid s(x * multiply_add(cubic, x * x, linear));
        write_partial(x * s.value * up, stop - i, at(job.result, i));
    }
}

// With u = linear x + cubic x^3 and s = sigmoid(u): (x s)' = s (1 + (1 - s) (linear x + 3 cubic x^3)).
inline void gate_backward_task(void* context, int64_t n) {
    const ll_gate& job = *(const ll_gate*)context;
    Vec linear = broadcast((Float)job.linear), cubic = broadcast((Float)job.cubic);
    for (int64_t i = n * TASK, stop = min(i + TASK, job.count); i < stop; i += LANES) {
        Vec x = read_partial(at(job.gate, i), stop - i), up = read_partial(at(job.up, i), stop - i);
        Vec grad = read_partial(at(job.grad, i), stop - i), slope = x * multiply_add(3 * cubic, x * x, linear);
        Sigmoid s(x * multiply_add(cubic, x * x, linear));
        write_partial(grad * up * s.value * multiply_add(slope, s.complement, broadcast(1)), stop - i,
                      at(job.grad_gate, i));
        write_partial(grad * x * s.value, stop - i, at(job.grad_up, i));
    }
}

inline int gate(const ll_gate& job) {
    parallel(job.threads, (job.count + TASK - 1) / TASK, job.grad ? gate_backward_task : gate_task, (void*)&job,
             job.threads);
    return DONE;
}

inline void sum_task(void* context, int64_t n) {
    const ll_sum& job = *(const ll_sum*)context;
    for (int64_t i = n * TASK, stop = min(i + TASK, job.count); i < stop; i += LANES)
        write_partial(read_partial(at(job.left, i), stop - i) + read_partial(at(job.right, i), stop - i), stop - i,
                      at(job.result, i));
}

inline int sum(const ll_sum& job) {
    parallel(job.threads, (job.count + TASK - 1) / TASK, sum_task, (void*)&job, job.threads);
    return DONE;
}

}  // namespace
}  // namespace limelight::LL_NAMESPACE
