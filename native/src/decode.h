// Short queries over a long cache: reading it is the work. So the query heads of a group read each key and value together,
// as they lie in memory, and the head width lies along the lanes.
//
// The keys that a group sees are cut into chunks of CHUNK, which threads take one by one; the partial softmax of each chunk
// is merged with the others in order. Where chunks begin follows from what one row sees, never from threads or the batch.

constexpr int SHORT = 16;      // most queries of a segment that is computed here
constexpr int MOST_ROWS = 16;  // rows computed together: queries of several heads
constexpr int CHUNK = 512;     // keys of a chunk
constexpr int AHEAD = 16;      // rows by which the machine is told in advance
static_assert(SHORT <= MOST_ROWS && SHORT <= QUERIES && CHUNK % BLOCK_KEYS == 0);

template <int N>
struct Count { static constexpr int VALUE = N; };

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

// scores[row][key] of ROWS queries and LANES / ROWS keys; only the first `keys` of them are written.
template <int ROWS>
LL_INLINE void dot_panel(const Stored* key, int64_t stride, const Number* query, int64_t columns, int64_t width, int keys,
                         Number* scores) {
    constexpr int KEYS = LANES / ROWS;
    const Stored* at[KEYS];
#pragma GCC unroll 16
    for (int t = 0; t < KEYS; ++t) at[t] = key + t * stride;
    int64_t ahead = AHEAD * stride;
    Numbers sum[LANES];
#pragma GCC unroll 16
    for (int n = 0; n < LANES; ++n) sum[n] = Numbers{};
    auto step = [&](int64_t d, auto read_key) __attribute__((always_inline)) {
        Numbers k[KEYS];
#pragma GCC unroll 16
        for (int t = 0; t < KEYS; ++t) k[t] = read_key(at[t] + d), __builtin_prefetch(at[t] + d + ahead);
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r) {
            Numbers q = load<Numbers>(query + r * columns + d);
#pragma GCC unroll 16
            for (int t = 0; t < KEYS; ++t) sum[r * KEYS + t] = multiply_add(q, k[t], sum[r * KEYS + t]);
        }
    };
    int64_t d = 0;
    for (; d + LANES <= width; d += LANES) step(d, [](const Stored* from) { return read_vector(from); });
    if (d < width) step(d, [&](const Stored* from) { return read_some(from, width - d); });
    alignas(64) Number sums[LANES];
    store(sums, sums_of_lanes<LANES>(sum));
    if (keys == KEYS) {
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r) __builtin_memcpy(scores + r * CHUNK, sums + r * KEYS, KEYS * sizeof(Number));
        return;
    }
    for (int r = 0; r < ROWS; ++r)
        for (int t = 0; t < keys; ++t) scores[r * CHUNK + t] = sums[r * KEYS + t];
}

template <int ROWS>
inline void dot_rows(const Stored* key, int64_t stride, int keys, const Number* query, int64_t columns, int64_t width,
                     Number* scores) {
    constexpr int KEYS = LANES / ROWS;
    if (keys < KEYS) {  // one key at a time, read KEYS times
        for (int j = 0; j < keys; ++j) dot_panel<ROWS>(key + j * stride, 0, query, columns, width, 1, scores + j);
        return;
    }
    for (int j = 0; j < keys; j += KEYS) {
        int first = least(j, keys - KEYS);  // the last panel reaches back
        dot_panel<ROWS>(key + first * stride, stride, query, columns, width, KEYS, scores + first);
    }
}

// scores[row][key] = sum over d of query[row][d] * key[d].
inline void dot_product(const Stored* key, int64_t stride, int keys, const Number* query, int rows, int64_t columns,
                        int64_t width, Number* scores) {
    for (int j = 0; j < keys; j += LANES, key += LANES * stride, scores += LANES) {
        int some = least(LANES, keys - j), r = 0;
        auto take = [&](auto count) {
            constexpr int ROWS = decltype(count)::VALUE;
            if constexpr (ROWS <= LANES)
                for (; r + ROWS <= rows; r += ROWS)
                    dot_rows<ROWS>(key, stride, some, query + r * columns, columns, width, scores + r * CHUNK);
        };
        take(Count<8>{}), take(Count<4>{}), take(Count<2>{}), take(Count<1>{});
    }
}

// --- Values: output[row] += sum over keys of weights[row][key] * value[key] ----------------------------------------------

