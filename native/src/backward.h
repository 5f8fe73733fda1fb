// The gradient of attention, in memory linear in the length (Dao et al. 2022; Dao 2023): the weights are computed again
// from the logsumexp of each row, five products for each block.
//
//   P = 2^(exponent * (S - peak) - less)  dP = V dO'             delta_i = dO_i . O_i - dlse_i
//   dS = P (dP - delta)                   dV += P dO             dK += dS Q             dQ += dS' K
//
// One task owns a chunk of keys of one batch row and key head: dK and dV are its own sums over the queries of the group's
// heads. dQ is a sum over chunks: each tile of queries takes the chunks in ascending order, and a task waits for its turn
// there (tasks begin in that order, so the turn always comes). Chunks follow from the width alone: the same bits for any
// number of threads.

constexpr int64_t MOST_CHUNK_KEYS = 512, CHUNK_NUMBERS = 65536;

LL_INLINE int64_t chunk_keys(int64_t key_columns, int64_t value_columns) {
    return clamp(CHUNK_NUMBERS / (key_columns + value_columns) / BLOCK_KEYS, (int64_t)1, MOST_CHUNK_KEYS / BLOCK_KEYS) *
           BLOCK_KEYS;
}

// A backward pass, worked out once.
struct Reverse {
    const Problem& problem;
    const ll_gradients& wanted;
    Operand value_rows;        // V as the left operand
    Operand key_rows;          // K as `mix` reads it
    const uint8_t* aside;      // (B, Hkv, Lk): keys that are not finite
    const uint8_t *query_aside, *grad_aside;  // (B, Hq, Lq): the same of queries and of the output's gradient
    Number *delta, *peak, *less;  // (B, Hq, Lq)
    Number* query_sums;        // (B, Hq, Lq, key_columns), where elements are not numbers
    int64_t key_columns, value_columns, value_steps, chunk;

    bool wants(const ll_tensor& gradient) const { return gradient.data != nullptr; }
};

// Sums over queries for the distances of one head: a distance table's gradient within a chunk.
struct DistanceSums {
    Number* sums;
    int64_t first, count;  // places [first, first + count) of the table, which is as large as all distances
};

struct ReverseScratch {
    Factor *packed_query, *packed_grad;       // along the lanes
    Factor *query_rows, *grad_rows;           // right operands: [QUERIES / FOLD][columns]
    Number *scores, *grads;                   // [BLOCK_KEYS][QUERIES]: S, then P; dP, then dS
    Number* kept;                             // [BLOCK_KEYS][QUERIES]: what dropout multiplies by
    Number* slopes;                           // [soft cap][BLOCK_KEYS][QUERIES]
    Factor* factors;                          // weights as factors, where they differ from numbers
    Factor* key_rows;                         // [BLOCK_KEYS / FOLD][columns]; careful blocks only
    uint8_t* seen;                            // [BLOCK_KEYS][QUERIES]; careful blocks only
    Number *query_sum, *key_sums, *value_sums;  // dQ of the tile, dK and dV of the chunk
    Number* row_sums;                         // [rule][QUERIES]
    Number *query_numbers, *vector_sums;      // [QUERIES][columns]; additive comparison only
    Number* distances;                        // [rule][queries + chunk]

