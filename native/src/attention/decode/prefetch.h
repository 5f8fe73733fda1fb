// Software prefetch for memory that is read once, in ascending order.
#pragma once

#include "../../simd/vector.h"
#include "../pages.h"
#include "pieces.h"

namespace limelight::LL_NAMESPACE {
namespace {

// Whether prefetches should end in the L2 cache. On AMD's processors those into L1 hold one of its few entries for
// outstanding misses until memory answers, and a core reads 16 GB/s of 34 (Zen 4); those into L2 do not, and what they
// bring reaches L1 in time. Others were measured with prefetches into L1.
inline bool prefetches_to_l2() {
#if defined(__x86_64__)
    return __builtin_cpu_is("amd");
#else
    return false;
#endif
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
    bool to_l2 = prefetches_to_l2();
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
    static constexpr int64_t LINE = 64, LEAD = 256;

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
        if (to_l2) __builtin_prefetch(line, 0, 2);
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
