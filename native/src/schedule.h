// Cuts a call into tiles and hands them out.

// Tiles of all segments, batch rows and heads, in groups of `together`, numbered: (segment, batch row, head, group).
struct Tiles {
    const ll_call& call;
    int together;
    bool last_first = false;  // the groups of a head, see Order
    int64_t* first;  // [segment_count + 1]: the number of the segment's first group
    int64_t few[65];

    Tiles(const ll_call& c, int tiles_together) : call(c), together(tiles_together), first(few) {
        if (c.segment_count > 64) first = (int64_t*)malloc(sizeof(int64_t) * (size_t)(c.segment_count + 1));
        if (!first) return;
        first[0] = 0;
        for (int64_t s = 0; s < c.segment_count; ++s) {
            int64_t rows = c.segments[s].row < 0 ? c.batch : 1;
            first[s + 1] = first[s] + rows * c.query_heads * groups(s);
        }
    }
    ~Tiles() {
        if (first != few) free(first);
    }
    Tiles(const Tiles&) = delete;

    int64_t count() const { return first[call.segment_count]; }

    int64_t in_segment(int64_t s) const {
        const ll_segment& segment = call.segments[s];
        return (segment.query_end - segment.query_begin + QUERIES - 1) / QUERIES;
    }

    int64_t groups(int64_t s) const { return (in_segment(s) + together - 1) / together; }

    // The tiles of group n; returns how many there are.
    int at(int64_t n, Tile* tiles) const {
        int64_t low = 0, high = call.segment_count - 1;  // the last segment that begins at or before n
        while (low < high) {
            int64_t middle = (low + high + 1) / 2;
            if (first[middle] <= n) low = middle;
            else high = middle - 1;
        }
        int64_t many = groups(low), rest = n - first[low], group = last_first ? many - 1 - rest % many : rest % many;
        int count = (int)least<int64_t>(together, in_segment(low) - group * together);
        for (int t = 0; t < count; ++t)
            tiles[t] = tile_of(low, rest / (many * call.query_heads), rest / many % call.query_heads, group * together + t);
        return count;
    }

    // `row` is a batch row; only a segment that holds in every row reads it.
    Tile tile_of(int64_t s, int64_t row, int64_t head, int64_t number) const {
        const ll_segment& segment = call.segments[s];
        bool everywhere = segment.row < 0;
        Tile tile;
        tile.segment = &segment;
        tile.row = everywhere ? row : segment.row;
        tile.head = head;
        tile.key_head = head / (call.query_heads / call.key_heads);
        tile.dropout_row = everywhere ? row * call.segment_count + segment.dropout_row : segment.dropout_row;
        tile.first_query = segment.query_begin + number * QUERIES;
        tile.count = (int)least<int64_t>(QUERIES, segment.query_end - tile.first_query);
        return tile;
    }
};

// Threads are woken only for work that outweighs waking them (about 2 microseconds).
inline int64_t worthwhile_threads(const ll_call& call) {
    double products = (double)call.batch * (double)call.query_heads * (double)call.queries * (double)call.keys *
                      (double)(call.width + call.value_width);
    return products < 4e5 ? 1 : call.threads;
}

// --- Operands --------------------------------------------------------------------------------------------------------

// Keys or values in the form that a product reads, all of them at once: each is read by many tiles of queries.
struct Preparation {
    const ll_tensor& from;
    int64_t rows, heads, length, width, columns;
    Factor* to;  // left: (rows, heads, length, steps_along(width)); mixed: as mix_rows makes them
    bool mixed;

    static constexpr int64_t PIECE = 128;  // rows handled at a time
    int64_t pieces() const { return (length + PIECE - 1) / PIECE; }
    static int64_t mixed_size(int64_t length, int64_t columns) {
        return (length + BLOCK_STEP - 1) / BLOCK_STEP * mix_stride(columns);
    }

    void piece(int64_t n) const {
        int64_t map = n / pieces(), first = n % pieces() * PIECE, count = least(PIECE, length - first);
        const Stored* row = line<const Stored>(from, map / heads, map % heads, first);
        if (mixed)
            mix_rows(row, from.strides[2], count, width, columns, nullptr,
                     to + map * mixed_size(length, columns) + first / BLOCK_STEP * mix_stride(columns));
        else
            for (int64_t j = 0; j < count; ++j)
                left_row(row + j * from.strides[2], width, to + (map * length + first + j) * steps_along(width));
    }
};

