// What the kernels of all instruction sets share: their table of functions, threads and memory.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "../include/limelight.h"

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
    int (*matmul)(const ll_matmul&);  // null for 16-bit elements
    int (*quantization)(const ll_quantization&);
};

// Calls body(context, n) for n in [0, count) on at most `threads` threads, distributed one at a time: in ascending
// order, or in that order within each of `ranges` ranges of equal length. A thread begins with a range of its own, so
// that consecutive tasks, which often read the same memory, share its caches (and find them warm in the next call), and
// then takes over what is left of others.
void parallel(int64_t threads, int64_t count, void (*body)(void* context, int64_t n), void* context,
              int64_t ranges = 1);

// The tasks of `parallel`.
class TaskRanges {
    static constexpr int64_t MAX = 64;
    struct alignas(64) Counter {
        int64_t taken = 0;
    };
    Counter counters[MAX];
    int64_t count, ranges;

public:
    // At most as many ranges as there are threads or tasks.
    TaskRanges(int64_t tasks, int64_t max_ranges, int64_t threads) : count(tasks), ranges(max_ranges) {
        const int64_t limits[] = {MAX, threads, count};
        for (int64_t limit : limits)
            if (ranges > limit) ranges = limit;
        if (ranges < 1) ranges = 1;
    }
    void work(int64_t thread, void (*body)(void*, int64_t), void* context) {
        for (int64_t r = 0; r < ranges; ++r) {
            int64_t range = (thread + r) % ranges, begin = count * range / ranges,
                    length = count * (range + 1) / ranges - begin;
            for (int64_t n; (n = __atomic_fetch_add(&counters[range].taken, 1, __ATOMIC_RELAXED)) < length;)
                body(context, begin + n);
        }
    }
};

// At least `bytes` of this thread's own memory, aligned to 64, valid until its next call; null when there is none.
void* scratch(size_t bytes);

// At least `bytes` of memory for one call, aligned to 64, and its return; `bytes` becomes its actual size; null when
// there is none. Each thread keeps a few pieces of moderate size for its next call: the system clears fresh memory page
// by page.
void* borrow(size_t& bytes);
void give_back(void* memory, size_t bytes);

// Whether the caller wants its call to stop; to be checked by every thread between pieces of work of some microseconds.
// Only the thread of the call runs the caller's signal handlers, and only after a fifth of a second.
bool interrupted();

enum Status { DONE = 0, BAD_ARGUMENT = 1, OUT_OF_MEMORY = 2, INTERRUPTED = LL_INTERRUPTED };

}  // namespace limelight