template <int ROWS, int VECTORS>
inline void mix_panel(const Number* weights, const Stored* value, int64_t stride, int keys, int64_t count, Number* output,
                      int64_t columns) {
    Numbers sum[ROWS][VECTORS];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; ++v) sum[r][v] = Numbers{};
    for (int j = 0; j < keys; ++j, value += stride) {
        Numbers row[VECTORS];
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; ++v) __builtin_prefetch(value + AHEAD * stride + v * LANES);
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; ++v) row[v] = VECTORS > 1 ? read_vector(value + v * LANES) : read_some(value, count);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) {
            Numbers weight = spread(weights[r * CHUNK + j]);
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; ++v) sum[r][v] = multiply_add(weight, row[v], sum[r][v]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; ++v) {
            Number* to = output + r * columns + v * LANES;
            store(to, load<Numbers>(to) + sum[r][v]);
        }
}

// A few keys at a time: their rows stay in the nearest cache while one group of columns after the other is read.
inline void mix_product(const Number* weights, const Stored* value, int64_t stride, int keys, int rows, int64_t width,
                        Number* output, int64_t columns) {
    constexpr int NEAR_KEYS = 32;
    for (int j = 0; j < keys; j += NEAR_KEYS, weights += NEAR_KEYS, value += NEAR_KEYS * stride) {
        int some = least(NEAR_KEYS, keys - j), r = 0;
        auto take = [&](auto count) {
            constexpr int ROWS = decltype(count)::VALUE;
            for (; r + ROWS <= rows; r += ROWS) {
                const Number* own = weights + r * CHUNK;
                Number* to = output + r * columns;
                int64_t c = 0;
                for (; c + VALUE_VECTORS * LANES <= width; c += VALUE_VECTORS * LANES)
                    mix_panel<ROWS, VALUE_VECTORS>(own, value + c, stride, some, VALUE_VECTORS * LANES, to + c, columns);
                for (; c < width; c += LANES)
                    mix_panel<ROWS, 1>(own, value + c, stride, some, width - c, to + c, columns);
            }
        };
        take(Count<4>{}), take(Count<2>{}), take(Count<1>{});
    }
}

// --- One chunk ----------------------------------------------------------------------------------------------------------

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

// Softmax of some of the keys: the sum of weights relative to 2^shift, and of the values so weighted. An unseen part has the
// total 0 and no output.
struct Part {
    Number *shift, *total;  // [rows]
    Number* output;         // [rows][columns]

    static size_t bytes(int64_t rows, int64_t columns) {
        return sizeof(Number) * (size_t)round_up(round_up(2 * rows, LANES) + rows * columns, 64);
    }
    Part(char* memory, int64_t rows)
        : shift((Number*)memory), total(shift + rows), output(shift + round_up(2 * rows, LANES)) {}
};

struct DecodeScratch {
    int64_t query_columns;
    Number* queries;  // [MOST_ROWS][query_columns]
    Number* scores;   // [MOST_ROWS][CHUNK], then weights
    Number* turned;   // [BLOCK_KEYS][QUERIES], of one head
    char* part;       // of a group with one chunk
    Number* merged;   // [SHORT][columns]
    Stored* values;   // [BLOCK_KEYS][value width]; careful passes only
    uint8_t* seen;    // [MOST_ROWS][CHUNK]; careful passes only

    DecodeScratch(Arena& arena, const Problem& problem) : query_columns(round_up(problem.call.width, LANES)) {
        queries = arena.take<Number>(MOST_ROWS * query_columns);
        scores = arena.take<Number>(MOST_ROWS * CHUNK);
        turned = arena.take<Number>(BLOCK_KEYS * QUERIES);
        part = arena.take<char>((int64_t)Part::bytes(MOST_ROWS, problem.value_columns));
        merged = arena.take<Number>(SHORT * problem.value_columns);
        values = arena.take<Stored>(BLOCK_KEYS * problem.call.value_width);
        seen = arena.take<uint8_t>(MOST_ROWS * CHUNK);
    }
};

