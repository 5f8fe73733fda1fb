// The Hadamard transform of a row: of each block of P features, P the largest power of two that divides the width.
#pragma once

#include "vector.h"

namespace limelight::LL_NAMESPACE {
namespace {

// Divided by the root of P: its own inverse. Sums are taken of neighbours first, then of pairs of sums, and so on.
inline __attribute__((noinline)) void hadamard(Float* row, int64_t width) {
    int64_t size = width & -width, span = 1;
    bool vectors = size >= LANES;
    for (; span < size && vectors && span < LANES; span *= 2)
        for (int64_t d = 0; d < width; d += LANES) {
            Vec v = load<Vec>(row + d), other = shuffle(v, iota() ^ (Int)span);
            store(row + d, other + ((iota() & (Int)span) != 0 ? -v : v));
        }
    for (; span < size; span *= 2)
        for (int64_t first = 0; first < width; first += 2 * span)
            for (int64_t d = first; d < first + span; d += vectors ? LANES : 1) {
                if (vectors) {
                    Vec a = load<Vec>(row + d), b = load<Vec>(row + d + span);
                    store(row + d, a + b), store(row + d + span, a - b);
                } else {
                    Float a = row[d], b = row[d + span];
                    row[d] = a + b, row[d + span] = a - b;
                }
            }
    Float share = (Float)(1 / __builtin_sqrt((double)size));
    for (int64_t d = 0; d < width; ++d) row[d] *= share;
}

}  // namespace
}  // namespace limelight::LL_NAMESPACE
