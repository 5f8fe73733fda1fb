// What is seen on the way: a second pass over Q.K, with the softmax of every row already final.
//
// A weight is 2^(exponent * score - shift) / total with the very numbers of the forward pass; after decode.h, whose products
// are summed in another order, with those of one more pass, so that weights add up to one. Sums over keys belong to one
// tile. Sums over queries (received, blocks) are taken per *chunk* of tiles, at most CHUNKS of them whatever the machine,
// and the chunks are added in order: the same bits for any number of threads, and memory linear in the length.

constexpr int64_t CHUNKS = 8;
constexpr int64_t COLUMN_MEMORY = (int64_t)64 << 20;  // bytes of column sums held at a time

// What a caller gives and receives as numbers.
LL_INLINE Number* numbers(void* pointer) { return (Number*)pointer; }
LL_INLINE const Number* numbers(const void* pointer) { return (const Number*)pointer; }

// Statistics of the rows of one tile, as they run.
struct RowStatistics {
    alignas(64) Number shift[QUERIES], share[QUERIES];  // the weight is 2^(.. - shift) * share
    alignas(64) Number log_total[QUERIES];              // log2 of the total
    alignas(64) Number largest[QUERIES], heaviest[QUERIES];  // the largest score and the largest weight
    double entropy[QUERIES], distance[QUERIES];
    alignas(64) Int real[QUERIES];                 // -1 for queries of the tile, 0 for the lanes beyond
};

struct ObserveScratch {
    Scratch base;
    Number* weights;       // [BLOCK_KEYS][QUERIES]
    Number* features;      // [QUERIES][feature columns]
    Number* feature_rows;  // [BLOCK_KEYS][feature columns]
    Number* top_weights;   // [QUERIES][top_stride]
    int64_t* top_keys;    // [QUERIES][top_stride]
    Int* near_keys;       // the same, where a vector holds a query's
    int64_t feature_columns, top_stride;
    bool near;

    ObserveScratch(Arena& arena, const ll_call& call, int64_t columns) : base(arena, call, columns, 1) {
        const ll_observation& o = *call.observation;
        feature_columns = round_up(o.feature_count, LANES);
        weights = arena.take<Number>(BLOCK_KEYS * QUERIES);
        features = arena.take<Number>(QUERIES * feature_columns);
        feature_rows = arena.take<Number>(BLOCK_KEYS * feature_columns);
        near = o.top <= LANES && call.keys <= 0x7fffffff;
        top_stride = near ? LANES : o.top;
        top_weights = arena.take<Number>(o.top > 0 ? QUERIES * top_stride : 0);
        top_keys = arena.take<int64_t>(near ? 0 : QUERIES * top_stride);
        near_keys = arena.take<Int>(near && o.top > 0 ? QUERIES * top_stride : 0);
    }
};

// Sums over the queries of one chunk.
struct ColumnSums {
    double* received;  // [keys]
    double* blocks;    // [query blocks][key blocks]

    static int64_t block_rows(const ll_call& call) {
        const ll_observation& o = *call.observation;
        return o.blocks_out ? (call.queries + o.block_queries - 1) / o.block_queries : 0;
    }
    static int64_t block_columns(const ll_call& call) {
        const ll_observation& o = *call.observation;
        return o.blocks_out ? (call.keys + o.block_keys - 1) / o.block_keys : 0;
    }
    static int64_t count(const ll_call& call) {
        int64_t received = call.observation->received ? call.keys : 0;
        return received + block_rows(call) * block_columns(call);
    }
    ColumnSums(double* memory, const ll_call& call)
        : received(memory), blocks(memory + (call.observation->received ? call.keys : 0)) {}
};

// The final softmax of a tile's rows: as the forward pass left it, or computed again where there is no such.
inline void final_softmax(const Problem& problem, const Tile& tile, const Visibility& visible, const Number* stats,
                          Scratch& scratch, Softmax& softmax) {
    const ll_call& call = problem.call;
    if (stats) {
        const Number* own = stats + 2 * ((tile.row * call.query_heads + tile.head) * call.queries + tile.first_query);
        for (int i = 0; i < tile.count; ++i) softmax.shift[i] = own[2 * i], softmax.total[i] = own[2 * i + 1];
        return;
    }
    alignas(64) Number peak[QUERIES];
    BlockWalk walk(call, tile, visible);
    for (Block block; walk.next(block);) {
        score_block(problem, tile, visible, block, Cut(visible, tile, block), scratch.packed[0], scratch.scores, peak);
        soften<false>(problem, tile, block, scratch.scores, peak, softmax, nullptr, 0, nullptr);
    }
}

