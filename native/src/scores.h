// Scores of one tile of queries against one block of keys: product, score rules, what is not seen.

// The numbers of a call, worked out once.
struct Problem {
    const ll_call& call;
    int64_t value_columns;  // value_width, rounded up to whole vectors
    int64_t steps;          // factors along the width
    Number query_factor;    // what packed queries are multiplied by
    Number exponent;        // weight = 2^(exponent * (score - largest))
    Number natural;         // score in natural units = natural * score in the tile
    uint64_t drop_below;    // a weight whose random word is below is dropped; 0: no dropout
    int softcaps = 0;
    bool much_output;       // more than a cache would hold until it is read
    Operand keys, values;   // left and right operands of the forward pass

    explicit Problem(const ll_call& c) : call(c) {
        value_columns = round_up(c.value_width, LANES);
        steps = steps_along(c.width);
        Number scale = (Number)c.scale, size = scale < 0 ? -scale : scale;
        if (c.rule_count > 0 || scale == 0) {
            query_factor = scale == 0 ? 0 : 1;
            natural = 1;  // rules work in natural units: apply_rules multiplies by the scale first
        } else {
            // Scores stay as plain products (equal ones stay equal); the scale rides in the exponent, which must be positive.
            // A power of two of a tiny scale rides in the queries: with a larger one, a difference of scores that overflows
            // has no weight.
            Number power = size < (Number)0x1p-110 ? (Number)0x1p-64 : 1;
            query_factor = scale < 0 ? -power : power;
            natural = size / power;
        }
        exponent = natural * LOG2_E;
        drop_below = (uint64_t)(c.dropout * 4294967296.0);
        much_output = c.batch * c.query_heads * c.queries * c.value_width * (int64_t)sizeof(Stored) >= (int64_t)16 << 20;
        for (int64_t r = 0; r < c.rule_count; ++r) softcaps += c.rules[r].kind == LL_SOFTCAP;
    }
};

// Whether a call shall end early, for all of its threads: it has failed, or its caller wants it to.
LL_INLINE bool ended(int& status) {
    if (__atomic_load_n(&status, __ATOMIC_RELAXED) != DONE) return true;
    if (!interrupted()) return false;
    __atomic_store_n(&status, (int)INTERRUPTED, __ATOMIC_RELAXED);
    return true;
}

template <class T>
LL_INLINE T* line(const ll_tensor& tensor, int64_t b, int64_t h, int64_t i) {
    return (T*)tensor.data + b * tensor.strides[0] + h * tensor.strides[1] + i * tensor.strides[2];
}

// Asks memory for some rows that will be read or added to soon.
template <class T>
LL_INLINE void ask_rows(const T* first, int64_t stride, int rows, int64_t width) {
    for (int r = 0; r < rows; ++r)
        for (int64_t x = 0; x < width; x += 64 / (int64_t)sizeof(T)) __builtin_prefetch(first + r * stride + x);
}

// f(score, key of the block, first query of the vector) -> score, for every score of the block.
template <class F>
LL_INLINE void each_score(Number* scores, int keys, int queries, F f) {
    for (int j = 0; j < keys; ++j)
        for (int i = 0; i < queries; i += LANES) {
            Number* at = scores + j * QUERIES + i;
            store(at, f(load<Numbers>(at), j, i));
        }
}

// Key position minus query position of the block's first key and the tile's first query.
LL_INLINE int32_t first_distance(const Tile& tile, const Block& block) {
    int64_t distance = block.begin + tile.segment->key_offset - tile.query_position(0);
    return (int32_t)clamp<int64_t>(distance, -(1 << 30), 1 << 30);
}

LL_INLINE Numbers absolute_distance(int32_t first, int j, int i) {
    Ints distance = spread_int(first + j - i) - iota();
    return __builtin_convertvector(distance < 0 ? -distance : distance, Numbers);
}

// A tensor of a rule holds numbers, or elements as query and key do.
struct BiasRow {
    const void* from;
    int64_t step;
    bool stored;
    BiasRow(const ll_rule& rule, const Tile& tile, const Block& block, int i) : step(rule.tensor.strides[3]) {
        stored = CONVERTED && rule.stored != 0;
        const ll_tensor& bias = rule.tensor;
        int64_t at = tile.row * bias.strides[0] + tile.head * bias.strides[1] + (tile.first_query + i) * bias.strides[2] +
                     block.begin * step;
        from = (const char*)bias.data + at * (int64_t)(stored ? sizeof(Stored) : sizeof(Number));
    }
    LL_INLINE Number operator[](int64_t j) const {
        return stored ? read((const Stored*)from + j * step) : ((const Number*)from)[j * step];
    }
    // Memory is asked for what the next block will read when this one reads number j: no machine foresees so many short
    // rows. Line by line, since what is read meanwhile would wait behind a block asked for at once.
    LL_INLINE void ask_ahead(int64_t j) const {
        int64_t later = j + BLOCK_KEYS;
        __builtin_prefetch(stored ? (const char*)((const Stored*)from + later) : (const char*)((const Number*)from + later), 0, 2);
    }
    LL_INLINE Numbers vector(int64_t j) const {  // LANES keys that lie side by side
        return stored ? read_vector((const Stored*)from + j) : load<Numbers>((const Number*)from + j);
    }
};

