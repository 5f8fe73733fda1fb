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
        return most<int64_t>(0, (segment.query_end - segment.query_begin + QUERIES - 1) / QUERIES);
    }

    Tile at(int64_t n) const {
        int64_t low = 0, high = call.segment_count - 1;  // the last segment that begins at or before n
        while (low < high) {
            int64_t middle = (low + high + 1) / 2;
            if (first[middle] <= n) low = middle;
            else high = middle - 1;
        }
        int64_t tiles = in_segment(low), rest = n - first[low];
        int64_t row = rest / (tiles * call.query_heads), head = rest / tiles % call.query_heads;
        return tile_of(low, row, head, tiles - 1 - rest % tiles);
    }

    // `row` counts batch rows where the segment holds in all of them.
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

struct Job {
    const Problem& problem;
    const Tiles& tiles;
    float* stats;
    bool out_of_memory = false;
};

inline void forward_task(void* context, int64_t n) {
    Job& job = *(Job*)context;
    const ll_call& call = job.problem.call;
    void* memory = scratch((size_t)Scratch::bytes(call.width, job.problem.value_columns));
    if (!memory) {
        job.out_of_memory = true;
        return;
    }
    Scratch own(memory, call.width, job.problem.value_columns);
    forward_tile(job.problem, job.tiles.at(n), own, job.stats);
}

// Threads are woken only for work that outweighs waking them (about 2 microseconds).
inline int64_t worthwhile_threads(const ll_call& call) {
    double products = (double)call.queries * (double)call.batch * (double)call.query_heads * (double)call.keys *
                      (double)(call.width + call.value_width);
    return products < 4e5 ? 1 : call.threads;
}

inline int observe_all(const Problem&, const Tiles&, const float*) { return DONE; }

inline int forward(const ll_call& call) {
    Tiles tiles(call);
    if (!tiles.first) return OUT_OF_MEMORY;
    Problem problem(call);
    float* stats = nullptr;
    if (call.observation) {
        stats = (float*)malloc((size_t)(8 * call.batch * call.query_heads * call.queries) + 1);
        if (!stats) return OUT_OF_MEMORY;
    }
    Job job{problem, tiles, stats};
    parallel(worthwhile_threads(call), tiles.count(), forward_task, &job);
    int status = job.out_of_memory ? OUT_OF_MEMORY : DONE;
    if (status == DONE && call.observation) status = observe_all(problem, tiles, stats);
    free(stats);
    return status;
}
