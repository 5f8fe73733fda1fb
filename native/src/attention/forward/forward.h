// The forward pass of a call: its tasks, distributed over threads.
#pragma once

#include <stdlib.h>

#include "../../library.h"
#include "../../simd/vector.h"
#include "../../task.h"
#include "../../tiles/amx.h"
#include "../../tiles/shapes.h"
#include "../conversion.h"
#include "../decode/decode.h"
#include "../problem.h"
#include "../tiling.h"
#include "../visibility.h"
#include "observe.h"
#include "tile.h"

namespace limelight::LL_NAMESPACE {
namespace {

// Groups of tiles, then the chunks of short segments.
struct ForwardJob {
    const Problem& problem;
    const Tiles& tiles;
    DecodeJob& decoding;
    Float* stats;
    int status;
};

inline void forward_task(void* context, int64_t n) {
    ForwardJob& job = *(ForwardJob*)context;
    if (n >= job.tiles.count()) return decode_task(job.decoding, n - job.tiles.count());
    const ll_call& call = job.problem.call;
    Arena arena{thread_scratch<Scratch>(job.status, call, job.problem.value_columns, job.tiles.group_size)};
    if (!arena.memory) return;
    Scratch own(arena, call, job.problem.value_columns, job.tiles.group_size);
    [[maybe_unused]] TileRegisters registers;
    Tile tiles[MAX_GROUP];
    int count = job.tiles.at(n, tiles);
    forward_tiles(job.problem, tiles, count, own, job.stats, job.status);
    end_streams();
}

// Observes the maps (batch row, observed head) in waves, which bounds the memory for column sums.
struct ObserveJob {
    const Problem& problem;
    const Tiles& tiles;
    const Float* stats;
    double* sums;  // [map of the wave][chunk][ColumnSums::count]
    int64_t first_map;
    int status;
};

inline void observe_task(void* context, int64_t n) {
    ObserveJob& job = *(ObserveJob*)context;
    const ll_call& call = job.problem.call;
    const ll_observation& o = *call.observation;
    Arena arena{thread_scratch<ObserveScratch>(job.status, call, job.problem.value_columns)};
    if (!arena.memory) return;
    ObserveScratch own(arena, call, job.problem.value_columns);
    [[maybe_unused]] TileRegisters registers;
    ColumnSums sums(job.sums + n * ColumnSums::count(call), call);
    int64_t map = job.first_map + n / CHUNKS, chunk = n % CHUNKS;
    int64_t row = map / o.head_count, head = o.heads[map % o.head_count], counted = 0;
    for (int64_t s = 0; s < call.segment_count; ++s) {
        if (call.segments[s].row >= 0 && call.segments[s].row != row) continue;
        for (int64_t number = 0; number < job.tiles.in_segment(s); ++number, ++counted)
            if (counted % CHUNKS == chunk)
                observe_tile(job.problem, job.tiles.tile_of(s, row, head, number), map,
                             is_short(call.segments[s]) ? nullptr : job.stats, own, sums, job.status);
    }
}

inline void add_chunks(const ObserveJob& job, int64_t maps) {
    const ll_call& call = job.problem.call;
    const ll_observation& o = *call.observation;
    int64_t count = ColumnSums::count(call), received = o.received ? call.keys : 0;
    for (int64_t m = 0; m < maps; ++m)
        for (int64_t x = 0; x < count; ++x) {
            double sum = 0.0;
            for (int64_t chunk = 0; chunk < CHUNKS; ++chunk) sum += job.sums[(m * CHUNKS + chunk) * count + x];
            if (x < received) floats(o.received)[(job.first_map + m) * received + x] = (Float)sum;
            else floats(o.blocks_out)[(job.first_map + m) * (count - received) + x - received] = (Float)sum;
        }
}

inline int observe_all(const Problem& problem, const Tiles& tiles, const Float* stats, bool split_heads) {
    const ll_call& call = problem.call;
    int64_t maps = call.batch * call.observation->head_count, count = ColumnSums::count(call);
    int64_t group_size = min(maps, max<int64_t>(1, MAX_COLUMN_BYTES / (8 * CHUNKS * (count + 1))));
    size_t bytes = (size_t)(8 * group_size * CHUNKS * count) + 8;
    double* sums = (double*)malloc(bytes);
    if (!sums) return OUT_OF_MEMORY;
    ObserveJob job{problem, tiles, stats, sums, 0, DONE};
    for (; job.first_map < maps && job.status == DONE; job.first_map += group_size) {
        int64_t wave = min(group_size, maps - job.first_map);
        __builtin_memset(sums, 0, bytes);
        parallel(worthwhile_threads(call), wave * CHUNKS, observe_task, &job, split_heads ? wave : 1);
        add_chunks(job, wave);
    }
    free(sums);
    return job.status;
}

// The largest group of tiles that still leaves each thread several groups.
inline int tiles_per_group(const ll_call& call) {
    int64_t tiles = call.batch * call.query_heads * ((call.queries + QUERIES - 1) / QUERIES);
    return (int)clamp<int64_t>(tiles / (4 * max<int64_t>(call.threads, 1)), 1, MAX_GROUP);
}

inline int forward(const ll_call& call) {
    Tiles tiles(call, tiles_per_group(call), false);
    if (!tiles.first) return OUT_OF_MEMORY;
    Problem problem(call);
    PreparedOperand keys, values;
    bool tiled = tiles.count() > 0;
    if (tiled || call.observation) {
        Pieces of_all(call, tiles, true), of_tiled(call, tiles, false);  // observing reads all keys in tiles
        if (!call.compare) keys.left(call, call.key, call.observation ? of_all : of_tiled, call.width);
        if (tiled) values.right(call, call.value, of_tiled, call.value_width);
        if (keys.failed || values.failed) return OUT_OF_MEMORY;
        problem.keys = keys.operand, problem.values = values.operand;
    }
    Float* stats = nullptr;
    if (call.observation && tiled) {
        stats = (Float*)malloc((size_t)(call.batch * call.query_heads * call.queries) * 2 * sizeof(Float) + 8);
        if (!stats) return OUT_OF_MEMORY;
    }
    TileOrder order(problem, tiles);
    tiles.last_first = order.last_first;
    int64_t threads = worthwhile_threads(call);
    DecodeJob decoding(problem, tiles);
    ForwardJob job{problem, tiles, decoding, stats, DONE};
    if (decoding.list_groups(threads, tiled)) {
        int64_t ranges = tiled ? (order.split_heads ? call.batch * call.query_heads : 1) : decoding.group_count;
        bool both = tiled && decoding.tasks > 0;
        parallel(threads, tiles.count() + decoding.tasks, forward_task, &job, both ? 1 : ranges);
        job.status = job.status != DONE ? job.status : decoding.status;
    } else job.status = OUT_OF_MEMORY;
    if (job.status == DONE && call.observation) job.status = observe_all(problem, tiles, stats, order.split_heads);
    free(stats);
    return job.status;
}

}  // namespace
}  // namespace limelight::LL_NAMESPACE
