// What a task of `parallel` needs: scratch memory of its thread, and whether it should stop.
#pragma once

#include "library.h"
#include "target.h"

namespace limelight::LL_NAMESPACE {
namespace {

// Allocates pieces of one block of memory; without memory it only counts.
struct Arena {
    char* memory;
    size_t used = 0;
    template <class T>
    T* take(int64_t count) {
        T* piece = memory ? (T*)(memory + used) : nullptr;
        used += ((size_t)count * sizeof(T) + 63) / 64 * 64;
        return piece;
    }
};

// The scratch memory of this thread, as large as S(arena, arguments...) needs; null, and `status` set, where there is
// none.
template <class S, class... Arguments>
LL_INLINE char* thread_scratch(int& status, const Arguments&... arguments) {
    Arena counting{nullptr};
    S(counting, arguments...);
    void* memory = scratch(counting.used);
    if (!memory) __atomic_store_n(&status, (int)OUT_OF_MEMORY, __ATOMIC_RELAXED);
    return (char*)memory;
}

// Whether the tasks of a call should stop early: the call has failed, or the caller has interrupted it.
LL_INLINE bool should_stop(int& status) {
    if (__atomic_load_n(&status, __ATOMIC_RELAXED) != DONE) return true;
    if (!interrupted()) return false;
    __atomic_store_n(&status, (int)INTERRUPTED, __ATOMIC_RELAXED);
    return true;
}

}  // namespace
}  // namespace limelight::LL_NAMESPACE
