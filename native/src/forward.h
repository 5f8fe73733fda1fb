// Attention of one tile of queries: a running softmax over blocks of keys (Milakov & Gimelshein 2018; Dao et al. 2022).

// Memory of one thread, reused from tile to tile.
struct Scratch {
    float* packed;   // queries, as products.h packs them
    float* scores;   // [BLOCK_KEYS + MOST_PANEL_KEYS][QUERIES]
    float* output;   // [QUERIES][columns]
    float* values;   // [BLOCK_KEYS][columns], when values must be packed
    uint8_t* seen;   // [BLOCK_KEYS][QUERIES], slow path only

    static int64_t floats_for_scores() { return (BLOCK_KEYS + MOST_PANEL_KEYS) * QUERIES; }

    static int64_t bytes(int64_t width, int64_t columns) {
        return 4 * (width * QUERIES + floats_for_scores() + QUERIES * columns + BLOCK_KEYS * columns) +
               BLOCK_KEYS * QUERIES + 64;
    }

    Scratch(void* memory, int64_t width, int64_t columns) {
        packed = (float*)memory;
        scores = packed + width * QUERIES;
        output = scores + floats_for_scores();
        values = output + QUERIES * columns;
        seen = (uint8_t*)(values + BLOCK_KEYS * columns);
    }
};

// The running softmax of each query: shift is exponent * largest score (base 2), total the sum of weights relative to it.
struct Softmax {
    alignas(64) float shift[QUERIES];
    alignas(64) float total[QUERIES];
    bool saw[QUERIES] = {};  // whether it has seen any key; careful passes only

    explicit Softmax(const float* sink) {
        // A sink is a score with no value: it opens the sum. sink - sink is 0, or NaN where the sink is not a number.
        float start = sink ? *sink * LOG2_E : -INFINITE;
        float weight = start == -INFINITE ? 0.0f : 1.0f + (start - start);
        for (int i = 0; i < QUERIES; ++i) shift[i] = start, total[i] = weight;
    }
};

// Where nothing has been seen the shift is -inf: subtract 0 instead, so that weights become 0 and not NaN.
LL_INLINE Floats subtracted(Floats shift) { return shift == -INFINITE ? Floats{} : shift; }

// scores -> 2^(exponent * score - shift), in place; adds the weights of each query to sums.
template <int VECTORS>
LL_INLINE void weigh(float* scores, int keys, float exponent, const float* shift, float* sums) {
    Floats sum[VECTORS], less[VECTORS];
    for (int v = 0; v < VECTORS; ++v) sum[v] = Floats{}, less[v] = -subtracted(load<Floats>(shift + v * LANES));
    for (int j = 0; j < keys; ++j)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) {
            float* at = scores + j * QUERIES + v * LANES;
            Floats weight = exp2_of(multiply_add(load<Floats>(at), spread(exponent), less[v]));
            store(at, weight);
            sum[v] += weight;
        }
    for (int v = 0; v < VECTORS; ++v) store(sums + v * LANES, sum[v]);
}

// Turns the scores of a block into weights, and brings totals and output to the new largest score.
inline void soften(const Problem& problem, const Tile& tile, const Block& block, float* scores, const float* peak,
                   Softmax& softmax, float* output) {
    alignas(64) float decay[QUERIES], sums[QUERIES];
    Ints moved{};
    for (int i = 0; i < tile.count; i += LANES) {
        Floats before = load<Floats>(softmax.shift + i);
        Floats now = larger(load<Floats>(peak + i) * problem.exponent, before);
        Floats factor = exp2_of(before - subtracted(now));
        store(softmax.shift + i, now);
        store(decay + i, factor);
        moved |= factor != 1.0f;
    }
    constexpr int TOGETHER = QUERIES / LANES % 2 == 0 ? 2 : 3;
    int i = 0, vectors = (tile.count + LANES - 1) / LANES;
    for (; vectors >= TOGETHER; vectors -= TOGETHER, i += TOGETHER * LANES)
        weigh<TOGETHER>(scores + i, block.count, problem.exponent, softmax.shift + i, sums + i);
    for (; vectors > 0; --vectors, i += LANES)
        weigh<1>(scores + i, block.count, problem.exponent, softmax.shift + i, sums + i);
    for (int q = 0; q < tile.count; q += LANES)
        store(softmax.total + q,
              multiply_add(load<Floats>(softmax.total + q), load<Floats>(decay + q), load<Floats>(sums + q)));
    if (!any(moved)) return;
    for (int q = 0; q < tile.count; ++q) {
        if (decay[q] == 1.0f) continue;
        float* row = output + q * problem.value_columns;
        for (int64_t c = 0; c < problem.value_columns; c += LANES) store(row + c, load<Floats>(row + c) * decay[q]);
    }
}