    ReverseScratch(Arena& arena, const Reverse& reverse, int64_t queries) {
        const Problem& problem = reverse.problem;
        int64_t square = BLOCK_KEYS * QUERIES, wide = most(reverse.key_columns, reverse.value_columns);
        packed_query = arena.take<Factor>(packed_size(problem.call));
        packed_grad = arena.take<Factor>(reverse.value_steps * QUERIES);
        query_rows = arena.take<Factor>(QUERIES / FOLD * reverse.key_columns);
        grad_rows = arena.take<Factor>(QUERIES / FOLD * reverse.value_columns);
        scores = arena.take<Number>(square);
        grads = arena.take<Number>(square);
        kept = arena.take<Number>(problem.drop_below ? square : 0);
        slopes = arena.take<Number>(problem.softcaps * square);
        factors = arena.take<Factor>(FOLD > 1 ? square / FOLD : 0);
        key_rows = arena.take<Factor>(BLOCK_KEYS / FOLD * wide);
        seen = arena.take<uint8_t>(square);
        query_sum = arena.take<Number>(QUERIES * reverse.key_columns);
        key_sums = arena.take<Number>(reverse.chunk * reverse.key_columns);
        value_sums = arena.take<Number>(reverse.chunk * reverse.value_columns);
        row_sums = arena.take<Number>(LL_MAX_RULES * QUERIES);
        query_numbers = arena.take<Number>(problem.call.compare ? QUERIES * reverse.key_columns : 0);
        vector_sums = arena.take<Number>(problem.call.compare ? QUERIES * reverse.key_columns : 0);
        int64_t tables = 0;
        for (int64_t r = 0; r < problem.call.rule_count; ++r)
            tables += problem.call.rules[r].kind == LL_DISTANCE_TABLE && reverse.wants(reverse.wanted.rules[r]);
        distances = arena.take<Number>(tables ? LL_MAX_RULES * (queries + reverse.chunk + 1) : 0);
    }
};

// A tile of queries with its gradient, ready for the products.
struct Loaded {
    alignas(64) Number peak[QUERIES], less[QUERIES], delta[QUERIES];
    alignas(64) Int real[QUERIES];  // -1 for queries of the tile, 0 for the lanes beyond
    uint8_t query_aside[QUERIES], grad_aside[QUERIES];
    bool any_aside = false;
};

// Its memory is on the way while the tile before is computed. (Inlined in any case: GCC leaves out the call of a function that
// only asks, as one without effect.)
LL_INLINE void ask_tile(const Reverse& reverse, const Tile& tile) {
    const ll_call& call = reverse.problem.call;
    const ll_tensor& grad = reverse.wanted.grad_output;
    ask_rows(line<const Stored>(call.query, tile.row, tile.head, tile.first_query), call.query.strides[2], tile.count, call.width);
    ask_rows(line<const Stored>(grad, tile.row, tile.head, tile.first_query), grad.strides[2], tile.count, call.value_width);
}

// Row `at` of (B, Hq, Lq), and its share of the sink's gradient. A row that has seen nothing has the peak -inf.
inline void begin_row(const Reverse& reverse, int64_t at, Number peak, double less) {
    const ll_call& call = reverse.problem.call;
    reverse.peak[at] = peak, reverse.less[at] = (Number)less;
    if (!reverse.wanted.sink) return;
    Number sink = ((const Number*)call.sink)[at / call.queries % call.query_heads];
    Number share = peak == -INFINITE ? 0 : (Number)__builtin_exp2(sink_power(reverse.problem, sink, peak) - less);
    ((Number*)reverse.wanted.sink)[at] = peak == -INFINITE ? 0 : -share * reverse.delta[at];
}

// The logsumexp tells the weights of a row, to a rounding step of its own size: too little of a large one.
constexpr Number MOST_TOLD = 256;
LL_INLINE bool is_large(Number logsumexp) { return logsumexp > MOST_TOLD || (logsumexp < -MOST_TOLD && logsumexp != -INFINITE); }

// The scores of a tile are summed once more for its rows with a large logsumexp.
inline void weigh_large_rows(const Reverse& reverse, const Tile& tile, ReverseScratch& scratch, int& status) {
    const Problem& problem = reverse.problem;
    int64_t at = (tile.row * problem.call.query_heads + tile.head) * problem.call.queries + tile.first_query;
    const Number* logsumexp = (const Number*)reverse.wanted.logsumexp + at;
    bool large = false;
    for (int i = 0; i < tile.count; ++i) large |= is_large(logsumexp[i]);
    if (!large) return;
    Visibility visible;
    see(problem.call, tile, visible);
    pack_queries(problem, tile, scratch.packed_query);
    Softmax softmax;
    final_softmax(problem, tile, visible, nullptr, scratch.packed_query, scratch.scores, softmax, status);
    const Number* sink = sink_of(problem.call, tile);
    for (int i = 0; i < tile.count; ++i)
        if (is_large(logsumexp[i]) && softmax.total[i] != 0)
            begin_row(reverse, at + i, softmax.peak[i], log_closed(problem, sink, softmax.peak[i], softmax.total[i]));
}

