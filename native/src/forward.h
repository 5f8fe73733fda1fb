// Attention of one tile of queries: a running softmax over blocks of keys (Milakov & Gimelshein 2018; Dao et al. 2022).

// Tiles of queries that walk over the keys side by side, so that a block of keys and values is read from the nearest cache.
constexpr int MOST_TOGETHER = 4;

// Memory of one thread, reused from tile to tile.
struct Scratch {
    Number* scores;   // [BLOCK_KEYS][QUERIES]
    Factor* weights;  // the same as factors, where they differ from numbers
    Factor* values;   // [BLOCK_KEYS / FOLD][columns]; careful passes only
    uint8_t* seen;    // [BLOCK_KEYS][QUERIES]; careful passes only
    Factor* packed[MOST_TOGETHER];  // of each tile: queries, as products.h wants them
    Number* output[MOST_TOGETHER];  // of each tile: the sums of sums.h

    Scratch(Arena& arena, const ll_call& call, int64_t columns, int together) {
        scores = arena.take<Number>(BLOCK_KEYS * QUERIES);
        weights = arena.take<Factor>(FOLD > 1 ? BLOCK_KEYS / FOLD * QUERIES : 0);
        values = arena.take<Factor>(BLOCK_KEYS / FOLD * columns);
        seen = arena.take<uint8_t>(BLOCK_KEYS * QUERIES);
        for (int t = 0; t < together; ++t) {
            packed[t] = arena.take<Factor>(packed_size(call));
            output[t] = arena.take<Number>(QUERIES * columns);
        }
    }
};

// The running softmax of each query: a score near the largest so far, and the sum of weights relative to it.
struct Softmax {
    alignas(64) Number peak[QUERIES];
    alignas(64) Number total[QUERIES];

    Softmax() {
        for (int i = 0; i < QUERIES; ++i) peak[i] = -INFINITE, total[i] = 0;
    }
};

LL_INLINE const Number* sink_of(const ll_call& call, const Tile& tile) {
    return call.sink ? (const Number*)call.sink + tile.head : nullptr;
}

// A sink is a score with no value: it closes the sum. Its score in base 2 relative to the peak, in doubles: a large sink
// beside a large score would leave nothing of their difference.
LL_INLINE double sink_power(const Problem& problem, Number sink, Number peak) {
    constexpr double MOST = 1e300;
    double power = -__builtin_fma((double)problem.natural, (double)peak, -(double)sink) * EXACT_LOG2_E;
    return power > MOST && sink - sink == 0 ? MOST : power;
}

// The sum of weights with that of the sink, relative to the peak; 0 where nothing has been seen, which needs no sum.
LL_INLINE Number closed(const Problem& problem, const Number* sink, Number peak, Number total) {
    if (!sink || *sink == -INFINITE || total == 0) return total;
    return total + (Number)__builtin_exp2(sink_power(problem, *sink, peak)) + (*sink - *sink);  // NaN where the sink is no number
}

// The logarithm of that sum in base 2, which the sum may be too large for.
LL_INLINE double log_closed(const Problem& problem, const Number* sink, Number peak, Number total) {
    double keys = __builtin_log2((double)total);
    if (!sink || *sink == -INFINITE) return keys;
    double power = sink_power(problem, *sink, peak), larger = power > keys ? power : keys;
    return larger + __builtin_log2(__builtin_exp2(keys - larger) + __builtin_exp2(power - larger));
}

LL_INLINE Number logsumexp_of(const Problem& problem, const Number* sink, Number peak, Number total) {
    if (total == 0) return sink ? *sink : -INFINITE;
    double keys = (double)problem.natural * (double)peak + __builtin_log2((double)total) * LN_2;
    if (!sink || *sink == -INFINITE) return (Number)keys;
    double own = (double)*sink, larger = own > keys ? own : keys;
    double parts = __builtin_exp2((keys - larger) * EXACT_LOG2_E) + __builtin_exp2((own - larger) * EXACT_LOG2_E);
    return (Number)(larger + __builtin_log2(parts) * LN_2);
}

// Where nothing has been seen the peak is -inf: subtract 0 instead, so that weights become 0 and not NaN.
LL_INLINE Numbers subtracted(Numbers peak) { return peak == -INFINITE ? Numbers{} : peak; }

