// What a task of `parallel` needs: memory of its thread, and whether its call has ended.
#pragma once

#include "library.h"
#include "simd/target.h"

namespace limelight::LL_NAMESPACE {
namespace {

// Memory handed out piece by piece; with no memory it only counts.
struct Arena {
    char* memory;
    size_t used = 0;
    template <class T> T* take(int64_t count) {
        T* piece = memory ? (T*)(memory + used) : nullptr;
        used += ((size_t)count * sizeof(T) + 63) / 64 * 64;
        return piece;
    }
};

// This thread's scratch, laid out by S from its arguments; null after noting that there is no memory.
template <class S, class... Arguments> LL_INLINE char* thread_scratch(int& status, const Arguments&... arguments) {
    Arena counting{nullptr};
    S(counting, arguments...);
    void* memory = scratch(counting.used);
    if (!memory) __atomic_store_n(&status, (int)OUT_OF_MEMORY, __ATOMIC_RELAXED);
    return (char*)memory;
}

// Whether a call shall end early, for all of its threads: it has failed, or its caller wants it to.
LL_INLINE bool should_stop(int& status) {
    if (__atomic_load_n(&status, __ATOMIC_RELAXED) != DONE) return true;
    if (!interrupted()) return false;
    __atomic_store_n(&status, (int)INTERRUPTED, __ATOMIC_RELAXED);
    return true;
}

}  // namespace
}  // namespace limelight::LL_NAMESPACE