inline void prepare_task(void* context, int64_t n) { ((const Preparation*)context)->piece(n); }

// An operand and the memory that it owns, if it is not as it lies.
struct Prepared {
    Operand operand;
    Factor* owned = nullptr;
    size_t bytes = 0;
    bool failed = false;

    Prepared() = default;
    Prepared(const Prepared&) = delete;
    ~Prepared() { give_back(owned, bytes); }

    void as_it_lies(const ll_tensor& from) {
        constexpr int64_t UNIT = (int64_t)(sizeof(Factor) / sizeof(Stored));
        operand = {(const Factor*)from.data, from.strides[0] / UNIT, from.strides[1] / UNIT, from.strides[2] / UNIT};
    }

    // A batch that is one row repeated is prepared once.
    void prepare(const ll_call& call, const ll_tensor& from, int64_t width, int64_t columns, bool mixed) {
        int64_t rows = from.strides[0] == 0 ? least<int64_t>(1, call.batch) : call.batch;
        int64_t one = mixed ? Preparation::mixed_size(call.keys, columns) : call.keys * steps_along(width);
        int64_t count = rows * call.key_heads * one;
        bytes = sizeof(Factor) * (size_t)(count + LANES);
        owned = (Factor*)borrow(bytes);
        failed = !owned;
        if (failed) return;
        Preparation job{from, rows, call.key_heads, call.keys, width, columns, owned, mixed};
        parallel(count < 4096 ? 1 : call.threads, rows * call.key_heads * job.pieces(), prepare_task, &job,
                 rows * call.key_heads);
        operand = {owned, from.strides[0] == 0 ? 0 : call.key_heads * one, one,
                   mixed ? mix_stride(columns) : steps_along(width)};
    }

    // Rows whose numbers are broadcast.
    void left(const ll_call& call, const ll_tensor& from, int64_t width) {
        bool even = from.strides[0] % FOLD == 0 && from.strides[1] % FOLD == 0 && from.strides[2] % FOLD == 0;
        bool whole = width == steps_along(width) * FOLD;
        if (sizeof(Factor) == FOLD * sizeof(Stored) && whole && even) as_it_lies(from);
        else prepare(call, from, width, 0, false);
    }

    // Rows that are mixed, read as vectors. Rows that lie far apart fall into the same few cache sets, and a last partial vector must not
    // be read past its end.
    void mixed(const ll_call& call, const ll_tensor& from, int64_t width) {
        if (FOLD == 1 && !CONVERTED && width % LANES == 0 && from.strides[2] == width) as_it_lies(from);
        else prepare(call, from, width, round_up(width, LANES), true);
    }
};

// How a call is walked through.
struct Order {
    // Whether threads take heads of their own (see `parallel`). What a tile of a long text sees is read from the last cache,
    // which threads may share: there they work on one head, and half as much lies there.
    bool apart = false;
    // Whether a head's last tiles come first: under a causal pattern they are the longest, and the threads end together.
    // Elsewhere the first do, because memory is foreseen upwards: a window finds the keys that it has not seen yet.
    bool last_first = false;

    Order(const Problem& problem, const Tiles& tiles) {
        constexpr int64_t NEAR = (int64_t)4 << 20;  // bytes of keys and values
        const ll_call& call = problem.call;
        int64_t longest = 0;
        for (int64_t s = 1; s < call.segment_count; ++s)
            if (call.segments[s].key_end - call.segments[s].key_begin >
                call.segments[longest].key_end - call.segments[longest].key_begin)
                longest = s;
        if (tiles.count() == 0 || tiles.in_segment(longest) == 0) return;
        int64_t row = most<int64_t>(call.segments[longest].row, 0), last = tiles.in_segment(longest) - 1;
        auto seen = [&](int64_t number) {
            Visibility visible;
            see(call, tiles.tile_of(longest, row, 0, number), visible);
            return seen_keys(visible);
        };
        int64_t bytes = (int64_t)sizeof(Factor) * (problem.steps + problem.value_columns / FOLD), keys = seen(last);
        apart = keys * bytes <= NEAR;
        last_first = keys > seen(last / 2);
    }
};

