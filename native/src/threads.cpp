// Distributes tasks to threads: those of PyTorch's OpenMP runtime where the library was given it, so that a process has
// one set of threads, and else its own (pool.cpp).
#include "platform.h"
#include "pool.h"

namespace limelight {
namespace {

ll_openmp openmp = {};

// A child of fork() has none of the threads that the OpenMP runtime counts on: a parallel region would hang.
bool forked = false;

void watch_forks() {
    static bool watching = false;
    if (__atomic_exchange_n(&watching, true, __ATOMIC_ACQ_REL)) return;
    at_fork([] {
        forked = true;
        forget_pool();
    });
}

void gnu_task(void* region) { ((Region*)region)->work(openmp.gnu_thread()); }
void llvm_task(int32_t*, int32_t* thread, void* region) { ((Region*)region)->work(*thread); }

// Runs a region on the threads of the OpenMP runtime; false where there is none to use.
bool run_in_openmp(Region& region, int64_t threads) {
    // `ident_t` of LLVM's and Intel's runtime: where in the source a region begins.
    static const struct {
        int32_t reserved[4];
        const char* source;
    } place = {{0, 2, 0, 0}, ";unknown;unknown;0;0;;"};
    if (forked) return false;
    if (openmp.gnu_parallel) {
        openmp.gnu_parallel(gnu_task, &region, (unsigned)threads, 0);
    } else if (openmp.llvm_fork) {
        openmp.llvm_push_threads(&place, openmp.llvm_thread(&place), (int32_t)threads);
        openmp.llvm_fork(&place, 1, llvm_task, &region);
    } else {
        return false;
    }
    return true;
}

bool in_parallel() { return in_pool() || (openmp.in_parallel && !forked && openmp.in_parallel()); }

}  // namespace

void parallel(int64_t threads, int64_t count, void (*body)(void*, int64_t), void* context, int64_t runs) {
    if (threads > count) threads = count;
    if (threads > 1 && !in_parallel()) {
        watch_forks();
        Region region{TaskRanges(count, runs, threads), body, context};
        if (!run_in_openmp(region, threads)) run_in_pool(region, threads);
        return;
    }
    for (int64_t n = 0; n < count; ++n) body(context, n);
}

}  // namespace limelight

void ll_set_openmp(const ll_openmp* runtime) { limelight::openmp = runtime ? *runtime : ll_openmp{}; }