// Sets dropped weights to zero; what is kept is divided by 1 - p when the row is finished.
inline void drop(const Problem& problem, const Tile& tile, const Block& block, float* weights) {
    int64_t position = block.begin + tile.segment->key_offset;
    int64_t stop = position + block.count;
    // Unsigned comparison with signed vectors: flip the top bit of both sides.
    int32_t limit = (int32_t)((uint32_t)problem.drop_below ^ 0x80000000u);
    bool everything = problem.drop_below >> 32 != 0;
    for (int64_t group = floor_div(position, 4); group * 4 < stop; ++group)
        for (int i = 0; i < tile.count; i += LANES) {
            Words query = spread((uint32_t)tile.query_position(i)) + bits_as<Words>(iota());
            PhiloxWords random = philox(spread((uint32_t)group), query, spread((uint32_t)tile.head),
                                        spread((uint32_t)tile.dropout_row), problem.call.seed);
            for (int w = 0; w < 4; ++w) {
                int64_t j = group * 4 + w - position;
                if (j < 0 || j >= block.count) continue;
                Ints dropped = bits_as<Ints>(random.word[w] ^ 0x80000000u) < limit;
                float* at = weights + j * QUERIES + i;
                store(at, (dropped | -(int32_t)everything) != 0 ? Floats{} : load<Floats>(at));
            }
        }
}

// Rows of V for one block: as they lie, or packed side by side with zeros in a partial last vector.
LL_INLINE const float* value_rows(const Problem& problem, const Tile& tile, const Block& block, float* packed,
                                  int64_t& stride) {
    const ll_call& call = problem.call;
    const float* from = line<const float>(call.value, tile.row, tile.key_head, block.begin);
    stride = call.value.strides[2];
    if (!problem.pack_values) return from;
    for (int j = 0; j < block.count; ++j) {
        float* to = packed + j * problem.value_columns;
        __builtin_memcpy(to, from + j * stride, 4 * call.value_width);
        for (int64_t c = call.value_width; c < problem.value_columns; ++c) to[c] = 0.0f;
    }
    stride = problem.value_columns;
    return packed;
}

// One pass over the keys. `careful` multiplies only seen pairs: for tiles where a value nobody sees may be NaN or infinite.
template <bool careful>
inline void attend(const Problem& problem, const Tile& tile, const Visibility& visible, Scratch& scratch,
                   Softmax& softmax) {
    alignas(64) float peak[QUERIES];
    __builtin_memset(scratch.output, 0, 4 * tile.count * problem.value_columns);
    BlockWalk walk{problem.call, tile, visible};
    for (Block block; walk.next(block);) {
        score_block(problem, tile, visible, block, scratch.packed, scratch.scores, peak);
        if (careful)
            for (int x = 0; x < block.count * QUERIES; ++x) {
                scratch.seen[x] = scratch.scores[x] != -INFINITE;
                softmax.saw[x % QUERIES] |= scratch.seen[x];
            }
        soften(problem, tile, block, scratch.scores, peak, softmax, scratch.output);
        if (problem.drop_below) drop(problem, tile, block, scratch.scores);
        int64_t stride;
        const float* value = value_rows(problem, tile, block, scratch.values, stride);
        if (careful)
            value_product_of_seen(scratch.scores, scratch.seen, value, stride, block.count, tile.count,
                                  problem.value_columns, scratch.output);
        else
            value_product(scratch.scores, value, stride, block.count, tile.count, problem.value_columns, scratch.output);
    }
}

// Divides each row by its total, in place; tells whether everything is finite.
template <bool careful>
inline bool finish(const Problem& problem, const Tile& tile, const Softmax& softmax, float* output) {
    float kept = problem.drop_below ? (float)(1.0 - problem.call.dropout) : 1.0f;
    Ints bad{};
    for (int i = 0; i < tile.count; ++i) {
        float total = softmax.total[i] * kept;
        bool nothing = total == 0.0f || (careful && !softmax.saw[i]);  // then zeros, even beside a sink that is NaN
        float share = 1.0f / total;
        float* row = output + i * problem.value_columns;
        for (int64_t c = 0; c < problem.value_columns; c += LANES) {
            Floats y = nothing ? Floats{} : load<Floats>(row + c) * share;
            bad |= (y - y) != 0.0f;
            store(row + c, y);
        }
    }
    return !any(bad);
}

inline float logsumexp_of(const Softmax& softmax, int i) {
    float total = softmax.total[i];
    if (total == 0.0f) return -INFINITE;
    return (float)(((double)softmax.shift[i] + __builtin_log2((double)total)) * LN_2);
}

// stats, where asked for: (B, Hq, Lq) pairs of shift and total, for the observations.
inline void forward_tile(const Problem& problem, const Tile& tile, Scratch& scratch, float* stats) {
    const ll_call& call = problem.call;
    Visibility visible;
    see(call, tile, visible);
    const float* sink = call.sink ? call.sink + tile.head : nullptr;
    pack_queries(line<const float>(call.query, tile.row, tile.head, tile.first_query), call.query.strides[2], tile.count,
                 call.width, problem.query_factor, scratch.packed);
    Softmax softmax(sink);
    attend<false>(problem, tile, visible, scratch, softmax);
    if (!finish<false>(problem, tile, softmax, scratch.output)) {
        softmax = Softmax(sink);
        attend<true>(problem, tile, visible, scratch, softmax);
        finish<true>(problem, tile, softmax, scratch.output);
    }
    int64_t at = (tile.row * call.query_heads + tile.head) * call.queries + tile.first_query;
    for (int i = 0; i < tile.count; ++i) {
        __builtin_memcpy(line<float>(call.output, tile.row, tile.head, tile.first_query + i),
                         scratch.output + i * problem.value_columns, 4 * call.value_width);
        if (call.logsumexp) call.logsumexp[at + i] = logsumexp_of(softmax, i);
        if (stats) stats[2 * (at + i)] = softmax.shift[i], stats[2 * (at + i) + 1] = softmax.total[i];
    }
}
