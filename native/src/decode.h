// Short queries over a long cache: reading it is the work. So the query heads of a group read each key and value together,
// as they lie in memory, and the head width lies along the lanes.
//
// The keys that a group sees are cut into chunks, which threads take one by one; the partial softmax of each chunk
// is merged with the others in order. Where chunks begin follows from what one row sees, never from threads or the batch.

constexpr int SHORT = 16;      // most queries of a segment that is computed here
constexpr int MOST_ROWS = 16;  // rows computed together: queries of several heads
constexpr int MOST_CHUNK = 1024;  // keys of a chunk, see chunk_of
constexpr int SCORE_ROW = MOST_CHUNK + LANES;  // from row to row of scores: not into the same few cache sets
static_assert(SHORT <= MOST_ROWS && SHORT <= QUERIES && MOST_CHUNK % BLOCK_KEYS == 0);

template <int N>
struct Count { static constexpr int VALUE = N; };

// f(count of rows, first row): as few panels as there can be, of about the same height.
template <class F>
LL_INLINE void each_panel(int rows, F f) {
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

// Rows of memory.
struct Reading {
    const Stored* row;
    int64_t stride, width;
    int keys;
    const Stored* at(int j) const { return row + j * stride; }
};

// --- Elements as they lie, a vector of memory at a time -------------------------------------------------------------------

// Of bfloat16 two numbers lie in each lane: first those of even, then those of odd places.
#if defined(LL_OF_BFLOAT16)
constexpr int PIECE_PARTS = 2;
#else
constexpr int PIECE_PARTS = 1;
#endif
constexpr int PIECE = PIECE_PARTS * LANES;  // elements
struct Piece { Numbers part[PIECE_PARTS]; };

#if defined(LL_OF_BFLOAT16)
LL_INLINE Piece piece_of(Words both) { return {{bits_as<Numbers>(both << 16), bits_as<Numbers>(both & 0xffff0000u)}}; }
#endif

LL_INLINE Piece read_piece(const Stored* from) {
#if defined(LL_OF_BFLOAT16)
    return piece_of(load<Words>(from));
#else
    return {{read_vector(from)}};
#endif
}

// The first `count` elements of a piece; zeros beyond.
LL_INLINE Piece read_part(const Stored* from, int64_t count) {
    if (count >= PIECE) return read_piece(from);
#if defined(LL_OF_BFLOAT16) && defined(LL_AVX512)
    return piece_of((Words)_mm512_maskz_loadu_epi16((1u << count) - 1, from));
#elif defined(LL_OF_BFLOAT16)
    alignas(64) Stored some[PIECE] = {};
    for (int64_t x = 0; x < count; ++x) some[x] = from[x];
    return read_piece(some);
#else
    return {{read_some(from, count)}};
#endif
}

// Keys are multiplied as they lie where the machine multiplies pairs, and widened on Intel's cores, for which that is quicker.
#if defined(LL_PAIRS) && !defined(LL_AMX)
constexpr int KEY_PARTS = 1;
typedef Factor KeyNumber;
struct KeyPiece { Words part[KEY_PARTS]; };
LL_INLINE KeyPiece read_key(const Stored* from, int64_t count) {
    if (count >= PIECE) return {{load<Words>(from)}};
    return {{(Words)_mm512_maskz_loadu_epi16((1u << count) - 1, from)}};
}
#else
constexpr int KEY_PARTS = PIECE_PARTS;
typedef Number KeyNumber;
typedef Piece KeyPiece;
LL_INLINE KeyPiece read_key(const Stored* from, int64_t count) { return read_part(from, count); }
#endif
constexpr int KEY_NUMBERS = KEY_PARTS * LANES;  // in which a piece of a query lies

// Whether memory that is asked for as read once only comes as quickly. On AMD's processors it spares the second cache the
// way of each line, which is 5 % where memory sets the pace, and still comes from the third one where it lies there; Intel's
// read at a third of their speed so.
inline bool once_is_quick() {
#if defined(__x86_64__)
    return __builtin_cpu_is("amd");
#else
    return false;
#endif
}

// What will be read, line after line as it lies. Memory is asked for a line whenever one has been read, LEAD lines before
// it is: a machine foresees a single stream, but neither several rows at once nor what follows the last.
class Ahead {
    const Stored *line = nullptr, *end = nullptr;  // of a row
    const Stored* row = nullptr;
    int64_t stride = 0, rows = 0;  // rows from this one on
    int64_t due = 0;               // elements that were read since the last line was asked for
    bool once = once_is_quick();
    Reading then, last;

    void start(const Reading& next) {
        bool one = next.stride == next.width;  // then rows are one long row
        row = line = next.row, stride = next.stride, rows = one ? 1 : next.keys;
        end = row + (one ? next.width * next.keys : next.width);
    }
    void turn() {
        int64_t width = end - row;
        due += line - end;  // the last line of a row counts as a whole one
        if (--rows > 0) row += stride, line = row, end = row + width;
        else start(then), then = last;
    }

public:
    static constexpr int64_t LINE = 64 / (int64_t)sizeof(Stored), LEAD = 192;

    Ahead() = default;
    Ahead(const Reading& now, const Reading& next, const Reading& after) : then(next), last(after) {
        start(now);
        for (int64_t left = LEAD * LINE; left > 0;) {
            int64_t some = least(left, end - line);
            line += some, left -= some;
            if (line >= end) turn();
        }
    }
    LL_INLINE void ask() {
        if (once) __builtin_prefetch(line, 0, 0);
        else __builtin_prefetch(line);
        line += LINE;
        if (line >= end) turn();
    }
    // After so many elements were read.
    LL_INLINE void follow(int64_t elements) {
        for (due += elements; due >= LINE; due -= LINE) ask();
    }
    // After piece x of the EACH that step n of a loop reads.
    template <int EACH>
    LL_INLINE void follow_piece(int64_t n, int x) {
        constexpr int PIECES = (int)LINE / PIECE;
        if ((EACH % PIECES == 0 ? x + 1 : n * EACH + x + 1) % PIECES == 0) ask();
    }
};

// Where scores become weights nothing is read, but memory must not rest: a share of the lines of values is asked for there,
// and so many keys fewer of each unit of values.
constexpr int KEYS_UNASKED = 2;

// --- Scores: rows are queries, columns are keys -------------------------------------------------------------------------

// Sums of neighbouring lanes: first those of a, then those of b.
template <int N, int... EVEN>
struct NeighbourSums : NeighbourSums<N - 1, 2 * (N - 1), EVEN...> {};
template <int... EVEN>
struct NeighbourSums<0, EVEN...> {
    static LL_INLINE Numbers of(Numbers a, Numbers b) {
        return __builtin_shufflevector(a, b, EVEN...) + __builtin_shufflevector(a, b, (EVEN + 1)...);
    }
};

// The sum of each vector's lanes; that of vector n in lane n.
template <int COUNT>
LL_INLINE Numbers sums_of_lanes(const Numbers* v) {
    if constexpr (COUNT == 1) return *v;
    else return NeighbourSums<LANES>::of(sums_of_lanes<COUNT / 2>(v), sums_of_lanes<COUNT / 2>(v + COUNT / 2));
}

// Keys of a panel of ROWS queries.
template <int ROWS>
constexpr int PANEL_OF = ROWS > LANES ? 1 : ROWS == 1 ? (LANES < UNIT ? LANES : UNIT) : ROWS == 3 ? LANES / 2 : LANES / ROWS;

// scores[row][key] of ROWS queries and PANEL_OF<ROWS> keys; only the first `keys` of them are written.
template <int ROWS, bool ASK>
LL_INLINE void dot_panel(const Stored* key, int64_t stride, const KeyNumber* query, int64_t columns, int64_t width, int keys,
                         Ahead& ahead, Number* scores) {
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
                q[r].part[p] = load<decltype(q[r].part[p] + 0)>(query + r * columns + d / PIECE * KEY_NUMBERS + p * LANES);
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
            else for (int t = 0; t < keys; ++t) to[t] = own[t];
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
inline void dot_product(const Reading& key, const KeyNumber* query, int rows, int64_t columns, Ahead& ahead, Number* scores) {
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
struct ValuePiece { Words part[PIECE_PARTS]; };
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
        Numbers row = PIECE_PARTS == 1 ? first : __builtin_shuffle(first, second, lane_of(iota() + h * LANES));
        store(to + h * LANES, load<Numbers>(to + h * LANES) + row);
    }
}

// Of keys [first, first + keys), whose weights are given for some rows from `row` on, and of PIECES pieces from column c on.
template <int ROWS, int PIECES, bool ASK>
inline void mix_panel(const Weights& weights, int row, const Reading& value, int first, int keys, int64_t c, Ahead& ahead,
                      Number* output, int64_t columns) {
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

inline void mix_product(const Number* weights, const Reading& value, int rows, Ahead& ahead, Number* output, int64_t columns) {
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

// --- One chunk ----------------------------------------------------------------------------------------------------------

// Numbers of a row of sums of values.
LL_INLINE int64_t mixed_columns(const Problem& problem) { return round_up(problem.call.value_width, PIECE); }

// The query heads that read a cache together, of one segment and batch row. A row is a query of one of them.
struct Group {
    Tile tile;  // of the first head
    int heads;
    int64_t chunks, first;  // how many chunks its keys make; the number of the first
    int64_t left;           // chunks not yet computed

    int rows() const { return heads * tile.count; }
    Tile head(int h) const {
        Tile of = tile;
        of.head += h;
        return of;
    }
};

// Softmax of some of the keys: the sum of weights relative to the peak, and of the values so weighted. An unseen part has the
// total 0 and no output.
struct Part {
    Number *peak, *total;  // [rows]
    Number* output;         // [rows][columns]

    static size_t bytes(int64_t rows, int64_t columns) {
        return sizeof(Number) * (size_t)round_up(round_up(2 * rows, LANES) + rows * columns, 64);
    }
    Part(char* memory, int64_t rows)
        : peak((Number*)memory), total(peak + rows), output(peak + round_up(2 * rows, LANES)) {}
};

struct DecodeScratch {
    int64_t query_columns;
    Number* queries;  // [MOST_ROWS][query_columns]
    Number* scores;   // [MOST_ROWS][SCORE_ROW], then weights
    Number* turned;   // [BLOCK_KEYS][QUERIES], of one head
    char* part;       // of a group with one chunk
    Number* merged;   // [SHORT][columns]
    Stored* values;   // [MOST_CHUNK][value width]; careful passes only
    uint8_t* seen;    // [MOST_ROWS][SCORE_ROW]; careful passes only

    DecodeScratch(Arena& arena, const Problem& problem) : query_columns(round_up(problem.call.width, PIECE)) {
        queries = arena.take<Number>(MOST_ROWS * query_columns);
        scores = arena.take<Number>(MOST_ROWS * SCORE_ROW);
        turned = arena.take<Number>(BLOCK_KEYS * QUERIES);
        part = arena.take<char>((int64_t)Part::bytes(MOST_ROWS, mixed_columns(problem)));
        merged = arena.take<Number>(SHORT * mixed_columns(problem));
        values = arena.take<Stored>(MOST_CHUNK * problem.call.value_width);
        seen = arena.take<uint8_t>(MOST_ROWS * SCORE_ROW);
    }
};

// How many keys that somebody sees make a chunk: few enough of a short cache that all threads have some, and more of a long
// one, where memory rests for a moment whenever a chunk begins.
inline int64_t chunk_of(int64_t seen) { return seen < 8192 ? MOST_CHUNK / 2 : MOST_CHUNK; }

inline int64_t chunks_of(const Visibility& visible) {
    int64_t keys = seen_keys(visible), each = chunk_of(keys);
    return most<int64_t>(1, (keys + each - 1) / each);
}

// The keys [from, to) of a chunk, of those that somebody sees, counted over all runs.
inline Range chunk_keys_of(const Visibility& visible, int64_t chunk) {
    int64_t each = chunk_of(seen_keys(visible)), before = chunk * each, after = before + each;  // keys yet to be passed
    Range keys{LL_HIGHEST, LL_HIGHEST};
    for (int n = 0; n < visible.range_count; ++n) {
        Range run = visible.ranges[n];
        int64_t length = run.end - run.begin;
        if (before >= 0 && before < length) keys.begin = run.begin + before;
        if (after >= 0 && after < length) keys.end = run.begin + after;
        before -= length, after -= length;
    }
    return keys;
}

struct Chunk {
    const Problem& problem;
    const ll_call& call;
    const Group& group;
    const Visibility& visible;
    Range keys;
    DecodeScratch& own;
    Part part;
    const Stored* then;  // keys that this thread will probably read next
    int count = 0;       // keys visited
    Ahead ahead;

    Chunk(const Problem& p, const Group& g, const Visibility& v, int64_t number, DecodeScratch& scratch, Part to,
          const Stored* next_keys)
        : problem(p), call(p.call), group(g), visible(v), keys(chunk_keys_of(v, number)), own(scratch), part(to),
          then(next_keys) {}

    // f(block, place of its first key in the rows of scores)
    template <class F>
    LL_INLINE int each_block(F f) const {
        BlockWalk walk(call, group.tile, visible, keys.begin, keys.end);
        walk.step = 1;
        int at = 0;
        for (Block block; walk.next(block); at += block.count) f(block, at);
        return at;
    }

    // f(first key, how many, place of the first): blocks that lie beside each other as one.
    template <class F>
    LL_INLINE void each_run(F f) const {
        int64_t begin = 0;
        int keys = 0, first = 0;
        each_block([&](const Block& block, int at) {
            if (begin + keys != block.begin) {
                if (keys > 0) f(begin, keys, first);
                begin = block.begin, keys = 0, first = at;
            }
            keys += block.count;
        });
        if (keys > 0) f(begin, keys, first);
    }

    const Stored* row_of(const ll_tensor& tensor, int64_t key) const {
        return line<const Stored>(tensor, group.tile.row, group.tile.key_head, key);
    }
    Reading values_at(int64_t begin, int some) const {
        return {row_of(call.value, begin), call.value.strides[2], call.value_width, some};
    }
    Reading next_keys() const { return {then, call.key.strides[2], call.width, MOST_CHUNK}; }

    void load_queries() const {
        for (int r = 0; r < group.rows(); ++r) {
            Number* to = own.queries + r * own.query_columns;
            read_row(line<const Stored>(call.query, group.tile.row, group.tile.head + r / group.tile.count,
                                        group.tile.first_query + r % group.tile.count),
                     call.width, to, own.query_columns);
            if (call.compare) continue;
            for (int64_t d = 0; d < own.query_columns; d += PIECE) {  // in the order in which keys are read
                Numbers first = load<Numbers>(to + d), second = load<Numbers>(to + d + PIECE - LANES);
                for (int p = 0; p < PIECE_PARTS; ++p) {
                    Numbers part = PIECE_PARTS == 1 ? first : __builtin_shuffle(first, second, 2 * iota() + p);
                    store(to + d + p * LANES, part * problem.query_factor);
                }
                if constexpr (sizeof(KeyNumber) * KEY_NUMBERS < PIECE * sizeof(Number))
                    store(to + d / PIECE * KEY_NUMBERS, fold(load<Numbers>(to + d), load<Numbers>(to + d + PIECE - LANES)));
            }
        }
    }

    void compare(const Block& block, Number* scores) const {
        for (int r = 0; r < group.rows(); ++r)
            for (int j = 0; j < block.count; ++j)
                scores[r * SCORE_ROW + j] = additive_pair(row_of(call.key, block.begin + j), own.queries + r * own.query_columns,
                                                      vector_of(call, group.tile.head + r / group.tile.count), call.width);
    }

    // Score rules, and what is not seen: as in every other tile, a head at a time.
    void change(const Block& block, Number* scores) const {
        for (int h = 0; h < group.heads; ++h) {
            Tile tile = group.head(h);
            Number* rows = scores + h * tile.count * SCORE_ROW;
            for (int j = 0; j < block.count; ++j)
                for (int i = 0; i < tile.count; ++i) own.turned[j * QUERIES + i] = rows[i * SCORE_ROW + j];
            if (call.rule_count > 0) apply_rules(call, tile, block, own.turned, nullptr);
            if (block.cut_by_intervals) cut_by_intervals(visible, tile, block, own.turned);
            if (block.cut_by_bits) cut_by_bits(call, tile, block, own.turned);
            for (int i = 0; i < tile.count; ++i)
                for (int j = 0; j < block.count; ++j) rows[i * SCORE_ROW + j] = own.turned[j * QUERIES + i];
        }
    }

    void score() {
        each_run([&](int64_t begin, int some, int at) {
            Reading key{row_of(call.key, begin), call.key.strides[2], call.width, some};
            ahead = Ahead(key, values_at(begin, some), next_keys());
            if (call.compare) return;
            dot_product(key, (const KeyNumber*)own.queries, group.rows(), own.query_columns, ahead, own.scores + at);
        });
        count = each_block([&](const Block& block, int at) {
            if (call.compare) compare(block, own.scores + at);
            if (call.rule_count > 0 || block.cut_by_intervals || block.cut_by_bits) change(block, own.scores + at);
        });
        for (int r = 0; r < group.rows(); ++r)  // whole vectors
            for (int j = count; j < round_up(count, LANES); ++j) own.scores[r * SCORE_ROW + j] = -INFINITE;
    }

    // Scores -> weights, of ROWS rows side by side: each alone is a chain of additions.
    template <int ROWS>
    void soften_rows(int row, int64_t meanwhile) {
        Number* scores = own.scores + row * SCORE_ROW;
        Numbers largest[ROWS], peak[ROWS], total[ROWS];
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; ++r) largest[r] = spread(-INFINITE), total[r] = Numbers{};
        for (int j = 0; j < count; j += LANES)
#pragma GCC unroll 4
            for (int r = 0; r < ROWS; ++r) largest[r] = larger(largest[r], load<Numbers>(scores + r * SCORE_ROW + j));
        for (int r = 0; r < ROWS; ++r) {
            part.peak[row + r] = largest_lane(largest[r]);
            peak[r] = subtracted(spread(part.peak[row + r]));
        }
        for (int j = 0; j < count; j += LANES) {
            ahead.follow(meanwhile);
#pragma GCC unroll 4
            for (int r = 0; r < ROWS; ++r) {
                Number* at = scores + r * SCORE_ROW + j;
                Numbers weight = weight_of((load<Numbers>(at) - peak[r]) * spread(problem.exponent));
                store(at, weight);
                total[r] += weight;
            }
        }
        for (int r = 0; r < ROWS; ++r) part.total[row + r] = sum_of_lanes(total[r]);
    }

    void soften() {
        FlushSubnormals scope;
        int64_t some = call.value_width * KEYS_UNASKED * LANES / UNIT;  // elements for each vector of keys
        each_panel(group.rows(), [&](auto panel, int r) { soften_rows<decltype(panel)::VALUE>(r, r == 0 ? some : 0); });
    }

    void drop(const Block& block, Number* weights) const {
        for (int h = 0; h < group.heads; ++h) {
            Tile tile = group.head(h);
            each_dropped(problem, tile, block, [&](int j, int first, Ints dropped) {
                for (int i = first; i < least(first + LANES, tile.count); ++i)
                    if (dropped[i - first]) weights[(h * tile.count + i) * SCORE_ROW + j] = 0;
            });
        }
    }

    // Only seen pairs: a row of V that is not finite is set aside, and added by hand to the rows that see it.
    void mix_carefully(int64_t begin, int keys, int at) {
        int64_t stride = call.value.strides[2], width = call.value_width, columns = mixed_columns(problem);
        const Stored* value = row_of(call.value, begin);
        for (int j = 0; j < keys; ++j) {
            Stored* to = own.values + j * width;
            bool aside = !finite_row(value + j * stride, width);
            if (aside) __builtin_memset(to, 0, sizeof(Stored) * (size_t)width);
            else __builtin_memcpy(to, value + j * stride, sizeof(Stored) * (size_t)width);
            for (int r = 0; aside && r < group.rows(); ++r)
                if (own.seen[r * SCORE_ROW + at + j])
                    for (int64_t c = 0; c < width; ++c)
                        part.output[r * columns + c] += own.scores[r * SCORE_ROW + at + j] * read(value + j * stride + c);
        }
        mix_product(own.scores + at, {own.values, width, width, keys}, group.rows(), ahead, part.output, columns);
    }

    template <bool careful>
    void compute() {
        score();
        for (int x = 0; careful && x < group.rows() * SCORE_ROW; ++x) own.seen[x] = own.scores[x] != -INFINITE;
        soften();
        if (problem.drop_below) each_block([&](const Block& block, int at) { drop(block, own.scores + at); });
        __builtin_memset(part.output, 0, sizeof(Number) * (size_t)(group.rows() * mixed_columns(problem)));
        each_run([&](int64_t begin, int keys, int at) {
            if (careful) return mix_carefully(begin, keys, at);
            Reading value = values_at(begin, keys);
            if (keys < count) ahead = Ahead(value, next_keys(), next_keys());  // one of several runs
            mix_product(own.scores + at, value, group.rows(), ahead, part.output, mixed_columns(problem));
        });
    }

    bool finite() const {
        Ints bad{};
        for (int64_t x = 0; x < group.rows() * mixed_columns(problem); x += LANES) {
            Numbers y = load<Numbers>(part.output + x);
            bad |= (y - y) != 0;
        }
        return !any(bad);
    }

    void run() {
        load_queries();
        compute<false>();
        if (!finite()) compute<true>();
    }
};

// --- All of them --------------------------------------------------------------------------------------------------------

struct DecodeJob {
    const Problem& problem;
    const Tiles& tiles;
    int status;
    Group* groups = nullptr;
    int64_t group_count = 0, tasks = 0;
    int64_t apart = 1;          // from a task to the one that the same thread probably takes next
    char* memory = nullptr;     // parts, where some group has several chunks
    size_t part_bytes = 0;
    Group few[16];

    DecodeJob(const Problem& p, const Tiles& t) : problem(p), tiles(t), status(DONE) {}
    DecodeJob(const DecodeJob&) = delete;
    ~DecodeJob() {
        if (groups != few) free(groups);
        free(memory);
    }

    // Heads whose queries see the same keys and fit together.
    static int64_t heads_together(const ll_call& call, int64_t queries) {
        bool same = (!call.intervals.starts || call.intervals.head_stride == 0) &&
                    (!call.tiles.state || call.tiles.head_stride == 0);
        int64_t group = call.query_heads / call.key_heads;
        return same ? clamp<int64_t>(MOST_ROWS / queries, 1, group) : 1;
    }

    bool list_groups() {
        const ll_call& call = problem.call;
        int64_t count = 0, most_rows = 1;
        for (int64_t s = 0; s < call.segment_count; ++s) {
            const ll_segment& segment = call.segments[s];
            int64_t queries = segment.query_end - segment.query_begin, group = call.query_heads / call.key_heads;
            if (queries == 0) continue;
            int64_t heads = heads_together(call, queries);
            most_rows = most(most_rows, heads * queries);
            count += (segment.row < 0 ? call.batch : 1) * call.key_heads * ((group + heads - 1) / heads);
        }
        groups = count <= (int64_t)(sizeof few / sizeof *few) ? few : (Group*)malloc(sizeof(Group) * (size_t)count);
        if (!groups) return false;
        for (int64_t s = 0; s < call.segment_count; ++s)
            if (call.segments[s].query_end > call.segments[s].query_begin) list_segment(s);
        part_bytes = Part::bytes(most_rows, mixed_columns(problem));
        if (tasks == group_count) return true;
        memory = (char*)aligned_alloc(64, part_bytes * (size_t)tasks);
        return memory != nullptr;
    }

    void list_segment(int64_t s) {
        const ll_call& call = problem.call;
        const ll_segment& segment = call.segments[s];
        int64_t heads = heads_together(call, segment.query_end - segment.query_begin);
        int64_t group = call.query_heads / call.key_heads, chunks = 0;
        for (int64_t row = 0; row < (segment.row < 0 ? call.batch : 1); ++row)
            for (int64_t head = 0; head < call.query_heads;) {
                int64_t some = least(heads, group - head % group);
                Tile tile = tiles.tile_of(s, row, head, 0);
                if (chunks == 0 || call.intervals.starts) {  // what spans show is the same in every row and head
                    Visibility visible;
                    see(call, tile, visible);
                    chunks = chunks_of(visible);
                }
                groups[group_count++] = {tile, (int)some, chunks, tasks, chunks};
                tasks += chunks;
                head += some;
            }
    }

    Group& group_of(int64_t task) const {
        int64_t low = 0, high = group_count - 1;  // the last group that begins at or before the task
        while (low < high) {
            int64_t middle = (low + high + 1) / 2;
            if (groups[middle].first <= task) low = middle;
            else high = middle - 1;
        }
        return groups[low];
    }

    // Adds the parts of each row in order, and divides the sum by its total.
    void merge(const Group& group, char* parts, DecodeScratch& own) const {
        int64_t columns = mixed_columns(problem);
        Number kept = problem.drop_below ? (Number)(1.0 - problem.call.dropout) : 1;
        for (int h = 0; h < group.heads; ++h) {
            Tile tile = group.head(h);
            Softmax softmax;
            for (int i = 0; i < tile.count; ++i) {
                int r = h * tile.count + i;
                Number* row = own.merged + i * columns;
                Number &peak = softmax.peak[i], &total = softmax.total[i];
                __builtin_memset(row, 0, sizeof(Number) * (size_t)columns);
                for (int64_t n = 0; n < group.chunks; ++n) {
                    Part part(parts + (size_t)n * part_bytes, group.rows());
                    if (part.total[r] == 0) continue;
                    Number before = peak;
                    peak = part.peak[r] > before ? part.peak[r] : before;
                    Numbers powers{};
                    powers[0] = before, powers[1] = part.peak[r];
                    powers = exp2_of((powers - subtracted(spread(peak))) * problem.exponent);
                    total = total * powers[0] + part.total[r] * powers[1];
                    const Number* add = part.output + r * columns;
                    for (int64_t c = 0; c < columns; c += LANES)
                        store(row + c, load<Numbers>(row + c) * powers[0] + load<Numbers>(add + c) * powers[1]);
                }
                Number whole = closed(problem, sink_of(problem.call, tile), peak, total) * kept, share = 1 / whole;
                bool nothing = whole == 0;  // then zeros, even beside a sink that is NaN
                for (int64_t c = 0; c < columns; c += LANES)
                    store(row + c, nothing ? Numbers{} : load<Numbers>(row + c) * share);
            }
            write_tile(problem, tile, softmax, [&](int i) { return own.merged + i * columns; }, nullptr);
        }
    }

    // Where a task begins to read.
    const Stored* keys_of(int64_t task) const {
        const Group& group = group_of(least(task, tasks - 1));
        Visibility visible;
        see(problem.call, group.tile, visible);
        Range keys = chunk_keys_of(visible, task - group.first);
        return line<const Stored>(problem.call.key, group.tile.row, group.tile.key_head,
                                  keys.begin == LL_HIGHEST ? 0 : keys.begin);
    }

    void run(int64_t task, DecodeScratch& own) {
        Group& group = group_of(task);
        Visibility visible;
        see(problem.call, group.tile, visible);
        char* parts = group.chunks > 1 ? memory + part_bytes * (size_t)group.first : own.part;
        int64_t number = task - group.first;
        Part part(parts + part_bytes * (size_t)number, group.rows());
        Chunk(problem, group, visible, number, own, part, keys_of(task + apart)).run();
        if (__atomic_sub_fetch(&group.left, 1, __ATOMIC_ACQ_REL) == 0) merge(group, parts, own);  // by whoever comes last
    }
};

inline void decode_task(void* context, int64_t n) {
    DecodeJob& job = *(DecodeJob*)context;
    if (ended(job.status)) return;
    Arena arena{own_memory<DecodeScratch>(job.status, job.problem)};
    if (!arena.memory) return;
    DecodeScratch own(arena, job.problem);
    job.run(n, own);
}

inline bool short_queries(const ll_call& call) {
    for (int64_t s = 0; s < call.segment_count; ++s)
        if (call.segments[s].query_end - call.segments[s].query_begin > SHORT) return false;
    return true;
}

inline int decode(const Problem& problem, const Tiles& tiles) {
    DecodeJob job(problem, tiles);
    if (!job.list_groups()) return OUT_OF_MEMORY;
    int64_t threads = worthwhile_threads(problem.call), runs = least(threads, job.group_count);
    job.apart = runs > 0 ? threads / runs : 1;
    parallel(threads, job.tasks, decode_task, &job, runs);
    return job.status;
}
