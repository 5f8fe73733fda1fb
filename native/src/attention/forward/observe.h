// What is seen on the way: a second pass over Q.K, with the softmax of every row already final.
//
// A weight is 2^(exponent * (score - peak)) / total with the very numbers of the forward pass; after decode.h, whose products
// are summed in another order, with those of one more pass, so that weights add up to one. Sums over keys belong to one
// tile. Sums over queries (received, blocks) are taken per *chunk* of tiles, at most CHUNKS of them whatever the machine,
// and the chunks are added in order: the same bits for any number of threads, and memory linear in the length.
#pragma once

#include "../../library.h"
#include "../../simd/elementary.h"
#include "../../simd/vector.h"
#include "../../task.h"
#include "../../tiles/register_tile.h"
#include "../../tiles/shapes.h"
#include "../blocks.h"
#include "../problem.h"
#include "../rules.h"
#include "../scores.h"
#include "../softmax.h"
#include "../visibility.h"
#include "tile.h"

namespace limelight::LL_NAMESPACE {
namespace {

constexpr int64_t CHUNKS = 8;
constexpr Number FREE = -1;  // stands for a weight where none is kept yet: every weight exceeds it
constexpr int64_t COLUMN_MEMORY = (int64_t)64 << 20;  // bytes of column sums held at a time

// What a caller gives and receives as numbers.
LL_INLINE Number* numbers(void* pointer) { return (Number*)pointer; }
LL_INLINE const Number* numbers(const void* pointer) { return (const Number*)pointer; }

// Statistics of the rows of one tile, as they run.
struct RowStatistics {
    alignas(64) Number peak[QUERIES], share[QUERIES];  // the weight is 2^(exponent * (score - peak)) * share
    alignas(64) Number log_total[QUERIES];             // log2 of the total
    Number logsumexp[QUERIES];
    alignas(64) Number largest[QUERIES], heaviest[QUERIES];  // the largest score and the largest weight
    double entropy[QUERIES], distance[QUERIES];
    alignas(64) Int real[QUERIES];  // -1 for queries of the tile, 0 for the lanes beyond
};

struct ObserveScratch {
    Scratch base;
    Number* weights;       // [BLOCK_KEYS][QUERIES]
    Number* features;      // [QUERIES][feature columns]
    Number* feature_rows;  // [BLOCK_KEYS][feature columns]
    Number* top_weights;   // [QUERIES / LANES][top][LANES]
    Int* top_keys;         // the same; -1 where none is kept yet
    int64_t feature_columns;

    ObserveScratch(Arena& arena, const ll_call& call, int64_t columns) : base(arena, call, columns, 1) {
        const ll_observation& o = *call.observation;
        feature_columns = round_up(o.feature_count, LANES);
        weights = arena.take<Number>(BLOCK_KEYS * QUERIES);
        features = arena.take<Number>(QUERIES * feature_columns);
        feature_rows = arena.take<Number>(BLOCK_KEYS * feature_columns);
        top_weights = arena.take<Number>(QUERIES * o.top);
        top_keys = arena.take<Int>(QUERIES * o.top);
    }
};

// Sums over the queries of one chunk.
struct ColumnSums {
    double* received;  // [keys]
    double* blocks;    // [query blocks][key blocks]

