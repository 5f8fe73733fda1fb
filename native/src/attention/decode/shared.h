// Documents that begin with the same pages, such as a system prompt: decode() reads their common keys once for all.
//
// What is computed for a document stays the same, bit by bit: the common keys are whole chunks of each document, and
// only the order of the work changes.
#pragma once

#include <stdlib.h>

#include "../../library.h"
#include "../../simd/vector.h"
#include "../pages.h"
#include "../problem.h"
#include "../tiling.h"
#include "../visibility.h"
#include "chunk.h"

namespace limelight::LL_NAMESPACE {
namespace {

// Sets of short segments whose first chunks of keys are the same. The first segment of a set leads it.
class SharedKeys {
    struct Member {
        int64_t chunks;        // of the leader: chunks that the set has in common; of others: whole chunks that all see
        int64_t size;          // keys of a chunk
        int64_t leader, next;  // -1: none
        int64_t last, members;  // of a leader
        int64_t first;          // its first group of heads
    };
    const Problem& problem;
    Member* of = nullptr;  // [segment]

public:
    SharedKeys(const Problem& p, const Tiles& tiles) : problem(p) {
        const ll_call& call = p.call;
        if (!in_pages(call) || call.tiles.state || call.intervals.head_stride != 0 || call.segment_count < 2) return;
        of = (Member*)malloc(sizeof(Member) * (size_t)call.segment_count);
        for (int64_t s = 0; of && s < call.segment_count; ++s) {
            of[s] = {0, 0, s, -1, s, 1, 0};
            if (is_short(call.segments[s]) && tiles.in_segment(s) > 0) add(tiles, s);
        }
        for (int64_t s = 0; of && s < call.segment_count; ++s)
            if (of[s].leader == s && of[s].members == 1) of[s].chunks = 0;
    }
    SharedKeys(const SharedKeys&) = delete;
    ~SharedKeys() { free(of); }

    // The chunks that a segment has in common with others.
    int64_t chunks(int64_t s) const { return of ? of[of[s].leader].chunks : 0; }
    bool follows(int64_t s) const { return of && of[s].leader != s; }
    // The segment of the same set that comes after s, or -1.
    int64_t next(int64_t s) const { return of ? of[s].next : -1; }

    // The first group of heads of a segment.
    void list(int64_t s, int64_t group) {
        if (of) of[s].first = group;
    }
    int64_t first(int64_t s) const { return of[s].first; }

private:
    // Puts a segment into the set that it has most in common with, unless the set would then share less as a whole.
    void add(const Tiles& tiles, int64_t s) {
        const ll_call& call = problem.call;
        const ll_segment& segment = call.segments[s];
        Visibility visible;
        find_visible(call, tiles.tile_of(s, 0, 0, 0), visible);
        bool from_start = visible.range_count > 0 && visible.last_start == segment.key_begin;
        of[s].size = chunk_size(seen_keys(visible));
        of[s].chunks = from_start ? max<int64_t>(visible.first_end - segment.key_begin, 0) / of[s].size : 0;
        int64_t best = -1, most = 0;
        for (int64_t n = 0; n < s && of[s].chunks > 0; ++n) {
            if (of[n].leader != n || of[n].size != of[s].size || of[n].chunks == 0) continue;
            int64_t chunks = common_chunks(n, s), members = of[n].members;
            bool gains = members == 1 || members * chunks >= (members - 1) * of[n].chunks;
            if (chunks > most && gains) best = n, most = chunks;
        }
        if (best < 0) return;
        Member& leader = of[best];
        of[leader.last].next = s, of[s].leader = best;
        leader.last = s, leader.chunks = most, ++leader.members;
    }

    // How many chunks at the beginning of two segments lie in the same pages.
    int64_t common_chunks(int64_t a, int64_t b) const {
        const ll_segment &first = problem.call.segments[a], &second = problem.call.segments[b];
        const ll_pages& pages = problem.call.pages;
        int64_t slot = first.key_begin + first.page_offset, other = second.key_begin + second.page_offset;
        int64_t limit = min(of[a].chunks, of[b].chunks) * of[a].size, keys = 0;
        if (first.query_end - first.query_begin != second.query_end - second.query_begin ||
            slot % pages.size != other % pages.size)
            return 0;
        while (keys < limit && pages.table[(slot + keys) / pages.size] == pages.table[(other + keys) / pages.size])
            keys += pages.size - (slot + keys) % pages.size;
        return min(keys, limit) / of[a].size;
    }
};

}  // namespace
}  // namespace limelight::LL_NAMESPACE
