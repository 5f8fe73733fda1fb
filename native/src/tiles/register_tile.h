// The matrix products, with accumulators in registers: C[row][columns] (+)= sum over steps of A(row, step) *
// B[step][columns]. Elements of A are broadcast, rows of B are read as vectors.
//
// Scores are computed transposed, S' = K Q': queries lie along the lanes and the elements of a key are broadcast, so
// keys need no packing and the softmax needs no operation across lanes. The other products broadcast the weights and
// read rows of V (or of K, Q and the output's gradient) as vectors. Each accumulator is one chain of multiply-adds in
// ascending order, added to C when it is complete: results do not depend on the shape of the register tile, and a long
// sum is a sum of short sums.
#pragma once

#include "../simd/vector.h"
#include "reach.h"
#include "shapes.h"

namespace limelight::LL_NAMESPACE {
namespace {

// Addresses of the rows of A: every third one, with offsets of 0, 1 and 2 rows, which fits the address registers.
template <int ROWS, class F>
struct Rows {
    const F* at[(ROWS + 2) / 3];
    int64_t row;
    LL_INLINE Rows(const F* a, int64_t stride) : row(stride) {
        for (int n = 0; n < (ROWS + 2) / 3; ++n) at[n] = a + 3 * n * stride;
    }
    LL_INLINE F operator()(int r, int64_t offset) const { return load<F>(at[r / 3] + r % 3 * row + offset); }
};

// Rows of B at equal distances: row k < end begins at origin + k * b_step. Rows in pages of memory are several extents
// in ascending order, the last of which reaches at least to the last step.
template <class F>
struct Extent {
    const F* origin;
    int64_t end;
};

// Rows of B begin at `b`; or, if `extents` is not null, with row `begin` and column `column` of these.
template <int ROWS, int VECTORS, bool ADD, class F>
LL_INLINE void panel(const F* a, int64_t a_row, int64_t a_step, const F* b, int64_t b_step, int64_t steps, Float* c,
                     int64_t c_row, Float* peak, const Extent<F>* extents = nullptr, int64_t begin = 0,
                     int64_t column = 0) {
    typedef typename VectorOf<F>::Type Right;
    Rows<ROWS, F> rows(a, a_row);
    Vec sum[ROWS][VECTORS];
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 16
        for (int v = 0; v < VECTORS; ++v) sum[r][v] = Vec{};
    int64_t k = 0, stop = steps;
    do {
        if (extents) {
            stop = min(extents->end - begin, steps);
            b = extents->origin + (begin + k) * b_step + column;
            ++extents;
        }
        for (; k < stop; ++k, b += b_step) {
            Right right[VECTORS];
#pragma GCC unroll 16
            for (int v = 0; v < VECTORS; ++v) right[v] = load<Right>(b + v * LANES);
#pragma GCC unroll 16
            for (int r = 0; r < ROWS; ++r) {
                Right left = broadcast_factor(rows(r, k * a_step));
#pragma GCC unroll 16
                for (int v = 0; v < VECTORS; ++v) sum[r][v] = multiply_add(left, right[v], sum[r][v]);
            }
        }
    } while (extents && k < steps);
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 16
        for (int v = 0; v < VECTORS; ++v) {
            Float* to = c + r * c_row + v * LANES;
            if (ADD) sum[r][v] += load<Vec>(to);
            store(to, sum[r][v]);
        }
    if (!peak) return;
#pragma GCC unroll 16
    for (int v = 0; v < VECTORS; ++v) {
        Vec largest = load<Vec>(peak + v * LANES);
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r) largest = max(largest, sum[r][v]);
        store(peak + v * LANES, largest);
    }
}

// --- Scores: rows are keys, columns are queries ----------------------------------------------------------------------

// Widths above 128 are summed in parts, and the parts added: one long chain of roundings would lose accuracy.
constexpr int64_t PART_WIDTH = 64 / FOLD, WHOLE_WIDTH = 128 / FOLD;

template <int KEYS, int VECTORS>
inline void score_panel(const Factor* key, int64_t stride, const Factor* packed, int64_t width, Float* scores,
                        Float* peak) {
    if (width <= WHOLE_WIDTH)
        return panel<KEYS, VECTORS, false>(key, stride, 1, packed, PANEL_QUERIES, width, scores, QUERIES, peak);
    panel<KEYS, VECTORS, false>(key, stride, 1, packed, PANEL_QUERIES, PART_WIDTH, scores, QUERIES, nullptr);
    for (int64_t d = PART_WIDTH; d < width; d += PART_WIDTH)
        panel<KEYS, VECTORS, true>(key + d, stride, 1, packed + d * PANEL_QUERIES, PANEL_QUERIES,
                                   min(PART_WIDTH, width - d), scores, QUERIES,
                                   d + PART_WIDTH < width ? nullptr : peak);
}

#if !defined(LL_AMX)

// Of the vectors [from, to) of the queries.
template <int KEYS>
inline void score_rows(const Factor* key, int64_t stride, const Factor* packed, int from, int to, int64_t width,
                       Float* scores, Float* peak) {
    for (int panel = from / PANEL_VECTORS * PANEL_VECTORS; panel < to; panel += PANEL_VECTORS) {
        int first = max(panel, from), vectors = min(panel + PANEL_VECTORS, to) - first;
        const Factor* right = packed + panel * LANES * width + (first - panel) * LANES;
        Float *at = scores + first * LANES, *largest = peak + first * LANES;
        if (vectors == PANEL_VECTORS) score_panel<KEYS, PANEL_VECTORS>(key, stride, right, width, at, largest);
        if (vectors == 2) score_panel<KEYS, 2>(key, stride, right, width, at, largest);
        if (vectors == 1) score_panel<KEYS, 1>(key, stride, right, width, at, largest);
    }
}

// scores[key][query] = sum over d of key[d] * query[d], for the keys [begin, end) of a block, the first of which is at
// `key`; peak[query] becomes the running maximum. `width` counts factors. `reach`, if not null, gives the keys of the
// block that each query sees: other scores, and the maximum over them, are undefined.
inline void score_product(const Factor* key, int64_t stride, int begin, int end, const Factor* packed, int queries,
                          int64_t width, Float* scores, Float* peak, const Reach* reach) {
    int step =
        queries <= LANES ? MAX_PANEL_KEYS : PANEL_KEYS;  // with one vector of queries, more keys hide the latency
    int vectors = (queries + LANES - 1) / LANES;
    Range reached[QUERIES / LANES];
    for (int v = 0; v < vectors && reach; ++v) reached[v] = reach->of(v * LANES, min(LANES, queries - v * LANES));
    for (int j = begin; j < end;) {
        int height = end - begin < step ? 1 : step;
        int first = min(j, end - height);  // the last panel overlaps the one before it
        j = first + height;
        int from = 0, to = vectors;
        while (reach && from < to && (reached[from].begin >= j || reached[from].end <= first)) ++from;
        while (reach && from < to && (reached[to - 1].begin >= j || reached[to - 1].end <= first)) --to;
        if (from == to) continue;
        const Factor* row = key + (first - begin) * stride;
        Float* at = scores + first * QUERIES;
        if (height == 1) score_rows<1>(row, stride, packed, from, to, width, at, peak);
        else if (queries <= LANES) score_panel<MAX_PANEL_KEYS, 1>(row, stride, packed, width, at, peak);
        else score_rows<PANEL_KEYS>(row, stride, packed, from, to, width, at, peak);
    }
}

#endif

// --- Sums of rows: C[row][columns] += sum over steps of A(row, step) * B[step][columns] ------------------------------

// The left operand, and the range of its steps; `reach`, if not null, counts elements, not factors.
template <class F>
struct Left {
    const F* at;
    int64_t row, step, begin, end;
    const Reach* reach;
};

// The right operand, from a column on: extents, of which there is only one unless rows in pages are read in place.
template <class F>
struct Right {
    const Extent<F>* extents;
    int64_t step, column;
};

template <int ROWS, int VECTORS, class F>
LL_INLINE void add_panel(const Left<F>& a, int r, const Right<F>& b, Float* c, int64_t c_row) {
    int64_t begin = a.begin, end = a.end;
    if (a.reach) {
        constexpr int VALUES = VectorOf<F>::VALUES;
        Range reached = a.reach->of(r, ROWS);
        begin = max(begin, reached.begin / VALUES), end = min(end, (reached.end + VALUES - 1) / VALUES);
        if (begin >= end) return;
    }
    panel<ROWS, VECTORS, true>(a.at + r * a.row + begin * a.step, a.row, a.step,
                               b.extents->origin + begin * b.step + b.column, b.step, end - begin,
                               c + r * c_row + b.column, c_row, nullptr,
                               RIGHT_IN_PLACE && PAGES_IN_PLACE ? b.extents : nullptr, begin, b.column);
}

template <int VECTORS, class F>
inline void add_columns(const Left<F>& a, const Right<F>& b, Float* c, int64_t c_row, int rows) {
    int r = 0;
    for (; r + VALUE_ROWS <= rows; r += VALUE_ROWS) add_panel<VALUE_ROWS, VECTORS>(a, r, b, c, c_row);
    for (; r + 2 <= rows; r += 2) add_panel<2, VECTORS>(a, r, b, c, c_row);
    if (r < rows) add_panel<1, VECTORS>(a, r, b, c, c_row);
}

// `columns` is a multiple of LANES.
template <class F>
inline void add_product(const Left<F>& a, const Extent<F>* b, int64_t b_step, Float* c, int64_t c_row, int rows,
                        int64_t columns) {
    Right<F> right{b, b_step, 0};
    int64_t& x = right.column;
    if (rows == 1)  // more columns hide the latency
        for (; x + 8 * LANES <= columns; x += 8 * LANES) add_panel<1, 8>(a, 0, right, c, c_row);
    for (; x + VALUE_VECTORS * LANES <= columns; x += VALUE_VECTORS * LANES)
        add_columns<VALUE_VECTORS>(a, right, c, c_row, rows);
    if constexpr (VALUE_VECTORS > 2)
        for (; x + 2 * LANES <= columns; x += 2 * LANES) add_columns<2>(a, right, c, c_row, rows);
    for (; x < columns; x += LANES) add_columns<1>(a, right, c, c_row, rows);
}
template <class F>
inline void add_product(const Left<F>& a, const F* b, int64_t b_step, Float* c, int64_t c_row, int rows,
                        int64_t columns) {
    Extent<F> all{b, a.end};
    add_product(a, &all, b_step, c, c_row, rows, columns);
}

}  // namespace
}  // namespace limelight::LL_NAMESPACE
