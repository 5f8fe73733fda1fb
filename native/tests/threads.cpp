// Replaces src/threads.cpp in the build under ThreadSanitizer, with std::thread. ThreadSanitizer does not understand
// how libgomp's threads synchronize (by futexes, in a library that is not instrumented) and would report every parallel
// region as a race. Tasks are distributed in the same way.
#include <stdlib.h>

#include <thread>
#include <vector>

#include "../src/library.h"

namespace limelight {
namespace {

struct Memory {
    void* data = nullptr;
    size_t size = 0;
    ~Memory() { free(data); }
};
thread_local Memory memory;

}  // namespace

bool has_openmp() { return false; }

void* borrow(size_t& bytes) { return aligned_alloc(64, (bytes + 63) / 64 * 64); }
void give_back(void* memory, size_t) { free(memory); }

void* scratch(size_t bytes) {
    if (memory.data && memory.size >= bytes) return memory.data;
    free(memory.data);
    memory.size = bytes / 4096 * 4096 + 4096;
    return memory.data = aligned_alloc(64, memory.size);
}

void parallel(int64_t threads, int64_t count, void (*body)(void*, int64_t), void* context, int64_t runs) {
    TaskRanges tasks(count, runs, threads);
    std::vector<std::thread> others;
    for (int64_t n = 1; n < (threads < count ? threads : count); ++n)
        others.emplace_back([&, n] { tasks.work(n, body, context); });
    tasks.work(0, body, context);
    for (std::thread& other : others) other.join();
}

}  // namespace limelight
