// Scores of one tile of queries against one block of keys: product, score rules, what is not seen.

// The numbers of a call, worked out once.
struct Problem {
    const ll_call& call;
    int64_t value_columns;  // value_width, rounded up to whole vectors
    float query_factor;     // what packed queries are multiplied by
    float exponent;         // weight = 2^(exponent * (score - largest))
    float natural;          // score in natural units = natural * score in the tile
    bool pack_values;
    uint64_t drop_below;    // a weight whose random word is below is dropped; 0: no dropout

    explicit Problem(const ll_call& c) : call(c) {
        value_columns = round_up(c.value_width, LANES);
        float scale = (float)c.scale;
        if (c.rule_count > 0 || scale == 0.0f) {
            query_factor = scale == 0.0f ? 0.0f : 1.0f;
            natural = 1.0f;  // rules work in natural units: apply_rules multiplies by the scale first
        } else {
            // Scores stay as plain products (equal ones stay equal); the scale rides in the exponent, which must be positive.
            query_factor = scale < 0.0f ? -1.0f : 1.0f;
            natural = scale < 0.0f ? -scale : scale;
        }
        exponent = natural * LOG2_E;
        // Rows that lie far apart fall into the same few cache sets; a last partial vector must not be read past its end.
        pack_values = c.value_width % LANES != 0 || c.value.strides[2] != c.value_width;
        drop_below = (uint64_t)(c.dropout * 4294967296.0);
    }
};

template <class T>
LL_INLINE T* line(const ll_tensor& tensor, int64_t b, int64_t h, int64_t i) {
    return (T*)tensor.data + b * tensor.strides[0] + h * tensor.strides[1] + i * tensor.strides[2];
}

// f(score, key of the block, first query of the vector) -> score, for every score of the block.
template <class F>
LL_INLINE void each_score(float* scores, int keys, int queries, F f) {
    for (int j = 0; j < keys; ++j)
        for (int i = 0; i < queries; i += LANES) {
            float* at = scores + j * QUERIES + i;
            store(at, f(load<Floats>(at), j, i));
        }
}

// Key position minus query position of the block's first key and the tile's first query.
LL_INLINE int32_t first_distance(const Tile& tile, const Block& block) {
    int64_t distance = block.begin + tile.segment->key_offset - tile.query_position(0);
    return (int32_t)clamp<int64_t>(distance, -(1 << 30), 1 << 30);
}

LL_INLINE Floats absolute_distance(int32_t first, int j, int i) {
    Ints distance = spread(first + j - i) - iota();
    return __builtin_convertvector(distance < 0 ? -distance : distance, Floats);
}

inline void add_bias(const ll_rule& rule, const Tile& tile, const Block& block, float* scores) {
    const ll_tensor& bias = rule.tensor;
    const float* from = line<const float>(bias, tile.row, tile.head, tile.first_query) + block.begin * bias.strides[3];
    if (bias.strides[2] == 0) {
        each_score(scores, block.count, tile.count, [&](Floats s, int j, int) { return s + from[j * bias.strides[3]]; });
        return;
    }
    for (int i = 0; i < tile.count; ++i)  // along the keys, as the bias lies
        for (int j = 0; j < block.count; ++j)
            scores[j * QUERIES + i] += from[i * bias.strides[2] + j * bias.strides[3]];
}

inline void add_alibi(const ll_rule& rule, const Tile& tile, const Block& block, float* scores) {
    float slope = *line<const float>(rule.tensor, tile.row, tile.head, 0);
    int32_t first = first_distance(tile, block);
    each_score(scores, block.count, tile.count,
               [&](Floats s, int j, int i) { return s - absolute_distance(first, j, i) * slope; });
}

// The distance falls by one from query to query: laid out backwards, the entries of a key row are one vector load.
inline void add_table(const ll_rule& rule, const Tile& tile, const Block& block, float* scores) {
    const float* table = (const float*)rule.tensor.data + tile.head * rule.tensor.strides[1];
    int64_t last = (int64_t)rule.parameters[1] - 1;
    int64_t start = first_distance(tile, block) + (int64_t)rule.parameters[0] + block.count - 1;
    float backwards[BLOCK_KEYS + QUERIES];
    for (int x = 0; x < block.count + QUERIES; ++x)
        backwards[x] = table[clamp<int64_t>(start - x, 0, last) * rule.tensor.strides[3]];
    each_score(scores, block.count, tile.count,
               [&](Floats s, int j, int i) { return s + load<Floats>(backwards + block.count - 1 - j + i); });
}

