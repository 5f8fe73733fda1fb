// Observations: a second pass over Q K', with the final softmax of every row already known.
//
// A weight is 2^(exponent * (score - peak)) / total, with peak and total of the forward pass; after decode, whose
// products are summed in another order, peak and total are computed again, so that weights add up to one. Sums over
// keys belong to one tile. Sums over queries (received, blocks) are accumulated per *chunk* of tiles, at most CHUNKS of
// them on any machine, and the chunks are added in order: results do not depend on the number of threads, and memory is
// linear in the length.
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
constexpr Float EMPTY = -1;                              // the initial top weights, below every weight
constexpr int64_t MAX_COLUMN_BYTES = (int64_t)64 << 20;  // of column sums held at a time

// The arrays of an observation.
LL_INLINE Float* floats(void* pointer) { return (Float*)pointer; }
LL_INLINE const Float* floats(const void* pointer) { return (const Float*)pointer; }

// Running statistics of the rows of a tile.
struct RowStatistics {
    alignas(64) Float peak[QUERIES], share[QUERIES];  // the weight is 2^(exponent * (score - peak)) * share
    alignas(64) Float log_total[QUERIES];             // log2 of the total
    Float logsumexp[QUERIES];
    alignas(64) Float max_score[QUERIES], max_weight[QUERIES];  // the largest score and the largest weight
    double entropy[QUERIES], distance[QUERIES];
    alignas(64) Int valid[QUERIES];  // -1 for queries of the tile, 0 for the lanes beyond
};

struct ObserveScratch {
    Scratch base;
    Float* weights;       // [BLOCK_KEYS][QUERIES]
    Float* features;      // [QUERIES][feature columns]
    Float* feature_rows;  // [BLOCK_KEYS][feature columns]
    Float* top_weights;   // [QUERIES / LANES][top][LANES]
    Int* top_keys;        // the same shape; -1: none yet
    int64_t feature_columns;

