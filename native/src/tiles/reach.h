// Ranges of keys or queries outside of which a tile is zero.
#pragma once

#include "../simd/vector.h"
#include "shapes.h"

namespace limelight::LL_NAMESPACE {
namespace {

struct Range {
    int64_t begin, end;
};

// Of rows of factors: the numbers outside of which each row is zero. A product leaves the others out.
struct Reach {
    int begin[BLOCK_KEYS], end[BLOCK_KEYS];
    static_assert(QUERIES <= BLOCK_KEYS);

    // Of `rows` rows together.
    Range of(int row, int rows) const {
        Range all{BLOCK_KEYS, 0};
        for (int r = row; r < row + rows; ++r) all = {min<int64_t>(all.begin, begin[r]), max<int64_t>(all.end, end[r])};
        return all;
    }
};

}  // namespace
}  // namespace limelight::LL_NAMESPACE
