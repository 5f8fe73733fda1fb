// One chunk of the keys that a group of query heads reads together.
#pragma once

#include "../../library.h"
#include "../../simd/elementary.h"
#include "../../simd/elements.h"
#include "../../simd/vector.h"
#include "../../task.h"
#include "../../tiles/operands.h"
#include "../../tiles/reach.h"
#include "../../tiles/shapes.h"
#include "../additive.h"
#include "../blocks.h"
#include "../pages.h"
#include "../problem.h"
#include "../rules.h"
#include "../scores.h"
#include "../softmax.h"
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
    StridedRows* sets;  // [2 * MAX_CHUNK + 1]: see DecodeChunk::list_sets

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
        sets = arena.take<StridedRows>(2 * MAX_CHUNK + 1);
    }
};

// How many visible keys form a chunk: few in a short cache, so that all threads get some; more in a long one, because
// memory idles briefly when a chunk begins.
inline int64_t chunk_size(int64_t seen) { return seen < 8192 ? MAX_CHUNK / 2 : MAX_CHUNK; }

inline int64_t chunk_count(const Visibility& visible) {
    int64_t keys = seen_keys(visible), size = chunk_size(keys);
    return max<int64_t>(1, (keys + size - 1) / size);
}

// The range of keys of a chunk: chunks count visible keys.
inline Range chunk_range(const Visibility& visible, int64_t chunk) {
    int64_t size = chunk_size(seen_keys(visible));
    int64_t before = chunk * size, after = before + size;  // visible keys still to be skipped
    Range keys{LL_HIGHEST, LL_HIGHEST};
    for (int n = 0; n < visible.range_count; ++n) {
        Range range = visible.ranges[n];
        int64_t length = range.end - range.begin;
        if (before >= 0 && before < length) keys.begin = range.begin + before;
        if (after >= 0 && after < length) keys.end = range.begin + after;
        before -= length, after -= length;
    }
    return keys;
}

struct DecodeChunk {
    const Problem& problem;
    const ll_call& call;
    const Together& together;
    const Tile& tile;
    const Visibility& visible;
    Range keys;
    DecodeScratch& own;
    PartialSoftmax part;
    StridedRows next_keys;  // that this thread will probably read next
    int set_count = 0;      // of rows at equal distances that the keys form, and the values
    int count = 0;          // keys of the chunk that some query sees
    PrefetchStream prefetch;

    DecodeChunk(const Problem& p, const Together& t, const Visibility& v, int64_t number, DecodeScratch& scratch,
                PartialSoftmax to, const StridedRows& next)
        : problem(p),
          call(p.call),
          together(t),
          tile(t.tile),
          visible(v),
          keys(chunk_range(v, number)),
          own(scratch),
          part(to),
          next_keys(next) {}

    // f(block, index of its first key in the rows of scores); returns the number of keys.
    template <class F>
    LL_INLINE int for_each_block(F f) const {
        BlockWalk walk(call, tile, visible, keys.begin, keys.end);
        walk.step = 1;
        int at = 0;
        for (Block block; walk.next(block); at += block.count) f(block, at);
        return at;
    }

    // f(first key, number of keys); consecutive blocks are joined.
    template <class F>
    LL_INLINE void for_each_range(F f) const {
        int64_t begin = 0;
        int keys = 0;
        for_each_block([&](const Block& block, int) {
            if (begin + keys != block.begin) {
                if (keys > 0) f(begin, keys);
                begin = block.begin, keys = 0;
            }
            keys += block.count;
        });
        if (keys > 0) f(begin, keys);
    }

    // Lists the chunk's keys as sets of rows at equal distances, in the order in which they are read; then its values;
    // then the keys that are read after them.
    void list_sets() {
        auto list = [&](const ll_tensor& tensor, int64_t width, StridedRows* to) {
            for_each_range([&](int64_t begin, int keys_of_range) {
                for_each_page(call, *tile.segment, {begin, begin + keys_of_range}, [&](int64_t key, int64_t keys) {
                    *to++ = {row_of(tensor, key), tensor.strides[2], width, (int)keys};
                });
            });
            return to;
        };
        set_count = (int)(list(call.key, call.width, own.sets) - own.sets);
        *list(call.value, call.value_width, own.sets + set_count) = next_keys;
    }

