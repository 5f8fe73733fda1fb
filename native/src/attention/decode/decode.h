// Few queries over many keys, as in decoding, where reading the cache is the work: the query heads of a group read each
// key and value together, as stored, and the vector lanes run along the head width.
//
// The visible keys of a group are divided into chunks, which threads take one by one; the partial softmax of each chunk
// is merged with the others in order. Where chunks begin depends on what a row sees, not on threads or the batch.
#pragma once

#include <stdlib.h>

#include "../../library.h"
#include "../../platform.h"
#include "../../simd/elementary.h"
#include "../../simd/vector.h"
#include "../../task.h"
#include "../../tiles/reach.h"
#include "../forward/tile.h"
#include "../pages.h"
#include "../problem.h"
#include "../softmax.h"
#include "../tiling.h"
#include "../visibility.h"
#include "chunk.h"
#include "panels.h"
#include "shared.h"

namespace limelight::LL_NAMESPACE {
namespace {

struct DecodeJob {
    const Problem& problem;
    const Tiles& tiles;
    int status;
    HeadGroup* groups = nullptr;
    int64_t group_count = 0, tasks = 0, parts = 0;
    int64_t task_stride = 1;  // distance to the task that the same thread will probably take next
    char* memory = nullptr;   // a PartialSoftmax for each chunk of a group, where some group has several
    size_t part_bytes = 0;
    HeadGroup few_groups[16];

    DecodeJob(const Problem& p, const Tiles& t) : problem(p), tiles(t), status(DONE) {}
    DecodeJob(const DecodeJob&) = delete;
    ~DecodeJob() {
        if (groups != few_groups) free(groups);
        free_aligned(memory);
    }

    // How many heads of a group see the same keys and fit into MAX_ROWS rows.
    static int64_t heads_together(const ll_call& call, int64_t queries) {
        bool same = (!call.intervals.starts || call.intervals.head_stride == 0) &&
                    (!call.tiles.state || call.tiles.head_stride == 0);
        int64_t group = call.query_heads / call.key_heads;
        return same ? clamp<int64_t>(MAX_ROWS / queries, 1, group) : 1;
    }

    // Lists the groups of all short segments; `behind`: whether other tasks come before theirs. False without memory.
    bool list_groups(int64_t threads, bool behind) {
        const ll_call& call = problem.call;
        int64_t count = 0, max_rows = 1;
        for (int64_t s = 0; s < call.segment_count; ++s) {
            const ll_segment& segment = call.segments[s];
            int64_t queries = segment.query_end - segment.query_begin, group = call.query_heads / call.key_heads;
            if (queries == 0 || !is_short(segment)) continue;
            int64_t heads = heads_together(call, queries);
            max_rows = max(max_rows, heads * queries);
            count += (segment.row < 0 ? call.batch : 1) * call.key_heads * ((group + heads - 1) / heads);
        }
        groups = count <= (int64_t)(sizeof few_groups / sizeof *few_groups)
                     ? few_groups
                     : (HeadGroup*)malloc(sizeof(HeadGroup) * (size_t)count);
        if (!groups) return false;
        SharedKeys shared(problem, tiles);
        for (int64_t s = 0; s < call.segment_count; ++s) {
            shared.list(s, group_count);
            if (call.segments[s].query_end > call.segments[s].query_begin && is_short(call.segments[s]))
                list_segment(s, shared);
        }
        for (int64_t s = 0; s < call.segment_count; ++s)
            if (shared.next(s) >= 0)
                for (int64_t n = shared.first(s); n < shared.first(s + 1); ++n)
                    groups[n].next = shared.first(shared.next(s)) + n - shared.first(s);
        int64_t ranges = behind ? 1 : min(threads, group_count);
        task_stride = ranges > 0 ? threads / ranges : 1;
        part_bytes = PartialSoftmax::bytes(max_rows, output_columns(problem));
        if (parts == group_count) return true;
        memory = (char*)allocate_aligned(part_bytes * (size_t)parts);
        return memory != nullptr;
    }

    void list_segment(int64_t s, const SharedKeys& shared) {
        const ll_call& call = problem.call;
        const ll_segment& segment = call.segments[s];
        int64_t heads = heads_together(call, segment.query_end - segment.query_begin);
        int64_t group = call.query_heads / call.key_heads, chunks = 0;
        for (int64_t row = 0; row < (segment.row < 0 ? call.batch : 1); ++row)
            for (int64_t head = 0; head < call.query_heads;) {
                int64_t heads_here = min(heads, group - head % group);
                Tile tile = tiles.tile_of(s, row, head, 0);
                if (chunks == 0 || call.intervals.starts) {  // spans show every row and head the same keys
                    Visibility visible;
                    find_visible(call, tile, visible);
                    chunks = chunk_count(visible);
                }
                int64_t common = shared.chunks(s), before = shared.follows(s) ? common : 0;
                groups[group_count++] = {tile, (int)heads_here, chunks, parts, common, -1, before, tasks, chunks};
                tasks += chunks - before, parts += chunks;
                head += heads_here;
            }
    }

    HeadGroup& group_of(int64_t task) const {
        return groups[index_of_last(group_count, [&](int64_t n) { return groups[n].first <= task; })];
    }

