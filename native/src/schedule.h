// Cuts a call into tiles and hands them out.

// Tiles of all segments, batch rows and heads, numbered: (segment, batch row, head, tile), the last tile of a head first,
// because under a causal pattern it is the longest.
struct Tiles {
    const ll_call& call;
    int64_t* first;  // [segment_count + 1]: the number of the segment's first tile
    int64_t few[65];

    explicit Tiles(const ll_call& c) : call(c), first(few) {
        if (c.segment_count > 64) first = (int64_t*)malloc(sizeof(int64_t) * (size_t)(c.segment_count + 1));
        if (!first) return;
        first[0] = 0;
        for (int64_t s = 0; s < c.segment_count; ++s) {
            int64_t rows = c.segments[s].row < 0 ? c.batch : 1;
            first[s + 1] = first[s] + rows * c.query_heads * in_segment(s);
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

    Tile at(int64_t n) const {
        int64_t low = 0, high = call.segment_count - 1;  // the last segment that begins at or before n
        while (low < high) {
            int64_t middle = (low + high + 1) / 2;
            if (first[middle] <= n) low = middle;
            else high = middle - 1;
        }
        int64_t tiles = in_segment(low), rest = n - first[low];
        return tile_of(low, rest / (tiles * call.query_heads), rest / tiles % call.query_heads, tiles - 1 - rest % tiles);
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

struct ForwardJob {
    const Problem& problem;
    const Tiles& tiles;
    float* stats;
    int status;
};

inline void forward_task(void* context, int64_t n) {
    ForwardJob& job = *(ForwardJob*)context;
    const ll_call& call = job.problem.call;
    void* memory = scratch((size_t)Scratch::bytes(call.width, job.problem.value_columns));
    if (!memory) {
        __atomic_store_n(&job.status, (int)OUT_OF_MEMORY, __ATOMIC_RELAXED);
        return;
    }
    Scratch own(memory, call.width, job.problem.value_columns);
    forward_tile(job.problem, job.tiles.at(n), own, job.stats);
}

// A few maps (batch row, observed head) at a time, so that their column sums stay small.
struct ObserveJob {
    const Problem& problem;
    const Tiles& tiles;
    const float* stats;
    double* sums;  // [map of the wave][chunk][ColumnSums::count]
    int64_t first_map;
    int status;
};

inline void observe_task(void* context, int64_t n) {
    ObserveJob& job = *(ObserveJob*)context;
    const ll_call& call = job.problem.call;
    const ll_observation& o = *call.observation;
    void* memory = scratch((size_t)ObserveScratch::bytes(call, job.problem.value_columns));
    if (!memory) {
        __atomic_store_n(&job.status, (int)OUT_OF_MEMORY, __ATOMIC_RELAXED);
        return;
    }
    ObserveScratch own((char*)memory, call, job.problem.value_columns);
    ColumnSums sums(job.sums + n * ColumnSums::count(call), call);
    int64_t map = job.first_map + n / CHUNKS, chunk = n % CHUNKS;
    int64_t row = map / o.head_count, head = o.heads[map % o.head_count], counted = 0;
    for (int64_t s = 0; s < call.segment_count; ++s) {
        if (call.segments[s].row >= 0 && call.segments[s].row != row) continue;
        for (int64_t number = 0; number < job.tiles.in_segment(s); ++number, ++counted)
            if (counted % CHUNKS == chunk)
                observe_tile(job.problem, job.tiles.tile_of(s, row, head, number), map, job.stats, own, sums);
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
            if (x < received) o.received[(job.first_map + m) * received + x] = (float)sum;
            else o.blocks_out[(job.first_map + m) * (count - received) + x - received] = (float)sum;
        }
}

inline int observe_all(const Problem& problem, const Tiles& tiles, const float* stats) {
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
        parallel(worthwhile_threads(call), wave * CHUNKS, observe_task, &job);
        add_chunks(job, wave);
    }
    free(sums);
    return job.status;
}

inline int forward(const ll_call& call) {
    Tiles tiles(call);
    if (!tiles.first) return OUT_OF_MEMORY;
    Problem problem(call);
    float* stats = nullptr;
    if (call.observation) {
        stats = (float*)malloc((size_t)(8 * call.batch * call.query_heads * call.queries) + 8);
        if (!stats) return OUT_OF_MEMORY;
    }
    ForwardJob job{problem, tiles, stats, DONE};
    parallel(worthwhile_threads(call), tiles.count(), forward_task, &job);
    if (job.status == DONE && call.observation) job.status = observe_all(problem, tiles, stats);
    free(stats);
    return job.status;
}
