// Constants that are derived once for a call.
#pragma once

#include "../library.h"
#include "../simd/elementary.h"
#include "../simd/vector.h"
#include "../tiles/operands.h"
#include "../tiles/shapes.h"

namespace limelight::LL_NAMESPACE {
namespace {

// The constants of a call.
struct Problem {
    const ll_call& call;
    int64_t value_columns;       // value_width, rounded up to whole vectors
    int64_t steps;               // factors along the width
    Float query_factor;          // what packed queries are multiplied by
    Float power, scale;          // call.scale = power * scale; power is 1 except for a tiny scale
    Float exponent;              // weight = 2^(exponent * (score - peak))
    Float natural;               // true score = natural * score in the tile
    uint64_t dropout_threshold;  // weights with a random number below it are dropped; 0: no dropout
    int softcaps = 0;
    bool stream_output;    // whether the output is too large to stay in a cache
    Operand keys, values;  // left and right operands of the forward pass

    explicit Problem(const ll_call& c) : call(c) {
        value_columns = round_up(c.value_width, LANES);
        steps = steps_along(c.width);
        // A power of two of a tiny scale is applied to the queries: without it products, or their differences, may
        // overflow, and the scale underflow.
        double size = __builtin_fabs(c.scale);
        power = (Float)(size >= 0x1p-110 || size == 0 ? 1 : size >= 0x1p-149 ? 0x1p-64 : 0x1p-126);
        scale = (Float)(c.scale / (double)power);
        if (c.rule_count > 0 || scale == 0) {
            query_factor = scale == 0 ? 0 : power;
            natural = 1;  // score rules need true scores: apply_rules multiplies by the scale first
        } else {
            // Scores stay plain products (equal ones stay equal); the scale moves into the exponent, which must be
            // positive.
            query_factor = scale < 0 ? -power : power;
            natural = scale < 0 ? -scale : scale;
        }
        exponent = natural * LOG2_E;
        dropout_threshold = (uint64_t)(c.dropout * 4294967296.0);
        stream_output = c.batch * c.query_heads * c.queries * c.value_width * (int64_t)sizeof(Stored) >= (int64_t)16
                                                                                                             << 20;
        for (int64_t r = 0; r < c.rule_count; ++r) softcaps += c.rules[r].kind == LL_SOFTCAP;
    }
};

template <class T>
LL_INLINE T* row_at(const ll_tensor& tensor, int64_t b, int64_t h, int64_t i) {
    return (T*)tensor.data + b * tensor.strides[0] + h * tensor.strides[1] + i * tensor.strides[2];
}

// Prefetches rows that will soon be read or added to.
template <class T>
LL_INLINE void prefetch_rows(const T* first, int64_t stride, int rows, int64_t width) {
    for (int r = 0; r < rows; ++r)
        for (int64_t x = 0; x < width; x += 64 / (int64_t)sizeof(T)) __builtin_prefetch(first + r * stride + x);
}

}  // namespace
}  // namespace limelight::LL_NAMESPACE
