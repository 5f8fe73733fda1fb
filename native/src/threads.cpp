// Threads (OpenMP) and memory for the kernels. Under ThreadSanitizer, tests/threads.cpp takes the place of this file.
#include <stdlib.h>

#include "library.h"

#if defined(_OPENMP)
#include <omp.h>
#include <pthread.h>
#endif

namespace limelight {
namespace {

#if defined(_OPENMP)
// A child of fork() inherits the state of the thread pool but none of its threads: a parallel region would hang.
bool forked = false;

void watch_forks() {
    static bool watching = false;
    if (__atomic_exchange_n(&watching, true, __ATOMIC_ACQ_REL)) return;
    pthread_atfork(nullptr, nullptr, [] { forked = true; });
}
#endif

struct Memory {
    void* data = nullptr;
    size_t size = 0;
    ~Memory() { free(data); }
};
thread_local Memory memory;

constexpr size_t MAX_KEPT = 8 << 20;  // bytes of a piece
thread_local Memory kept[4];

}  // namespace

bool has_openmp() {
#if defined(_OPENMP)
    return true;
#else
    return false;
#endif
}

void* scratch(size_t bytes) {
    if (memory.data && memory.size >= bytes) return memory.data;
    free(memory.data);
    size_t rounded = bytes / 4096 * 4096 + 4096;  // at least one page: null means failure
    memory.data = aligned_alloc(64, rounded);
    memory.size = memory.data ? rounded : 0;
    return memory.data;
}

void* borrow(size_t& bytes) {
    Memory* best = nullptr;
    for (Memory& piece : kept)
        if (piece.data && piece.size >= bytes && (!best || piece.size < best->size)) best = &piece;
    if (best) {
        void* found = best->data;
        bytes = best->size, best->data = nullptr;
        return found;
    }
    bytes = (bytes + 63) / 64 * 64;
    return aligned_alloc(64, bytes);
}

void give_back(void* memory, size_t bytes) {
    for (Memory& piece : kept)
        if (memory && !piece.data && bytes <= MAX_KEPT) {
            piece.data = memory, piece.size = bytes;
            return;
        }
    free(memory);
}

void parallel(int64_t threads, int64_t count, void (*body)(void*, int64_t), void* context, int64_t runs) {
    if (threads > count) threads = count;
#if defined(_OPENMP)
    if (threads > 1 && !forked && !omp_in_parallel()) {
        watch_forks();
        TaskRanges tasks(count, runs, threads);
#pragma omp parallel num_threads((int)threads)
        tasks.work(omp_get_thread_num(), body, context);
        return;
    }
#endif
    (void)runs;
    for (int64_t n = 0; n < count; ++n) body(context, n);
}

}  // namespace limelight