// score -> 2^(exponent * (score - peak)) of COUNT keys, in place or, as fold_down has them, in `factors`; returns their sum,
// halves added to halves: where most weights are alike, each addition to a long sum is rounded alike. (The difference comes
// first: a score may be so large that products and their roundings are beyond all exponents.)
template <int COUNT, bool FOLDED>
LL_INLINE Numbers weigh_some(Number* scores, Numbers exponent, Numbers peak, Factor* factors) {
    if constexpr (COUNT > (FOLDED ? 2 : 1)) {
        constexpr int HALF = COUNT / 2;
        Numbers sum = weigh_some<HALF, FOLDED>(scores, exponent, peak, factors);
        return sum + weigh_some<HALF, FOLDED>(scores + HALF * QUERIES, exponent, peak, factors + HALF / FOLD * QUERIES);
    } else {
        Numbers first = weight_of((load<Numbers>(scores) - peak) * exponent), second{};
        if constexpr (COUNT == 2) second = weight_of((load<Numbers>(scores + QUERIES) - peak) * exponent);
        if constexpr (FOLDED) store(factors, fold(first, second));
        else store(scores, first);
        return COUNT == 2 ? first + second : first;
    }
}

// The same of all keys of a block, for a vector of queries.
template <bool FOLDED>
LL_INLINE Numbers weigh(Number* scores, int keys, Numbers exponent, Numbers peak, Factor* factors) {
    constexpr int MOST = FOLDED ? 8 : 16;  // at a time: with more pairs (2 % slower) the compiler runs out of registers
    Numbers sum{};
    int j = 0;
    auto more = [&]<int COUNT>() __attribute__((always_inline)) {
        sum += weigh_some<COUNT, FOLDED>(scores + j * QUERIES, exponent, peak, factors + j / FOLD * QUERIES);
        j += COUNT;
    };
    while (j + MOST <= keys) more.template operator()<MOST>();
    while (j + 4 <= keys) more.template operator()<4>();
    if (j + 2 <= keys) more.template operator()<2>();
    if (j < keys) more.template operator()<1>();
    if constexpr (FOLDED)
        for (j = round_up(keys, 2); j < round_up(keys, BLOCK_STEP); j += 2) store(factors + j / 2 * QUERIES, Factors{});
    return sum;
}

// A larger score moves the peak only where weights would exceed 2^SLACK: nothing overflows before, and what has been
// summed seldom needs to be scaled again.
constexpr Number SLACK = 8;

// Turns the scores of a block into weights, and brings totals and output to the new peak.
template <bool FOLDED>
inline void soften(const Problem& problem, const Tile& tile, const Block& block, Number* scores, const Number* peak,
                   Softmax& softmax, Number* output, int64_t columns, Factor* factors) {
    FlushSubnormals scope;
    alignas(64) Number decay[QUERIES], sums[QUERIES];
    Ints moved{};
    for (int i = 0; i < tile.count; i += LANES) {
        Numbers before = load<Numbers>(softmax.peak + i), now = load<Numbers>(peak + i);
        now = (now - before) * problem.exponent > SLACK ? now : before;
        Numbers factor = exp2_of((before - subtracted(now)) * problem.exponent);
        store(softmax.peak + i, now);
        store(decay + i, factor);
        moved |= factor != 1;
    }
    for (int i = 0; i < tile.count; i += LANES)
        store(sums + i, weigh<FOLDED>(scores + i, block.count, spread(problem.exponent),
                                      subtracted(load<Numbers>(softmax.peak + i)), factors + i));
    for (int q = 0; q < tile.count; q += LANES)
        store(softmax.total + q,
              multiply_add(load<Numbers>(softmax.total + q), load<Numbers>(decay + q), load<Numbers>(sums + q)));
    if (any(moved)) scale_sums(output, decay, tile.count, columns);
}

