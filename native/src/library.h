// What the kernels of every instruction set share: their table of functions, threads and memory.
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
    int (*matmul)(const ll_matmul&);  // null where elements are not numbers
};

// TaskRanges body(context, n) for n in [0, count) on at most `threads` threads, handed out one at a time: in order, or in order
// within each of so many runs of equal length. A thread begins with a run of its own, so that neighbours, which often read
// the same memory, meet in its caches (and meet them again in the next call), and goes on with what others have left.
void parallel(int64_t threads, int64_t count, void (*body)(void* context, int64_t n), void* context,
              int64_t ranges = 1);

// What `parallel` hands out.
class TaskRanges {
    static constexpr int64_t MAX = 64;
    struct alignas(64) Counter {
        int64_t taken = 0;
    };
    Counter counters[MAX];
    int64_t count, ranges;

public:
    // No more runs than threads or tasks.
    TaskRanges(int64_t tasks, int64_t wanted, int64_t threads) : count(tasks), ranges(wanted) {
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

// At least `bytes` of memory aligned to 64 for one call, which become as many as there are, and its way back; null when there
// is none. This thread keeps a few pieces of moderate size for its next call: fresh memory comes in pages that the system
// clears one by one.
void* borrow(size_t& bytes);
void give_back(void* memory, size_t bytes);

// Whether `parallel` has more than one thread to lend.
bool has_openmp();

// Asked between pieces of work of some microseconds, by any thread: whether the caller wants its call to end. Only the thread
// that called asks the caller, and only in a call that has taken a fifth of a second.
bool interrupted();

enum Status { DONE = 0, BAD_ARGUMENT = 1, OUT_OF_MEMORY = 2, INTERRUPTED = LL_INTERRUPTED };

}  // namespace limelight
