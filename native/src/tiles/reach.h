// Ranges, and for each row of a block the range outside of which it is zero.
#pragma once

#include "../simd/vector.h"
#include "shapes.h"

namespace limelight::LL_NAMESPACE {
namespace {

struct Range {
    int64_t begin, end;
};

// Row r of a matrix is zero outside of [begin[r], end[r]); products skip what is zero.
struct Reach {
    int begin[BLOCK_KEYS], end[BLOCK_KEYS];
    static_assert(QUERIES <= BLOCK_KEYS);

    // The union of the ranges of `rows` rows.
    Range of(int row, int rows) const {
        Range all{BLOCK_KEYS, 0};
        for (int r = row; r < row + rows; ++r) all = {min<int64_t>(all.begin, begin[r]), max<int64_t>(all.end, end[r])};
        return all;
    }
};

}  // namespace
}  // namespace limelight::LL_NAMESPACE
