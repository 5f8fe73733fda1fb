// One chunk of the keys that a group of query heads reads together.
#pragma once

#include "../../library.h"
#include "../../simd/eight_bits.h"
#include "../../simd/elementary.h"
#include "../../simd/elements.h"
#include "../../simd/hadamard.h"
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
#include "integers.h"
#include "panels.h"
#include "parts.h"
#include "pieces.h"
#include "prefetch.h"

namespace limelight::LL_NAMESPACE {
namespace {

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
    MemoryRows next_keys;  // that this thread will probably read next
    int set_count = 0;     // of rows at equal distances that the keys form, and the values
    int count = 0;         // keys of the chunk that some query sees
    PrefetchStream prefetch;

    DecodeChunk(const Problem& p, const Together& t, const Visibility& v, int64_t number, DecodeScratch& scratch,
                PartialSoftmax to, const MemoryRows& next)
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
        auto list = [&](const ll_tensor& tensor, int64_t width, MemoryRows* to) {
            for_each_range([&](int64_t begin, int keys_of_range) {
                for_each_page(call, *tile.segment, {begin, begin + keys_of_range}, [&](int64_t key, int64_t keys) {
                    *to++ = memory_rows(call, tile, tensor, width, key, keys);
                });
            });
            return to;
        };
        set_count = (int)(list(call.key, call.width, own.sets) - own.sets);
        *list(call.value, call.value_width, own.sets + set_count) = next_keys;
        for (int n = 0; call.quantized && n < set_count; ++n)
            prefetch_scales(call.quantized->key_scale, own.sets[n]),
                prefetch_scales(call.quantized->value_scale, own.sets[n]);
    }

    void prefetch_scales(const ll_tensor& scale, const MemoryRows& set) const {
        const Float* from = key_row<Float>(call, scale, tile, set.key);
        if (scale.strides[2] == 1) prefetch_rows(from, 0, 1, set.keys + 64 / (int64_t)sizeof(Float) - 1);
    }

    // Whether keys and values are multiplied as integers.
    bool integers() const { return HAS_INTEGERS && call.quantized && call.quantized->element == LL_INT8; }

    // f(rows, index of the first in the rows of scores) for each set of keys, or of values, as elements.
    template <class F>
    LL_INLINE void for_each_set(bool values, F f) {
        const MemoryRows* sets = own.sets + (values ? set_count : 0);
        int64_t width = values ? call.value_width : call.width;
        for (int n = 0, at = 0; n < set_count; ++n) {
            const MemoryRows& set = sets[n];
            for (int first = 0, count; first < set.keys; first += count, at += count) {
                if constexpr (HAS_INTEGERS)
                    if (integers()) {
                        count = set.keys;
                        f(RowsOf<int8_t>{(const int8_t*)set.row, set.stride, width, count}, at);
                        continue;
                    }
                count = call.quantized ? min(UNIT, set.keys - first) : set.keys;
                StridedRows rows{(const Stored*)set.row, set.stride / (int64_t)sizeof(Stored), width, count};
                if (call.quantized) {
                    read_unit(set, first, count, values ? UNPREFETCHED_KEYS : 0);
                    rows = {own.unit, width, width, count};
                }
                f(rows, at);
            }
        }
    }

    // Reads rows of 8 bits as elements; the first `unprefetched` of them without a prefetch.
    void read_unit(const MemoryRows& set, int first, int count, int unprefetched) {
        const uint8_t* from = (const uint8_t*)set.row + first * set.stride;
        for (int j = 0; j < count; j += EIGHT) {
            int rows = min(EIGHT, count - j);
            read_bytes(call.quantized->element, from + j * set.stride, set.stride, rows, set.width,
                       own.unit + j * set.width);
            prefetch.advance_bytes((rows - (j == 0 ? unprefetched : 0)) * set.width);
        }
    }

    // What the products of keys and a query are multiplied by beside the scale of the key.
    Float query_share(int r) const {
        if (!integers()) return 1;
        return problem.query_factor * (own.query_scales[r] == own.query_scales[r] ? own.query_scales[r] : 1);
    }

    // Multiplies the scores or weights of each key by its scale; `masked`: of the weights of visible pairs alone.
    __attribute__((noinline)) void multiply_scales(const ll_tensor& scale, bool masked) const {
        int keys = 0;
        for (int n = 0; n < set_count; ++n) {
            const Float* from = key_row<Float>(call, scale, tile, own.sets[n].key);
            for (int j = 0; j < own.sets[n].keys; ++j) own.scales[keys++] = from[j * scale.strides[2]];
        }
        for (int r = 0; r < together.rows(); ++r) {
            Float* row = own.scores + r * SCORE_ROW;
            const uint8_t* seen = own.seen + r * SCORE_ROW;
            Float share = &scale == &call.quantized->key_scale ? query_share(r) : 1;
            for (int64_t j = 0; j < keys; j += LANES) {
                Vec by = load_partial(own.scales + j, keys - j);
                store(row + j, load<Vec>(row + j) * share * by);
            }
            for (int64_t j = 0; masked && j < keys; ++j)
                if (!seen[j]) row[j] = 0;
        }
    }

