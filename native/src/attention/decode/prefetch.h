// Memory that is read once, asked for line by line before its turn.
#pragma once

#include "../../simd/vector.h"
#include "pieces.h"

namespace limelight::LL_NAMESPACE {
namespace {

// Rows of memory.
struct StridedRows {
    const Stored* row;
    int64_t stride, width;
    int keys;
    const Stored* at(int j) const { return row + j * stride; }
};

// Whether memory that is asked for as read once only comes as quickly. On AMD's processors it spares the second cache the
// way of each line, which is 5 % where memory sets the pace, and still comes from the third one where it lies there; Intel's
// read at a third of their speed so.
inline bool nontemporal_is_fast() {
#if defined(__x86_64__)
    return __builtin_cpu_is("amd");
#else
    return false;
#endif
}

// What will be read, line after line as it lies. Memory is asked for a line whenever one has been read, LEAD lines before
// it is: a machine foresees a single stream, but neither several rows at once nor what follows the last.
class PrefetchStream {
    const Stored *line = nullptr, *end = nullptr;  // of a row
    const Stored* row = nullptr;
    int64_t stride = 0, rows = 0;  // rows from this one on
    int64_t unmatched = 0;         // elements that were read since the last line was asked for
    bool once = nontemporal_is_fast();
    StridedRows then, last;

    void start(const StridedRows& next) {
        bool one = next.stride == next.width;  // then rows are one long row
        row = line = next.row, stride = next.stride, rows = one ? 1 : next.keys;
        end = row + (one ? next.width * next.keys : next.width);
    }
    void next_row() {
        int64_t width = end - row;
        unmatched += line - end;  // the last line of a row counts as a whole one
        if (--rows > 0) row += stride, line = row, end = row + width;
        else start(then), then = last;
    }

public:
    static constexpr int64_t LINE = 64 / (int64_t)sizeof(Stored), LEAD = 192;

    PrefetchStream() = default;
    PrefetchStream(const StridedRows& now, const StridedRows& next, const StridedRows& after)
        : then(next), last(after) {
        start(now);
        for (int64_t left = LEAD * LINE; left > 0;) {
            int64_t some = min(left, end - line);
            line += some, left -= some;
            if (line >= end) next_row();
        }
    }
    LL_INLINE void prefetch_line() {
        if (once) __builtin_prefetch(line, 0, 0);
        else __builtin_prefetch(line);
        line += LINE;
        if (line >= end) next_row();
    }
    // After so many elements were read.
    LL_INLINE void advance(int64_t elements) {
        for (unmatched += elements; unmatched >= LINE; unmatched -= LINE) prefetch_line();
    }
    // After piece x of the EACH that step n of a loop reads.
    template <int EACH> LL_INLINE void advance_piece(int64_t n, int x) {
        constexpr int PIECES = (int)LINE / PIECE;
        if ((EACH % PIECES == 0 ? x + 1 : n * EACH + x + 1) % PIECES == 0) prefetch_line();
    }
};

// Where scores become weights nothing is read, but memory must not rest: a share of the lines of values is asked for there,
// and so many keys fewer of each unit of values.
constexpr int UNPREFETCHED_KEYS = 2;

}  // namespace
}  // namespace limelight::LL_NAMESPACE