    ObserveScratch(Arena& arena, const ll_call& call, int64_t columns) : base(arena, call, columns, 1) {
        const ll_observation& o = *call.observation;
        feature_columns = round_up(o.feature_count, LANES);
        weights = arena.take<Float>(BLOCK_KEYS * QUERIES);
        features = arena.take<Float>(QUERIES * feature_columns);
        feature_rows = arena.take<Float>(BLOCK_KEYS * feature_columns);
        top_weights = arena.take<Float>(QUERIES * o.top);
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

inline void init_rows(const Problem& problem, const Tile& tile, const Softmax& softmax, RowStatistics& rows) {
    const Float* sink = sink_of(problem.call, tile);
    for (int i = 0; i < QUERIES; ++i) {
        bool valid = i < tile.count;
        Float peak = valid ? softmax.peak[i] : 0, total = valid ? softmax.total[i] : 0;
        rows.valid[i] = -(Int)valid;
        rows.peak[i] = peak;
        rows.share[i] = total == 0 ? 0 : 1 / total_with_sink(problem, sink, peak, total);
        rows.log_total[i] = total == 0 ? 0 : (Float)log2_total_with_sink(problem, sink, peak, total);
        rows.logsumexp[i] = logsumexp_of(problem, sink, peak, total);
        rows.max_score[i] = -INF, rows.max_weight[i] = 0;
        rows.entropy[i] = rows.distance[i] = 0.0;
    }
}

// Computes weights from scores, and the row statistics that follow from them. Sums are taken over SHORT_SUM keys, then
// over the block, then in double precision over the blocks: one long chain of roundings would lose accuracy.
constexpr int SHORT_SUM = 16;

inline void weights_and_statistics(const Problem& problem, const Tile& tile, const Block& block, const Float* scores,
                                   Float* weights, RowStatistics& rows) {
    FlushSubnormals scope;
    for (int i = 0; i < QUERIES; i += LANES) {
        Vec peak = finite_peak(load<Vec>(rows.peak + i)), share = load<Vec>(rows.share + i);
        Vec log_total = load<Vec>(rows.log_total + i), max_score = load<Vec>(rows.max_score + i);
        Vec max_weight = load<Vec>(rows.max_weight + i), entropy{};
        IntVec valid = load<IntVec>(rows.valid + i);
        for (int j = 0; j < block.count;) {
            Vec short_entropy{};
            for (int stop = min(j + SHORT_SUM, block.count); j < stop; ++j) {
                Vec score = load<Vec>(scores + j * QUERIES + i);
                IntVec seen = valid & (score != -INF);
                Vec power = (score - peak) * broadcast(problem.exponent);
                Vec weight = seen ? exp2_weight(power) * share : Vec{};
                store(weights + j * QUERIES + i, weight);
                max_score = max(max_score, seen ? score : broadcast(-INF));
                max_weight = max(max_weight, weight);
                short_entropy +=
                    weight != 0 ? weight * (log_total - power) : Vec{};  // power may be -inf where the weight is 0
            }
            entropy += short_entropy;
        }
        store(rows.max_score + i, max_score);
        store(rows.max_weight + i, max_weight);
        for (int lane = 0; lane < LANES; ++lane) rows.entropy[i + lane] += (double)entropy[lane];
    }
    if (!problem.call.observation->distance) return;
    int32_t first = first_distance(tile, block);
    for (int i = 0; i < QUERIES; i += LANES) {
        Vec distance{};
        for (int j = 0; j < block.count;) {
            Vec short_sum{};
            for (int stop = min(j + SHORT_SUM, block.count); j < stop; ++j)
                short_sum =
                    multiply_add(load<Vec>(weights + j * QUERIES + i), absolute_distance(first, j, i), short_sum);
            distance += short_sum;
        }
        for (int lane = 0; lane < LANES; ++lane) rows.distance[i + lane] += (double)distance[lane];
    }
}

// Updates the largest weights of each query, sorted in descending order; ties go to the lower key, which comes first.
// Layout: [vector of queries][top][LANES]; an insertion shifts smaller weights down in all lanes at once. The weights
// of a row of NaN count as 0 here; NaN is written at the end.
inline void update_top(const Block& block, const Tile& tile, const Float* scores, const Float* weights, int64_t top,
                       Float* kept_weights, Int* kept_keys) {
    constexpr int GROUP = 16;  // keys compared before any is inserted: one branch per key would mispredict
    int64_t last = (top - 1) * LANES;
    for (int i = 0; i < tile.count; i += LANES, kept_weights += top * LANES, kept_keys += top * LANES) {
        Vec min_kept = load<Vec>(kept_weights + last);
        auto weight_of_row = [&](int j) { return max(load<Vec>(weights + j * QUERIES + i), Vec{}); };
        auto keep = [&](int j) {
            Vec weight = load<Vec>(scores + j * QUERIES + i) == -INF ? broadcast(EMPTY) : weight_of_row(j);  // masked
            IntVec key = broadcast_int((Int)(block.begin + j)), key_here = load<IntVec>(kept_keys + last);
            Vec here = min_kept;
            for (int64_t t = last; t > 0; t -= LANES) {
                Vec before = load<Vec>(kept_weights + t - LANES);
                IntVec key_before = load<IntVec>(kept_keys + t - LANES);
                store(kept_weights + t, weight > here ? (weight > before ? before : weight) : here);
                store(kept_keys + t, weight > here ? (weight > before ? key_before : key) : key_here);
                here = before, key_here = key_before;
            }
            store(kept_weights, weight > here ? weight : here);
            store(kept_keys, weight > here ? key : key_here);
            min_kept = load<Vec>(kept_weights + last);
        };
        for (int first = 0; first < block.count; first += GROUP) {
            uint32_t rows = 0;
            for (int r = 0; r < min(GROUP, block.count - first); ++r)
                rows |= (uint32_t)any_greater(weight_of_row(first + r), min_kept) << r;
            for (; rows; rows &= rows - 1) keep(first + __builtin_ctz(rows));
        }
    }
}

inline void add_column_sums(const ll_call& call, const Tile& tile, const Block& block, const Float* weights,
                            ColumnSums& sums) {
    const ll_observation& o = *call.observation;
    if (o.received)
        for (int first = 0; first < block.count; first += LANES) {
            int keys = min(LANES, block.count - first);
            Vec rows[LANES], sum{};
            for (int j = 0; j < LANES; ++j) {
                rows[j] = Vec{};
                for (int i = 0; i < QUERIES && j < keys; i += LANES)
                    rows[j] += load<Vec>(weights + (first + j) * QUERIES + i);
            }
            transpose(rows);
            for (int i = 0; i < LANES; ++i) sum += rows[i];
            for (int j = 0; j < keys; ++j) sums.received[block.begin + first + j] += (double)sum[j];
        }
    if (!o.blocks_out) return;
    int64_t columns = ColumnSums::block_columns(call);
    for (int j = 0; j < block.count;) {
        int64_t column = (block.begin + j) / o.block_keys;
        int stop = (int)min<int64_t>(block.count, (column + 1) * o.block_keys - block.begin);
        alignas(64) Float sum[QUERIES] = {};
        for (; j < stop; ++j)
            for (int i = 0; i < QUERIES; i += LANES)
                store(sum + i, load<Vec>(sum + i) + load<Vec>(weights + j * QUERIES + i));
        for (int i = 0; i < tile.count;) {
            int64_t row = (tile.first_query + i) / o.block_queries;
            int last = (int)min<int64_t>(tile.count, (row + 1) * o.block_queries - tile.first_query);
            double share = 0;
            for (; i < last; ++i) share += (double)sum[i];
            sums.blocks[row * columns + column] += share;
        }
    }
}

// The index of the first entry >= value in an ascending list whose entries are `step` apart.
inline int64_t lower_bound(const int64_t* list, int64_t count, int64_t step, int64_t value) {
    int64_t low = 0, high = count;
    while (low < high) {
        int64_t middle = (low + high) / 2;
        if (list[middle * step] < value) low = middle + 1;
        else high = middle;
    }
    return low;
}

inline void copy_selected(const ll_call& call, const Tile& tile, int64_t map, const Block& block,
                          const Float* weights) {
    const ll_observation& o = *call.observation;
    int64_t last = tile.first_query + tile.count;
    if (o.rows_out)
        for (int64_t r = lower_bound(o.rows, o.row_count, 1, tile.first_query); r < o.row_count && o.rows[r] < last;
             ++r) {
            Float* to = floats(o.rows_out) + (map * o.row_count + r) * call.keys + block.begin;
            for (int j = 0; j < block.count; ++j) to[j] = weights[j * QUERIES + (o.rows[r] - tile.first_query)];
        }
    if (o.pairs_out)
        for (int64_t p = lower_bound(o.pairs, o.pair_count, 2, tile.first_query);
             p < o.pair_count && o.pairs[2 * p] < last; ++p) {
            int64_t j = o.pairs[2 * p + 1] - block.begin;
            if (j >= 0 && j < block.count)
                floats(o.pairs_out)[map * o.pair_count + p] =
                    weights[j * QUERIES + (o.pairs[2 * p] - tile.first_query)];
        }
}

inline void add_features(const ll_observation& o, const Tile& tile, const Block& block, ObserveScratch& own) {
    for (int j = 0; j < block.count; ++j) {
        Float* to = own.feature_rows + j * own.feature_columns;
        __builtin_memcpy(to, floats(o.features) + (block.begin + j) * o.feature_stride,
                         sizeof(Float) * (size_t)o.feature_count);
        for (int64_t f = o.feature_count; f < own.feature_columns; ++f) to[f] = 0;
    }
    add_product<Float>({own.weights, 1, QUERIES, 0, block.count, nullptr}, own.feature_rows, own.feature_columns,
                       own.features, own.feature_columns, tile.count, own.feature_columns);
}

inline void write_rows(const Problem& problem, const Tile& tile, int64_t map, const RowStatistics& rows,
                       const ObserveScratch& own) {
    const ll_observation& o = *problem.call.observation;
    int64_t at = map * problem.call.queries + tile.first_query;
    for (int i = 0; i < tile.count; ++i, ++at) {
        Float share = rows.share[i], max_score = rows.max_score[i];
        bool undefined = share != share;
        if (o.logsumexp) floats(o.logsumexp)[at] = rows.logsumexp[i];
        if (o.max_score) floats(o.max_score)[at] = undefined ? share : max_score * problem.natural;
        if (o.max_weight) floats(o.max_weight)[at] = undefined ? share : rows.max_weight[i];
        if (o.entropy) floats(o.entropy)[at] = (Float)(rows.entropy[i] * LN_2);
        if (o.distance) floats(o.distance)[at] = (Float)rows.distance[i];
        if (o.features_out)
            __builtin_memcpy(floats(o.features_out) + at * o.feature_count, own.features + i * own.feature_columns,
                             sizeof(Float) * (size_t)o.feature_count);
        for (int64_t t = 0; t < o.top; ++t) {
            int64_t from = (i / LANES * o.top + t) * LANES + i % LANES, key = own.top_keys[from];
            o.top_keys[at * o.top + t] = key;
            floats(o.top_weights)[at * o.top + t] = key < 0 ? 0 : undefined ? share : own.top_weights[from];
        }
    }
}

// map: batch row * head_count + observed head.
inline void observe_tile(const Problem& problem, const Tile& tile, int64_t map, const Float* stats, ObserveScratch& own,
                         ColumnSums& sums, int& status) {
    const ll_call& call = problem.call;
    const ll_observation& o = *call.observation;
    Visibility visible;
    find_visible(call, tile, visible);
    pack_queries(problem, tile, own.base.packed[0]);
    Softmax softmax;
    final_softmax(problem, tile, visible, stats, own.base.packed[0], own.base.scores, softmax, status);
    RowStatistics rows;
    init_rows(problem, tile, softmax, rows);
    __builtin_memset(own.features, 0, sizeof(Float) * (size_t)(QUERIES * own.feature_columns));
    for (int64_t t = 0; t < QUERIES * o.top; ++t) own.top_weights[t] = EMPTY, own.top_keys[t] = -1;

    alignas(64) Float peak[QUERIES];
    BlockWalk walk(call, tile, visible);
    for (Block block; walk.next(block) && !should_stop(status);) {
        score_block(problem, tile, visible, block, VisiblePart(visible, tile, block), own.base.packed[0],
                    own.base.scores, peak);
        weights_and_statistics(problem, tile, block, own.base.scores, own.weights, rows);
        if (o.top > 0) update_top(block, tile, own.base.scores, own.weights, o.top, own.top_weights, own.top_keys);
        add_column_sums(call, tile, block, own.weights, sums);
        copy_selected(call, tile, map, block, own.weights);
        if (o.features_out) add_features(o, tile, block, own);
    }
    write_rows(problem, tile, map, rows, own);
}

}  // namespace
}  // namespace limelight::LL_NAMESPACE
