// What the kernels of every instruction set share: their table of functions, threads and memory.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "limelight.h"

namespace limelight {

// The kernels of one instruction set for one element type.
struct Kernels {
    int (*forward)(const ll_call&);
    int (*backward)(const ll_call&, const ll_gradients&);
    double (*peak)(double seconds);  // one thread's GFLOP/s
    int (*multiply)(const ll_product&);
    int (*norm)(const ll_norm&);
    int (*norm_backward)(const ll_norm&);
    int (*gate)(const ll_gate&);
    int (*rotation)(const ll_rotation&);
    int (*sum)(const ll_sum&);
    int (*matmul)(const ll_matmul&);  // null where elements are not numbers
};

// Runs body(context, n) for n in [0, count), handed out one at a time in order, on at most `threads` threads.
void parallel(int64_t threads, int64_t count, void (*body)(void* context, int64_t n), void* context);

// At least `bytes` of this thread's own memory, aligned to 64, valid until its next call; null when there is none.
void* scratch(size_t bytes);

// At least `bytes` of memory aligned to 64 for one call, which become as many as there are, and its way back; null when there
// is none. This thread keeps a few pieces of moderate size for its next call: fresh memory comes in pages that the system
// clears one by one.
void* borrow(size_t& bytes);
void give_back(void* memory, size_t bytes);

// Whether `parallel` has more than one thread to lend.
bool has_openmp();

enum Status { DONE = 0, BAD_ARGUMENT = 1, OUT_OF_MEMORY = 2 };

}  // namespace limelight
