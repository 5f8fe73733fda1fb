// The two matrix products of decoding, for a few queries: vector lanes run along the head width.
#pragma once

#include "../../simd/elements.h"
#include "../../simd/vector.h"
#include "../../tiles/shapes.h"
#include "pieces.h"
#include "prefetch.h"

namespace limelight::LL_NAMESPACE {
namespace {

constexpr int MAX_ROWS = 16;     // rows computed together: the queries of all heads that share a key-value head
constexpr int MAX_CHUNK = 1024;  // keys of a chunk, at most: see chunk_size
constexpr int SCORE_ROW =
    MAX_CHUNK + LANES;  // stride of a row of scores; padded, so that rows map to different cache sets
static_assert(MAX_ROWS % LANES == 0 && MAX_QUERIES <= MAX_ROWS && MAX_QUERIES <= QUERIES &&
              MAX_CHUNK % BLOCK_KEYS == 0);

template <int N>
struct Count {
    static constexpr int VALUE = N;
};

// f(Count of rows, first row): as few panels as possible, of about the same height.
template <class F>
LL_INLINE void for_each_panel(int rows, F f) {
    for (int r = 0, left = rows; left > 0;) {
        int panels = (left + 3) / 4, height = (left + panels - 1) / panels;
        if (height == 4) f(Count<4>{}, r);
        else if (height == 3) f(Count<3>{}, r);
        else if (height == 2) f(Count<2>{}, r);
        else f(Count<1>{}, r);
        r += height, left -= height;
    }
}

constexpr int UNIT = 32;  // keys that stay in the L1 cache while all rows and columns read them

// Sums of neighbouring lanes: of a, then of b.
template <int N, int... EVEN>
struct PairSums : PairSums<N - 1, 2 * (N - 1), EVEN...> {};
template <int... EVEN>
struct PairSums<0, EVEN...> {
    template <class V>
    static LL_INLINE V of(V a, V b) {
        return __builtin_shufflevector(a, b, EVEN...) + __builtin_shufflevector(a, b, (EVEN + 1)...);
    }
};

// The sum over the lanes of vector n, in lane n.
template <int COUNT, class V>
LL_INLINE V reduce_add_each(const V* v) {
    if constexpr (COUNT == 1) return *v;
    else return PairSums<LANES>::of(reduce_add_each<COUNT / 2>(v), reduce_add_each<COUNT / 2>(v + COUNT / 2));
}

// The keys of a panel of ROWS queries.
template <int ROWS>
constexpr int PANEL_OF = ROWS > LANES ? 1
                         : ROWS == 1  ? (LANES < UNIT ? LANES : UNIT)
                         : ROWS == 3  ? LANES / 2
                                      : LANES / ROWS;

// scores[row][key] of ROWS queries and PANEL_OF<ROWS> keys; the first `keys` of them are written.
template <class KEYS_AS, int ROWS, bool PREFETCH>
LL_INLINE void dot_panel(const typename KEYS_AS::Element* key, int64_t stride, const typename KEYS_AS::Query* query,
                         int64_t columns, int64_t width, int keys, PrefetchStream& prefetch, Float* scores) {
    typedef typename KEYS_AS::Element Element;
    typedef typename KEYS_AS::Sum Sum;
    constexpr int PARTS = KEYS_AS::PARTS;
    constexpr int KEYS = PANEL_OF<ROWS>, TOGETHER = LANES / KEYS;  // rows whose sums fill a vector
    const Element* at[KEYS];
#pragma GCC unroll 16
    for (int t = 0; t < KEYS; ++t) at[t] = key + t * stride;
    Sum sum[ROWS][KEYS];
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 16
        for (int t = 0; t < KEYS; ++t) sum[r][t] = Sum{};
    auto step = [&](int64_t d, int64_t count) __attribute__((always_inline)) {
        decltype(KEYS_AS::read(at[0], 0)) q[ROWS];
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 2
            for (int p = 0; p < PARTS; ++p)
                q[r].part[p] = load<decltype(q[r].part[p] + 0)>(query + r * columns + (d / PIECE * PARTS + p) * LANES);
#pragma GCC unroll 16
        for (int t = 0; t < KEYS; ++t) {
            auto k = KEYS_AS::read(at[t] + d, count);
            if (PREFETCH && sizeof(Element) > 1)
                count == PIECE ? prefetch.template advance_piece<Element, KEYS>(d / PIECE, t)
                               : prefetch.template advance<Element>(count);
#pragma GCC unroll 16
            for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 2
                for (int p = 0; p < PARTS; ++p) sum[r][t] = multiply_add(q[r].part[p], k.part[p], sum[r][t]);
        }
        if (PREFETCH && sizeof(Element) == 1) prefetch.template advance<Element>(KEYS * count);
    };
    if constexpr (sizeof(Element) == 1) {  // one copy of the code: few lines are read in a step
        for (int64_t d = 0; d < width; d += PIECE) step(d, min<int64_t>(PIECE, width - d));
    } else {
        int64_t d = 0;
        for (; d + PIECE <= width; d += PIECE) step(d, PIECE);
        if (d < width) step(d, width - d);
    }
#pragma GCC unroll 16
    for (int first = 0; first < ROWS; first += TOGETHER) {
        Sum vectors[LANES];
#pragma GCC unroll 16
        for (int n = 0; n < LANES; ++n) vectors[n] = sum[min(first + n / KEYS, ROWS - 1)][n % KEYS];
        alignas(64) Float sums[LANES];
        store(sums, __builtin_convertvector(reduce_add_each<LANES>(vectors), Vec));
        for (int r = first; r < min(first + TOGETHER, ROWS); ++r) {
            Float* to = scores + r * SCORE_ROW;
            const Float* own = sums + (r - first) * KEYS;
            if (keys == KEYS) __builtin_memcpy(to, own, KEYS * sizeof(Float));
            else
                for (int t = 0; t < keys; ++t) to[t] = own[t];
        }
    }
}

// scores[row][key] of keys [first, first + keys).
template <class KEYS_AS, int ROWS, bool PREFETCH>
inline void dot_rows(const RowsOf<typename KEYS_AS::Element>& key, int first, int keys,
                     const typename KEYS_AS::Query* query, int64_t columns, PrefetchStream& prefetch, Float* scores) {
    constexpr int KEYS = PANEL_OF<ROWS>;
    if (keys < KEYS) {  // one key at a time, repeated KEYS times
        for (int j = first; j < first + keys; ++j)
            dot_panel<KEYS_AS, ROWS, false>(key.at(j), 0, query, columns, key.width, 1, prefetch, scores + j);
        return;
    }
    for (int j = first; j < first + keys; j += KEYS) {
        int from = min(j, first + keys - KEYS);  // the last panel overlaps the one before it
        dot_panel<KEYS_AS, ROWS, PREFETCH>(key.at(from), key.stride, query, columns, key.width, KEYS, prefetch,
                                           scores + from);
    }
}

// --- The same sums with the rows along the lanes ---------------------------------------------------------------------

// Many rows share the additions at the end then: the lanes that dot_panel adds are vectors of rows here, and added in
// the same order, so that a row has the same bits either way. Keys are read as they lie.
constexpr bool ROWS_ALONG_LANES = KEY_PARTS == 1 && sizeof(KeyFloat) == FOLD * sizeof(Stored);

LL_INLINE bool rows_along_lanes(int rows, int64_t width) {
    return ROWS_ALONG_LANES && rows > LANES / 2 && width % PIECE == 0;
}

LL_INLINE KeyFloat read_factor(const Stored* from) {
    KeyFloat factor;
    __builtin_memcpy(&factor, from, sizeof factor);
    return factor;
}

// queries[row] (see DecodeChunk::load_queries) as columns[group of LANES rows][d][row]; rows that are not there are
// zero.
inline void transpose_rows(const KeyFloat* queries, int rows, int64_t stride, int64_t count, KeyFloat* columns) {
    for (int first = 0; first < rows; first += LANES, columns += count * LANES)
        for (int64_t d = 0; d < count; ++d)
            for (int r = 0; r < LANES; ++r)
                columns[d * LANES + r] = first + r < rows ? queries[(first + r) * stride + d] : KeyFloat{};
}

// What lanes [first, first + COUNT) of the sums of dot_panel hold, added up, for each of KEYS keys.
template <int KEYS, int COUNT>
LL_INLINE void add_lanes(const Stored* const* key, const KeyFloat* columns, int64_t steps, int first, Vec* sum) {
    if constexpr (COUNT == 2) {
        Vec second[KEYS];
#pragma GCC unroll 8
        for (int t = 0; t < KEYS; ++t) sum[t] = second[t] = Vec{};
        for (int64_t s = 0; s < steps; ++s) {
            const KeyFloat* at = columns + (s * LANES + first) * LANES;
            auto even = load<decltype(KeyPiece{}.part[0] + 0)>(at), odd = load<decltype(even)>(at + LANES);
#pragma GCC unroll 8
            for (int t = 0; t < KEYS; ++t) {
                const Stored* of_lane = key[t] + (s * LANES + first) * FOLD;
                sum[t] = multiply_add(even, broadcast_factor(read_factor(of_lane)), sum[t]);
                second[t] = multiply_add(odd, broadcast_factor(read_factor(of_lane + FOLD)), second[t]);
            }
        }
#pragma GCC unroll 8
        for (int t = 0; t < KEYS; ++t) sum[t] += second[t];
    } else {
        Vec second[KEYS];
        add_lanes<KEYS, COUNT / 2>(key, columns, steps, first, sum);
        add_lanes<KEYS, COUNT / 2>(key, columns, steps, first + COUNT / 2, second);
#pragma GCC unroll 8
        for (int t = 0; t < KEYS; ++t) sum[t] += second[t];
    }
}

// scores[row][key] of LANES rows, which all have a place.
inline void dot_columns(const StridedRows& key, const KeyFloat* columns, PrefetchStream* prefetch, Float* scores) {
    constexpr int KEYS = LANES < 4 ? LANES : 4;
    int64_t steps = key.width / PIECE;
    for (int first = 0; first < key.keys; first += LANES) {
        Vec found[LANES] = {};
        int count = min(LANES, key.keys - first);
        for (int j = 0; j < count; j += KEYS) {
            const Stored* at[KEYS];
            for (int t = 0; t < KEYS; ++t) at[t] = key.at(first + min(j + t, count - 1));
            add_lanes<KEYS, LANES>(at, columns, steps, 0, found + j);
            if (prefetch) prefetch->template advance<Stored>(min(KEYS, count - j) * key.width);
        }
        transpose(found);
        for (int r = 0; r < LANES; ++r) {
            if (count == LANES) store(scores + r * SCORE_ROW + first, found[r]);
            else
                for (int t = 0; t < count; ++t) scores[r * SCORE_ROW + first + t] = found[r][t];
        }
    }
}

// scores[row][key] = sum over d of query[row][d] * key[d]. `ahead`: whether keys are prefetched as they are read.
template <class KEYS_AS>
inline void dot_product(const RowsOf<typename KEYS_AS::Element>& key, const typename KEYS_AS::Query* query, int rows,
                        int64_t columns, PrefetchStream& prefetch, bool ahead, Float* scores) {
    for (int first = 0; first < key.keys; first += UNIT)
        for_each_panel(rows, [&](auto panel, int r) {
            constexpr int ROWS = decltype(panel)::VALUE;
            int count = min(UNIT, key.keys - first);
            auto dot = ahead && r == 0 ? dot_rows<KEYS_AS, ROWS, true> : dot_rows<KEYS_AS, ROWS, false>;
            dot(key, first, count, query + r * columns, columns, prefetch, scores + r * SCORE_ROW);
        });
}

// --- Values: output[row] += sum over keys of weights[row][key] * value[key] ------------------------------------------

// Where keys are multiplied as bfloat16 pairs, so are values, two keys at a time: their rows are interleaved in the
// order of _mm512_unpacklo_epi16, and weights are rounded to bfloat16, as in every other tile.
#if defined(LL_PAIRS) && !defined(LL_AMX)
constexpr int KEYS_PER_STEP = 2;
struct ValuePiece {
    UintVec part[PIECE_PARTS];
};
LL_INLINE ValuePiece read_value(const Stored* from, const Stored* next, int64_t count) {
    __mmask32 there = count >= PIECE ? 0xffffffffu : (1u << count) - 1;
    __m512i even = _mm512_maskz_loadu_epi16(there, from), odd = _mm512_maskz_loadu_epi16(there, next);
    return {{(UintVec)_mm512_unpacklo_epi16(even, odd), (UintVec)_mm512_unpackhi_epi16(even, odd)}};
}
// The lane, in the concatenated parts of a piece, of element n of the row.
LL_INLINE IntVec lane_of(IntVec n) { return ((n >> 3) << 2) + (n & 3) + ((n >> 2) & 1) * LANES; }

// The weights of a unit of keys.
class Weights {
    alignas(64) Factor pairs[MAX_ROWS][UNIT / 2];

public:
    Weights(const Float* from, int rows, int keys) {
        static_assert(UNIT == 2 * LANES);
        for (int r = 0; r < rows; ++r) {
            Vec first = load_partial(from + r * SCORE_ROW, min(keys, LANES));
            Vec second = keys > LANES ? load_partial(from + r * SCORE_ROW + LANES, keys - LANES) : Vec{};
            store(pairs[r], (UintVec)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first));
        }
    }
    LL_INLINE UintVec of(int row, int key) const { return pairs[row][key / 2] - UintVec{}; }
};
#else
constexpr int KEYS_PER_STEP = 1;
typedef Piece ValuePiece;
LL_INLINE ValuePiece read_value(const Stored* from, const Stored*, int64_t count) {
    return read_partial_piece(from, count);
}
LL_INLINE IntVec lane_of(IntVec n) { return (n >> 1) + (n & 1) * LANES; }

class Weights {
    const Float* from;

public:
    Weights(const Float* weights, int, int) : from(weights) {}
    LL_INLINE Vec of(int row, int key) const { return broadcast(from[row * SCORE_ROW + key]); }
};
#endif

// How values are read and multiplied: as stored elements.
struct StoredValues {
    typedef Stored Element;
    typedef Weights Factors;
    typedef Piece Sums;
    static constexpr int STEP = KEYS_PER_STEP;
    static LL_INLINE ValuePiece read(const Stored* from, const Stored* next, int64_t count) {
        return read_value(from, next, count);
    }
    static LL_INLINE Piece floats(const Piece& sums, const Weights&, int) { return sums; }
    static LL_INLINE IntVec lane(IntVec n) { return lane_of(n); }
};

// Adds the sums of a piece to a row of floats.
template <class VALUES_AS>
LL_INLINE void add_piece(Float* to, const Piece& piece) {
    Vec first = piece.part[0], second = piece.part[PIECE_PARTS - 1];
#pragma GCC unroll 2
    for (int h = 0; h < PIECE_PARTS; ++h) {
        Vec row = PIECE_PARTS == 1 ? first : shuffle(first, second, VALUES_AS::lane(iota() + h * LANES));
        store(to + h * LANES, load<Vec>(to + h * LANES) + row);
    }
}

// Adds keys [first, first + keys), with the weights of ROWS rows from `row` on, to PIECES pieces from column c on.
template <class VALUES_AS, int ROWS, int PIECES, bool PREFETCH>
inline void value_panel(const typename VALUES_AS::Factors& weights, int row,
                        const RowsOf<typename VALUES_AS::Element>& value, int first, int keys, int64_t c,
                        PrefetchStream& prefetch, Float* output, int64_t columns) {
    typedef typename VALUES_AS::Element Element;
    constexpr int STEP = VALUES_AS::STEP;
    typename VALUES_AS::Sums sum[ROWS][PIECES];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < PIECES; ++v) sum[r][v] = {};
    for (int j = 0; j < keys; j += STEP) {
        const Element* from = value.at(first + j) + c;
        const Element* next =
            j + 1 < keys ? from + value.stride : from;  // an odd last key is paired with itself, with a weight of zero
        decltype(VALUES_AS::read(from, next, 0)) piece[PIECES];
#pragma GCC unroll 8
        for (int v = 0; v < PIECES; ++v) {
            int64_t elements = PIECES > 1 ? PIECE : min<int64_t>(PIECE, value.width - c);
            piece[v] = VALUES_AS::read(from + v * PIECE, next + v * PIECE, elements);
            for (int k = 0; PREFETCH && sizeof(Element) > 1 && k < STEP && j >= UNPREFETCHED_KEYS; ++k)
                elements == PIECE ? prefetch.template advance_piece<Element, PIECES>(j + k, v)
                                  : prefetch.template advance<Element>(elements);
        }
        if (PREFETCH && sizeof(Element) == 1 && j >= UNPREFETCHED_KEYS)
            prefetch.template advance<Element>(STEP * min<int64_t>(PIECES * PIECE, value.width - c));
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) {
            auto factor = weights.of(row + r, j);
#pragma GCC unroll 8
            for (int v = 0; v < PIECES; ++v)
#pragma GCC unroll 2
                for (int x = 0; x < PIECE_PARTS; ++x)
                    sum[r][v].part[x] = multiply_add(factor, piece[v].part[x], sum[r][v].part[x]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < PIECES; ++v)
            add_piece<VALUES_AS>(output + r * columns + c + v * PIECE, VALUES_AS::floats(sum[r][v], weights, row + r));
}

template <class VALUES_AS>
inline void value_product(const Float* weights, const RowsOf<typename VALUES_AS::Element>& value, int rows,
                          PrefetchStream& prefetch, bool ahead, Float* output, int64_t columns) {
    constexpr int PIECES = VALUE_VECTORS / PIECE_PARTS;
    for (int first = 0; first < value.keys; first += UNIT) {
        int count = min(UNIT, value.keys - first);
        typename VALUES_AS::Factors of_unit(weights + first, rows, count);
        for_each_panel(rows, [&](auto panel, int r) {
            constexpr int ROWS = decltype(panel)::VALUE;
            for (int64_t c = 0; c < value.width;) {
                bool prefetching = ahead && r == 0, whole = c + PIECES * PIECE <= value.width;
                auto add = whole ? (prefetching ? value_panel<VALUES_AS, ROWS, PIECES, true>
                                                : value_panel<VALUES_AS, ROWS, PIECES, false>)
                                 : (prefetching ? value_panel<VALUES_AS, ROWS, 1, true>
                                                : value_panel<VALUES_AS, ROWS, 1, false>);
                add(of_unit, r, value, first, count, c, prefetch, output + r * columns, columns);
                c += whole ? PIECES * PIECE : PIECE;
            }
        });
    }
}

}  // namespace
}  // namespace limelight::LL_NAMESPACE