    const Stored* row_of(const ll_tensor& tensor, int64_t key) const { return key_row(call, tensor, tile, key); }

    void load_queries() const {
        for (int r = 0; r < together.rows(); ++r) {
            Float* to = own.queries + r * own.query_columns;
            Tile head = together.head_of_row(r);
            read_row(row_at<const Stored>(call.query, head.row, head.head, head.first_query + r % head.count),
                     call.width, to, own.query_columns);
            if (rotates(call)) hadamard(to, call.width);
            if (call.compare) continue;
            if (integers()) {
                own.query_scales[r] = round_query(to, own.query_columns);
                continue;
            }
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

    // Scores of keys from column `at` on; `transposed`: the queries are in `columns`.
    void score_elements(const StridedRows& key, int at, bool transposed) {
        bool ahead = !call.quantized;
        int64_t columns = call.width / PIECE * LANES;  // of KeyFloat, where the width is whole pieces
        for (int r = 0; transposed && r < together.rows(); r += LANES)
            dot_columns(key, own.columns + r * columns, ahead && r == 0 ? &prefetch : nullptr,
                        own.scores + r * SCORE_ROW + at);
        if (transposed) return;
        dot_product<StoredKeys>(key, (const KeyFloat*)own.queries, together.rows(), own.query_columns, prefetch, ahead,
                                own.scores + at);
    }

    template <class ROWS>
    void score_integers(const ROWS& key, int at) {
        dot_product<IntegerKeys>(key, (const Factor*)own.queries, together.rows(), own.query_columns, prefetch, true,
                                 own.scores + at);
        for (int r = 0; r < together.rows(); ++r)
            if (own.query_scales[r] != own.query_scales[r]) score_nonfinite(key, r, own.scores + r * SCORE_ROW + at);
    }

    // Scores of a query that is not finite, which has no integers.
    void score_nonfinite(const RowsOf<int8_t>& key, int r, Float* scores) const {
        const Float* query = own.queries + r * own.query_columns;
        for (int j = 0; j < key.keys; ++j) {
            scores[j] = 0;
            for (int64_t d = 0; d < call.width; ++d) scores[j] += query[d] * (Float)key.at(j)[d];
        }
    }

    void score() {
        if (set_count > 0) prefetch = PrefetchStream(own.sets, 2 * set_count + 1);
        int64_t columns = call.width / PIECE * LANES;  // of KeyFloat, where the width is whole pieces
        bool transposed = together.count > 1 && !call.compare && rows_along_lanes(together.rows(), call.width);
        if (transposed)
            transpose_rows((const KeyFloat*)own.queries, together.rows(), own.query_columns, columns, own.columns);
        for_each_set(false, [&](const auto& key, int at) {
            if (call.compare) return;
            if constexpr (sizeof *key.row == 1) return score_integers(key, at);
            else score_elements(key, at, transposed);
        });
        if (call.quantized) multiply_scales(call.quantized->key_scale, false);
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
            prefetch.advance_bytes(prefetched);
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
        // bytes to prefetch for each vector of keys
        int64_t width = call.value_width * (call.quantized ? 1 : (int64_t)sizeof(Stored));
        int64_t bytes = width * UNPREFETCHED_KEYS * LANES / UNIT;
        for_each_panel(together.rows(),
                       [&](auto panel, int r) { softmax_rows<decltype(panel)::VALUE>(r, r == 0 ? bytes : 0); });
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
        value_product<StoredValues>(own.scores + at, {own.values, width, width, value.keys}, together.rows(), prefetch,
                                    !call.quantized, part.output, columns);
    }

    template <bool masked>
    void compute() {
        score();
        for (int x = 0; (masked || problem.dropout_threshold) && x < together.rows() * SCORE_ROW; ++x)
            own.seen[x] = own.scores[x] != -INF;
        softmax();
        for (int r = 0; problem.dropout_threshold && r < together.rows(); ++r) part.kept[r] = 0;
        if (problem.dropout_threshold) for_each_block([&](const Block& block, int at) { apply_dropout(block, at); });
        if (call.quantized) multiply_scales(call.quantized->value_scale, masked);
        __builtin_memset(part.output, 0, sizeof(Float) * (size_t)(together.rows() * output_columns(problem)));
        for_each_set(true, [&](const auto& value, int at) {
            if constexpr (sizeof *value.row == 1) {
                value_product<IntegerValues>(own.scores + at, value, together.rows(), prefetch, true, part.output,
                                             output_columns(problem));
            } else if (masked) add_values_masked(value, at);
            else
                value_product<StoredValues>(own.scores + at, value, together.rows(), prefetch, !call.quantized,
                                            part.output, output_columns(problem));
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
