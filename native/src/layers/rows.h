// The steps of a layer beside attention, each in one pass over memory: norm, gate, sum, rotation; and the product of matrices
// with few vectors, whose time is that of reading the matrices once. Sums of a row are taken in an order that depends on
// its width alone, so neither threads nor other rows show in the bits. Each thread has a run of its own (see `parallel`):
// memory is read and written at as many places as there are threads, and foreseen at each.
#pragma once

#include "../simd/elements.h"
#include "../simd/vector.h"

namespace limelight::LL_NAMESPACE {
namespace {

// Elements that a task reads or writes: enough to be worth handing out.
constexpr int64_t TASK = 16384;

LL_INLINE const Stored* at(const void* data, int64_t place) { return (const Stored*)data + place; }
LL_INLINE Stored* at(void* data, int64_t place) { return (Stored*)data + place; }

LL_INLINE void write_partial(Vec v, int64_t count, Stored* to) {
#if defined(LL_OF_BFLOAT16) || defined(LL_OF_FLOAT16)
    if (count >= LANES) return store(to, narrow(v));
#else
    if (count >= LANES) return store(to, v);
#endif
    alignas(64) Float some[LANES];
    store(some, v);
    write_row(some, count, to);
}

}  // namespace
}  // namespace limelight::LL_NAMESPACE