    // f(keys, values, index of the first in the rows of scores) for each set.
    template <class F>
    LL_INLINE void for_each_set(F f) const {
        int at = 0;
        for (int n = 0; n < set_count; at += own.sets[n++].keys) f(own.sets[n], own.sets[set_count + n], at);
    }

    const Stored* row_of(const ll_tensor& tensor, int64_t key) const { return key_row(call, tensor, tile, key); }

    void load_queries() const {
        for (int r = 0; r < together.rows(); ++r) {
            Float* to = own.queries + r * own.query_columns;
            Tile head = together.head_of_row(r);
            read_row(row_at<const Stored>(call.query, head.row, head.head, head.first_query + r % head.count),
                     call.width, to, own.query_columns);
            if (call.compare) continue;
            for (int64_t d = 0; d < own.query_columns; d += PIECE) {  // in the order in which read_key lays out a key
                Vec first = load<Vec>(to + d), second = load<Vec>(to + d + PIECE - LANES);
                for (int p = 0; p < PIECE_PARTS; ++p) {
                    Vec part = PIECE_PARTS == 1 ? first : shuffle(first, second, 2 * iota() + p);
                    store(to + d + p * LANES, part * problem.query_factor);
                }
                if constexpr (sizeof(KeyFloat) * KEY_FLOATS < PIECE * sizeof(Float))
                    store(to + d / PIECE * KEY_FLOATS, fold(load<Vec>(to + d), load<Vec>(to + d + PIECE - LANES)));
            }
        }
    }

    void compare(const Block& block, Float* scores) const {
        for (int r = 0; r < together.rows(); ++r)
            for (int j = 0; j < block.count; ++j)
                scores[r * SCORE_ROW + j] =
                    additive_pair(row_of(call.key, block.begin + j), own.queries + r * own.query_columns,
                                  compare_vector(call, together.head_of_row(r).head), call.width);
    }

    // Score rules and masks: as in every other tile, one head at a time.
    void apply_rules_and_masks(const Block& block, Float* scores) const {
        for (int h = 0; h < together.heads(); ++h) {
            Tile head = together.head(h);
            Block own_block = together.block_of(block, h);
            Float* rows = scores + h * head.count * SCORE_ROW;
            for (int j = 0; j < block.count; ++j)
                for (int i = 0; i < head.count; ++i) own.transposed[j * QUERIES + i] = rows[i * SCORE_ROW + j];
            if (call.rule_count > 0) apply_rules(problem, head, own_block, own.transposed, nullptr);
            if (block.masked_by_intervals) mask_by_intervals(visible, head, own_block, own.transposed);
            if (block.masked_by_bits) mask_by_bits(call, head, own_block, own.transposed);
            for (int i = 0; i < head.count; ++i)
                for (int j = 0; j < block.count; ++j) rows[i * SCORE_ROW + j] = own.transposed[j * QUERIES + i];
        }
    }

    void score() {
        if (set_count > 0) prefetch = PrefetchStream(own.sets, 2 * set_count + 1);
        int64_t columns = call.width / PIECE * LANES;  // of KeyFloat, where the width is whole pieces
        bool transposed = together.count > 1 && !call.compare && rows_along_lanes(together.rows(), call.width);
        if (transposed)
            transpose_rows((const KeyFloat*)own.queries, together.rows(), own.query_columns, columns, own.columns);
        for_each_set([&](const StridedRows& key, const StridedRows&, int at) {
            if (call.compare) return;
            for (int r = 0; transposed && r < together.rows(); r += LANES)
                dot_columns(key, own.columns + r * columns, r == 0 ? &prefetch : nullptr,
                            own.scores + r * SCORE_ROW + at);
            if (transposed) return;
            dot_product(key, (const KeyFloat*)own.queries, together.rows(), own.query_columns, prefetch,
                        own.scores + at);
        });
        count = for_each_block([&](const Block& block, int at) {
            if (call.compare) compare(block, own.scores + at);
            if (call.rule_count > 0 || block.masked_by_intervals || block.masked_by_bits)
                apply_rules_and_masks(block, own.scores + at);
        });
        for (int r = 0; r < together.rows(); ++r)  // up to whole vectors
            for (int j = count; j < round_up(count, LANES); ++j) own.scores[r * SCORE_ROW + j] = -INF;
    }