inline void load_tile(const Reverse& reverse, const Tile& tile, ReverseScratch& scratch, Loaded& loaded) {
    const ll_call& call = reverse.problem.call;
    const Stored* query = line<const Stored>(call.query, tile.row, tile.head, tile.first_query);
    const Stored* grad = line<const Stored>(reverse.wanted.grad_output, tile.row, tile.head, tile.first_query);
    int64_t query_stride = call.query.strides[2], grad_stride = reverse.wanted.grad_output.strides[2];
    int64_t at = (tile.row * call.query_heads + tile.head) * call.queries + tile.first_query;
    for (int i = 0; i < QUERIES; ++i) {
        bool real = i < tile.count;
        loaded.real[i] = -(Int)real;
        loaded.peak[i] = real ? reverse.peak[at + i] : 0;
        loaded.less[i] = real ? reverse.less[at + i] : 0;
        loaded.delta[i] = real ? reverse.delta[at + i] : 0;
        loaded.query_aside[i] = real && reverse.query_aside[at + i];
        loaded.grad_aside[i] = real && reverse.grad_aside[at + i];
        loaded.any_aside |= loaded.query_aside[i] || loaded.grad_aside[i];
    }
    pack_queries(reverse.problem, tile, scratch.packed_query);
    pack(grad, grad_stride, tile.count, call.value_width, 1, scratch.packed_grad);
    if (call.compare)
        for (int i = 0; i < tile.count; ++i)
            read_row(query + i * query_stride, call.width, scratch.query_numbers + i * reverse.key_columns, reverse.key_columns);
    else
        fold_rows(query, query_stride, tile.count, call.width, reverse.key_columns, loaded.query_aside, scratch.query_rows);
    fold_rows(grad, grad_stride, tile.count, call.value_width, reverse.value_columns, loaded.grad_aside,
              scratch.grad_rows);
}

// scores -> P, grads -> dS, of VECTORS vectors of queries from `i` on; kept: what dropout multiplies by, or null. Selected, never
// multiplied by zero: dP of a pair that is not seen may be anything.
template <int VECTORS, bool DROPOUT>
LL_INLINE void slopes_of(const Loaded& loaded, int i, int keys, Number exponent, Number* scores, Number* grads, const Number* kept) {
    Numbers peak[VECTORS], less[VECTORS], delta[VECTORS];
    Ints real[VECTORS];
    for (int v = 0; v < VECTORS; ++v) {
        peak[v] = subtracted(load<Numbers>(loaded.peak + i + v * LANES));
        less[v] = -load<Numbers>(loaded.less + i + v * LANES);
        delta[v] = load<Numbers>(loaded.delta + i + v * LANES);
        real[v] = load<Ints>(loaded.real + i + v * LANES);
    }
    for (int at = i; at < i + keys * QUERIES; at += QUERIES)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) {
            int x = at + v * LANES;
            Numbers score = load<Numbers>(scores + x), grad = load<Numbers>(grads + x);
            Ints seen = real[v] & (score != -INFINITE);
            Numbers weight = seen ? weight_of(multiply_add(score - peak[v], spread(exponent), less[v])) : Numbers{}, given = weight;
            if constexpr (DROPOUT) {
                Numbers factor = load<Numbers>(kept + x);
                grad = factor == 0 ? Numbers{} : grad * factor;
                given = seen ? weight * factor : Numbers{};
            }
            store(scores + x, given);
            store(grads + x, seen ? weight * (grad - delta[v]) : Numbers{});
        }
}