inline void add_bias(const ll_call& call, const ll_rule& rule, const Tile& tile, const Block& block, Number scale,
                     Number* scores) {
    if (rule.tensor.strides[2] == 0) {
        BiasRow bias(rule, tile, block, 0);
        each_score(scores, block.count, tile.count,
                   [&](Numbers s, int j, int) { return multiply_add(s, spread(scale), spread(bias[j])); });
        return;
    }
    // The bias lies along the keys, the scores along the queries: squares of it are turned.
    int whole = rule.tensor.strides[3] == 1 ? block.count / LANES * LANES : 0;
    for (int first = 0; first < tile.count; first += LANES)
        for (int j = 0; j < whole; j += LANES) {
            Numbers rows[LANES];
            for (int i = 0; i < LANES; ++i) {
                if (first + i >= tile.count) { rows[i] = Numbers{}; continue; }
                BiasRow row(rule, tile, block, first + i);
                rows[i] = row.vector(j);
                if (block.begin + j + BLOCK_KEYS < call.keys) row.ask_ahead(j);
            }
            turn_square(rows);
            for (int i = 0; i < LANES; ++i) {
                Number* at = scores + (j + i) * QUERIES + first;
                store(at, multiply_add(load<Numbers>(at), spread(scale), rows[i]));
            }
        }
    for (int i = 0; i < tile.count; ++i) {
        BiasRow bias(rule, tile, block, i);
        for (int j = whole; j < block.count; ++j) {
            Number* at = scores + j * QUERIES + i;
            *at = multiply_add(spread(*at), spread(scale), spread(bias[j]))[0];
        }
    }
}

LL_INLINE Number slope_of(const ll_rule& rule, const Tile& tile) {
    return ((const Number*)rule.tensor.data)[tile.row * rule.tensor.strides[0] + tile.head * rule.tensor.strides[1]];
}

inline void add_alibi(const ll_rule& rule, const Tile& tile, const Block& block, Number scale, Number* scores) {
    Number slope = slope_of(rule, tile);
    int32_t first = first_distance(tile, block);
    each_score(scores, block.count, tile.count,
               [&](Numbers s, int j, int i) {
                   return multiply_add(s, spread(scale), absolute_distance(first, j, i) * -slope);
               });
}

// The entry of a distance table for the block's first key and the tile's first query, and the last entry.
struct Places {
    int64_t first, last;
    Places(const ll_rule& rule, const Tile& tile, const Block& block)
        : first(first_distance(tile, block) + (int64_t)rule.parameters[0]), last((int64_t)rule.parameters[1] - 1) {}
};

// The distance falls by one from query to query: laid out backwards, the entries of a key row are one vector load.
inline void add_table(const ll_rule& rule, const Tile& tile, const Block& block, Number scale, Number* scores) {
    const Number* table = (const Number*)rule.tensor.data + tile.head * rule.tensor.strides[1];
    Places places(rule, tile, block);
    Number backwards[BLOCK_KEYS + QUERIES];
    for (int x = 0; x < block.count + QUERIES; ++x)
        backwards[x] = table[clamp<int64_t>(places.first + block.count - 1 - x, 0, places.last) * rule.tensor.strides[3]];
    each_score(scores, block.count, tile.count,
               [&](Numbers s, int j, int i) {
                   return multiply_add(s, spread(scale), load<Numbers>(backwards + block.count - 1 - j + i));
               });
}

// `slopes`, where given, takes the derivative of each soft cap in turn: [soft cap][BLOCK_KEYS][QUERIES].
inline void apply_rules(const ll_call& call, const Tile& tile, const Block& block, Number* scores, Number* slopes) {
    Number scale = call.scale == 0.0 ? 1 : (Number)call.scale;  // zero is already in the packed queries
    for (int r = 0; r < call.rule_count; ++r) {
        const ll_rule& rule = call.rules[r];
        Number limit = (Number)rule.parameters[0];
        switch (rule.kind) {
            case LL_BIAS: add_bias(call, rule, tile, block, scale, scores); break;
            case LL_ALIBI: add_alibi(rule, tile, block, scale, scores); break;
            case LL_DISTANCE_TABLE: add_table(rule, tile, block, scale, scores); break;
            case LL_SOFTCAP:
                each_score(scores, block.count, tile.count, [&](Numbers s, int j, int i) {
                    Numbers share = tanh_of(s * scale / limit);
                    if (slopes) store(slopes + j * QUERIES + i, 1 - share * share);
                    return limit * share;
                });
                if (slopes) slopes += BLOCK_KEYS * QUERIES;
                break;
        }
        scale = 1;  // the first rule has applied it
    }
}