    // Merges the partial results of each row in order, and divides by the total.
    void merge(const HeadGroup& group, char* parts, DecodeScratch& own) const {
        int64_t columns = output_columns(problem);
        Float kept = problem.dropout_threshold ? (Float)(1.0 - problem.call.dropout) : 1;
        for (int h = 0; h < group.heads; ++h) {
            Tile tile = group.head(h);
            Softmax softmax;
            for (int i = 0; i < tile.count; ++i) {
                int r = h * tile.count + i;
                Float* row = own.merged + i * columns;
                Float &peak = softmax.peak[i], &total = softmax.total[i];
                bool keeps = !problem.dropout_threshold;
                for (int64_t n = 0; n < group.chunks && !keeps; ++n)
                    keeps = PartialSoftmax(parts + (size_t)n * part_bytes, group.rows()).kept[r] != 0;
                __builtin_memset(row, 0, sizeof(Float) * (size_t)columns);
                for (int64_t n = 0; n < group.chunks; ++n) {
                    PartialSoftmax part(parts + (size_t)n * part_bytes, group.rows());
                    if (part.total[r] == 0) continue;
                    Float before = peak;
                    peak = part.peak[r] > before ? part.peak[r] : before;
                    Vec powers{};
                    powers[0] = before, powers[1] = part.peak[r];
                    powers = exp2((powers - finite_peak(broadcast(peak))) * problem.exponent);
                    total = total * powers[0] + part.total[r] * powers[1];
                    if (!keeps) powers = broadcast(1);  // the sums are zero, whatever the total is
                    const Float* add = part.output + r * columns;
                    for (int64_t c = 0; c < columns; c += LANES)
                        store(row + c, load<Vec>(row + c) * powers[0] + load<Vec>(add + c) * powers[1]);
                }
                Float whole = total_with_sink(problem, sink_of(problem.call, tile), peak, total) * kept,
                      share = keeps ? 1 / whole : 1;
                bool nothing = whole == 0;  // the output is zero then, even with a sink that is NaN
                for (int64_t c = 0; c < columns; c += LANES)
                    store(row + c, nothing ? Vec{} : load<Vec>(row + c) * share);
            }
            write_tile(problem, tile, softmax, [&](int i) { return own.merged + i * columns; }, nullptr);
        }
    }

    // The first keys that a task reads.
    MemoryRows keys_of(int64_t task) const {
        const ll_call& call = problem.call;
        const HeadGroup& group = group_of(min(task, tasks - 1));
        Visibility visible;
        find_visible(call, group.tile, visible);
        int64_t first = chunk_range(visible, group.before + min(task, tasks - 1) - group.first).begin;
        if (first == LL_HIGHEST) return memory_rows(call, group.tile, call.key, call.width, -1, 1);
        int64_t keys = in_pages(call) ? keys_together(call, *group.tile.segment, first, first + MAX_CHUNK) : MAX_CHUNK;
        return memory_rows(call, group.tile, call.key, call.width, first, keys);
    }

    // The partial results of a group's chunks.
    char* parts_of(const HeadGroup& group, const DecodeScratch& own) const {
        return group.chunks > 1 ? memory + part_bytes * (size_t)group.parts : own.part;
    }
    PartialSoftmax part_of(const HeadGroup& group, int64_t chunk, const DecodeScratch& own) const {
        return PartialSoftmax(parts_of(group, own) + part_bytes * (size_t)chunk, group.rows());
    }

    // A chunk of a group, and of those that share it, as many at a time as fit into MAX_ROWS rows.
    void run(int64_t task, DecodeScratch& own) {
        HeadGroup& group = group_of(task);
        Visibility visible;
        find_visible(problem.call, group.tile, visible);
        int64_t chunk = group.before + task - group.first;
        MemoryRows next = keys_of(task + task_stride);
        for (HeadGroup* member = &group; member;) {
            Together together(group.tile);
            do {
                together.groups[together.count++] = member;
                member = chunk < group.shared && member->next >= 0 ? groups + member->next : nullptr;
            } while (member && (together.count + 1) * group.rows() <= MAX_ROWS);
            PartialSoftmax part = together.count == 1 ? part_of(*together.groups[0], chunk, own)
                                                      : PartialSoftmax(own.joint, together.rows());
            DecodeChunk(problem, together, visible, chunk, own, part, next).run();
            for (int n = 0; n < together.count; ++n) finish(*together.groups[n], chunk, together, n, part, own);
        }
    }

    // Keeps the result of a chunk, the n-th of `part`; the last chunk of a group to be computed merges all.
    void finish(HeadGroup& group, int64_t chunk, const Together& together, int n, const PartialSoftmax& part,
                DecodeScratch& own) {
        if (together.count > 1)
            part.copy(n * group.rows(), group.rows(), output_columns(problem), problem.dropout_threshold != 0,
                      part_of(group, chunk, own));
        if (__atomic_sub_fetch(&group.left, 1, __ATOMIC_ACQ_REL) == 0) merge(group, parts_of(group, own), own);
    }
};

inline void decode_task(DecodeJob& job, int64_t n) {
    if (should_stop(job.status)) return;
    Arena arena{thread_scratch<DecodeScratch>(job.status, job.problem)};
    if (!arena.memory) return;
    DecodeScratch own(arena, job.problem);
    job.run(n, own);
}

}  // namespace
}  // namespace limelight::LL_NAMESPACE