    // Replaces the scores of ROWS rows by weights, side by side: each row alone is a chain of dependent additions.
    template <int ROWS>
    void softmax_rows(int row, int64_t prefetched) {
        Float* scores = own.scores + row * SCORE_ROW;
        Vec row_max[ROWS], peak[ROWS], total[ROWS];
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; ++r) row_max[r] = broadcast(-INF), total[r] = Vec{};
        for (int j = 0; j < count; j += LANES)
#pragma GCC unroll 4
            for (int r = 0; r < ROWS; ++r) row_max[r] = max(row_max[r], load<Vec>(scores + r * SCORE_ROW + j));
        for (int r = 0; r < ROWS; ++r) {
            part.peak[row + r] = reduce_max(row_max[r]);
            peak[r] = finite_peak(broadcast(part.peak[row + r]));
        }
        for (int j = 0; j < count; j += LANES) {
            prefetch.advance(prefetched);
#pragma GCC unroll 4
            for (int r = 0; r < ROWS; ++r) {
                Float* at = scores + r * SCORE_ROW + j;
                Vec weight = exp2_weight((peak[r] - load<Vec>(at)) * broadcast(-problem.exponent));
                store(at, weight);
                total[r] += weight;
            }
        }
        for (int r = 0; r < ROWS; ++r) part.total[row + r] = reduce_add(total[r]);
    }

    void softmax() {
        FlushSubnormals scope;
        // elements to prefetch for each vector of keys
        int64_t elements = call.value_width * UNPREFETCHED_KEYS * LANES / UNIT;
        for_each_panel(together.rows(),
                       [&](auto panel, int r) { softmax_rows<decltype(panel)::VALUE>(r, r == 0 ? elements : 0); });
    }

    void apply_dropout(const Block& block, int at) const {
        for (int h = 0; h < together.heads(); ++h) {
            Tile head = together.head(h);
            for_each_dropped(problem, head, together.block_of(block, h), [&](int j, int first, IntVec dropped) {
                for (int i = first; i < min(first + LANES, head.count); ++i) {
                    int row = h * head.count + i;
                    if (dropped[i - first]) own.scores[row * SCORE_ROW + at + j] = 0;
                    else if (own.seen[row * SCORE_ROW + at + j]) part.kept[row] = 1;
                }
            });
        }
    }

    // Visible pairs only: a row of V that is not finite counts as zero, and is added separately to the rows that see
    // it.
    void add_values_masked(const StridedRows& value, int at) {
        int64_t width = call.value_width, columns = output_columns(problem);
        for (int j = 0; j < value.keys; ++j) {
            Stored* to = own.values + j * width;
            bool nonfinite = !finite_row(value.at(j), width);
            if (nonfinite) __builtin_memset(to, 0, sizeof(Stored) * (size_t)width);
            else __builtin_memcpy(to, value.at(j), sizeof(Stored) * (size_t)width);
            for (int r = 0; nonfinite && r < together.rows(); ++r)
                if (own.seen[r * SCORE_ROW + at + j])
                    for (int64_t c = 0; c < width; ++c)
                        part.output[r * columns + c] += own.scores[r * SCORE_ROW + at + j] * read(value.at(j) + c);
        }
        value_product(own.scores + at, {own.values, width, width, value.keys}, together.rows(), prefetch, part.output,
                      columns);
    }

    template <bool masked>
    void compute() {
        score();
        for (int x = 0; (masked || problem.dropout_threshold) && x < together.rows() * SCORE_ROW; ++x)
            own.seen[x] = own.scores[x] != -INF;
        softmax();
        for (int r = 0; problem.dropout_threshold && r < together.rows(); ++r) part.kept[r] = 0;
        if (problem.dropout_threshold) for_each_block([&](const Block& block, int at) { apply_dropout(block, at); });
        __builtin_memset(part.output, 0, sizeof(Float) * (size_t)(together.rows() * output_columns(problem)));
        for_each_set([&](const StridedRows&, const StridedRows& value, int at) {
            if (masked) return add_values_masked(value, at);
            value_product(own.scores + at, value, together.rows(), prefetch, part.output, output_columns(problem));
        });
    }

    bool finite() const {
        IntVec bad{};
        for (int64_t x = 0; x < together.rows() * output_columns(problem); x += LANES) {
            Vec y = load<Vec>(part.output + x);
            bad |= (y - y) != 0;
        }
        return !any(bad);
    }

    void run() {
        load_queries();
        list_sets();
        compute<false>();
        if (!finite()) compute<true>();
    }
};

}  // namespace
}  // namespace limelight::LL_NAMESPACE