// The keys [from, to) of a chunk: CHUNK of those that somebody sees, counted over all runs.
inline Range chunk_keys_of(const Visibility& visible, int64_t chunk) {
    int64_t before = chunk * CHUNK, after = before + CHUNK;  // keys yet to be passed
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

inline int64_t chunks_of(const Visibility& visible) {
    int64_t keys = 0;
    for (int n = 0; n < visible.range_count; ++n) keys += visible.ranges[n].end - visible.ranges[n].begin;
    return most<int64_t>(1, (keys + CHUNK - 1) / CHUNK);
}

struct Chunk {
    const Problem& problem;
    const ll_call& call;
    const Group& group;
    const Visibility& visible;
    Range keys;
    DecodeScratch& own;
    Part part;
    int count = 0;  // keys visited

    Chunk(const Problem& p, const Group& g, const Visibility& v, int64_t number, DecodeScratch& scratch, Part to)
        : problem(p), call(p.call), group(g), visible(v), keys(chunk_keys_of(v, number)), own(scratch), part(to) {}

    // f(block, place of its first key in the rows of scores)
    template <class F>
    LL_INLINE int each_block(F f) const {
        BlockWalk walk(call, group.tile, visible, keys.begin, keys.end);
        walk.step = 1;
        int at = 0;
        for (Block block; walk.next(block); at += block.count) f(block, at);
        return at;
    }

    const Stored* row_of(const ll_tensor& tensor, int64_t key) const {
        return line<const Stored>(tensor, group.tile.row, group.tile.key_head, key);
    }

    void load_queries() const {
        for (int r = 0; r < group.rows(); ++r) {
            Number* to = own.queries + r * own.query_columns;
            read_row(line<const Stored>(call.query, group.tile.row, group.tile.head + r / group.tile.count,
                                        group.tile.first_query + r % group.tile.count),
                     call.width, to, own.query_columns);
            if (problem.query_factor == 1) continue;
            for (int64_t d = 0; d < own.query_columns; d += LANES) store(to + d, load<Numbers>(to + d) * problem.query_factor);
        }
    }

    void compare(const Block& block, Number* scores) const {
        for (int r = 0; r < group.rows(); ++r)
            for (int j = 0; j < block.count; ++j)
                scores[r * CHUNK + j] = additive_pair(row_of(call.key, block.begin + j), own.queries + r * own.query_columns,
                                                      vector_of(call, group.tile.head + r / group.tile.count), call.width);
    }

    // Score rules, and what is not seen: as in every other tile, a head at a time.
    void change(const Block& block, Number* scores) const {
        for (int h = 0; h < group.heads; ++h) {
            Tile tile = group.head(h);
            Number* rows = scores + h * tile.count * CHUNK;
            for (int j = 0; j < block.count; ++j)
                for (int i = 0; i < tile.count; ++i) own.turned[j * QUERIES + i] = rows[i * CHUNK + j];
            if (call.rule_count > 0) apply_rules(call, tile, block, own.turned, nullptr);
            if (block.cut_by_intervals) cut_by_intervals(visible, tile, block, own.turned);
            if (block.cut_by_bits) cut_by_bits(call, tile, block, own.turned);
            for (int i = 0; i < tile.count; ++i)
                for (int j = 0; j < block.count; ++j) rows[i * CHUNK + j] = own.turned[j * QUERIES + i];
        }
    }

    void score() {
        count = each_block([&](const Block& block, int at) {
            if (call.compare) compare(block, own.scores + at);
            else
                dot_product(row_of(call.key, block.begin), call.key.strides[2], block.count, own.queries, group.rows(),
                            own.query_columns, call.width, own.scores + at);
            if (call.rule_count > 0 || block.cut_by_intervals || block.cut_by_bits) change(block, own.scores + at);
        });
        for (int r = 0; r < group.rows(); ++r)  // whole vectors
            for (int j = count; j < round_up(count, LANES); ++j) own.scores[r * CHUNK + j] = -INFINITE;
    }

    void soften() const {
        FlushSubnormals scope;
        for (int r = 0; r < group.rows(); ++r) {
            Number* row = own.scores + r * CHUNK;
            Numbers largest = spread(-INFINITE), total{};
            for (int j = 0; j < count; j += LANES) largest = larger(largest, load<Numbers>(row + j));
            Number peak = -INFINITE;
            for (int lane = 0; lane < LANES; ++lane) peak = peak < largest[lane] ? largest[lane] : peak;  // NaN may hide
            Number shift = peak == -INFINITE ? peak : peak * problem.exponent;
            Numbers less = -subtracted(spread(shift));
            for (int j = 0; j < count; j += LANES) {
                Numbers weight = exp2_of(multiply_add(load<Numbers>(row + j), spread(problem.exponent), less));
                store(row + j, weight);
                total += weight;
            }
            part.shift[r] = shift, part.total[r] = sum_of_lanes(total);
        }
    }

    void drop(const Block& block, Number* weights) const {
        for (int h = 0; h < group.heads; ++h) {
            Tile tile = group.head(h);
            each_dropped(problem, tile, block, [&](int j, int first, Ints dropped) {
                for (int i = first; i < least(first + LANES, tile.count); ++i)
                    if (dropped[i - first]) weights[(h * tile.count + i) * CHUNK + j] = 0;
            });
        }
    }

    // Only seen pairs: a row of V that is not finite is set aside, and added by hand to the rows that see it.
    void mix_carefully(const Block& block, int at) const {
        int64_t stride = call.value.strides[2], width = call.value_width;
        const Stored* value = row_of(call.value, block.begin);
        for (int j = 0; j < block.count; ++j) {
            Stored* to = own.values + j * width;
            bool aside = !finite_row(value + j * stride, width);
            if (aside) __builtin_memset(to, 0, sizeof(Stored) * (size_t)width);
            else __builtin_memcpy(to, value + j * stride, sizeof(Stored) * (size_t)width);
            for (int r = 0; aside && r < group.rows(); ++r)
                if (own.seen[r * CHUNK + at + j])
                    for (int64_t c = 0; c < width; ++c)
                        part.output[r * problem.value_columns + c] +=
                            own.scores[r * CHUNK + at + j] * read(value + j * stride + c);
        }
        mix_product(own.scores + at, own.values, width, block.count, group.rows(), width, part.output, problem.value_columns);
    }

    template <bool careful>
    void compute() {
        score();
        for (int x = 0; careful && x < group.rows() * CHUNK; ++x) own.seen[x] = own.scores[x] != -INFINITE;
        soften();
        __builtin_memset(part.output, 0, sizeof(Number) * (size_t)(group.rows() * problem.value_columns));
        each_block([&](const Block& block, int at) {
            if (problem.drop_below) drop(block, own.scores + at);
            if (careful) mix_carefully(block, at);
            else
                mix_product(own.scores + at, row_of(call.value, block.begin), call.value.strides[2], block.count,
                            group.rows(), call.value_width, part.output, problem.value_columns);
        });
    }

    bool finite() const {
        Ints bad{};
        for (int64_t x = 0; x < group.rows() * problem.value_columns; x += LANES) {
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
        part_bytes = Part::bytes(most_rows, problem.value_columns);
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

    // Adds the parts of each row in order to what the sink began, and divides the sum by its total.
    void merge(const Group& group, char* parts, DecodeScratch& own) const {
        int64_t columns = problem.value_columns;
        Number kept = problem.drop_below ? (Number)(1.0 - problem.call.dropout) : 1;
        for (int h = 0; h < group.heads; ++h) {
            Tile tile = group.head(h);
            Softmax softmax(sink_of(problem.call, tile));
            for (int i = 0; i < tile.count; ++i) {
                int r = h * tile.count + i;
                Number* row = own.merged + i * columns;
                Number &shift = softmax.shift[i], &total = softmax.total[i];
                bool saw = false;
                __builtin_memset(row, 0, sizeof(Number) * (size_t)columns);
                for (int64_t n = 0; n < group.chunks; ++n) {
                    Part part(parts + (size_t)n * part_bytes, group.rows());
                    if (part.total[r] == 0) continue;
                    saw = true;
                    Number before = shift;
                    shift = part.shift[r] > before ? part.shift[r] : before;  // a sink that is NaN stays
                    Numbers powers{};
                    powers[0] = before - subtracted(spread(shift))[0], powers[1] = part.shift[r] - subtracted(spread(shift))[0];
                    powers = exp2_of(powers);
                    total = total * powers[0] + part.total[r] * powers[1];
                    const Number* add = part.output + r * columns;
                    for (int64_t c = 0; c < columns; c += LANES)
                        store(row + c, load<Numbers>(row + c) * powers[0] + load<Numbers>(add + c) * powers[1]);
                }
                Number share = 1 / (total * kept);
                bool nothing = total * kept == 0 || !saw;
                for (int64_t c = 0; c < columns; c += LANES)
                    store(row + c, nothing ? Numbers{} : load<Numbers>(row + c) * share);
            }
            write_tile(problem, tile, softmax, [&](int i) { return own.merged + i * columns; }, nullptr);
        }
    }

    void run(int64_t task, DecodeScratch& own) {
        Group& group = group_of(task);
        Visibility visible;
        see(problem.call, group.tile, visible);
        char* parts = group.chunks > 1 ? memory + part_bytes * (size_t)group.first : own.part;
        int64_t number = task - group.first;
        Part part(parts + part_bytes * (size_t)number, group.rows());
        Chunk(problem, group, visible, number, own, part).run();
        if (__atomic_sub_fetch(&group.left, 1, __ATOMIC_ACQ_REL) == 0) merge(group, parts, own);  // by whoever comes last
    }
};

inline void decode_task(void* context, int64_t n) {
    DecodeJob& job = *(DecodeJob*)context;
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
    parallel(worthwhile_threads(problem.call), job.tasks, decode_task, &job);
    return job.status;
}
