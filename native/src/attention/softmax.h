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

// The running softmax of each query: a score near the largest so far, and the sum of weights relative to it.
struct Softmax {
    alignas(64) Number peak[QUERIES];
    alignas(64) Number total[QUERIES];

    Softmax() {
        for (int i = 0; i < QUERIES; ++i) peak[i] = -INFINITE, total[i] = 0;
    }
};

LL_INLINE const Number* sink_of(const ll_call& call, const Tile& tile) {
    return call.sink ? (const Number*)call.sink + tile.head : nullptr;
}

// A sink is a score with no value: it closes the sum. Its score in base 2 relative to the peak, in doubles: a large sink
// beside a large score would leave nothing of their difference.
LL_INLINE double sink_power(const Problem& problem, Number sink, Number peak) {
    constexpr double MOST = 1e300;
    double power = -__builtin_fma((double)problem.natural, (double)peak, -(double)sink) * EXACT_LOG2_E;
    return power > MOST && sink - sink == 0 ? MOST : power;
}

// The sum of weights with that of the sink, relative to the peak; 0 where nothing has been seen, which needs no sum.
LL_INLINE Number closed(const Problem& problem, const Number* sink, Number peak, Number total) {
    if (!sink || *sink == -INFINITE || total == 0) return total;
    return total + (Number)__builtin_exp2(sink_power(problem, *sink, peak)) +
           (*sink - *sink);  // NaN where the sink is no number
}

// The logarithm of that sum in base 2, which the sum may be too large for.
LL_INLINE double log_closed(const Problem& problem, const Number* sink, Number peak, Number total) {
    double keys = __builtin_log2((double)total);
    if (!sink || *sink == -INFINITE) return keys;
    double power = sink_power(problem, *sink, peak), larger = power > keys ? power : keys;
    return larger + __builtin_log2(__builtin_exp2(keys - larger) + __builtin_exp2(power - larger));
}

LL_INLINE Number logsumexp_of(const Problem& problem, const Number* sink, Number peak, Number total) {
    if (total == 0) return sink ? *sink : -INFINITE;
    double keys = (double)problem.natural * (double)peak + __builtin_log2((double)total) * LN_2;
    if (!sink || *sink == -INFINITE) return (Number)keys;
    double own = (double)*sink, larger = own > keys ? own : keys;
    double parts = __builtin_exp2((keys - larger) * EXACT_LOG2_E) + __builtin_exp2((own - larger) * EXACT_LOG2_E);
    return (Number)(larger + __builtin_log2(parts) * LN_2);
}

// Where nothing has been seen the peak is -inf: subtract 0 instead, so that weights become 0 and not NaN.
LL_INLINE Numbers subtracted(Numbers peak) { return peak == -INFINITE ? Numbers{} : peak; }

// score -> 2^(exponent * (score - peak)) of COUNT keys, in place or, as fold_down has them, in `factors`; returns their sum,
// halves added to halves: where most weights are alike, each addition to a long sum is rounded alike. (The difference comes
// first: a score may be so large that products and their roundings are beyond all exponents.)
template <int COUNT, bool FOLDED>
LL_INLINE Numbers weigh_some(Number* scores, Numbers exponent, Numbers peak, Factor* factors) {
    if constexpr (COUNT > (FOLDED ? 2 : 1)) {
        constexpr int HALF = COUNT / 2;
        Numbers sum = weigh_some<HALF, FOLDED>(scores, exponent, peak, factors);
        return sum + weigh_some<HALF, FOLDED>(scores + HALF * QUERIES, exponent, peak, factors + HALF / FOLD * QUERIES);
    } else {
        Numbers first = weight_of((load<Numbers>(scores) - peak) * exponent), second{};
        if constexpr (COUNT == 2) second = weight_of((load<Numbers>(scores + QUERIES) - peak) * exponent);
        if constexpr (FOLDED) store(factors, fold(first, second));
        else store(scores, first);
        return COUNT == 2 ? first + second : first;
    }
}

// The same of all keys of a block, for a vector of queries.
template <bool FOLDED>
LL_INLINE Numbers weigh(Number* scores, int keys, Numbers exponent, Numbers peak, Factor* factors) {
    constexpr int MOST = FOLDED ? 8 : 16;  // at a time: with more pairs (2 % slower) the compiler runs out of registers
    Numbers sum{};
    int j = 0;
    auto more = [&]<int COUNT>() __attribute__((always_inline)) {
        sum += weigh_some<COUNT, FOLDED>(scores + j * QUERIES, exponent, peak, factors + j / FOLD * QUERIES);
        j += COUNT;
    };
    while (j + MOST <= keys) more.template operator()<MOST>();
    while (j + 4 <= keys) more.template operator()<4>();
    if (j + 2 <= keys) more.template operator()<2>();
    if (j < keys) more.template operator()<1>();
    if constexpr (FOLDED)
        for (j = round_up(keys, 2); j < round_up(keys, BLOCK_STEP); j += 2) store(factors + j / 2 * QUERIES, Factors{});
    return sum;
}