// --- Forward ---------------------------------------------------------------------------------------------------------

struct ForwardJob {
    const Problem& problem;
    const Tiles& tiles;
    Number* stats;
    int status;
};

// This thread's scratch, laid out by S from its arguments; null after noting that there is no memory.
template <class S, class... Arguments>
LL_INLINE char* own_memory(int& status, const Arguments&... arguments) {
    Arena counting{nullptr};
    S(counting, arguments...);
    void* memory = scratch(counting.used);
    if (!memory) __atomic_store_n(&status, (int)OUT_OF_MEMORY, __ATOMIC_RELAXED);
    return (char*)memory;
}

inline void forward_task(void* context, int64_t n) {
    ForwardJob& job = *(ForwardJob*)context;
    const ll_call& call = job.problem.call;
    Arena arena{own_memory<Scratch>(job.status, call, job.problem.value_columns, job.tiles.together)};
    if (!arena.memory) return;
    Scratch own(arena, call, job.problem.value_columns, job.tiles.together);
    [[maybe_unused]] TileRegisters registers;
    Tile tiles[MOST_TOGETHER];
    int count = job.tiles.at(n, tiles);
    forward_tiles(job.problem, tiles, count, own, job.stats, job.status);
    end_streams();
}

// A few maps (batch row, observed head) at a time, so that their column sums stay small.
struct ObserveJob {
    const Problem& problem;
    const Tiles& tiles;
    const Number* stats;
    double* sums;  // [map of the wave][chunk][ColumnSums::count]
    int64_t first_map;
    int status;
};

inline void observe_task(void* context, int64_t n) {
    ObserveJob& job = *(ObserveJob*)context;
    const ll_call& call = job.problem.call;
    const ll_observation& o = *call.observation;
    Arena arena{own_memory<ObserveScratch>(job.status, call, job.problem.value_columns)};
    if (!arena.memory) return;
    ObserveScratch own(arena, call, job.problem.value_columns);
    [[maybe_unused]] TileRegisters registers;
    ColumnSums sums(job.sums + n * ColumnSums::count(call), call);
    int64_t map = job.first_map + n / CHUNKS, chunk = n % CHUNKS;
    int64_t row = map / o.head_count, head = o.heads[map % o.head_count], counted = 0;
    for (int64_t s = 0; s < call.segment_count; ++s) {
        if (call.segments[s].row >= 0 && call.segments[s].row != row) continue;
        for (int64_t number = 0; number < job.tiles.in_segment(s); ++number, ++counted)
            if (counted % CHUNKS == chunk)
                observe_tile(job.problem, job.tiles.tile_of(s, row, head, number), map, job.stats, own, sums, job.status);
    }
}

inline void add_chunks(const ObserveJob& job, int64_t maps) {
    const ll_call& call = job.problem.call;
    const ll_observation& o = *call.observation;
    int64_t count = ColumnSums::count(call), received = o.received ? call.keys : 0;
    for (int64_t m = 0; m < maps; ++m)
        for (int64_t x = 0; x < count; ++x) {
            double sum = 0.0;
            for (int64_t chunk = 0; chunk < CHUNKS; ++chunk) sum += job.sums[(m * CHUNKS + chunk) * count + x];
            if (x < received) numbers(o.received)[(job.first_map + m) * received + x] = (Number)sum;
            else numbers(o.blocks_out)[(job.first_map + m) * (count - received) + x - received] = (Number)sum;
        }
}

inline int observe_all(const Problem& problem, const Tiles& tiles, const Number* stats, bool apart) {
    const ll_call& call = problem.call;
    int64_t maps = call.batch * call.observation->head_count, count = ColumnSums::count(call);
    int64_t together = least(maps, most<int64_t>(1, COLUMN_MEMORY / (8 * CHUNKS * (count + 1))));
    size_t bytes = (size_t)(8 * together * CHUNKS * count) + 8;
    double* sums = (double*)malloc(bytes);
    if (!sums) return OUT_OF_MEMORY;
    ObserveJob job{problem, tiles, stats, sums, 0, DONE};
    for (; job.first_map < maps && job.status == DONE; job.first_map += together) {
        int64_t wave = least(together, maps - job.first_map);
        __builtin_memset(sums, 0, bytes);
        parallel(worthwhile_threads(call), wave * CHUNKS, observe_task, &job, apart ? wave : 1);
        add_chunks(job, wave);
    }
    free(sums);
    return job.status;
}

