// The forward pass of one tile of queries: a running softmax over blocks of keys (Milakov & Gimelshein 2018; Dao et al.
// 2022).
#pragma once

#include "../../library.h"
#include "../../simd/elements.h"
#include "../../simd/hadamard.h"
#include "../../simd/vector.h"
#include "../../task.h"
#include "../../tiles/operands.h"
#include "../../tiles/shapes.h"
#include "../../tiles/sums.h"
#include "../blocks.h"
#include "../pages.h"
#include "../problem.h"
#include "../scores.h"
#include "../softmax.h"
#include "../visibility.h"

namespace limelight::LL_NAMESPACE {
namespace {

// Tiles of one head that are computed together, so that they share reads of a block of keys and values from L1.
constexpr int MAX_GROUP = 4;

// Scratch memory of one thread, reused from tile to tile.
struct Scratch {
    Float* scores;              // [BLOCK_KEYS][QUERIES]
    Factor* weights;            // the weights as factors, where these are not floats
    Factor* values;             // [BLOCK_KEYS / FOLD][columns]; masked passes only
    uint8_t* seen;              // [BLOCK_KEYS][QUERIES]; masked passes only
    Stored* rows;               // [BLOCK_KEYS][value width]; masked passes only, where values must be copied
    Factor* packed[MAX_GROUP];  // of each tile: its packed queries
    Float* output[MAX_GROUP];   // of each tile: sums over keys (tiles/sums.h)

    Scratch(Arena& arena, const ll_call& call, int64_t columns, int group_size) {
        scores = arena.take<Float>(BLOCK_KEYS * QUERIES);
        weights = arena.take<Factor>(FOLD > 1 ? BLOCK_KEYS / FOLD * QUERIES : 0);
        values = arena.take<Factor>(BLOCK_KEYS / FOLD * columns);
        seen = arena.take<uint8_t>(BLOCK_KEYS * QUERIES);
        rows = arena.take<Stored>(must_copy(call) ? BLOCK_KEYS * call.value_width : 0);
        for (int t = 0; t < group_size; ++t) {
            packed[t] = arena.take<Factor>(packed_size(call));
            output[t] = arena.take<Float>(QUERIES * columns);
        }
    }
};

// The rows of a block's values as a right operand.
struct BlockValues {
    Extent<Factor> extents[MAX_RUNS];

    BlockValues(const Problem& problem, const Tile& tile, const Block& block) {
        const Operand& values = problem.values;
        Extent<Factor>* next = extents;
        if (!RIGHT_IN_PLACE || !values.paged) {
            int64_t segment = tile.segment - problem.call.segments;
            *next = {values.step(tile.row, tile.key_head, segment, block.begin), BLOCK_KEYS};
            return;
        }
        for_each_run(problem.call, values, tile, block,
                     [&](const Factor* row, int begin, int end) { *next++ = {row - begin * values.stride, end}; });
    }
};

// output += weights * values over visible pairs only: a row of V that is not finite counts as zero in the product,
// which leaves the bits of other sums unchanged, and is added separately to the queries that see it.
inline void add_values_masked(const Problem& problem, const Tile& tile, const Block& block, const VisiblePart& part,
                              const Factor* weights, Scratch& scratch, Float* output) {
    const ll_call& call = problem.call;
    int64_t columns = problem.value_columns;
    StridedRows value = rows_of(call, call.value, call.value_width, tile, block, scratch.rows);
    uint8_t nonfinite_keys[BLOCK_KEYS];
    for (int j = 0; j < block.count; ++j) nonfinite_keys[j] = !finite_row(value.at(j), call.value_width);
    pack_rows(value.row, value.stride, block.count, call.value_width, columns, nonfinite_keys, scratch.values);
    add_over_keys(weights, scratch.values, block.count, tile.count, output, columns, part.of_queries);
    for (int j = 0; j < block.count; ++j)
        for (int i = 0; nonfinite_keys[j] && i < tile.count; ++i)
            if (scratch.seen[j * QUERIES + i])
                for (int64_t c = 0; c < call.value_width; ++c)
                    output[sum_index(i, c, columns)] += scratch.scores[j * QUERIES + i] * read(value.at(j) + c);
}

// One tile during its pass over the keys.
struct TilePass {
    const Problem& problem;
    const Tile& tile;
    Visibility visible;
    Softmax softmax;
    bool keeps[QUERIES];  // in masked passes: whether dropout keeps any visible key
    BlockWalk walk;
    Block block;  // the next block
    const Factor* packed;
    Float* output;
    bool more;

    TilePass(const Problem& p, const Tile& t, const Factor* packed_queries, Float* to)
        : problem(p), tile(t), walk(p.call, t, visible), packed(packed_queries), output(to) {
        find_visible(p.call, t, visible);
        for (bool& keep : keeps) keep = true;
        start();
    }
    TilePass(const TilePass&) = delete;
    static void* operator new(size_t, void* memory) { return memory; }

    void start() {
        __builtin_memset(output, 0, sizeof(Float) * (size_t)(QUERIES * problem.value_columns));
        more = walk.next(block);
    }
    void start_over() {
        softmax = Softmax();
        for (bool& keep : keeps) keep = !problem.dropout_threshold;
        walk.restart();
        start();
    }