template <bool DROPOUT>
inline void weights_and_slopes(const Problem& problem, const Tile& tile, const Block& block, const Loaded& loaded,
                               ReverseScratch& scratch) {
    FlushSubnormals scope;
    // On matrix registers every lane counts, and those beyond the queries must be zero.
    int queries = BLOCK_STEP > 2 ? QUERIES : tile.count, i = 0;
    for (; i + 2 * LANES < queries; i += 3 * LANES)
        slopes_of<3, DROPOUT>(loaded, i, block.count, problem.exponent, scratch.scores, scratch.grads, scratch.kept);
    for (; i < queries; i += LANES)
        slopes_of<1, DROPOUT>(loaded, i, block.count, problem.exponent, scratch.scores, scratch.grads, scratch.kept);
}

// --- Gradients of score rules ----------------------------------------------------------------------------------------

LL_INLINE Number* bias_gradient(const ll_tensor& to, const Tile& tile, int64_t i, int64_t j) {
    return (Number*)to.data + tile.row * to.strides[0] + tile.head * to.strides[1] + i * to.strides[2] + j * to.strides[3];
}

// Numbers of `to` that one pair alone has are written, never read, and past the caches: there are too many for them.
inline void bias_slopes(const ll_call& call, const ll_tensor& to, const Tile& tile, const Block& block, const Number* grads,
                        Number* row_sums) {
    if (to.strides[3] == 0) {  // summed over keys, which other chunks share: added when it is this chunk's turn
        for (int j = 0; j < block.count; ++j)
            for (int i = 0; i < tile.count; i += LANES)
                store(row_sums + i, load<Numbers>(row_sums + i) + load<Numbers>(grads + j * QUERIES + i));
        return;
    }
    if (to.strides[2] == 0) {  // summed over queries: first those of the tile
        for (int j = 0; j < block.count; ++j) {
            Numbers sum{};
            for (int i = 0; i < tile.count; i += LANES) sum += load<Numbers>(grads + j * QUERIES + i);
            *bias_gradient(to, tile, 0, block.begin + j) += sum_of_lanes(sum);
        }
        return;
    }
    bool alone = (call.batch == 1 || to.strides[0] != 0) && (call.query_heads == 1 || to.strides[1] != 0);
    int whole = to.strides[3] == 1 ? block.count / LANES * LANES : 0;
    for (int first = 0; first < tile.count; first += LANES)
        for (int j = 0; j < whole; j += LANES) {
            Numbers rows[LANES];
            for (int i = 0; i < LANES; ++i) rows[i] = load<Numbers>(grads + (j + i) * QUERIES + first);
            turn_square(rows);
            for (int i = 0; i < least(LANES, tile.count - first); ++i) {
                Number* at = bias_gradient(to, tile, tile.first_query + first + i, block.begin + j);
                alone ? stream(at, rows[i]) : store(at, load<Numbers>(at) + rows[i]);
            }
        }
    for (int i = 0; i < tile.count; ++i)
        for (int j = whole; j < block.count; ++j) {
            Number* at = bias_gradient(to, tile, tile.first_query + i, block.begin + j);
            *at = alone ? grads[j * QUERIES + i] : *at + grads[j * QUERIES + i];
        }
}

// Where a tile's queries see none of the keys [from, to): of gradients that nobody has cleared.
inline void clear_bias_slopes(const Reverse& reverse, const Tile& tile, int64_t from, int64_t to) {
    for (int64_t r = 0; from < to && r < reverse.problem.call.rule_count; ++r)
        for (int i = 0; reverse.wanted.uncleared >> r & 1 && i < tile.count; ++i) {
            Number* at = bias_gradient(reverse.wanted.rules[r], tile, tile.first_query + i, from);
            int64_t x = 0, count = to - from;
            for (; x < count && (uintptr_t)(at + x) % VECTOR_BYTES != 0; ++x) at[x] = 0;
            for (; x + LANES <= count; x += LANES) stream(at + x, Numbers{});
            for (; x < count; ++x) at[x] = 0;
        }
}