inline void start_rows(const Tile& tile, const Softmax& softmax, RowStatistics& rows) {
    for (int i = 0; i < QUERIES; ++i) {
        bool real = i < tile.count;
        Number total = real ? softmax.total[i] : 0;
        rows.real[i] = -(Int)real;
        rows.shift[i] = real ? softmax.shift[i] : 0;
        rows.share[i] = total == 0 ? 0 : 1.0f / total;
        rows.log_total[i] = total == 0 ? 0 : (Number)__builtin_log2((double)total);
        rows.largest[i] = -INFINITE, rows.heaviest[i] = 0;
        rows.entropy[i] = rows.distance[i] = 0.0;
    }
}

// scores -> weights, and the row statistics that follow from them. Sums are taken over SHORT_SUM keys, then over the
// block, then in double precision over the blocks: a single long chain of roundings would lose accuracy.
constexpr int SHORT_SUM = 16;

inline void weigh_and_count(const Problem& problem, const Tile& tile, const Block& block, const Number* scores,
                            Number* weights, RowStatistics& rows) {
    FlushSubnormals scope;
    for (int i = 0; i < QUERIES; i += LANES) {
        Numbers less = subtracted(load<Numbers>(rows.shift + i)), share = load<Numbers>(rows.share + i);
        Numbers log_total = load<Numbers>(rows.log_total + i), largest = load<Numbers>(rows.largest + i);
        Numbers heaviest = load<Numbers>(rows.heaviest + i), entropy{};
        Ints real = load<Ints>(rows.real + i);
        for (int j = 0; j < block.count;) {
            Numbers some_entropy{};
            for (int stop = least(j + SHORT_SUM, block.count); j < stop; ++j) {
                Numbers score = load<Numbers>(scores + j * QUERIES + i);
                Ints seen = real & (score != -INFINITE);
                Numbers power = multiply_add(score, spread(problem.exponent), -less);
                Numbers weight = seen ? weight_of(power) * share : Numbers{};
                store(weights + j * QUERIES + i, weight);
                largest = larger(largest, seen ? score : spread(-INFINITE));
                heaviest = larger(heaviest, weight);
                some_entropy += seen ? weight * (log_total - power) : Numbers{};
            }
            entropy += some_entropy;
        }
        store(rows.largest + i, largest);
        store(rows.heaviest + i, heaviest);
        for (int lane = 0; lane < LANES; ++lane) rows.entropy[i + lane] += (double)entropy[lane];
    }
    if (!problem.call.observation->distance) return;
    int32_t first = first_distance(tile, block);
    for (int i = 0; i < QUERIES; i += LANES) {
        Numbers distance{};
        for (int j = 0; j < block.count;) {
            Numbers some{};
            for (int stop = least(j + SHORT_SUM, block.count); j < stop; ++j)
                some = multiply_add(load<Numbers>(weights + j * QUERIES + i), absolute_distance(first, j, i), some);
            distance += some;
        }
        for (int lane = 0; lane < LANES; ++lane) rows.distance[i + lane] += (double)distance[lane];
    }
}

// Keeps the largest weights of one query, in order; of equals the lowest key, which came first. A place whose key is
// negative is free.
LL_INLINE void insert_top(Number* weights, int64_t* keys, int64_t top, Number weight, int64_t key) {
    int64_t place = top - 1;
    for (; place > 0 && (keys[place - 1] < 0 || weights[place - 1] < weight); --place)
        weights[place] = weights[place - 1], keys[place] = keys[place - 1];
    weights[place] = weight, keys[place] = key;
}

// The same in a vector, which needs no branch: what is smaller moves on by a lane.
LL_INLINE void insert_top(Number* weights, Int* keys, Number weight, int64_t key) {
    Ints back = iota() - 1;  // the first lane has its own there, and is told apart below
    back = back < 0 ? Ints{} : back;
    Numbers held = load<Numbers>(weights);
    Ints held_keys = load<Ints>(keys);
    Ints stays = (held_keys >= 0) & ~(held < weight);
    Ints before = __builtin_shuffle(stays, back) | (iota() == 0);  // whether what lies in the lane before stays
    Numbers moved = before ? spread(weight) : __builtin_shuffle(held, back);
    Ints moved_keys = before ? spread_int((Int)key) : __builtin_shuffle(held_keys, back);
    store(weights, stays ? held : moved);
    store(keys, stays ? held_keys : moved_keys);
}