// Tiles together as far as every thread still has several groups.
inline int tiles_together(const ll_call& call) {
    int64_t tiles = call.batch * call.query_heads * ((call.queries + QUERIES - 1) / QUERIES);
    return (int)clamp<int64_t>(tiles / (4 * most<int64_t>(call.threads, 1)), 1, MOST_TOGETHER);
}

// See decode.h.
inline bool short_queries(const ll_call& call);
inline int decode(const Problem& problem, const Tiles& tiles);

inline int forward(const ll_call& call) {
    Tiles tiles(call, tiles_together(call));
    if (!tiles.first) return OUT_OF_MEMORY;
    Problem problem(call);
    bool decoding = short_queries(call);
    Prepared keys, values;
    if (!call.compare && (!decoding || call.observation)) keys.left(call, call.key, call.width);
    if (!decoding) values.mixed(call, call.value, call.value_width);
    if (keys.failed || values.failed) return OUT_OF_MEMORY;
    problem.keys = keys.operand, problem.values = values.operand;
    Number* stats = nullptr;
    if (call.observation && !decoding) {
        stats = (Number*)malloc((size_t)(call.batch * call.query_heads * call.queries) * 2 * sizeof(Number) + 8);
        if (!stats) return OUT_OF_MEMORY;
    }
    ForwardJob job{problem, tiles, stats, DONE};
    bool apart = false;
    if (!decoding || call.observation) {
        Order order(problem, tiles);
        tiles.last_first = order.last_first, apart = order.apart;
    }
    if (decoding)
        job.status = decode(problem, tiles);
    else
        parallel(worthwhile_threads(call), tiles.count(), forward_task, &job, apart ? call.batch * call.query_heads : 1);
    if (job.status == DONE && call.observation) job.status = observe_all(problem, tiles, stats, apart);
    free(stats);
    return job.status;
}

// --- Backward --------------------------------------------------------------------------------------------------------

// What does not depend on pairs: delta, the peak and the sink's gradient for each query, and which rows are not finite.
struct ReverseRows {
    const Reverse& reverse;
    uint8_t *aside, *query_aside, *grad_aside;
    bool* large;  // whether there is a row whose logsumexp does not tell its weights
    static constexpr int64_t PIECE = 64;

    int64_t query_pieces() const { return (reverse.problem.call.queries + PIECE - 1) / PIECE; }
    int64_t key_pieces() const { return (reverse.problem.call.keys + PIECE - 1) / PIECE; }
    int64_t query_pieces_of_group() const {
        return reverse.problem.call.query_heads / reverse.problem.call.key_heads * query_pieces();
    }

