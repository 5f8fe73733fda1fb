// The two products of short queries: the head width lies along the lanes.
#pragma once

#include "../../simd/vector.h"
#include "../../tiles/shapes.h"
#include "pieces.h"
#include "prefetch.h"

namespace limelight::LL_NAMESPACE {
namespace {

constexpr int SHORT = 16;                      // most queries of a segment that is computed here
constexpr int MOST_ROWS = 16;                  // rows computed together: queries of several heads
constexpr int MOST_CHUNK = 1024;               // keys of a chunk, see chunk_of
constexpr int SCORE_ROW = MOST_CHUNK + LANES;  // from row to row of scores: not into the same few cache sets
static_assert(SHORT <= MOST_ROWS && SHORT <= QUERIES && MOST_CHUNK % BLOCK_KEYS == 0);

template <int N> struct Count {
    static constexpr int VALUE = N;
};

// f(count of rows, first row): as few panels as there can be, of about the same height.
template <class F> LL_INLINE void each_panel(int rows, F f) {
    for (int r = 0, left = rows; left > 0;) {
        int panels = (left + 3) / 4, some = (left + panels - 1) / panels;
        if (some == 4) f(Count<4>{}, r);
        else if (some == 3) f(Count<3>{}, r);
        else if (some == 2) f(Count<2>{}, r);
        else f(Count<1>{}, r);
        r += some, left -= some;
    }
}

constexpr int UNIT = 32;  // keys that stay in the nearest cache until all rows and columns have met them

// Sums of neighbouring lanes: first those of a, then those of b.
template <int N, int... EVEN> struct NeighbourSums : NeighbourSums<N - 1, 2 * (N - 1), EVEN...> {};
template <int... EVEN> struct NeighbourSums<0, EVEN...> {
    static LL_INLINE Numbers of(Numbers a, Numbers b) {
        return __builtin_shufflevector(a, b, EVEN...) + __builtin_shufflevector(a, b, (EVEN + 1)...);
    }
};

// The sum of each vector's lanes; that of vector n in lane n.
template <int COUNT> LL_INLINE Numbers sums_of_lanes(const Numbers* v) {
    if constexpr (COUNT == 1) return *v;
    else return NeighbourSums<LANES>::of(sums_of_lanes<COUNT / 2>(v), sums_of_lanes<COUNT / 2>(v + COUNT / 2));
}

// Keys of a panel of ROWS queries.
template <int ROWS>
constexpr int PANEL_OF = ROWS > LANES ? 1
                         : ROWS == 1  ? (LANES < UNIT ? LANES : UNIT)
                         : ROWS == 3  ? LANES / 2
                                      : LANES / ROWS;

// scores[row][key] of ROWS queries and PANEL_OF<ROWS> keys; only the first `keys` of them are written.
template <int ROWS, bool ASK>
LL_INLINE void dot_panel(const Stored* key, int64_t stride, const KeyNumber* query, int64_t columns, int64_t width,
                         int keys, Ahead& ahead, Number* scores) {
    constexpr int KEYS = PANEL_OF<ROWS>, TOGETHER = LANES / KEYS;  // rows whose sums fit a vector
    const Stored* at[KEYS];
#pragma GCC unroll 16
    for (int t = 0; t < KEYS; ++t) at[t] = key + t * stride;
    Numbers sum[ROWS][KEYS];
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 16
        for (int t = 0; t < KEYS; ++t) sum[r][t] = Numbers{};
    auto step = [&](int64_t d, int64_t count) __attribute__((always_inline)) {
        KeyPiece q[ROWS];
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 2
            for (int p = 0; p < KEY_PARTS; ++p)
                q[r].part[p] =
                    load<decltype(q[r].part[p] + 0)>(query + r * columns + d / PIECE * KEY_NUMBERS + p * LANES);
#pragma GCC unroll 16
        for (int t = 0; t < KEYS; ++t) {
            KeyPiece k = read_key(at[t] + d, count);
            if (ASK) count == PIECE ? ahead.follow_piece<KEYS>(d / PIECE, t) : ahead.follow(count);
#pragma GCC unroll 16
            for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 2
                for (int p = 0; p < KEY_PARTS; ++p) sum[r][t] = multiply_add(q[r].part[p], k.part[p], sum[r][t]);
        }
    };
    int64_t d = 0;
    for (; d + PIECE <= width; d += PIECE) step(d, PIECE);
    if (d < width) step(d, width - d);
#pragma GCC unroll 16
    for (int first = 0; first < ROWS; first += TOGETHER) {
        Numbers some[LANES];
#pragma GCC unroll 16
        for (int n = 0; n < LANES; ++n) some[n] = sum[least(first + n / KEYS, ROWS - 1)][n % KEYS];
        alignas(64) Number sums[LANES];
        store(sums, sums_of_lanes<LANES>(some));
        for (int r = first; r < least(first + TOGETHER, ROWS); ++r) {
            Number* to = scores + r * SCORE_ROW;
            const Number* own = sums + (r - first) * KEYS;
            if (keys == KEYS) __builtin_memcpy(to, own, KEYS * sizeof(Number));
            else
                for (int t = 0; t < keys; ++t) to[t] = own[t];
        }
    }
}

// scores[row][key] of keys [first, first + keys).
template <int ROWS, bool ASK>
inline void dot_rows(const Reading& key, int first, int keys, const KeyNumber* query, int64_t columns, Ahead& ahead,
                     Number* scores) {
    constexpr int KEYS = PANEL_OF<ROWS>;
    if (keys < KEYS) {  // one key at a time, read KEYS times
        for (int j = first; j < first + keys; ++j)
            dot_panel<ROWS, false>(key.at(j), 0, query, columns, key.width, 1, ahead, scores + j);
        return;
    }
    for (int j = first; j < first + keys; j += KEYS) {
        int from = least(j, first + keys - KEYS);  // the last panel reaches back
        dot_panel<ROWS, ASK>(key.at(from), key.stride, query, columns, key.width, KEYS, ahead, scores + from);
    }
}

// scores[row][key] = sum over d of query[row][d] * key[d].
inline void dot_product(const Reading& key, const KeyNumber* query, int rows, int64_t columns, Ahead& ahead,
                        Number* scores) {
    for (int first = 0; first < key.keys; first += UNIT)
        each_panel(rows, [&](auto panel, int r) {
            constexpr int ROWS = decltype(panel)::VALUE;
            int some = least(UNIT, key.keys - first);
            auto dot = r == 0 ? dot_rows<ROWS, true> : dot_rows<ROWS, false>;
            dot(key, first, some, query + r * columns, columns, ahead, scores + r * SCORE_ROW);
        });
}

// --- Values: output[row] += sum over keys of weights[row][key] * value[key] ----------------------------------------------

// Where keys are multiplied as they lie, so are values, two keys at a time: their rows are interleaved, in the order of
// _mm512_unpacklo_epi16, and weights rounded to pairs, as in every other tile.
#if defined(LL_PAIRS) && !defined(LL_AMX)
constexpr int MIXED_KEYS = 2;
struct ValuePiece {
    Words part[PIECE_PARTS];
};
LL_INLINE ValuePiece read_value(const Stored* from, const Stored* next, int64_t count) {
    __mmask32 there = count >= PIECE ? 0xffffffffu : (1u << count) - 1;
    __m512i even = _mm512_maskz_loadu_epi16(there, from), odd = _mm512_maskz_loadu_epi16(there, next);
    return {{(Words)_mm512_unpacklo_epi16(even, odd), (Words)_mm512_unpackhi_epi16(even, odd)}};
}
// Number n of the row of a piece is this lane of its parts, laid end to end.
LL_INLINE Ints lane_of(Ints n) { return ((n >> 3) << 2) + (n & 3) + ((n >> 2) & 1) * LANES; }

// Weights of a unit of keys.
class Weights {
    alignas(64) Factor pairs[MOST_ROWS][UNIT / 2];

public:
    Weights(const Number* from, int rows, int keys) {
        static_assert(UNIT == 2 * LANES);
        for (int r = 0; r < rows; ++r) {
            Numbers first = load_some(from + r * SCORE_ROW, least(keys, LANES));
            Numbers second = keys > LANES ? load_some(from + r * SCORE_ROW + LANES, keys - LANES) : Numbers{};
            store(pairs[r], (Words)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first));
        }
    }
    LL_INLINE Words of(int row, int key) const { return pairs[row][key / 2] - Words{}; }
};
#else
constexpr int MIXED_KEYS = 1;
typedef Piece ValuePiece;
LL_INLINE ValuePiece read_value(const Stored* from, const Stored*, int64_t count) { return read_part(from, count); }
LL_INLINE Ints lane_of(Ints n) { return (n >> 1) + (n & 1) * LANES; }

class Weights {
    const Number* from;

public:
    Weights(const Number* weights, int, int) : from(weights) {}
    LL_INLINE Numbers of(int row, int key) const { return spread(from[row * SCORE_ROW + key]); }
};
#endif

// to += the sums of a piece, as numbers in a row.
LL_INLINE void add_piece(Number* to, const Piece& piece) {
    Numbers first = piece.part[0], second = piece.part[PIECE_PARTS - 1];
#pragma GCC unroll 2
    for (int h = 0; h < PIECE_PARTS; ++h) {
        Numbers row = PIECE_PARTS == 1 ? first : shuffle(first, second, lane_of(iota() + h * LANES));
        store(to + h * LANES, load<Numbers>(to + h * LANES) + row);
    }
}

// Of keys [first, first + keys), whose weights are given for some rows from `row` on, and of PIECES pieces from column c on.
template <int ROWS, int PIECES, bool ASK>
inline void mix_panel(const Weights& weights, int row, const Reading& value, int first, int keys, int64_t c,
                      Ahead& ahead, Number* output, int64_t columns) {
    Piece sum[ROWS][PIECES];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < PIECES; ++v) sum[r][v] = Piece{};
    for (int j = 0; j < keys; j += MIXED_KEYS) {
        const Stored* from = value.at(first + j) + c;
        const Stored* next = j + 1 < keys ? from + value.stride : from;  // the last one alone meets a weight of zero
        ValuePiece piece[PIECES];
#pragma GCC unroll 8
        for (int v = 0; v < PIECES; ++v) {
            int64_t some = PIECES > 1 ? PIECE : least<int64_t>(PIECE, value.width - c);
            piece[v] = read_value(from + v * PIECE, next + v * PIECE, some);
            for (int k = 0; ASK && k < MIXED_KEYS && j >= KEYS_UNASKED; ++k)
                some == PIECE ? ahead.follow_piece<PIECES>(j + k, v) : ahead.follow(some);
        }
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
        for (int v = 0; v < PIECES; ++v) add_piece(output + r * columns + c + v * PIECE, sum[r][v]);
}

inline void mix_product(const Number* weights, const Reading& value, int rows, Ahead& ahead, Number* output,
                        int64_t columns) {
    constexpr int PIECES = VALUE_VECTORS / PIECE_PARTS;
    for (int first = 0; first < value.keys; first += UNIT) {
        int some = least(UNIT, value.keys - first);
        Weights of_unit(weights + first, rows, some);
        each_panel(rows, [&](auto panel, int r) {
            constexpr int ROWS = decltype(panel)::VALUE;
            for (int64_t c = 0; c < value.width;) {
                bool ask = r == 0, whole = c + PIECES * PIECE <= value.width;
                auto mix = whole ? (ask ? mix_panel<ROWS, PIECES, true> : mix_panel<ROWS, PIECES, false>)
                                 : (ask ? mix_panel<ROWS, 1, true> : mix_panel<ROWS, 1, false>);
                mix(of_unit, r, value, first, some, c, ahead, output + r * columns, columns);
                c += whole ? PIECES * PIECE : PIECE;
            }
        });
    }
}

}  // namespace
}  // namespace limelight::LL_NAMESPACE