inline void cut_by_intervals(const Visibility& visible, const Tile& tile, const Block& block, Number* scores) {
    alignas(64) Int starts[LL_MAX_SPANS][QUERIES] = {}, ends[LL_MAX_SPANS][QUERIES] = {};
    for (int k = 0; k < visible.count; ++k)
        for (int i = 0; i < tile.count; ++i) {
            starts[k][i] = (Int)clamp<int64_t>(visible.starts[k][i] - block.begin, 0, BLOCK_KEYS);
            ends[k][i] = (Int)clamp<int64_t>(visible.ends[k][i] - block.begin, 0, BLOCK_KEYS);
        }
    auto cut = [&](Numbers s, int j, int i) {
        Ints inside{};
        for (int k = 0; k < visible.count; ++k)
            inside |= (load<Ints>(starts[k] + i) <= j) & (load<Ints>(ends[k] + i) > j);
        return inside ? s : spread(-INFINITE);
    };
    if (visible.count != 1) return each_score(scores, block.count, tile.count, cut);
    // One interval each: only the keys before the last start and from the first end on are cut for anybody.
    int last_start = 0, first_end = block.count;
    for (int i = 0; i < tile.count; ++i) {
        last_start = most(last_start, (int)starts[0][i]);
        first_end = least(first_end, (int)ends[0][i]);
    }
    last_start = least(last_start, block.count), first_end = most(first_end, last_start);
    each_score(scores, last_start, tile.count, cut);
    each_score(scores + first_end * QUERIES, block.count - first_end, tile.count,
               [&](Numbers s, int j, int i) { return cut(s, first_end + j, i); });
}

inline uint64_t map_word(const ll_call& call, const Tile& tile, int64_t query, int64_t column) {
    int32_t state = map_row(call, tile, query)[column];
    if (state < 0) return state == -2 ? ~(uint64_t)0 : 0;
    int64_t rows = call.tiles.bit_rows;
    return call.tiles.bits[state * rows + (rows == MAP_SIDE ? query % MAP_SIDE : 0)];
}

inline void cut_by_bits(const ll_call& call, const Tile& tile, const Block& block, Number* scores) {
    alignas(64) Int words[2][QUERIES] = {};
    int64_t loaded = -1;
    for (int j = 0; j < block.count; ++j) {
        int64_t key = block.begin + j, column = key / MAP_SIDE;
        if (column != loaded) {
            loaded = column;
            for (int i = 0; i < tile.count; ++i) {
                uint64_t word = map_word(call, tile, tile.first_query + i, column);
                words[0][i] = (Int)(uint32_t)word, words[1][i] = (Int)(uint32_t)(word >> 32);
            }
        }
        const Int* half = words[key % MAP_SIDE / 32];
        Int bit = (Int)(1u << (key % 32));
        for (int i = 0; i < tile.count; i += LANES) {
            Number* at = scores + j * QUERIES + i;
            store(at, (load<Ints>(half + i) & bit) != 0 ? load<Numbers>(at) : spread(-INFINITE));
        }
    }
}

inline void largest_of(const Tile& tile, const Block& block, const Number* scores, Number* peak) {
    for (int i = 0; i < tile.count; i += LANES) {
        Numbers largest = spread(-INFINITE);
        for (int j = 0; j < block.count; ++j) largest = larger(largest, load<Numbers>(scores + j * QUERIES + i));
        store(peak + i, largest);
    }
}

// A tile's queries as score_block reads them, and how many factors that takes.
LL_INLINE int64_t packed_size(const ll_call& call) {
    return call.compare ? call.width * QUERIES * (int64_t)(sizeof(Number) / sizeof(Factor)) : steps_along(call.width) * QUERIES;
}

inline void pack_queries(const Problem& problem, const Tile& tile, Factor* to) {
    const ll_tensor& query = problem.call.query;
    const Stored* from = line<const Stored>(query, tile.row, tile.head, tile.first_query);
    if (problem.call.compare) turn(from, query.strides[2], tile.count, problem.call.width, (Number*)to);
    else pack(from, query.strides[2], tile.count, problem.call.width, problem.query_factor, to);
}

// scores[key][query]: what is not seen is -inf. peak[query]: the largest score of the block (larger(): NaN may hide).
inline void score_block(const Problem& problem, const Tile& tile, const Visibility& visible, const Block& block,
                        const Cut& cut, const Factor* packed, Number* scores, Number* peak, Number* slopes = nullptr) {
    const ll_call& call = problem.call;
    for (int i = 0; i < QUERIES; i += LANES) store(peak + i, spread(-INFINITE));
    if (call.compare)
        additive_scores(line<const Stored>(call.key, tile.row, tile.key_head, block.begin), call.key.strides[2], block.count,
                        (const Number*)packed, tile.count, vector_of(call, tile.head), call.width, scores);
    else
        score_product(problem.keys.row(tile.row, tile.key_head, block.begin), problem.keys.stride, block.count, packed,
                      tile.count, problem.steps, scores, peak, cut.of_queries);
    bool changed = call.compare || call.rule_count > 0 || block.cut_by_intervals || block.cut_by_bits;
    if (!changed) return;
    if (call.rule_count > 0) apply_rules(call, tile, block, scores, slopes);
    if (block.cut_by_intervals) cut_by_intervals(visible, tile, block, scores);
    if (block.cut_by_bits) cut_by_bits(call, tile, block, scores);
    largest_of(tile, block, scores, peak);
}
