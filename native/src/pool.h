// The library's own threads, for processes without an OpenMP runtime to share.
#pragma once

#include "library.h"

namespace limelight {

// A call of `parallel`.
struct Region {
    TaskRanges tasks;
    void (*body)(void*, int64_t);
    void* context;
    void work(int64_t thread) { tasks.work(thread, body, context); }
};

// Works on a region with at most `threads` threads, among them this one. Threads that are busy with the regions of
// others are not waited for, nor are those that have not begun when all tasks are taken.
void run_in_pool(Region& region, int64_t threads);

// Whether this thread is working on a region of the pool.
bool in_pool();

// In a child of fork(), which inherits none of the threads: they are started again when needed.
void forget_pool();

}  // namespace limelight