    void query_piece(int64_t n) const {
        const ll_call& call = reverse.problem.call;
        const ll_gradients& wanted = reverse.wanted;
        int64_t map = n / query_pieces(), first = n % query_pieces() * PIECE, stop = least(first + PIECE, call.queries);
        for (int64_t i = first; i < stop; ++i) {
            const Stored* output = line<const Stored>(wanted.output, map / call.query_heads, map % call.query_heads, i);
            const Stored* grad = line<const Stored>(wanted.grad_output, map / call.query_heads, map % call.query_heads, i);
            // In doubles: where one key has nearly all the weight, dP - delta is a difference of equals.
            constexpr int HALF = LANES / 2;
            typedef Number Some __attribute__((vector_size(sizeof(Number) * HALF)));
            typedef double Doubles __attribute__((vector_size(sizeof(double) * HALF)));
            Doubles parts{};
            alignas(64) Number y[LANES], dy[LANES];
            for (int64_t c = 0; c < call.value_width; c += LANES) {
                int64_t some = least<int64_t>(LANES, call.value_width - c);
                read_row(output + c, some, y, LANES), read_row(grad + c, some, dy, LANES);
                // A query that sees nothing has the output 0, whatever its gradient is.
                store(dy, load<Numbers>(y) == 0 ? Numbers{} : load<Numbers>(dy));
                for (int x = 0; x < LANES; x += HALF)
                    parts += __builtin_convertvector(load<Some>(y + x), Doubles) *
                             __builtin_convertvector(load<Some>(dy + x), Doubles);
            }
            double all = 0;
            for (int x = 0; x < HALF; ++x) all += parts[x];
            Number sum = (Number)all, logsumexp = ((const Number*)wanted.logsumexp)[map * call.queries + i];
            if (wanted.grad_logsumexp) sum -= ((const Number*)wanted.grad_logsumexp)[map * call.queries + i];
            reverse.delta[map * call.queries + i] = sum;
            query_aside[map * call.queries + i] =
                !finite_row(line<const Stored>(call.query, map / call.query_heads, map % call.query_heads, i), call.width);
            grad_aside[map * call.queries + i] = !finite_row(grad, call.value_width);
            double natural = (double)reverse.problem.natural;
            Number peak = (Number)((double)logsumexp / natural);
            double less = __builtin_fma(-natural, (double)peak, (double)logsumexp) * EXACT_LOG2_E;
            begin_row(reverse, map * call.queries + i, peak, peak - peak == 0 ? less : 0);
            if (is_large(logsumexp)) __atomic_store_n(large, true, __ATOMIC_RELAXED);
        }
    }

    void key_piece(int64_t n) const {
        const ll_call& call = reverse.problem.call;
        int64_t map = n / key_pieces(), first = n % key_pieces() * PIECE, stop = least(first + PIECE, call.keys);
        for (int64_t j = first; j < stop; ++j)
            aside[map * call.keys + j] =
                !finite_row(line<const Stored>(call.key, map / call.key_heads, map % call.key_heads, j), call.width);
    }
};

// Tasks of a key head and the query heads of its group follow each other.
inline void reverse_rows_task(void* context, int64_t n) {
    const ReverseRows& rows = *(const ReverseRows*)context;
    int64_t queries = rows.query_pieces_of_group(), each = queries + rows.key_pieces();
    int64_t map = n / each, piece = n % each;
    if (piece < queries) rows.query_piece(map * queries + piece);
    else rows.key_piece(map * rows.key_pieces() + piece - queries);
}

struct BackwardJob {
    const Reverse& reverse;
    const Tiles& tiles;
    int64_t* first;         // [segment_count + 1]: the number of the segment's first task
    int64_t* turns;         // of every tile of queries
    int64_t* table_turns;   // [B * Hq], for distance tables
    int64_t* ordinals;      // [segment_count * B]: chunks of earlier segments in the row
    int64_t most_queries;   // of a segment
    int64_t only_row, only_head;  // -1: all at once
    int status;
    int64_t runs = 1;  // of maps, see `parallel`

    int64_t base(int64_t s) const {
        int64_t begin = reverse.problem.call.segments[s].key_begin;
        return begin - begin % BLOCK_STEP;
    }
    int64_t chunks(int64_t s) const {
        int64_t keys = reverse.problem.call.segments[s].key_end - base(s);
        return most<int64_t>(1, (keys + reverse.chunk - 1) / reverse.chunk);
    }
};

// One task: a chunk of the keys of one segment, batch row and key head.
struct ChunkTask {
    BackwardJob& job;
    const ll_call& call;
    int64_t s, row, key_head, chunk, begin, end;

    ChunkTask(BackwardJob& j, int64_t n) : job(j), call(j.reverse.problem.call) {
        int64_t low = 0, high = call.segment_count - 1;
        while (low < high) {
            int64_t middle = (low + high + 1) / 2;
            if (job.first[middle] <= n) low = middle;
            else high = middle - 1;
        }
        s = low;
        // Without runs: maps (batch row, key head) in waves of about one for each thread, and the chunks of a wave's maps in
        // turn: a chunk seldom waits for the one before it, which would be computed beside it if a map's chunks followed
        // each other.
        int64_t rest = n - job.first[s], chunks = job.chunks(s);
        int64_t maps = (call.segments[s].row < 0 ? call.batch : 1) * call.key_heads;
        int64_t waves = job.runs > 1 ? maps : most(maps / call.threads, (int64_t)1);
        int64_t wave = ((rest / chunks + 1) * waves - 1) / maps, from = wave * maps / waves, to = (wave + 1) * maps / waves;
        rest -= from * chunks;
        chunk = rest / (to - from);
        int64_t map = from + rest % (to - from);
        key_head = map % call.key_heads;
        row = call.segments[s].row < 0 ? map / call.key_heads : call.segments[s].row;
        begin = job.base(s) + chunk * job.reverse.chunk;
        end = least(begin + job.reverse.chunk, call.segments[s].key_end);
    }

