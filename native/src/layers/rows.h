// The operations of a layer beside attention, each in one pass over memory: norm, gate, sum, rotary embedding; and
// matrices times few vectors, whose time is that of reading the matrices once. The order in which a row is summed
// depends on its width alone, so results depend neither on threads nor on other rows. Each thread gets one contiguous
// range of tasks (see `parallel`), so each thread's memory accesses ascend, as hardware prefetchers expect.
#pragma once

#include "../simd/elements.h"
#include "../simd/vector.h"

namespace limelight::LL_NAMESPACE {
namespace {

// Elements of a task: enough to outweigh its overhead.
constexpr int64_t TASK = 16384;

LL_INLINE const Stored* at(const void* data, int64_t place) { return (const Stored*)data + place; }
LL_INLINE Stored* at(void* data, int64_t place) { return (Stored*)data + place; }

LL_INLINE void write_partial(Vec v, int64_t count, Stored* to) {
#if defined(LL_OF_BFLOAT16) || defined(LL_OF_FLOAT16)
    if (count >= LANES) return store(to, narrow(v));
#else
    if (count >= LANES) return store(to, v);
#endif
    alignas(64) Float partial[LANES];
    store(partial, v);
    write_row(partial, count, to);
}

}  // namespace
}  // namespace limelight::LL_NAMESPACE
