// The running softmax of a tile of queries over blocks of keys (Milakov & Gimelshein 2018), its sink, and dropout.
#pragma once

#include "../library.h"
#include "../simd/elementary.h"
#include "../simd/philox.h"
#include "../simd/vector.h"
#include "../task.h"
#include "../tiles/operands.h"
#include "../tiles/shapes.h"
#include "../tiles/sums.h"
#include "blocks.h"
#include "problem.h"
#include "scores.h"
#include "visibility.h"

namespace limelight::LL_NAMESPACE {
namespace {

// The running softmax of each query: a score near the running maximum, and the sum of weights relative to it.
struct Softmax {
    alignas(64) Float peak[QUERIES];
    alignas(64) Float total[QUERIES];

    Softmax() {
        for (int i = 0; i < QUERIES; ++i) peak[i] = -INF, total[i] = 0;
    }
};

LL_INLINE const Float* sink_of(const ll_call& call, const Tile& tile) {
    return call.sink ? (const Float*)call.sink + tile.head : nullptr;
}

// A sink is a score without a value, added to the sum of weights at the end. Here: its score in base 2 relative to the
// peak, in double precision, because a large sink and a large score cancel.
LL_INLINE double sink_log2(const Problem& problem, Float sink, Float peak) {
    constexpr double MAX = 1e300;
    double power = -__builtin_fma((double)problem.natural, (double)peak, -(double)sink) * EXACT_LOG2_E;
    return power > MAX && sink - sink == 0 ? MAX : power;
}

// The sum of weights with the sink's, relative to the peak; 0 where no key has been seen, whatever the sink.
LL_INLINE Float total_with_sink(const Problem& problem, const Float* sink, Float peak, Float total) {
    if (!sink || *sink == -INF || total == 0) return total;
    return total + (Float)__builtin_exp2(sink_log2(problem, *sink, peak)) +
           (*sink - *sink);  // NaN where the sink is NaN or infinite
}

// The base-2 logarithm of that sum, which itself may overflow.
LL_INLINE double log2_total_with_sink(const Problem& problem, const Float* sink, Float peak, Float total) {
    double keys = __builtin_log2((double)total);
    if (!sink || *sink == -INF) return keys;
    double power = sink_log2(problem, *sink, peak), max = power > keys ? power : keys;
    return max + __builtin_log2(__builtin_exp2(keys - max) + __builtin_exp2(power - max));
}

LL_INLINE Float logsumexp_of(const Problem& problem, const Float* sink, Float peak, Float total) {
    if (total == 0) return sink ? *sink : -INF;
    double keys = (double)problem.natural * (double)peak + __builtin_log2((double)total) * LN_2;
    if (!sink || *sink == -INF) return (Float)keys;
    double own = (double)*sink, max = own > keys ? own : keys;
    double parts = __builtin_exp2((keys - max) * EXACT_LOG2_E) + __builtin_exp2((own - max) * EXACT_LOG2_E);
    return (Float)(max + __builtin_log2(parts) * LN_2);
}

// Where no key has been seen the peak is -inf: subtract 0 instead, so that weights become 0 and not NaN.
LL_INLINE Vec finite_peak(Vec peak) { return peak == -INF ? Vec{} : peak; }

// The power of 2 that is a weight, exponent * (score - peak). The subtraction comes first: products of large finite
// scores would overflow. As peak - score, times -exponent, it is one instruction with the load.
struct Power {
    Vec negative, peak;  // -exponent

    LL_INLINE Vec operator()(const Float* score) const { return (peak - load<Vec>(score)) * negative; }
};

// The same by one multiply-add, exponent * score + shift, within 2^-19 for |shift| <= MAX_SHIFT: enough for weights
// that are rounded to 16 bits.
struct FusedPower {
    Vec exponent, shift;  // shift = -exponent * peak