inline void alibi_slopes(const Tile& tile, const Block& block, const Number* grads, Number* row_sums) {
    int32_t first = first_distance(tile, block);
    for (int j = 0; j < block.count; ++j)
        for (int i = 0; i < tile.count; i += LANES)
            store(row_sums + i, load<Numbers>(row_sums + i) -
                                    load<Numbers>(grads + j * QUERIES + i) * absolute_distance(first, j, i));
}

inline void table_slopes(const ll_rule& rule, const Tile& tile, const Block& block, const Number* grads, DistanceSums& to) {
    Places places(rule, tile, block);
    for (int j = 0; j < block.count; ++j)
        for (int i = 0; i < tile.count; ++i)
            to.sums[clamp<int64_t>(places.first + j - i, 0, places.last) - to.first] += grads[j * QUERIES + i];
}

// grads: dS of the final score, becomes that of scale * q . k: the rules backwards.
inline void rule_slopes(const Reverse& reverse, const Tile& tile, const Block& block, ReverseScratch& scratch,
                        DistanceSums* distances) {
    const ll_call& call = reverse.problem.call;
    const Number* slopes = scratch.slopes + reverse.problem.softcaps * BLOCK_KEYS * QUERIES;
    for (int64_t r = call.rule_count - 1; r >= 0; --r) {
        const ll_rule& rule = call.rules[r];
        const ll_tensor& to = reverse.wanted.rules[r];
        if (rule.kind == LL_SOFTCAP) {
            slopes -= BLOCK_KEYS * QUERIES;
            each_score(scratch.grads, block.count, tile.count, [&](Numbers s, int j, int i) {
                return s == 0 ? Numbers{} : s * load<Numbers>(slopes + j * QUERIES + i);
            });
        } else if (reverse.wants(to)) {
            Number* row_sums = scratch.row_sums + r * QUERIES;
            if (rule.kind == LL_BIAS) bias_slopes(call, to, tile, block, scratch.grads, row_sums);
            if (rule.kind == LL_ALIBI) alibi_slopes(tile, block, scratch.grads, row_sums);
            if (rule.kind == LL_DISTANCE_TABLE) table_slopes(rule, tile, block, scratch.grads, distances[r]);
        }
    }
}

// --- One block -------------------------------------------------------------------------------------------------------

// to(j, i, column) += weights[j][i] * from(j, i)[column] for the seen pairs whose row was set aside.
template <class Aside, class To, class From>
inline void add_aside(const Tile& tile, const Block& block, const uint8_t* seen, const Number* weights, int64_t width,
                      Aside aside, To to, From from) {
    for (int j = 0; j < block.count; ++j)
        for (int i = 0; i < tile.count; ++i)
            if (aside(j, i) && seen[j * QUERIES + i])
                for (int64_t c = 0; c < width; ++c) to(j, i, c) += weights[j * QUERIES + i] * read(from(j, i) + c);
}

// dK += dS Q, dQ += dS' K, for scores that are products.
inline void product_slopes(const Reverse& reverse, const Tile& tile, const Block& block, const Loaded& loaded,
                           const Reach* of_queries, const Reach* of_keys, bool careful_keys, const uint8_t* keys_aside,
                           Number* key_sums, ReverseScratch& scratch) {
    const ll_call& call = reverse.problem.call;
    int64_t key_columns = reverse.key_columns;
    if (reverse.wants(reverse.wanted.key)) {
        const Factor* slopes = fold_across(scratch.grads, block.count, scratch.factors);
        gather(slopes, scratch.query_rows, block.count, tile.count, key_sums, key_columns, of_keys);
    }
    const Stored* key = line<const Stored>(call.key, tile.row, tile.key_head, block.begin);
    if (reverse.wants(reverse.wanted.query)) {
        const Factor* slopes = fold_down(scratch.grads, block.count, tile.count, scratch.factors);
        const Factor* rows = reverse.key_rows.step(tile.row, tile.key_head, block.begin);
        if (careful_keys) {
            mix_rows(key, call.key.strides[2], block.count, call.width, key_columns, keys_aside, scratch.key_rows);
            rows = scratch.key_rows;
        }
        mix(slopes, rows, block.count, tile.count, scratch.query_sum, key_columns, of_queries);
    }
    if (loaded.any_aside)
        add_aside(tile, block, scratch.seen, scratch.grads, call.width, [&](int, int i) { return loaded.query_aside[i]; },
                  [&](int j, int, int64_t c) -> Number& { return key_sums[j * key_columns + c]; },
                  [&](int, int i) { return line<const Stored>(call.query, tile.row, tile.head, tile.first_query + i); });
    if (careful_keys)
        add_aside(tile, block, scratch.seen, scratch.grads, call.width, [&](int j, int) { return keys_aside[j]; },
                  [&](int, int i, int64_t c) -> Number& { return scratch.query_sum[place(i, c, key_columns)]; },
                  [&](int j, int) { return key + j * call.key.strides[2]; });
}