// f(key of the block, first query of the vector, mask of what is dropped), for every vector of weights.
template <class F>
LL_INLINE void each_dropped(const Problem& problem, const Tile& tile, const Block& block, F f) {
    int64_t position = block.begin + tile.segment->key_offset;
    int64_t stop = position + block.count;
    uint32_t limit = (uint32_t)problem.drop_below;
    Int everything = -(Int)(problem.drop_below >> 32 != 0);
    Words lanes = __builtin_convertvector(iota(), Words);
    for (int i = 0; i < tile.count; i += LANES) {
        Philox random(spread_word((uint32_t)tile.query_position(i)) + lanes, (uint32_t)tile.head, (uint32_t)tile.dropout_row,
                      problem.call.seed);
        for (int64_t group = floor_div(position, 4); group * 4 < stop; ++group)
            random.words((uint32_t)group, [&](int w, Words word) {
                int64_t j = group * 4 + w - position;
                if (j < 0 || j >= block.count) return;
                f((int)j, i, __builtin_convertvector(word < limit, Ints) | everything);
            });
    }
}

// Sets dropped weights to zero; what is kept is divided by 1 - p when the row is finished.
inline void drop(const Problem& problem, const Tile& tile, const Block& block, Number* weights) {
    each_dropped(problem, tile, block, [&](int j, int i, Ints dropped) {
        Number* at = weights + j * QUERIES + i;
        store(at, dropped != 0 ? Numbers{} : load<Numbers>(at));
    });
}

// output += weights * values over the seen pairs alone: a row of V that is not finite is set aside (it counts as zero in
// the product, for which nobody's bits change) and added by hand to the queries that see it.
inline void mix_carefully(const Problem& problem, const Tile& tile, const Block& block, const Cut& cut, const Factor* weights,
                          Scratch& scratch, Number* output) {
    const ll_call& call = problem.call;
    int64_t begin = block.begin, stride = call.value.strides[2], columns = problem.value_columns;
    const Stored* value = line<const Stored>(call.value, tile.row, tile.key_head, begin);
    uint8_t aside[BLOCK_KEYS];
    for (int j = 0; j < block.count; ++j) aside[j] = !finite_row(value + j * stride, call.value_width);
    mix_rows(value, stride, block.count, call.value_width, columns, aside, scratch.values);
    mix(weights, scratch.values, block.count, tile.count, output, columns, cut.of_queries);
    for (int j = 0; j < block.count; ++j)
        for (int i = 0; aside[j] && i < tile.count; ++i)
            if (scratch.seen[j * QUERIES + i])
                for (int64_t c = 0; c < call.value_width; ++c)
                    output[place(i, c, columns)] += scratch.scores[j * QUERIES + i] * read(value + j * stride + c);
}

// A tile on its way over the keys.
struct Pass {
    const Problem& problem;
    const Tile& tile;
    Visibility visible;
    Softmax softmax;
    BlockWalk walk;
    Block block;  // the next one
    const Factor* packed;
    Number* output;
    bool more;

    Pass(const Problem& p, const Tile& t, const Factor* packed_queries, Number* to)
        : problem(p), tile(t), walk(p.call, t, visible), packed(packed_queries), output(to) {
        see(p.call, t, visible);
        start();
    }
    Pass(const Pass&) = delete;
    static void* operator new(size_t, void* room) { return room; }

    void start() {
        __builtin_memset(output, 0, sizeof(Number) * (size_t)(QUERIES * problem.value_columns));
        more = walk.next(block);
    }
    void again() {
        softmax = Softmax();
        walk.restart();
        start();
    }

    // `careful` multiplies only seen pairs: for tiles where a value nobody sees may be NaN or infinite.
    template <bool careful>
    void step(Scratch& scratch) {
        alignas(64) Number peak[QUERIES];
        int64_t columns = problem.value_columns;
        Cut cut(visible, tile, block);
        score_block(problem, tile, visible, block, cut, packed, scratch.scores, peak);
        if (careful)
            for (int x = 0; x < block.count * QUERIES; ++x) scratch.seen[x] = scratch.scores[x] != -INFINITE;
        const Factor* weights = scratch.weights;
        if (FOLD > 1 && !careful && !problem.drop_below)
            soften<(FOLD > 1)>(problem, tile, block, scratch.scores, peak, softmax, output, columns, scratch.weights);
        else {
            soften<false>(problem, tile, block, scratch.scores, peak, softmax, output, columns, nullptr);
            if (problem.drop_below) drop(problem, tile, block, scratch.scores);
            weights = fold_down(scratch.scores, block.count, tile.count, scratch.weights);
        }
        if (careful)
            mix_carefully(problem, tile, block, cut, weights, scratch, output);
        else
            mix(weights, problem.values.step(tile.row, tile.key_head, block.begin), block.count, tile.count, output, columns,
                cut.of_queries);
        more = walk.next(block);
    }

