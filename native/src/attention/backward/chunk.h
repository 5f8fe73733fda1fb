// One task of the backward pass: a chunk of the keys of one segment, batch row and key head.
#pragma once

#include "../../library.h"
#include "../../simd/elements.h"
#include "../../simd/vector.h"
#include "../../task.h"
#include "../../tiles/amx.h"
#include "../../tiles/shapes.h"
#include "../blocks.h"
#include "../problem.h"
#include "../tiling.h"
#include "../visibility.h"
#include "block.h"
#include "ordered_sums.h"
#include "pass.h"
#include "rules.h"

namespace limelight::LL_NAMESPACE {
namespace {

struct BackwardJob {
    const BackwardPass& pass;
    const Tiles& tiles;
    int64_t* first;               // [segment_count + 1]: index of the segment's first task
    int64_t* tickets;             // of each tile of queries
    int64_t* table_tickets;       // [B * Hq], for distance tables
    int64_t* ordinals;            // [segment_count * B]: chunks of earlier segments in the row
    int64_t max_queries;          // of a segment
    int64_t only_row, only_head;  // -1: all at once
    int status;
    int64_t ranges = 1;  // how many ranges of maps `parallel` distributes

    int64_t base(int64_t s) const {
        const ll_call& call = pass.problem.call;
        return block_start(call.segments[s].key_begin, block_phase(call, call.segments[s]));
    }
    int64_t chunks(int64_t s) const {
        int64_t keys = pass.problem.call.segments[s].key_end - base(s);
        return max<int64_t>(1, (keys + pass.chunk - 1) / pass.chunk);
    }

    void number_tasks() {
        const ll_call& call = pass.problem.call;
        first[0] = 0;
        for (int64_t s = 0; s < call.segment_count; ++s) {
            const ll_segment& segment = call.segments[s];
            max_queries = max(max_queries, segment.query_end - segment.query_begin);
            first[s + 1] = first[s] + (segment.row < 0 ? call.batch : 1) * call.key_heads * chunks(s);
            for (int64_t b = 0; b < call.batch; ++b) {  // chunks of this row in all earlier segments
                bool here = s > 0 && (call.segments[s - 1].row < 0 || call.segments[s - 1].row == b);
                ordinals[s * call.batch + b] =
                    s == 0 ? 0 : ordinals[(s - 1) * call.batch + b] + (here ? chunks(s - 1) : 0);
            }
        }
    }
};

// One task: a chunk of the keys of one segment, batch row and key head.
struct ChunkTask {
    BackwardJob& job;
    const ll_call& call;
    int64_t s, row, key_head, chunk, begin, end;

    ChunkTask(BackwardJob& j, int64_t n) : job(j), call(j.pass.problem.call) {
        s = index_of_last(call.segment_count, [&](int64_t segment) { return job.first[segment] <= n; });
        // With one range, about as many maps (batch row, key head) as there are threads form a wave, and the chunks of
        // its maps alternate: a chunk seldom waits for the one before it, which would run at the same time if the
        // chunks of a map followed each other.
        int64_t rest = n - job.first[s], chunks = job.chunks(s);
        int64_t maps = (call.segments[s].row < 0 ? call.batch : 1) * call.key_heads;
        int64_t waves = job.ranges > 1 ? maps : max(maps / call.threads, (int64_t)1);
        int64_t wave = ((rest / chunks + 1) * waves - 1) / maps, from = wave * maps / waves,
                to = (wave + 1) * maps / waves;
        rest -= from * chunks;
        chunk = rest / (to - from);
        int64_t map = from + rest % (to - from);
        key_head = map % call.key_heads;
        row = call.segments[s].row < 0 ? map / call.key_heads : call.segments[s].row;
        begin = job.base(s) + chunk * job.pass.chunk;
        end = min(begin + job.pass.chunk, call.segments[s].key_end);
    }

    bool orders_rows() const {
        bool orders = job.pass.needs(job.pass.gradients.query) || job.pass.gradients.compare;
        for (int64_t r = 0; r < call.rule_count; ++r)
            orders |= job.pass.needs(job.pass.gradients.rules[r]) && call.rules[r].kind != LL_DISTANCE_TABLE;
        return orders;
    }

    // The part of a distance table that this chunk can reach.
    DistanceSums table(int64_t r, BackwardScratch& scratch) const {
        if (call.rules[r].kind != LL_DISTANCE_TABLE || !job.pass.needs(job.pass.gradients.rules[r])) return {};
        const ll_segment& g = call.segments[s];
        int64_t shift = (int64_t)call.rules[r].parameters[0] + g.key_offset - g.query_offset;
        int64_t last = (int64_t)call.rules[r].parameters[1] - 1;
        DistanceSums sums;
        sums.first = clamp<int64_t>(begin - (g.query_end - 1) + shift, 0, last);
        sums.count = clamp<int64_t>(end - 1 - g.query_begin + shift, 0, last) - sums.first + 1;
        sums.sums = scratch.distances + r * (job.max_queries + job.pass.chunk + 1);
        __builtin_memset(sums.sums, 0, sizeof(Float) * (size_t)max<int64_t>(sums.count, 0));
        return sums;
    }