    bool orders_rows() const {
        bool orders = job.reverse.wants(job.reverse.wanted.query) || job.reverse.wanted.compare;
        for (int64_t r = 0; r < call.rule_count; ++r)
            orders |= job.reverse.wants(job.reverse.wanted.rules[r]) && call.rules[r].kind != LL_DISTANCE_TABLE;
        return orders;
    }

    // The places of a distance table that this chunk can reach.
    DistanceSums table(int64_t r, ReverseScratch& scratch) const {
        if (call.rules[r].kind != LL_DISTANCE_TABLE || !job.reverse.wants(job.reverse.wanted.rules[r])) return {};
        const ll_segment& g = call.segments[s];
        int64_t shift = (int64_t)call.rules[r].parameters[0] + g.key_offset - g.query_offset;
        int64_t last = (int64_t)call.rules[r].parameters[1] - 1;
        DistanceSums sums;
        sums.first = clamp<int64_t>(begin - (g.query_end - 1) + shift, 0, last);
        sums.count = clamp<int64_t>(end - 1 - g.query_begin + shift, 0, last) - sums.first + 1;
        sums.sums = scratch.distances + r * (job.most_queries + job.reverse.chunk + 1);
        __builtin_memset(sums.sums, 0, sizeof(Number) * (size_t)most<int64_t>(sums.count, 0));
        return sums;
    }

    bool one_head(int64_t head, ReverseScratch& scratch, bool ordered) const {
        const Reverse& reverse = job.reverse;
        DistanceSums distances[LL_MAX_RULES];
        bool tables = false;
        for (int64_t r = 0; r < call.rule_count; ++r) distances[r] = table(r, scratch), tables |= distances[r].sums != nullptr;
        int64_t tiles = job.tiles.in_segment(s), rows = call.segments[s].row < 0 ? row : 0;
        int64_t* turns = job.turns + job.tiles.first[s] + (rows * call.query_heads + head) * tiles;
        bool last = chunk + 1 == job.chunks(s);
        for (int64_t number = 0; number < tiles; ++number) {
            if (ended(job.status)) return false;
            Tile tile = job.tiles.tile_of(s, row, head, number);
            Visibility visible;
            see(call, tile, visible);
            BlockWalk walk(call, tile, visible, begin, end);
            Block block;
            bool found = walk.next(block);
            int64_t past = begin;  // keys before it are done
            if (found) {
                Loaded loaded;
                load_tile(reverse, tile, scratch, loaded);
                if (number + 1 < tiles) ask_tile(reverse, job.tiles.tile_of(s, row, head, number + 1));
                if (reverse.wants(reverse.wanted.query)) {
                    QueryGradient to(reverse, tile, 0);
                    ask_rows(to.sums, to.stride, tile.count, call.width);
                }
                __builtin_memset(scratch.query_sum, 0, sizeof(Number) * (size_t)(QUERIES * reverse.key_columns));
                __builtin_memset(scratch.row_sums, 0, sizeof(Number) * LL_MAX_RULES * QUERIES);
                if (call.compare)
                    __builtin_memset(scratch.vector_sums, 0, sizeof(Number) * (size_t)(QUERIES * reverse.key_columns));
                do {
                    clear_bias_slopes(reverse, tile, past, block.begin);
                    reverse_block(reverse, tile, visible, block, begin, loaded, scratch, distances);
                    past = block.begin + block.count;
                } while (walk.next(block));
            }
            clear_bias_slopes(reverse, tile, past, end);
            if (!ordered) continue;
            Turn turn{turns + number, &job.status};
            if (!turn.wait(chunk)) return false;
            if (reverse.wants(reverse.wanted.query))
                add_query_sum(reverse, tile, found ? scratch.query_sum : nullptr, (Number*)scratch.key_rows, chunk == 0, last);
            if (found) add_row_sums(reverse, tile, scratch.row_sums);
            if (found && reverse.wanted.compare) add_vector_sums(reverse, tile, scratch.vector_sums);
            turn.pass(chunk);
        }
        if (!tables) return true;
        int64_t number = job.ordinals[s * call.batch + row] + chunk;
        Turn turn{job.table_turns + row * call.query_heads + head, &job.status};
        if (!turn.wait(number)) return false;
        for (int64_t r = 0; r < call.rule_count; ++r) {
            if (!distances[r].sums) continue;
            const ll_tensor& to = reverse.wanted.rules[r];
            Number* at = (Number*)to.data + row * to.strides[0] + head * to.strides[1];
            for (int64_t x = 0; x < distances[r].count; ++x)
                at[(distances[r].first + x) * to.strides[3]] += distances[r].sums[x];
        }
        turn.pass(number);
        return true;
    }