    // Divides each query's sums by its total, in place; tells whether everything is finite.
    bool finish() {
        Number kept = problem.drop_below ? (Number)(1.0 - problem.call.dropout) : 1;
        alignas(64) Number share[QUERIES] = {};
        alignas(64) Int nothing[QUERIES] = {};
        for (int i = 0; i < tile.count; ++i) {
            Number total = closed(problem, sink_of(problem.call, tile), softmax.peak[i], softmax.total[i]) * kept;
            nothing[i] = -(Int)(total == 0);  // then zeros, even beside a sink that is NaN
            share[i] = 1 / total;
        }
        Ints bad{};
        int64_t columns = problem.value_columns;
        auto finished = [&](Number* at, Numbers factor, Ints none) {
            Numbers y = none ? Numbers{} : load<Numbers>(at) * factor;
            bad |= (y - y) != 0;
            store(at, y);
        };
#if defined(LL_AMX)
        for (int64_t c = 0; c < columns; ++c)
            for (int i = 0; i < tile.count; i += LANES)
                finished(output + place(i, c, columns), load<Numbers>(share + i), load<Ints>(nothing + i));
#else
        for (int i = 0; i < tile.count; ++i)
            for (int64_t c = 0; c < columns; c += LANES)
                finished(output + place(i, c, columns), spread(share[i]), spread_int(nothing[i]));
#endif
        return !any(bad);
    }
};

// row(i): the finished output of query i. stats, where asked for: (B, Hq, Lq) pairs of peak and total, for the observations.
template <class Row>
inline void write_tile(const Problem& problem, const Tile& tile, const Softmax& softmax, Row row, Number* stats) {
    const ll_call& call = problem.call;
    int64_t at = (tile.row * call.query_heads + tile.head) * call.queries + tile.first_query;
    for (int i = 0; i < tile.count; ++i) {
        Stored* to = line<Stored>(call.output, tile.row, tile.head, tile.first_query + i);
        problem.much_output ? stream_row(row(i), call.value_width, to) : write_row(row(i), call.value_width, to);
        if (call.logsumexp) 
            ((Number*)call.logsumexp)[at + i] = logsumexp_of(problem, sink_of(call, tile), softmax.peak[i], softmax.total[i]);
        if (stats) stats[2 * (at + i)] = softmax.peak[i], stats[2 * (at + i) + 1] = softmax.total[i];
    }
}

// The tiles of one head that are computed together. Each takes its own blocks in its own order: what is computed together
// never shows in the bits.
inline void forward_tiles(const Problem& problem, const Tile* tiles, int count, Scratch& scratch, Number* stats, int& status) {
    alignas(Pass) char room[MOST_TOGETHER][sizeof(Pass)];
    Pass* passes[MOST_TOGETHER];
    for (int t = 0; t < count; ++t) {
        pack_queries(problem, tiles[t], scratch.packed[t]);
        passes[t] = new (room[t]) Pass(problem, tiles[t], scratch.packed[t], scratch.output[t]);
    }
    for (;;) {
        Pass* next = nullptr;  // the one that is furthest behind
        for (int t = 0; t < count; ++t)
            if (passes[t]->more && (!next || passes[t]->block.begin < next->block.begin)) next = passes[t];
        if (!next) break;
        if (ended(status)) return;
        next->step<false>(scratch);
    }
    for (int t = 0; t < count; ++t) {
        if (!passes[t]->finish()) {
            passes[t]->again();
            while (passes[t]->more && !ended(status)) passes[t]->step<true>(scratch);
            passes[t]->finish();
        }
        auto row = [&](int i) {
            return sum_row(passes[t]->output, i, problem.value_columns, (Number*)scratch.values);
        };
        write_tile(problem, tiles[t], passes[t]->softmax, row, stats);
    }
}