inline void reverse_block(const Reverse& reverse, const Tile& tile, const Visibility& visible, const Block& block,
                          int64_t chunk_begin, const Loaded& loaded, ReverseScratch& scratch, DistanceSums* distances) {
    const Problem& problem = reverse.problem;
    const ll_call& call = problem.call;
    alignas(64) Number unused[QUERIES] = {};
    Cut cut(visible, tile, block);
    Reach room;
    const Reach* of_keys = cut.of_keys(tile, block, room);
    score_block(problem, tile, visible, block, cut, scratch.packed_query, scratch.scores, unused,
                problem.softcaps ? scratch.slopes : nullptr);
    score_product(reverse.value_rows.row(tile.row, tile.key_head, block.begin), reverse.value_rows.stride, block.count,
                  scratch.packed_grad, tile.count, reverse.value_steps, scratch.grads, unused, cut.of_queries);

    const uint8_t* keys_aside = reverse.aside + (tile.row * call.key_heads + tile.key_head) * call.keys + block.begin;
    bool careful_keys = false;
    int64_t read = least(round_up(block.count, BLOCK_STEP), call.keys - block.begin);  // whole factors, with a weight of 0
    for (int64_t j = 0; j < read; ++j) careful_keys |= keys_aside[j] != 0;
    if (careful_keys || loaded.any_aside)
        for (int x = 0; x < block.count * QUERIES; ++x) scratch.seen[x] = scratch.scores[x] != -INFINITE;

    if (problem.drop_below) {
        Numbers kept = spread((Number)(1 / (1.0 - call.dropout)));
        each_dropped(problem, tile, block, [&](int j, int i, Ints dropped) {
            store(scratch.kept + j * QUERIES + i, dropped != 0 ? Numbers{} : kept);
        });
        weights_and_slopes<true>(problem, tile, block, loaded, scratch);
    } else
        weights_and_slopes<false>(problem, tile, block, loaded, scratch);
    if (call.rule_count > 0) rule_slopes(reverse, tile, block, scratch, distances);

    int64_t key_columns = reverse.key_columns, value_columns = reverse.value_columns, own = block.begin - chunk_begin;
    Number *key_sums = scratch.key_sums + own * key_columns, *value_sums = scratch.value_sums + own * value_columns;
    if (reverse.wants(reverse.wanted.value)) {
        const Factor* weights = fold_across(scratch.scores, block.count, scratch.factors);
        gather(weights, scratch.grad_rows, block.count, tile.count, value_sums, value_columns, of_keys);
    }
    if (call.compare) {
        const Stored* key = line<const Stored>(call.key, tile.row, tile.key_head, block.begin);
        for (int j = 0; j < block.count; ++j)
            additive_slopes(key + j * call.key.strides[2], scratch.query_numbers, scratch.grads + j * QUERIES, tile.count,
                            vector_of(call, tile.head), call.width, key_columns, scratch.query_sum,
                            key_sums + j * key_columns, scratch.vector_sums);
    } else
        product_slopes(reverse, tile, block, loaded, cut.of_queries, of_keys, careful_keys, keys_aside, key_sums, scratch);
    if (loaded.any_aside)
        add_aside(tile, block, scratch.seen, scratch.scores, call.value_width,
                  [&](int, int i) { return loaded.grad_aside[i]; },
                  [&](int j, int, int64_t c) -> Number& { return value_sums[j * value_columns + c]; },
                  [&](int, int i) { return line<const Stored>(reverse.wanted.grad_output, tile.row, tile.head, tile.first_query + i); });
}

