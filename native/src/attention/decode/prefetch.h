// Software prefetch for memory that is read once, in ascending order.
#pragma once

#include "../../simd/vector.h"
#include "../pages.h"
#include "pieces.h"

namespace limelight::LL_NAMESPACE {
namespace {

// Where prefetches bring lines to: what was measured to be fastest.
enum class Destination {
    L1,
    // On AMD's processors: past the L2 cache, from which nothing is evicted then (5 % faster than L1 on Zen 5).
    NONTEMPORAL,
    // Zen 4: a prefetch into L1 holds one of its few entries for outstanding misses until memory answers, and in
    // decoding a core reads 16 GB/s; into L2 26, of 34 that it can. On Zen 5 this was 8 % slower than L1.
    L2,
};

inline Destination destination() {
#if defined(__x86_64__)
    if (__builtin_cpu_is("amdfam19h")) return Destination::L2;  // Zen 3 and 4
    if (__builtin_cpu_is("amd")) return Destination::NONTEMPORAL;
#endif
    return Destination::L1;
}

// Rows of keys or values as they lie in memory, elements or bytes; sizes in bytes.
struct MemoryRows {
    const char* row;
    int64_t stride, width;
    int keys;
    int64_t key;  // the first
};

// Prefetches one line for each line that is read, LEAD lines in advance, through consecutive sets of rows. Hardware
// prefetchers follow a single ascending stream, but neither several rows at once nor the step to other memory.
class PrefetchStream {
    const char *line = nullptr, *end = nullptr;  // of the current row
    const char* row = nullptr;
    int64_t stride = 0, rows = 0;  // rows left, this one included
    int64_t unmatched = 0;         // bytes read without a matching prefetch
    Destination to = destination();
    const MemoryRows *next = nullptr, *last = nullptr;  // sets that follow the current one; the last is repeated

    void start(const MemoryRows& set) {
        bool contiguous = set.stride == set.width;  // then they are one long row
        row = line = set.row, stride = set.stride, rows = contiguous ? 1 : set.keys;
        end = row + (contiguous ? set.width * set.keys : set.width);
    }
    // (Inlined behind every prefetch, it would be a tenth of the kernels' code.)
    __attribute__((noinline)) void next_row() {
        int64_t width = end - row;
        unmatched += line - end;  // the last line of a row counts as a whole line
        if (--rows > 0) row += stride, line = row, end = row + width;
        else start(*next), next += next != last;
    }

public:
    static constexpr int64_t LINE = 64, LEAD = 192;

    PrefetchStream() = default;
    // `count` sets, at least one; none is empty.
    PrefetchStream(const MemoryRows* sets, int64_t count) : next(sets + (count > 1)), last(sets + count - 1) {
        start(*sets);
        for (int64_t left = LEAD * LINE; left > 0;) {
            int64_t step = min<int64_t>(left, end - line);
            line += step, left -= step;
            if (line >= end) next_row();
        }
    }
    LL_INLINE void prefetch_line() {
        if (to == Destination::L2) __builtin_prefetch(line, 0, 2);
        else if (to == Destination::NONTEMPORAL) __builtin_prefetch(line, 0, 0);
        else __builtin_prefetch(line);
        line += LINE;
        if (line >= end) next_row();
    }
    // After so many bytes, or elements, were read.
    LL_INLINE void advance_bytes(int64_t bytes) {
        for (unmatched += bytes; unmatched >= LINE; unmatched -= LINE) prefetch_line();
    }
    template <class T>
    LL_INLINE void advance(int64_t elements) {
        advance_bytes(elements * (int64_t)sizeof(T));
    }
    // After step n of a loop has read piece x, of elements of type T, of its EACH pieces.
    template <class T, int EACH>
    LL_INLINE void advance_piece(int64_t n, int x) {
        constexpr int PIECES = (int)LINE / (PIECE * (int)sizeof(T));
        if ((EACH % PIECES == 0 ? x + 1 : n * EACH + x + 1) % PIECES == 0) prefetch_line();
    }
};

// The softmax reads no new memory; to keep memory busy it prefetches a share of the values, and the product of values
// prefetches that many keys fewer of each unit.
constexpr int UNPREFETCHED_KEYS = 2;

}  // namespace
}  // namespace limelight::LL_NAMESPACE