    // `masked`: multiply visible pairs only, for tiles whose hidden values may be NaN or infinite.
    template <bool masked>
    void step(Scratch& scratch) {
        alignas(64) Float peak[QUERIES];
        int64_t columns = problem.value_columns;
        VisiblePart part(visible, tile, block);
        score_block(problem, tile, visible, block, part, packed, scratch.scores, peak);
        if (masked)
            for (int x = 0; x < block.count * QUERIES; ++x) scratch.seen[x] = scratch.scores[x] != -INF;
        const Factor* weights = scratch.weights;
        if (FOLD > 1 && !masked && !problem.dropout_threshold)
            update_softmax<(FOLD > 1)>(problem, tile, block, scratch.scores, peak, softmax, output, columns,
                                       scratch.weights);
        else {
            update_softmax<false>(problem, tile, block, scratch.scores, peak, softmax, output, columns, nullptr);
            if (problem.dropout_threshold) apply_dropout(problem, tile, block, scratch.scores);
            if (problem.dropout_threshold && masked) mark_kept(problem, tile, block, scratch.seen, keeps);
            weights = fold_down(scratch.scores, block.count, tile.count, scratch.weights);
        }
        if (masked) add_values_masked(problem, tile, block, part, weights, scratch, output);
        else
            add_over_keys(weights, BlockValues(problem, tile, block).extents, block.count, tile.count, output, columns,
                          part.of_queries);
        more = walk.next(block);
    }

    // Divides the sums of each query by its total, in place; returns whether every result is finite.
    bool finish() {
        Float kept_share = problem.dropout_threshold ? (Float)(1.0 - problem.call.dropout) : 1;
        alignas(64) Float share[QUERIES] = {};
        alignas(64) Int is_empty[QUERIES] = {};
        for (int i = 0; i < tile.count; ++i) {
            Float total =
                total_with_sink(problem, sink_of(problem.call, tile), softmax.peak[i], softmax.total[i]) * kept_share;
            is_empty[i] = -(Int)(total == 0);     // the output is zero then, even with a sink that is NaN
            share[i] = keeps[i] ? 1 / total : 1;  // the sum is zero, whatever the total is
        }
        IntVec bad{};
        int64_t columns = problem.value_columns;
        auto divide = [&](Float* at, Vec factor, IntVec empty) {
            Vec y = empty ? Vec{} : load<Vec>(at) * factor;
            bad |= (y - y) != 0;
            store(at, y);
        };
#if defined(LL_AMX)
        for (int64_t c = 0; c < columns; ++c)
            for (int i = 0; i < tile.count; i += LANES)
                divide(output + sum_index(i, c, columns), load<Vec>(share + i), load<IntVec>(is_empty + i));
#else
        for (int i = 0; i < tile.count; ++i)
            for (int64_t c = 0; c < columns; c += LANES)
                divide(output + sum_index(i, c, columns), broadcast(share[i]), broadcast_int(is_empty[i]));
#endif
        return !any(bad);
    }
};

// Writes the finished rows row(i). `stats`, if not null: (B, Hq, Lq) pairs of peak and total, for observations.
template <class Row>
inline void write_tile(const Problem& problem, const Tile& tile, const Softmax& softmax, Row row, Float* stats) {
    const ll_call& call = problem.call;
    int64_t at = (tile.row * call.query_heads + tile.head) * call.queries + tile.first_query;
    for (int i = 0; i < tile.count; ++i) {
        Stored* to = row_at<Stored>(call.output, tile.row, tile.head, tile.first_query + i);
        const Float* from = row(i);
        if (rotates(call)) hadamard((Float*)from, call.value_width);
        problem.stream_output ? stream_row(from, call.value_width, to) : write_row(from, call.value_width, to);
        if (call.logsumexp)
            ((Float*)call.logsumexp)[at + i] =
                logsumexp_of(problem, sink_of(call, tile), softmax.peak[i], softmax.total[i]);
        if (stats) stats[2 * (at + i)] = softmax.peak[i], stats[2 * (at + i) + 1] = softmax.total[i];
    }
}

// Computes tiles of one head together. Each goes through its own blocks in its own order, so grouping does not change
// results.
inline void forward_tiles(const Problem& problem, const Tile* tiles, int count, Scratch& scratch, Float* stats,
                          int& status) {
    alignas(TilePass) char memory[MAX_GROUP][sizeof(TilePass)];
    TilePass* passes[MAX_GROUP];
    for (int t = 0; t < count; ++t) {
        pack_queries(problem, tiles[t], scratch.packed[t]);
        passes[t] = new (memory[t]) TilePass(problem, tiles[t], scratch.packed[t], scratch.output[t]);
    }
    for (;;) {
        TilePass* next = nullptr;  // the one whose next block comes first
        for (int t = 0; t < count; ++t)
            if (passes[t]->more && (!next || passes[t]->block.begin < next->block.begin)) next = passes[t];
        if (!next) break;
        if (should_stop(status)) return;
        next->step<false>(scratch);
    }
    for (int t = 0; t < count; ++t) {
        if (!passes[t]->finish()) {
            passes[t]->start_over();
            while (passes[t]->more && !should_stop(status)) passes[t]->step<true>(scratch);
            passes[t]->finish();
        }
        auto row = [&](int i) { return sum_row(passes[t]->output, i, problem.value_columns, (Float*)scratch.values); };
        write_tile(problem, tiles[t], passes[t]->softmax, row, stats);
    }
}

}  // namespace
}  // namespace limelight::LL_NAMESPACE