// --- Turns -----------------------------------------------------------------------------------------------------------

// A sum that several tasks add to in a fixed order.
struct Turn {
    int64_t* done;  // how many have added
    int* status;

    // Waits until `number` others have added; false when the whole pass has failed.
    bool wait(int64_t number) const {
        for (int spins = 0; __atomic_load_n(done, __ATOMIC_ACQUIRE) != number; ++spins) {
            if (ended(*status)) return false;
            if (spins > 2000) sched_yield();
        }
        return true;
    }
    void pass(int64_t number) const { __atomic_store_n(done, number + 1, __ATOMIC_RELEASE); }
};

// Where the dQ of query i of a tile is summed and, where elements are not numbers, written in the end.
struct QueryGradient {
    Stored* gradient;
    Number* sums;
    int64_t stride;  // of sums
    QueryGradient(const Reverse& reverse, const Tile& tile, int i) {
        const ll_call& call = reverse.problem.call;
        gradient = line<Stored>(reverse.wanted.query, tile.row, tile.head, tile.first_query + i);
        int64_t at = (tile.row * call.query_heads + tile.head) * call.queries + tile.first_query + i;
        sums = CONVERTED ? reverse.query_sums + at * reverse.key_columns : (Number*)gradient;
        stride = CONVERTED ? reverse.key_columns : reverse.wanted.query.strides[2];
    }
};

// Adds a tile's dQ; the first chunk stores instead, also where nobody is seen, and the last one rounds.
inline void add_query_sum(const Reverse& reverse, const Tile& tile, const Number* sum, Number* room, bool first, bool last) {
    const ll_call& call = reverse.problem.call;
    Number scale = (Number)call.scale;
    for (int i = 0; i < tile.count; ++i) {
        const Number* from = !sum ? nullptr : call.compare ? sum + i * reverse.key_columns : sum_row(sum, i, reverse.key_columns, room);
        QueryGradient at(reverse, tile, i);
        Number* to = at.sums;
        for (int64_t c = 0; c < call.width && (from || first); c += LANES) {
            int64_t some = least<int64_t>(LANES, call.width - c);
            Numbers before = first ? Numbers{} : load_some(to + c, some);
            Numbers now = from ? multiply_add(load<Numbers>(from + c), spread(scale), before) : before;
            if (some == LANES) store(to + c, now);
            else for (int64_t x = 0; x < some; ++x) to[c + x] = now[x];
        }
        if (CONVERTED && last) write_row(to, call.width, at.gradient);
    }
}

inline void add_vector_sums(const Reverse& reverse, const Tile& tile, const Number* sums) {
    const ll_call& call = reverse.problem.call;
    int64_t at = (tile.row * call.query_heads + tile.head) * call.queries + tile.first_query;
    for (int i = 0; i < tile.count; ++i)
        for (int64_t d = 0; d < call.width; ++d)
            ((Number*)reverse.wanted.compare)[(at + i) * call.width + d] += sums[i * reverse.key_columns + d];
}

inline void add_row_sums(const Reverse& reverse, const Tile& tile, const Number* row_sums) {
    for (int64_t r = 0; r < reverse.problem.call.rule_count; ++r) {
        const ll_tensor& to = reverse.wanted.rules[r];
        int64_t kind = reverse.problem.call.rules[r].kind;
        if (!reverse.wants(to) || to.strides[3] != 0 || (kind != LL_BIAS && kind != LL_ALIBI)) continue;
        for (int i = 0; i < tile.count; ++i)
            *bias_gradient(to, tile, tile.first_query + i, 0) += row_sums[r * QUERIES + i];
    }
}