// A row that is not a number has equal weights, all NaN: no comparison holds, and the lowest keys stay.
// insert(query, weight, key) keeps a weight unless others are as large; `last` are those that are given up next.
template <class K, class F>
LL_INLINE void gather_top(const Block& block, const Tile& tile, const Number* scores, const Number* weights,
                          const Number* last, const K* last_keys, int64_t stride, F insert) {
    constexpr int TOGETHER = 64 / LANES;  // keys whose candidates are found at once
    for (int first = 0; first < tile.count; first += LANES) {
        Numbers least_kept{};
        Ints wanting{};  // -1: fewer than `top` so far, so that any key is kept
        auto remember = [&](int i) {
            Ints here = iota() == i;
            least_kept = here ? spread(last[(first + i) * stride]) : least_kept;
            wanting = here ? spread_int(-(Int)(last_keys[(first + i) * stride] < 0)) : wanting;
        };
        for (int i = 0; i < LANES; ++i) {
            if (first + i < tile.count) remember(i);
            else least_kept = iota() == i ? spread(INFINITE) : least_kept;
        }
        bool wanted = any(wanting);
        for (int j = 0; j < block.count; j += TOGETHER) {
            const Number* row = weights + j * QUERIES + first;
            const Number* score = scores + j * QUERIES + first;
            uint64_t left = 0;
            for (int t = 0; t < least(TOGETHER, block.count - j); ++t) {
                uint32_t lanes = lanes_larger(load<Numbers>(row + t * QUERIES), least_kept);
                if (wanted) lanes |= lanes_set(wanting & (load<Numbers>(score + t * QUERIES) != -INFINITE));
                left |= (uint64_t)lanes << t * LANES;
            }
            for (; left; left &= left - 1) {
                int n = __builtin_ctzll(left), i = n % LANES, t = n / LANES;
                insert(first + i, row[t * QUERIES + i], block.begin + j + t);
                remember(i);
            }
            wanted = wanted && any(wanting);
        }
    }
}

inline void gather_top(const Block& block, const Tile& tile, const Number* weights, int64_t top, ObserveScratch& own) {
    int64_t stride = own.top_stride;
    if (own.near)
        gather_top(block, tile, own.base.scores, weights, own.top_weights + top - 1, own.near_keys + top - 1, stride,
                   [&](int i, Number weight, int64_t key) {
                       insert_top(own.top_weights + i * stride, own.near_keys + i * stride, weight, key);
                   });
    else
        gather_top(block, tile, own.base.scores, weights, own.top_weights + top - 1, own.top_keys + top - 1, stride,
                   [&](int i, Number weight, int64_t key) {
                       Number* kept = own.top_weights + i * stride;
                       int64_t* keys = own.top_keys + i * stride;
                       if (keys[top - 1] < 0 || weight > kept[top - 1]) insert_top(kept, keys, top, weight, key);
                   });
}

inline void gather_columns(const ll_call& call, const Tile& tile, const Block& block, const Number* weights,
                           ColumnSums& sums) {
    const ll_observation& o = *call.observation;
    if (o.received)
        for (int first = 0; first < block.count; first += LANES) {
            int keys = least(LANES, block.count - first);
            Numbers rows[LANES], sum{};
            for (int j = 0; j < LANES; ++j) {
                rows[j] = Numbers{};
                for (int i = 0; i < QUERIES && j < keys; i += LANES)
                    rows[j] += load<Numbers>(weights + (first + j) * QUERIES + i);
            }
            turn_square(rows);
            for (int i = 0; i < LANES; ++i) sum += rows[i];
            for (int j = 0; j < keys; ++j) sums.received[block.begin + first + j] += (double)sum[j];
        }
    if (!o.blocks_out) return;
    int64_t columns = ColumnSums::block_columns(call);
    for (int j = 0; j < block.count;) {
        int64_t column = (block.begin + j) / o.block_keys;
        int stop = (int)least<int64_t>(block.count, (column + 1) * o.block_keys - block.begin);
        alignas(64) Number sum[QUERIES] = {};
        for (; j < stop; ++j)
            for (int i = 0; i < QUERIES; i += LANES)
                store(sum + i, load<Numbers>(sum + i) + load<Numbers>(weights + j * QUERIES + i));
        for (int i = 0; i < tile.count; ++i)
            sums.blocks[(tile.first_query + i) / o.block_queries * columns + column] += (double)sum[i];
    }
}

// The first entry of an ascending list at or above `value`; entries lie `step` apart.
inline int64_t first_at_least(const int64_t* list, int64_t count, int64_t step, int64_t value) {
    int64_t low = 0, high = count;
    while (low < high) {
        int64_t middle = (low + high) / 2;
        if (list[middle * step] < value) low = middle + 1;
        else high = middle;
    }
    return low;
}

