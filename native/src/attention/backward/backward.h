// The backward pass of a call: its tasks, distributed over threads.
#pragma once

#include "../../library.h"
#include "../../simd/elements.h"
#include "../../simd/vector.h"
#include "../../task.h"
#include "../../tiles/amx.h"
#include "../../tiles/shapes.h"
#include "../conversion.h"
#include "../problem.h"
#include "../tiling.h"
#include "../visibility.h"
#include "block.h"
#include "chunk.h"
#include "pass.h"
#include "rows.h"

namespace limelight::LL_NAMESPACE {
namespace {

inline void large_rows_task(void* context, int64_t n) {
    BackwardJob& job = *(BackwardJob*)context;
    Arena arena{thread_scratch<BackwardScratch>(job.status, job.pass, job.max_queries)};
    if (!arena.memory) return;
    BackwardScratch scratch(arena, job.pass, job.max_queries);
    [[maybe_unused]] TileRegisters registers;
    Tile tile;
    job.tiles.at(n, &tile);
    recompute_large_rows(job.pass, tile, scratch, job.status);
}

inline void backward_task(void* context, int64_t n) {
    ChunkTask(*(BackwardJob*)context, n).run();
    end_streams();
}

// Whether the gradient of some bias is summed over batch rows, or over heads: these are then computed one after the
// other.
struct SharedBias {
    bool rows = false, heads = false;

    SharedBias(const ll_call& call, const ll_gradients& gradients) {
        for (int64_t r = 0; r < call.rule_count; ++r) {
            if (call.rules[r].kind != LL_BIAS || !gradients.rules[r].data) continue;
            rows |= gradients.rules[r].strides[0] == 0 && call.batch > 1;
            heads |= gradients.rules[r].strides[1] == 0 && call.key_heads > 1;
        }
    }
};

// The arrays of a backward pass.
struct BackwardMemory {
    Float *delta, *peak, *shift, *query_sums;                       // see BackwardPass
    uint8_t *nonfinite_keys, *nonfinite_queries, *nonfinite_grads;  // see BackwardPass
    int64_t *first, *tickets, *table_tickets, *ordinals;            // see BackwardJob
    char* memory = nullptr;
    size_t bytes = 0;

    BackwardMemory(const ll_call& call, const ll_gradients& gradients, int64_t key_columns, int64_t tiles) {
        int64_t queries = call.batch * call.query_heads * call.queries;
        for (Arena arena{nullptr};; arena = {memory}) {
            delta = arena.take<Float>(queries);
            peak = arena.take<Float>(queries);
            shift = arena.take<Float>(queries);
            query_sums = arena.take<Float>(CONVERTED && gradients.query.data ? queries * key_columns : 0);
            nonfinite_keys = arena.take<uint8_t>(call.batch * call.key_heads * call.keys);
            nonfinite_queries = arena.take<uint8_t>(queries);
            nonfinite_grads = arena.take<uint8_t>(queries);
            first = arena.take<int64_t>(call.segment_count + 1);
            tickets = arena.take<int64_t>(tiles);
            table_tickets = arena.take<int64_t>(call.batch * call.query_heads);
            ordinals = arena.take<int64_t>(call.segment_count * call.batch);
            if (memory) break;
            bytes = arena.used + 64;
            memory = (char*)borrow(bytes);
            if (!memory) return;
        }
        __builtin_memset(tickets, 0, sizeof(int64_t) * (size_t)tiles);
        __builtin_memset(table_tickets, 0, sizeof(int64_t) * (size_t)(call.batch * call.query_heads));
    }
    ~BackwardMemory() { give_back(memory, bytes); }
    BackwardMemory(const BackwardMemory&) = delete;
};

inline int backward(const ll_call& call, const ll_gradients& gradients) {
    Tiles tiles(call, 1, true);
    if (!tiles.first) return OUT_OF_MEMORY;
    Problem problem(call);
    PreparedOperand keys, value_rows, key_rows;
    Pieces all(call);
    if (!call.compare) keys.left(call, call.key, all, call.width), key_rows.right(call, call.key, all, call.width);
    value_rows.left(call, call.value, all, call.value_width);
    if (keys.failed || value_rows.failed || key_rows.failed) return OUT_OF_MEMORY;
    problem.keys = keys.operand;

    int64_t key_columns = round_up(call.width, LANES);
    BackwardMemory own(call, gradients, key_columns, tiles.count());
    if (!own.memory) return OUT_OF_MEMORY;
    BackwardPass pass{problem,
                      gradients,
                      value_rows.operand,
                      key_rows.operand,
                      own.nonfinite_keys,
                      own.nonfinite_queries,
                      own.nonfinite_grads,
                      own.delta,
                      own.peak,
                      own.shift,
                      own.query_sums,
                      key_columns,
                      problem.value_columns,
                      steps_along(call.value_width),
                      chunk_keys(key_columns, problem.value_columns)};
    BackwardJob job{pass, tiles, own.first, own.tickets, own.table_tickets, own.ordinals, 0, -1, -1, DONE};
    job.number_tasks();

    int64_t threads = worthwhile_threads(call), maps = call.batch * call.key_heads;
    // Each thread gets its own maps where they divide evenly: chunks then wait for no other thread, except for the maps
    // that are taken over at the end.
    job.ranges = call.segment_count == 1 && maps % threads == 0 ? threads : 1;
    bool large = false;
    BackwardRows rows{pass, own.nonfinite_keys, own.nonfinite_queries, own.nonfinite_grads, &large};
    parallel(threads, maps * (rows.query_pieces_of_group() + rows.key_pieces()), backward_rows_task, &rows, maps);
    if (large) parallel(threads, tiles.count(), large_rows_task, &job);
    SharedBias shared(call, gradients);
    for (int64_t b = 0; b < (shared.rows ? call.batch : 1); ++b)
        for (int64_t h = 0; h < (shared.heads ? call.key_heads : 1); ++h) {
            job.only_row = shared.rows ? b : -1, job.only_head = shared.heads ? h : -1;
            parallel(threads, own.first[call.segment_count], backward_task, &job, job.ranges);
        }
    return job.status;
}

}  // namespace
}  // namespace limelight::LL_NAMESPACE