    LL_INLINE Vec operator()(const Float* score) const { return multiply_add(exponent, load<Vec>(score), shift); }
};

constexpr Float MAX_SHIFT = 64;

// Replaces the scores of COUNT keys by weights 2^power(score), in place or, in the layout of fold_down, in `factors`;
// returns their sum. The sum is pairwise: where most weights are alike, every addition to one long sum would be rounded
// the same way.
template <int COUNT, bool FOLDED, class PowerOf>
LL_INLINE Vec exp_weights_of(Float* scores, const PowerOf& power, Factor* factors) {
    if constexpr (COUNT > (FOLDED ? 2 : 1)) {
        constexpr int HALF = COUNT / 2;
        Vec sum = exp_weights_of<HALF, FOLDED>(scores, power, factors);
        return sum + exp_weights_of<HALF, FOLDED>(scores + HALF * QUERIES, power, factors + HALF / FOLD * QUERIES);
    } else {
        Vec first = exp2_weight(power(scores)), second{};
        if constexpr (COUNT == 2) second = exp2_weight(power(scores + QUERIES));
        if constexpr (FOLDED) store(factors, fold(first, second));
        else store(scores, first);
        return COUNT == 2 ? first + second : first;
    }
}

// exp_weights_of for all keys of a block and one vector of queries.
template <bool FOLDED, class PowerOf>
LL_INLINE Vec exp_weights(Float* scores, int keys, const PowerOf& power, Factor* factors) {
    constexpr int MAX = FOLDED ? 8 : 16;  // keys at a time; with more pairs the compiler spills registers (2 % slower)
    Vec sum{};
    int j = 0;
    auto more = [&]<int COUNT>() __attribute__((always_inline)) {
        sum += exp_weights_of<COUNT, FOLDED>(scores + j * QUERIES, power, factors + j / FOLD * QUERIES);
        j += COUNT;
    };
    while (j + MAX <= keys) more.template operator()<MAX>();
    while (j + 4 <= keys) more.template operator()<4>();
    if (j + 2 <= keys) more.template operator()<2>();
    if (j < keys) more.template operator()<1>();
    if constexpr (FOLDED)
        for (j = round_up(keys, 2); j < round_up(keys, BLOCK_STEP); j += 2)
            store(factors + j / 2 * QUERIES, FactorVec{});
    return sum;
}

// A larger score moves the peak only where weights would exceed 2^SLACK: nothing overflows before that, and sums are
// seldom rescaled.
constexpr Float SLACK = 8;

// Replaces the scores of a block by weights, and rescales totals and output to the new peak.
template <bool FOLDED>
inline void update_softmax(const Problem& problem, const Tile& tile, const Block& block, Float* scores,
                           const Float* peak, Softmax& softmax, Float* output, int64_t columns, Factor* factors,
                           Float slack = SLACK) {
    FlushSubnormals scope;
    alignas(64) Float decay[QUERIES];
    bool moved = false;
    for (int i = 0; i < tile.count; i += LANES) {
        Vec before = load<Vec>(softmax.peak + i), now = load<Vec>(peak + i), factor = broadcast(1);
        IntVec rises = (now - before) * problem.exponent > slack;
        if (any(rises)) {
            now = rises ? now : before;
            factor = rises ? exp2((before - now) * problem.exponent) : factor;
            store(softmax.peak + i, now);
            moved = true;
        }
        store(decay + i, factor);
    }
    for (int i = 0; i < tile.count; i += LANES) {
        Vec highest = finite_peak(load<Vec>(softmax.peak + i)), exponent = broadcast(problem.exponent), sum;
        FusedPower fused{exponent, -exponent * highest};
        bool small = FOLDED && !any(max(fused.shift, -fused.shift) > MAX_SHIFT);
        if (small) sum = exp_weights<FOLDED>(scores + i, block.count, fused, factors + i);
        else sum = exp_weights<FOLDED>(scores + i, block.count, Power{-exponent, highest}, factors + i);
        store(softmax.total + i, multiply_add(load<Vec>(softmax.total + i), load<Vec>(decay + i), sum));
    }
    if (moved) scale_sums(output, decay, tile.count, columns);
}

// f(key of the block, first query of the vector, mask of what is dropped) for every vector of weights.
template <class F>
LL_INLINE void for_each_dropped(const Problem& problem, const Tile& tile, const Block& block, F f) {
    int64_t position = block.begin + tile.segment->key_offset;
    int64_t stop = position + block.count;
    uint32_t limit = (uint32_t)problem.dropout_threshold;
    Int everything = -(Int)(problem.dropout_threshold >> 32 != 0);
    UintVec lanes = __builtin_convertvector(iota(), UintVec);
    for (int i = 0; i < tile.count; i += LANES) {
        Philox random(broadcast_uint((uint32_t)tile.query_position(i)) + lanes, (uint32_t)tile.head,
                      (uint32_t)tile.dropout_row, problem.call.seed);
        for (int64_t group = floor_div(position, 4); group * 4 < stop; ++group)
            random.words((uint32_t)group, [&](int w, UintVec word) {
                int64_t j = group * 4 + w - position;
                if (j < 0 || j >= block.count) return;
                f((int)j, i, __builtin_convertvector(word < limit, IntVec) | everything);
            });
    }
}

// Sets dropped weights to zero; the division by 1 - p follows when the row is finished.
inline void apply_dropout(const Problem& problem, const Tile& tile, const Block& block, Float* weights) {
    for_each_dropped(problem, tile, block, [&](int j, int i, IntVec dropped) {
        Float* at = weights + j * QUERIES + i;
        store(at, dropped != 0 ? Vec{} : load<Vec>(at));
    });
}

// Sets keeps[query] where a query sees a key of the block that is not dropped.
inline void mark_kept(const Problem& problem, const Tile& tile, const Block& block, const uint8_t* seen, bool* keeps) {
    for_each_dropped(problem, tile, block, [&](int j, int first, IntVec dropped) {
        for (int i = 0; i < LANES; ++i) keeps[first + i] |= !dropped[i] && seen[j * QUERIES + first + i];
    });
}

// The final softmax of a tile's rows: as the forward pass stored it in `stats`, or, if that is null, computed again.
inline void final_softmax(const Problem& problem, const Tile& tile, const Visibility& visible, const Float* stats,
                          const Factor* packed, Float* scores, Softmax& softmax, int& status, Float slack = SLACK) {
    const ll_call& call = problem.call;
    if (stats) {
        const Float* own = stats + 2 * ((tile.row * call.query_heads + tile.head) * call.queries + tile.first_query);
        for (int i = 0; i < tile.count; ++i) softmax.peak[i] = own[2 * i], softmax.total[i] = own[2 * i + 1];
        return;
    }
    alignas(64) Float peak[QUERIES];
    BlockWalk walk(call, tile, visible);
    for (Block block; walk.next(block) && !should_stop(status);) {
        score_block(problem, tile, visible, block, VisiblePart(visible, tile, block), packed, scores, peak);
        update_softmax<false>(problem, tile, block, scores, peak, softmax, nullptr, 0, nullptr, slack);
    }
}

}  // namespace
}  // namespace limelight::LL_NAMESPACE