    // All tiles of queries of one head; false when the pass has stopped.
    bool one_head(int64_t head, BackwardScratch& scratch, bool ordered) const {
        const BackwardPass& pass = job.pass;
        DistanceSums distances[LL_MAX_RULES];
        bool tables = false;
        for (int64_t r = 0; r < call.rule_count; ++r)
            distances[r] = table(r, scratch), tables |= distances[r].sums != nullptr;
        int64_t tiles = job.tiles.in_segment(s), rows = call.segments[s].row < 0 ? row : 0;
        int64_t* tickets = job.tickets + job.tiles.first[s] + (rows * call.query_heads + head) * tiles;
        bool last = chunk + 1 == job.chunks(s);
        for (int64_t number = 0; number < tiles; ++number) {
            if (should_stop(job.status)) return false;
            Tile tile = job.tiles.tile_of(s, row, head, number);
            Visibility visible;
            find_visible(call, tile, visible);
            BlockWalk walk(call, tile, visible, begin, end);
            Block block;
            bool found = walk.next(block);
            int64_t past = begin;  // gradients of a bias are complete before this key
            if (found) {
                LoadedTile loaded;
                load_tile(pass, tile, scratch, loaded);
                if (number + 1 < tiles) prefetch_tile(pass, job.tiles.tile_of(s, row, head, number + 1));
                if (pass.needs(pass.gradients.query)) {
                    QueryGradient to(pass, tile, 0);
                    prefetch_rows(to.sums, to.stride, tile.count, call.width);
                }
                __builtin_memset(scratch.query_sum, 0, sizeof(Float) * (size_t)(QUERIES * pass.key_columns));
                __builtin_memset(scratch.row_sums, 0, sizeof(Float) * LL_MAX_RULES * QUERIES);
                if (call.compare)
                    __builtin_memset(scratch.vector_sums, 0, sizeof(Float) * (size_t)(QUERIES * pass.key_columns));
                do {
                    clear_bias_gradient(pass, tile, past, block.begin);
                    backward_block(pass, tile, visible, block, begin, loaded, scratch, distances);
                    past = block.begin + block.count;
                } while (walk.next(block));
            }
            clear_bias_gradient(pass, tile, past, end);
            if (!ordered) continue;
            Ticket ticket{tickets + number, &job.status};
            if (!ticket.wait(chunk)) return false;
            if (pass.needs(pass.gradients.query))
                add_query_sum(pass, tile, found ? scratch.query_sum : nullptr, (Float*)scratch.key_rows, chunk == 0,
                              last);
            if (found) add_row_sums(pass, tile, scratch.row_sums);
            if (found && pass.gradients.compare) add_vector_sums(pass, tile, scratch.vector_sums);
            ticket.release(chunk);
        }
        return !tables || add_tables(head, distances);
    }

    // Adds the gradients of distance tables, in the order of the chunks; false when the pass has stopped.
    bool add_tables(int64_t head, const DistanceSums* distances) const {
        int64_t number = job.ordinals[s * call.batch + row] + chunk;
        Ticket ticket{job.table_tickets + row * call.query_heads + head, &job.status};
        if (!ticket.wait(number)) return false;
        for (int64_t r = 0; r < call.rule_count; ++r) {
            if (!distances[r].sums) continue;
            const ll_tensor& to = job.pass.gradients.rules[r];
            Float* at = (Float*)to.data + row * to.strides[0] + head * to.strides[1];
            for (int64_t x = 0; x < distances[r].count; ++x)
                at[(distances[r].first + x) * to.strides[3]] += distances[r].sums[x];
        }
        ticket.release(number);
        return true;
    }

    void run() const {
        if ((job.only_row >= 0 && row != job.only_row) || (job.only_head >= 0 && key_head != job.only_head)) return;
        const BackwardPass& pass = job.pass;
        Arena arena{thread_scratch<BackwardScratch>(job.status, pass, job.max_queries)};
        if (!arena.memory) return;
        BackwardScratch scratch(arena, pass, job.max_queries);
        [[maybe_unused]] TileRegisters registers;
        int64_t keys = end - begin;  // in a short call, clearing a whole chunk would take longer than the rest
        __builtin_memset(scratch.key_sums, 0, sizeof(Float) * (size_t)(keys * pass.key_columns));
        __builtin_memset(scratch.value_sums, 0, sizeof(Float) * (size_t)(keys * pass.value_columns));
        int64_t group = call.query_heads / call.key_heads;
        bool ordered = orders_rows();
        for (int64_t g = 0; g < group; ++g)
            if (!one_head(key_head * group + g, scratch, ordered)) return;
        for (int64_t j = max(begin, call.segments[s].key_begin); j < end; ++j) {
            Float* key = scratch.key_sums + (j - begin) * pass.key_columns;
            for (int64_t c = 0; c < call.width; ++c) key[c] = key[c] * pass.problem.power * pass.problem.scale;
            if (pass.needs(pass.gradients.key))
                write_row(key, call.width, row_at<Stored>(pass.gradients.key, row, key_head, j));
            if (pass.needs(pass.gradients.value))
                write_row(scratch.value_sums + (j - begin) * pass.value_columns, call.value_width,
                          row_at<Stored>(pass.gradients.value, row, key_head, j));
        }
    }
};

}  // namespace
}  // namespace limelight::LL_NAMESPACE