inline void copy_chosen(const ll_call& call, const Tile& tile, int64_t map, const Block& block, const Number* weights) {
    const ll_observation& o = *call.observation;
    int64_t last = tile.first_query + tile.count;
    if (o.rows_out)
        for (int64_t r = first_at_least(o.rows, o.row_count, 1, tile.first_query); r < o.row_count && o.rows[r] < last; ++r) {
            Number* to = numbers(o.rows_out) + (map * o.row_count + r) * call.keys + block.begin;
            for (int j = 0; j < block.count; ++j) to[j] = weights[j * QUERIES + (o.rows[r] - tile.first_query)];
        }
    if (o.pairs_out)
        for (int64_t p = first_at_least(o.pairs, o.pair_count, 2, tile.first_query);
             p < o.pair_count && o.pairs[2 * p] < last; ++p) {
            int64_t j = o.pairs[2 * p + 1] - block.begin;
            if (j >= 0 && j < block.count)
                numbers(o.pairs_out)[map * o.pair_count + p] = weights[j * QUERIES + (o.pairs[2 * p] - tile.first_query)];
        }
}

inline void add_features(const ll_observation& o, const Tile& tile, const Block& block, ObserveScratch& own) {
    for (int j = 0; j < block.count; ++j) {
        Number* to = own.feature_rows + j * own.feature_columns;
        __builtin_memcpy(to, numbers(o.features) + (block.begin + j) * o.feature_stride,
                         sizeof(Number) * (size_t)o.feature_count);
        for (int64_t f = o.feature_count; f < own.feature_columns; ++f) to[f] = 0;
    }
    add_product<Number>({own.weights, 1, QUERIES, 0, block.count, nullptr}, own.feature_rows, own.feature_columns, own.features,
                        own.feature_columns, tile.count, own.feature_columns);
}

inline void write_rows(const Problem& problem, const Tile& tile, int64_t map, const RowStatistics& rows,
                       const ObserveScratch& own) {
    const ll_observation& o = *problem.call.observation;
    int64_t at = map * problem.call.queries + tile.first_query;
    for (int i = 0; i < tile.count; ++i, ++at) {
        Number share = rows.share[i], largest = rows.largest[i];
        bool undefined = share != share;
        if (o.logsumexp)
            numbers(o.logsumexp)[at] = share == 0 ? -INFINITE : (Number)(((double)rows.shift[i] + rows.log_total[i]) * LN_2);
        if (o.max_score) numbers(o.max_score)[at] = undefined ? share : largest * problem.natural;
        if (o.max_weight) numbers(o.max_weight)[at] = undefined ? share : rows.heaviest[i];
        if (o.entropy) numbers(o.entropy)[at] = (Number)(rows.entropy[i] * LN_2);
        if (o.distance) numbers(o.distance)[at] = (Number)rows.distance[i];
        if (o.features_out)
            __builtin_memcpy(numbers(o.features_out) + at * o.feature_count, own.features + i * own.feature_columns,
                             sizeof(Number) * (size_t)o.feature_count);
        for (int64_t t = 0; t < o.top; ++t) {
            int64_t from = i * own.top_stride + t;
            o.top_keys[at * o.top + t] = own.near ? own.near_keys[from] : own.top_keys[from];
            numbers(o.top_weights)[at * o.top + t] = own.top_weights[from];
        }
    }
}

// map: (batch row, observed head) as one number.
inline void observe_tile(const Problem& problem, const Tile& tile, int64_t map, const Number* stats, ObserveScratch& own,
                         ColumnSums& sums) {
    const ll_call& call = problem.call;
    const ll_observation& o = *call.observation;
    Visibility visible;
    see(call, tile, visible);
    pack_queries(problem, tile, own.base.packed[0]);
    Softmax softmax(sink_of(call, tile));
    final_softmax(problem, tile, visible, stats, own.base, softmax);
    RowStatistics rows;
    start_rows(tile, softmax, rows);
    __builtin_memset(own.features, 0, sizeof(Number) * (size_t)(QUERIES * own.feature_columns));
    for (int64_t t = 0; o.top > 0 && t < QUERIES * own.top_stride; ++t) {
        own.top_weights[t] = 0;
        if (own.near) own.near_keys[t] = -1;
        else own.top_keys[t] = -1;
    }

    alignas(64) Number peak[QUERIES];
    BlockWalk walk(call, tile, visible);
    for (Block block; walk.next(block);) {
        score_block(problem, tile, visible, block, Cut(visible, tile, block), own.base.packed[0], own.base.scores, peak);
        weigh_and_count(problem, tile, block, own.base.scores, own.weights, rows);
        if (o.top > 0) gather_top(block, tile, own.weights, o.top, own);
        gather_columns(call, tile, block, own.weights, sums);
        copy_chosen(call, tile, map, block, own.weights);
        if (o.features_out) add_features(o, tile, block, own);
    }
    write_rows(problem, tile, map, rows, own);
}