// A larger score moves the peak only where weights would exceed 2^SLACK: nothing overflows before, and what has been
// summed seldom needs to be scaled again.
constexpr Number SLACK = 8;

// Turns the scores of a block into weights, and brings totals and output to the new peak.
template <bool FOLDED>
inline void soften(const Problem& problem, const Tile& tile, const Block& block, Number* scores, const Number* peak,
                   Softmax& softmax, Number* output, int64_t columns, Factor* factors) {
    FlushSubnormals scope;
    alignas(64) Number decay[QUERIES], sums[QUERIES];
    Ints moved{};
    for (int i = 0; i < tile.count; i += LANES) {
        Numbers before = load<Numbers>(softmax.peak + i), now = load<Numbers>(peak + i);
        now = (now - before) * problem.exponent > SLACK ? now : before;
        Numbers factor = exp2_of((before - subtracted(now)) * problem.exponent);
        store(softmax.peak + i, now);
        store(decay + i, factor);
        moved |= factor != 1;
    }
    for (int i = 0; i < tile.count; i += LANES)
        store(sums + i, weigh<FOLDED>(scores + i, block.count, spread(problem.exponent),
                                      subtracted(load<Numbers>(softmax.peak + i)), factors + i));
    for (int q = 0; q < tile.count; q += LANES)
        store(softmax.total + q,
              multiply_add(load<Numbers>(softmax.total + q), load<Numbers>(decay + q), load<Numbers>(sums + q)));
    if (any(moved)) scale_sums(output, decay, tile.count, columns);
}

// f(key of the block, first query of the vector, mask of what is dropped), for every vector of weights.
template <class F> LL_INLINE void each_dropped(const Problem& problem, const Tile& tile, const Block& block, F f) {
    int64_t position = block.begin + tile.segment->key_offset;
    int64_t stop = position + block.count;
    uint32_t limit = (uint32_t)problem.drop_below;
    Int everything = -(Int)(problem.drop_below >> 32 != 0);
    Words lanes = __builtin_convertvector(iota(), Words);
    for (int i = 0; i < tile.count; i += LANES) {
        Philox random(spread_word((uint32_t)tile.query_position(i)) + lanes, (uint32_t)tile.head,
                      (uint32_t)tile.dropout_row, problem.call.seed);
        for (int64_t group = floor_div(position, 4); group * 4 < stop; ++group)
            random.words((uint32_t)group, [&](int w, Words word) {
                int64_t j = group * 4 + w - position;
                if (j < 0 || j >= block.count) return;
                f((int)j, i, __builtin_convertvector(word < limit, Ints) | everything);
            });
    }
}

// Sets dropped weights to zero; what is kept is divided by 1 - p when the row is finished.
inline void drop(const Problem& problem, const Tile& tile, const Block& block, Number* weights) {
    each_dropped(problem, tile, block, [&](int j, int i, Ints dropped) {
        Number* at = weights + j * QUERIES + i;
        store(at, dropped != 0 ? Numbers{} : load<Numbers>(at));
    });
}

// The final softmax of a tile's rows: as the forward pass left it, or computed again where there is no such.
inline void final_softmax(const Problem& problem, const Tile& tile, const Visibility& visible, const Number* stats,
                          const Factor* packed, Number* scores, Softmax& softmax, int& status) {
    const ll_call& call = problem.call;
    if (stats) {
        const Number* own = stats + 2 * ((tile.row * call.query_heads + tile.head) * call.queries + tile.first_query);
        for (int i = 0; i < tile.count; ++i) softmax.peak[i] = own[2 * i], softmax.total[i] = own[2 * i + 1];
        return;
    }
    alignas(64) Number peak[QUERIES];
    BlockWalk walk(call, tile, visible);
    for (Block block; walk.next(block) && !ended(status);) {
        score_block(problem, tile, visible, block, Cut(visible, tile, block), packed, scores, peak);
        soften<false>(problem, tile, block, scores, peak, softmax, nullptr, 0, nullptr);
    }
}

}  // namespace
}  // namespace limelight::LL_NAMESPACE