    void run() const {
        if ((job.only_row >= 0 && row != job.only_row) || (job.only_head >= 0 && key_head != job.only_head)) return;
        const Reverse& reverse = job.reverse;
        Arena arena{own_memory<ReverseScratch>(job.status, reverse, job.most_queries)};
        if (!arena.memory) return;
        ReverseScratch scratch(arena, reverse, job.most_queries);
        [[maybe_unused]] TileRegisters registers;
        int64_t keys = end - begin;  // few, in a short call: clearing a whole chunk would take longer than the rest
        __builtin_memset(scratch.key_sums, 0, sizeof(Number) * (size_t)(keys * reverse.key_columns));
        __builtin_memset(scratch.value_sums, 0, sizeof(Number) * (size_t)(keys * reverse.value_columns));
        int64_t group = call.query_heads / call.key_heads;
        bool ordered = orders_rows();
        for (int64_t g = 0; g < group; ++g)
            if (!one_head(key_head * group + g, scratch, ordered)) return;
        for (int64_t j = most(begin, call.segments[s].key_begin); j < end; ++j) {
            Number* key = scratch.key_sums + (j - begin) * reverse.key_columns;
            for (int64_t c = 0; c < call.width; ++c) key[c] *= (Number)call.scale;
            if (reverse.wants(reverse.wanted.key))
                write_row(key, call.width, line<Stored>(reverse.wanted.key, row, key_head, j));
            if (reverse.wants(reverse.wanted.value))
                write_row(scratch.value_sums + (j - begin) * reverse.value_columns, call.value_width,
                          line<Stored>(reverse.wanted.value, row, key_head, j));
        }
    }
};

inline void large_rows_task(void* context, int64_t n) {
    BackwardJob& job = *(BackwardJob*)context;
    Arena arena{own_memory<ReverseScratch>(job.status, job.reverse, job.most_queries)};
    if (!arena.memory) return;
    ReverseScratch scratch(arena, job.reverse, job.most_queries);
    [[maybe_unused]] TileRegisters registers;
    Tile tile;
    job.tiles.at(n, &tile);
    weigh_large_rows(job.reverse, tile, scratch, job.status);
}

inline void backward_task(void* context, int64_t n) {
    ChunkTask(*(BackwardJob*)context, n).run();
    end_streams();
}

// Rows or heads whose gradient of a bias is one and the same are taken one after the other.
inline void shared_bias(const ll_call& call, const ll_gradients& wanted, bool& rows, bool& heads) {
    rows = heads = false;
    for (int64_t r = 0; r < call.rule_count; ++r) {
        if (call.rules[r].kind != LL_BIAS || !wanted.rules[r].data) continue;
        rows |= wanted.rules[r].strides[0] == 0 && call.batch > 1;
        heads |= wanted.rules[r].strides[1] == 0 && call.key_heads > 1;
    }
}

