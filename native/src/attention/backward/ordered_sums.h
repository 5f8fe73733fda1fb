// Sums to which several tasks add in a fixed order, so that results do not depend on the threads.
#pragma once

#include "../../library.h"
#include "../../platform.h"
#include "../../simd/elements.h"
#include "../../simd/vector.h"
#include "../../task.h"
#include "../../tiles/shapes.h"
#include "../../tiles/sums.h"
#include "../problem.h"
#include "../visibility.h"
#include "pass.h"
#include "rules.h"

namespace limelight::LL_NAMESPACE {
namespace {

// The order in which tasks add to a sum: task `number` waits until `number` others have added.
struct Ticket {
    int64_t* done;  // how many have added
    int* status;

    // False when the whole pass has stopped.
    bool wait(int64_t number) const {
        for (int spins = 0; __atomic_load_n(done, __ATOMIC_ACQUIRE) != number; ++spins) {
            if (should_stop(*status)) return false;
            if (spins > 2000) yield_processor();
        }
        return true;
    }
    void release(int64_t number) const { __atomic_store_n(done, number + 1, __ATOMIC_RELEASE); }
};

// Where dQ of query i of a tile is accumulated and, if elements are not floats, written at the end.
struct QueryGradient {
    Stored* gradient;
    Float* sums;
    int64_t stride;  // of sums
    QueryGradient(const BackwardPass& pass, const Tile& tile, int i) {
        const ll_call& call = pass.problem.call;
        gradient = row_at<Stored>(pass.gradients.query, tile.row, tile.head, tile.first_query + i);
        int64_t at = (tile.row * call.query_heads + tile.head) * call.queries + tile.first_query + i;
        sums = CONVERTED ? pass.query_sums + at * pass.key_columns : (Float*)gradient;
        stride = CONVERTED ? pass.key_columns : pass.gradients.query.strides[2];
    }
};

// Adds dQ of a tile (null: zero); `scratch` holds one row. The first chunk of keys stores instead of adding, even if it
// has no visible key; the last one rounds to the element type.
inline void add_query_sum(const BackwardPass& pass, const Tile& tile, const Float* sum, Float* scratch, bool first,
                          bool last) {
    const ll_call& call = pass.problem.call;
    Float power = pass.problem.power, scale = pass.problem.scale;
    for (int i = 0; i < tile.count; ++i) {
        const Float* from = !sum           ? nullptr
                            : call.compare ? sum + i * pass.key_columns
                                           : sum_row(sum, i, pass.key_columns, scratch);
        QueryGradient at(pass, tile, i);
        Float* to = at.sums;
        for (int64_t c = 0; c < call.width && (from || first); c += LANES) {
            int64_t count = min<int64_t>(LANES, call.width - c);
            Vec before = first ? Vec{} : load_partial(to + c, count);
            Vec now = from ? multiply_add(load<Vec>(from + c) * power, broadcast(scale), before) : before;
            if (count == LANES) store(to + c, now);
            else
                for (int64_t x = 0; x < count; ++x) to[c + x] = now[x];
        }
        if (CONVERTED && last) write_row(to, call.width, at.gradient);
    }
}

inline void add_vector_sums(const BackwardPass& pass, const Tile& tile, const Float* sums) {
    const ll_call& call = pass.problem.call;
    int64_t at = (tile.row * call.query_heads + tile.head) * call.queries + tile.first_query;
    for (int i = 0; i < tile.count; ++i)
        for (int64_t d = 0; d < call.width; ++d)
            ((Float*)pass.gradients.compare)[(at + i) * call.width + d] += sums[i * pass.key_columns + d];
}

inline void add_row_sums(const BackwardPass& pass, const Tile& tile, const Float* row_sums) {
    for (int64_t r = 0; r < pass.problem.call.rule_count; ++r) {
        const ll_tensor& to = pass.gradients.rules[r];
        int64_t kind = pass.problem.call.rules[r].kind;
        if (!pass.needs(to) || to.strides[3] != 0 || (kind != LL_BIAS && kind != LL_ALIBI)) continue;
        for (int i = 0; i < tile.count; ++i)
            *bias_gradient_at(to, tile, tile.first_query + i, 0) += row_sums[r * QUERIES + i];
    }
}

}  // namespace
}  // namespace limelight::LL_NAMESPACE
