// What decoding is divided into: groups of heads that read the same keys, their partial results, and scratch memory.
#pragma once

#include "../../library.h"
#include "../../simd/vector.h"
#include "../../task.h"
#include "../../tiles/shapes.h"
#include "../blocks.h"
#include "../pages.h"
#include "../problem.h"
#include "../visibility.h"
#include "panels.h"
#include "pieces.h"
#include "prefetch.h"

namespace limelight::LL_NAMESPACE {
namespace {

// The floats of a row of the output's sums.
LL_INLINE int64_t output_columns(const Problem& problem) { return round_up(problem.call.value_width, PIECE); }

// Query heads that read the keys of one key head together, of one segment and batch row. A *row* is a query of one of
// them.
struct HeadGroup {
    Tile tile;  // of the first head
    int heads;
    int64_t chunks;  // how many chunks its keys form
    int64_t parts;   // index of the first of their partial results
    int64_t shared;  // chunks at the beginning that several groups have in common
    int64_t next;    // the next of these groups, or -1
    int64_t before;  // chunks at the beginning that another group computes
    int64_t first;   // task of the first of the others
    int64_t left;    // chunks not yet computed

    int rows() const { return heads * tile.count; }
    Tile head(int h) const {
        Tile of = tile;
        of.head += h;
        return of;
    }
};

// The softmax over some of the keys: the sum of weights relative to the peak, and of the values so weighted. Where no
// key is seen, the total is 0 and the output undefined.
struct PartialSoftmax {
    Float *peak, *total;  // [rows]
    Float* kept;          // [rows]: 0 where dropout keeps none of the visible keys; unused without dropout
    Float* output;        // [rows][columns]

    static size_t bytes(int64_t rows, int64_t columns) {
        return sizeof(Float) * (size_t)round_up(round_up(3 * rows, LANES) + rows * columns, 64);
    }
    PartialSoftmax(char* memory, int64_t rows)
        : peak((Float*)memory), total(peak + rows), kept(total + rows), output(peak + round_up(3 * rows, LANES)) {}

    // Copies `rows` rows, from row `first` on, to the rows of another one.
    void copy(int64_t first, int64_t rows, int64_t columns, bool with_kept, const PartialSoftmax& to) const {
        size_t bytes = sizeof(Float) * (size_t)rows;
        __builtin_memcpy(to.peak, peak + first, bytes), __builtin_memcpy(to.total, total + first, bytes);
        if (with_kept) __builtin_memcpy(to.kept, kept + first, bytes);
        __builtin_memcpy(to.output, output + first * columns, bytes * (size_t)columns);
    }
};

// `keys` keys or values from `key` on, which lie at equal distances; any address where `key` is -1.
inline MemoryRows memory_rows(const ll_call& call, const Tile& tile, const ll_tensor& tensor, int64_t width,
                              int64_t key, int64_t keys) {
    int64_t size = call.quantized ? 1 : (int64_t)sizeof(Stored);
    const char* row = key < 0     ? (const char*)tensor.data
                      : size == 1 ? (const char*)key_row<uint8_t>(call, tensor, tile, key)
                                  : (const char*)key_row(call, tensor, tile, key);
    return {row, tensor.strides[2] * size, width * size, (int)keys, key};
}

constexpr int EIGHT = 8;  // rows of 8 bits that are converted between prefetches

// Groups that read the same keys in the same pages: a segment of its own each, and as many rows each.
struct Together {
    const Tile& tile;  // in whose segment the keys are counted
    HeadGroup* groups[MAX_ROWS];
    int count = 0;

    explicit Together(const Tile& t) : tile(t) {}

    int rows() const { return count * groups[0]->rows(); }
    int heads() const { return count * groups[0]->heads; }
    // Head h of all.
    Tile head(int h) const { return groups[h / groups[0]->heads]->head(h % groups[0]->heads); }
    Tile head_of_row(int r) const { return head(r / tile.count); }
    // A block in the segment of head h.
    Block block_of(const Block& block, int h) const {
        Block own = block;
        own.begin += head(h).segment->key_begin - tile.segment->key_begin;
        return own;
    }
};

struct DecodeScratch {
    int64_t query_columns;
    Float* queries;     // [MAX_ROWS][query_columns]
    Float* scores;      // [MAX_ROWS][SCORE_ROW], then weights
    Float* transposed;  // [BLOCK_KEYS][QUERIES], of one head
    char* part;         // PartialSoftmax of a group with one chunk
    Float* merged;      // [MAX_QUERIES][columns]
    Stored* values;     // [MAX_CHUNK][value width]; masked passes only
    uint8_t* seen;      // [MAX_ROWS][SCORE_ROW]; masked passes, and with dropout
    char* joint;        // PartialSoftmax of groups that are computed together
    KeyFloat* columns;  // [group of LANES rows][query column][row]; for groups that are computed together
    MemoryRows* sets;   // [2 * MAX_CHUNK + 1]: see DecodeChunk::list_sets
    Stored* unit;       // [UNIT][width or value width]: rows of 8 bits as elements
    Float* scales;      // [MAX_CHUNK], of keys or values of 8 bits
    Float query_scales[MAX_ROWS];

    DecodeScratch(Arena& arena, const Problem& problem) : query_columns(round_up(problem.call.width, PIECE)) {
        queries = arena.take<Float>(MAX_ROWS * query_columns);
        scores = arena.take<Float>(MAX_ROWS * SCORE_ROW);
        transposed = arena.take<Float>(BLOCK_KEYS * QUERIES);
        part = arena.take<char>((int64_t)PartialSoftmax::bytes(MAX_ROWS, output_columns(problem)));
        merged = arena.take<Float>(MAX_QUERIES * output_columns(problem));
        values = arena.take<Stored>(MAX_CHUNK * problem.call.value_width);
        seen = arena.take<uint8_t>(MAX_ROWS * SCORE_ROW);
        joint = arena.take<char>(
            in_pages(problem.call) ? (int64_t)PartialSoftmax::bytes(MAX_ROWS, output_columns(problem)) : 0);
        columns = arena.take<KeyFloat>(in_pages(problem.call) ? MAX_ROWS * query_columns : 0);
        sets = arena.take<MemoryRows>(2 * MAX_CHUNK + 1);
        bool bytes = problem.call.quantized;
        unit = arena.take<Stored>(bytes ? UNIT * max(problem.call.width, problem.call.value_width) : 0);
        scales = arena.take<Float>(bytes ? MAX_CHUNK : 0);
    }
};

}  // namespace
}  // namespace limelight::LL_NAMESPACE