    static int64_t block_rows(const ll_call& call) {
        const ll_observation& o = *call.observation;
        return o.blocks_out ? (call.queries + o.block_queries - 1) / o.block_queries : 0;
    }
    static int64_t block_columns(const ll_call& call) {
        const ll_observation& o = *call.observation;
        return o.blocks_out ? (call.keys + o.block_keys - 1) / o.block_keys : 0;
    }
    static int64_t count(const ll_call& call) {
        int64_t received = call.observation->received ? call.keys : 0;
        return received + block_rows(call) * block_columns(call);
    }
    ColumnSums(double* memory, const ll_call& call)
        : received(memory), blocks(memory + (call.observation->received ? call.keys : 0)) {}
};

inline void start_rows(const Problem& problem, const Tile& tile, const Softmax& softmax, RowStatistics& rows) {
    const Number* sink = sink_of(problem.call, tile);
    for (int i = 0; i < QUERIES; ++i) {
        bool real = i < tile.count;
        Number peak = real ? softmax.peak[i] : 0, total = real ? softmax.total[i] : 0;
        rows.real[i] = -(Int)real;
        rows.peak[i] = peak;
        rows.share[i] = total == 0 ? 0 : 1 / closed(problem, sink, peak, total);
        rows.log_total[i] = total == 0 ? 0 : (Number)log_closed(problem, sink, peak, total);
        rows.logsumexp[i] = logsumexp_of(problem, sink, peak, total);
        rows.largest[i] = -INFINITE, rows.heaviest[i] = 0;
        rows.entropy[i] = rows.distance[i] = 0.0;
    }
}

// scores -> weights, and the row statistics that follow from them. Sums are taken over SHORT_SUM keys, then over the
// block, then in double precision over the blocks: a single long chain of roundings would lose accuracy.
constexpr int SHORT_SUM = 16;

inline void weigh_and_count(const Problem& problem, const Tile& tile, const Block& block, const Number* scores,
                            Number* weights, RowStatistics& rows) {
    FlushSubnormals scope;
    for (int i = 0; i < QUERIES; i += LANES) {
        Numbers peak = subtracted(load<Numbers>(rows.peak + i)), share = load<Numbers>(rows.share + i);
        Numbers log_total = load<Numbers>(rows.log_total + i), largest = load<Numbers>(rows.largest + i);
        Numbers heaviest = load<Numbers>(rows.heaviest + i), entropy{};
        Ints real = load<Ints>(rows.real + i);
        for (int j = 0; j < block.count;) {
            Numbers some_entropy{};
            for (int stop = least(j + SHORT_SUM, block.count); j < stop; ++j) {
                Numbers score = load<Numbers>(scores + j * QUERIES + i);
                Ints seen = real & (score != -INFINITE);
                Numbers power = (score - peak) * spread(problem.exponent);
                Numbers weight = seen ? weight_of(power) * share : Numbers{};
                store(weights + j * QUERIES + i, weight);
                largest = larger(largest, seen ? score : spread(-INFINITE));
                heaviest = larger(heaviest, weight);
                some_entropy += weight != 0 ? weight * (log_total - power) : Numbers{};  // the power may be -inf
            }
            entropy += some_entropy;
        }
        store(rows.largest + i, largest);
        store(rows.heaviest + i, heaviest);
        for (int lane = 0; lane < LANES; ++lane) rows.entropy[i + lane] += (double)entropy[lane];
    }
    if (!problem.call.observation->distance) return;
    int32_t first = first_distance(tile, block);
    for (int i = 0; i < QUERIES; i += LANES) {
        Numbers distance{};
        for (int j = 0; j < block.count;) {
            Numbers some{};
            for (int stop = least(j + SHORT_SUM, block.count); j < stop; ++j)
                some = multiply_add(load<Numbers>(weights + j * QUERIES + i), absolute_distance(first, j, i), some);
            distance += some;
        }
        for (int lane = 0; lane < LANES; ++lane) rows.distance[i + lane] += (double)distance[lane];
    }
}

// Keeps the largest weights of each query, in order; of equals the lowest key, which came first. They lie as
// [vector of queries][top][LANES]: a key moves on, in every lane, what its weight exceeds. A row that is not a number has
// equal weights, all NaN, which count as 0 until they are written.
inline void gather_top(const Block& block, const Tile& tile, const Number* scores, const Number* weights, int64_t top,
                       Number* kept_weights, Int* kept_keys) {
    constexpr int TOGETHER =
        16;  // keys that are looked at before any is kept: a branch for each would be hard to foresee
    int64_t last = (top - 1) * LANES;
    for (int i = 0; i < tile.count; i += LANES, kept_weights += top * LANES, kept_keys += top * LANES) {
        Numbers least_kept = load<Numbers>(kept_weights + last);
        auto weight_of_row = [&](int j) { return larger(load<Numbers>(weights + j * QUERIES + i), Numbers{}); };
        auto keep = [&](int j) {
            Numbers weight =
                load<Numbers>(scores + j * QUERIES + i) == -INFINITE ? spread(FREE) : weight_of_row(j);  // unseen
            Ints key = spread_int((Int)(block.begin + j)), key_here = load<Ints>(kept_keys + last);
            Numbers here = least_kept;
            for (int64_t t = last; t > 0; t -= LANES) {
                Numbers before = load<Numbers>(kept_weights + t - LANES);
                Ints key_before = load<Ints>(kept_keys + t - LANES);
                store(kept_weights + t, weight > here ? (weight > before ? before : weight) : here);
                store(kept_keys + t, weight > here ? (weight > before ? key_before : key) : key_here);
                here = before, key_here = key_before;
            }
            store(kept_weights, weight > here ? weight : here);
            store(kept_keys, weight > here ? key : key_here);
            least_kept = load<Numbers>(kept_weights + last);
        };
        for (int first = 0; first < block.count; first += TOGETHER) {
            uint32_t rows = 0;
            for (int r = 0; r < least(TOGETHER, block.count - first); ++r)
                rows |= (uint32_t)any_larger(weight_of_row(first + r), least_kept) << r;
            for (; rows; rows &= rows - 1) keep(first + __builtin_ctz(rows));
        }
    }
}

inline void gather_columns(const ll_call& call, const Tile& tile, const Block& block, const Number* weights,
                           ColumnSums& sums) {
    const ll_observation& o = *call.observation;
    if (o.received)
        for (int first = 0; first < block.count; first += LANES) {
            int keys = least(LANES, block.count - first);
            Numbers rows[LANES], sum{};
            for (int j = 0; j < LANES; ++j) {
                rows[j] = Numbers{};
                for (int i = 0; i < QUERIES && j < keys; i += LANES)
                    rows[j] += load<Numbers>(weights + (first + j) * QUERIES + i);
            }
            turn_square(rows);
            for (int i = 0; i < LANES; ++i) sum += rows[i];
            for (int j = 0; j < keys; ++j) sums.received[block.begin + first + j] += (double)sum[j];
        }
    if (!o.blocks_out) return;
    int64_t columns = ColumnSums::block_columns(call);
    for (int j = 0; j < block.count;) {
        int64_t column = (block.begin + j) / o.block_keys;
        int stop = (int)least<int64_t>(block.count, (column + 1) * o.block_keys - block.begin);
        alignas(64) Number sum[QUERIES] = {};
        for (; j < stop; ++j)
            for (int i = 0; i < QUERIES; i += LANES)
                store(sum + i, load<Numbers>(sum + i) + load<Numbers>(weights + j * QUERIES + i));
        for (int i = 0; i < tile.count;) {
            int64_t row = (tile.first_query + i) / o.block_queries;
            int last = (int)least<int64_t>(tile.count, (row + 1) * o.block_queries - tile.first_query);
            double share = 0;
            for (; i < last; ++i) share += (double)sum[i];
            sums.blocks[row * columns + column] += share;
        }
    }
}

// The first entry of an ascending list at or above `value`; entries lie `step` apart.
inline int64_t first_at_least(const int64_t* list, int64_t count, int64_t step, int64_t value) {
    int64_t low = 0, high = count;
    while (low < high) {
        int64_t middle = (low + high) / 2;
        if (list[middle * step] < value) low = middle + 1;
        else high = middle;
    }
    return low;
}

inline void copy_chosen(const ll_call& call, const Tile& tile, int64_t map, const Block& block, const Number* weights) {
    const ll_observation& o = *call.observation;
    int64_t last = tile.first_query + tile.count;
    if (o.rows_out)
        for (int64_t r = first_at_least(o.rows, o.row_count, 1, tile.first_query); r < o.row_count && o.rows[r] < last;
             ++r) {
            Number* to = numbers(o.rows_out) + (map * o.row_count + r) * call.keys + block.begin;
            for (int j = 0; j < block.count; ++j) to[j] = weights[j * QUERIES + (o.rows[r] - tile.first_query)];
        }
    if (o.pairs_out)
        for (int64_t p = first_at_least(o.pairs, o.pair_count, 2, tile.first_query);
             p < o.pair_count && o.pairs[2 * p] < last; ++p) {
            int64_t j = o.pairs[2 * p + 1] - block.begin;
            if (j >= 0 && j < block.count)
                numbers(o.pairs_out)[map * o.pair_count + p] =
                    weights[j * QUERIES + (o.pairs[2 * p] - tile.first_query)];
        }
}

inline void add_features(const ll_observation& o, const Tile& tile, const Block& block, ObserveScratch& own) {
    for (int j = 0; j < block.count; ++j) {
        Number* to = own.feature_rows + j * own.feature_columns;
        __builtin_memcpy(to, numbers(o.features) + (block.begin + j) * o.feature_stride,
                         sizeof(Number) * (size_t)o.feature_count);
        for (int64_t f = o.feature_count; f < own.feature_columns; ++f) to[f] = 0;
    }
    add_product<Number>({own.weights, 1, QUERIES, 0, block.count, nullptr}, own.feature_rows, own.feature_columns,
                        own.features, own.feature_columns, tile.count, own.feature_columns);
}

inline void write_rows(const Problem& problem, const Tile& tile, int64_t map, const RowStatistics& rows,
                       const ObserveScratch& own) {
    const ll_observation& o = *problem.call.observation;
    int64_t at = map * problem.call.queries + tile.first_query;
    for (int i = 0; i < tile.count; ++i, ++at) {
        Number share = rows.share[i], largest = rows.largest[i];
        bool undefined = share != share;
        if (o.logsumexp) numbers(o.logsumexp)[at] = rows.logsumexp[i];
        if (o.max_score) numbers(o.max_score)[at] = undefined ? share : largest * problem.natural;
        if (o.max_weight) numbers(o.max_weight)[at] = undefined ? share : rows.heaviest[i];
        if (o.entropy) numbers(o.entropy)[at] = (Number)(rows.entropy[i] * LN_2);
        if (o.distance) numbers(o.distance)[at] = (Number)rows.distance[i];
        if (o.features_out)
            __builtin_memcpy(numbers(o.features_out) + at * o.feature_count, own.features + i * own.feature_columns,
                             sizeof(Number) * (size_t)o.feature_count);
        for (int64_t t = 0; t < o.top; ++t) {
            int64_t from = (i / LANES * o.top + t) * LANES + i % LANES, key = own.top_keys[from];
            o.top_keys[at * o.top + t] = key;
            numbers(o.top_weights)[at * o.top + t] = key < 0 ? 0 : undefined ? share : own.top_weights[from];
        }
    }
}

// map: (batch row, observed head) as one number.
inline void observe_tile(const Problem& problem, const Tile& tile, int64_t map, const Number* stats,
                         ObserveScratch& own, ColumnSums& sums, int& status) {
    const ll_call& call = problem.call;
    const ll_observation& o = *call.observation;
    Visibility visible;
    see(call, tile, visible);
    pack_queries(problem, tile, own.base.packed[0]);
    Softmax softmax;
    final_softmax(problem, tile, visible, stats, own.base.packed[0], own.base.scores, softmax, status);
    RowStatistics rows;
    start_rows(problem, tile, softmax, rows);
    __builtin_memset(own.features, 0, sizeof(Number) * (size_t)(QUERIES * own.feature_columns));
    for (int64_t t = 0; t < QUERIES * o.top; ++t) own.top_weights[t] = FREE, own.top_keys[t] = -1;

    alignas(64) Number peak[QUERIES];
    BlockWalk walk(call, tile, visible);
    for (Block block; walk.next(block) && !ended(status);) {
        score_block(problem, tile, visible, block, Cut(visible, tile, block), own.base.packed[0], own.base.scores,
                    peak);
        weigh_and_count(problem, tile, block, own.base.scores, own.weights, rows);
        if (o.top > 0) gather_top(block, tile, own.base.scores, own.weights, o.top, own.top_weights, own.top_keys);
        gather_columns(call, tile, block, own.weights, sums);
        copy_chosen(call, tile, map, block, own.weights);
        if (o.features_out) add_features(o, tile, block, own);
    }
    write_rows(problem, tile, map, rows, own);
}

}  // namespace
}  // namespace limelight::LL_NAMESPACE