inline void apply_rules(const ll_call& call, const Tile& tile, const Block& block, float* scores) {
    float scale = call.scale == 0.0 ? 1.0f : (float)call.scale;  // zero is already in the packed queries
    each_score(scores, block.count, tile.count, [&](Floats s, int, int) { return s * scale; });
    for (int r = 0; r < call.rule_count; ++r) {
        const ll_rule& rule = call.rules[r];
        float limit = (float)rule.parameters[0];
        switch (rule.kind) {
            case LL_BIAS: add_bias(rule, tile, block, scores); break;
            case LL_ALIBI: add_alibi(rule, tile, block, scores); break;
            case LL_DISTANCE_TABLE: add_table(rule, tile, block, scores); break;
            case LL_SOFTCAP:
                each_score(scores, block.count, tile.count,
                           [&](Floats s, int, int) { return limit * tanh_of(s / limit); });
                break;
        }
    }
}

inline void cut_by_intervals(const Visibility& visible, const Tile& tile, const Block& block, float* scores) {
    alignas(64) int32_t starts[LL_MAX_SPANS][QUERIES] = {}, ends[LL_MAX_SPANS][QUERIES] = {};
    for (int k = 0; k < visible.count; ++k)
        for (int i = 0; i < tile.count; ++i) {
            starts[k][i] = (int32_t)clamp<int64_t>(visible.starts[k][i] - block.begin, 0, BLOCK_KEYS);
            ends[k][i] = (int32_t)clamp<int64_t>(visible.ends[k][i] - block.begin, 0, BLOCK_KEYS);
        }
    auto cut = [&](Floats s, int j, int i) {
        Ints inside{};
        for (int k = 0; k < visible.count; ++k)
            inside |= (load<Ints>(starts[k] + i) <= j) & (load<Ints>(ends[k] + i) > j);
        return inside ? s : spread(-INFINITE);
    };
    if (visible.count != 1) return each_score(scores, block.count, tile.count, cut);
    // One interval each: only the keys before the last start and from the first end on are cut for anybody.
    int last_start = 0, first_end = block.count;
    for (int i = 0; i < tile.count; ++i) last_start = most(last_start, starts[0][i]), first_end = least(first_end, ends[0][i]);
    last_start = least(last_start, block.count), first_end = most(first_end, last_start);
    each_score(scores, last_start, tile.count, cut);
    each_score(scores + first_end * QUERIES, block.count - first_end, tile.count,
               [&](Floats s, int j, int i) { return cut(s, first_end + j, i); });
}

inline uint64_t map_word(const ll_call& call, const Tile& tile, int64_t query, int64_t column) {
    int32_t state = map_row(call, tile, query)[column];
    if (state < 0) return state == -2 ? ~(uint64_t)0 : 0;
    int64_t rows = call.tiles.bit_rows;
    return call.tiles.bits[state * rows + (rows == MAP_SIDE ? query % MAP_SIDE : 0)];
}

inline void cut_by_bits(const ll_call& call, const Tile& tile, const Block& block, float* scores) {
    alignas(64) int32_t words[2][QUERIES] = {};
    int64_t loaded = -1;
    for (int j = 0; j < block.count; ++j) {
        int64_t key = block.begin + j, column = key / MAP_SIDE;
        if (column != loaded) {
            loaded = column;
            for (int i = 0; i < tile.count; ++i) {
                uint64_t word = map_word(call, tile, tile.first_query + i, column);
                words[0][i] = (int32_t)(uint32_t)word, words[1][i] = (int32_t)(uint32_t)(word >> 32);
            }
        }
        const int32_t* half = words[key % MAP_SIDE / 32];
        int32_t bit = (int32_t)(1u << (key % 32));
        for (int i = 0; i < tile.count; i += LANES) {
            float* at = scores + j * QUERIES + i;
            store(at, (load<Ints>(half + i) & bit) != 0 ? load<Floats>(at) : spread(-INFINITE));
        }
    }
}

// scores[key][query]: what is not seen is -inf. peak[query]: the largest score of the block (larger(): NaN may hide).
inline void score_block(const Problem& problem, const Tile& tile, const Visibility& visible, const Block& block,
                        const float* packed, float* scores, float* peak) {
    const ll_call& call = problem.call;
    const float* key = line<const float>(call.key, tile.row, tile.key_head, block.begin);
    for (int i = 0; i < QUERIES; i += LANES) store(peak + i, spread(-INFINITE));
    score_product(key, call.key.strides[2], block.count, packed, tile.count, call.width, scores, peak);
    bool changed = call.rule_count > 0 || block.cut_by_intervals || block.cut_by_bits;
    if (!changed) return;
    if (call.rule_count > 0) apply_rules(call, tile, block, scores);
    if (block.cut_by_intervals) cut_by_intervals(visible, tile, block, scores);
    if (block.cut_by_bits) cut_by_bits(call, tile, block, scores);
    for (int i = 0; i < tile.count; i += LANES) {
        Floats largest = spread(-INFINITE);
        for (int j = 0; j < block.count; ++j) largest = larger(largest, load<Floats>(scores + j * QUERIES + i));
        store(peak + i, largest);
    }
}