inline int backward(const ll_call& call, const ll_gradients& wanted) {
    Tiles tiles(call, 1);
    if (!tiles.first) return OUT_OF_MEMORY;
    Problem problem(call);
    Prepared keys, value_rows, key_rows;
    if (!call.compare) keys.left(call, call.key, call.width), key_rows.mixed(call, call.key, call.width);
    value_rows.left(call, call.value, call.value_width);
    if (keys.failed || value_rows.failed || key_rows.failed) return OUT_OF_MEMORY;
    problem.keys = keys.operand;

    int64_t key_columns = round_up(call.width, LANES), queries = call.batch * call.query_heads * call.queries;
    char* memory = nullptr;
    size_t bytes = 0;
    Number *delta, *peak, *less, *query_sums;
    uint8_t *aside, *query_aside, *grad_aside;
    int64_t *first, *turns, *table_turns, *ordinals;
    for (Arena arena{nullptr};; arena = {memory}) {
        delta = arena.take<Number>(queries);
        peak = arena.take<Number>(queries);
        less = arena.take<Number>(queries);
        query_sums = arena.take<Number>(CONVERTED && wanted.query.data ? queries * key_columns : 0);
        aside = arena.take<uint8_t>(call.batch * call.key_heads * call.keys);
        query_aside = arena.take<uint8_t>(queries);
        grad_aside = arena.take<uint8_t>(queries);
        first = arena.take<int64_t>(call.segment_count + 1);
        turns = arena.take<int64_t>(tiles.count());
        table_turns = arena.take<int64_t>(call.batch * call.query_heads);
        ordinals = arena.take<int64_t>(call.segment_count * call.batch);
        if (memory) break;
        bytes = arena.used + 64;
        memory = (char*)borrow(bytes);
        if (!memory) return OUT_OF_MEMORY;
    }
    __builtin_memset(turns, 0, sizeof(int64_t) * (size_t)tiles.count());
    __builtin_memset(table_turns, 0, sizeof(int64_t) * (size_t)(call.batch * call.query_heads));

    Reverse reverse{problem, wanted, value_rows.operand, key_rows.operand, aside, query_aside, grad_aside, delta,
                    peak, less, query_sums, key_columns,
                    problem.value_columns, steps_along(call.value_width), 0};
    reverse.chunk = chunk_keys(key_columns, problem.value_columns);
    BackwardJob job{reverse, tiles, first, turns, table_turns, ordinals, 0, -1, -1, DONE};
    first[0] = 0;
    for (int64_t s = 0; s < call.segment_count; ++s) {
        const ll_segment& segment = call.segments[s];
        job.most_queries = most(job.most_queries, segment.query_end - segment.query_begin);
        first[s + 1] = first[s] + (segment.row < 0 ? call.batch : 1) * call.key_heads * job.chunks(s);
        for (int64_t b = 0; b < call.batch; ++b) {  // chunks of this row in the segment before, and before it
            bool here = s > 0 && (call.segments[s - 1].row < 0 || call.segments[s - 1].row == b);
            ordinals[s * call.batch + b] = s == 0 ? 0 : ordinals[(s - 1) * call.batch + b] + (here ? job.chunks(s - 1) : 0);
        }
    }

    int64_t threads = worthwhile_threads(call), maps = call.batch * call.key_heads;
    // Each thread has maps of its own where they can be shared out evenly: a chunk never waits for another thread's then,
    // but for what is left at the end.
    job.runs = call.segment_count == 1 && maps % threads == 0 ? threads : 1;
    bool large = false;
    ReverseRows rows{reverse, aside, query_aside, grad_aside, &large};
    parallel(threads, maps * (rows.query_pieces_of_group() + rows.key_pieces()), reverse_rows_task, &rows, maps);
    if (large) parallel(threads, tiles.count(), large_rows_task, &job);
    bool row_by_row, head_by_head;
    shared_bias(call, wanted, row_by_row, head_by_head);
    for (int64_t b = 0; b < (row_by_row ? call.batch : 1); ++b)
        for (int64_t h = 0; h < (head_by_head ? call.key_heads : 1); ++h) {
            job.only_row = row_by_row ? b : -1, job.only_head = head_by_head ? h : -1;
            parallel(threads, first[call.segment_count], backward_task, &job, job.runs);
        }
    give_back(memory, bytes);
    return job.status;
}
