// The two matrix products, as register tiles.
//
// Scores are computed transposed, S' = K Q': queries lie along the lanes, a key's numbers are broadcast as they lie, so
// keys need no packing and the softmax needs no horizontal step. The second product broadcasts the weights against rows
// of V. Each accumulator is one chain of multiply-adds in ascending order: the shape of the tile never shows in the bits.

#if defined(LL_AVX512) || defined(LL_WIDE)
constexpr int PANEL_KEYS = 8;     // keys x vectors of queries: 24 accumulators of 32 registers
constexpr int VALUE_VECTORS = 4;  // 6 queries x 4 vectors of V
#else
constexpr int PANEL_KEYS = 4;     // 12 accumulators of 16 registers
constexpr int VALUE_VECTORS = 2;  // 6 queries x 2 vectors of V
#endif
constexpr int PANEL_VECTORS = 3;
constexpr int MOST_PANEL_KEYS = 8;  // beside one vector of queries
constexpr int PANEL_QUERIES = PANEL_VECTORS * LANES;
constexpr int VALUE_QUERIES = 6;
static_assert(QUERIES % PANEL_QUERIES == 0 && QUERIES % VALUE_QUERIES == 0);

// Queries as the first product reads them: [panel][d][query of the panel], times `factor`; missing queries are zero.
inline void pack_queries(const float* query, int64_t stride, int count, int64_t width, float factor, float* packed) {
    for (int first = 0; first < count; first += PANEL_QUERIES, packed += width * PANEL_QUERIES) {
        for (int i = 0; i < PANEL_QUERIES; ++i) {
            const float* row = query + (first + i) * stride;
            float* to = packed + i;
            if (first + i < count)
                for (int64_t d = 0; d < width; ++d) to[d * PANEL_QUERIES] = row[d] * factor;
            else
                for (int64_t d = 0; d < width; ++d) to[d * PANEL_QUERIES] = 0.0f;
        }
    }
}

// Wide sums are taken in parts, and the parts added: a long chain of roundings would lose accuracy. Up to 128, the usual
// widths, one chain is as exact as what others do.
constexpr int64_t PART_WIDTH = 64, WHOLE_WIDTH = 128;

// scores[key][query] = (add: +=) sum over d of key[d] * query[d], for KEYS keys and VECTORS vectors of queries;
// peak[query], where given, becomes the largest so far.
template <int KEYS, int VECTORS>
LL_INLINE void score_panel(const float* key, int64_t stride, int keys, const float* packed, int64_t width, bool add,
                           float* scores, float* peak) {
    const float* row[KEYS];
    for (int r = 0; r < KEYS; ++r) row[r] = key + least(r, keys - 1) * stride;  // a short panel repeats its last key
    Floats sum[KEYS][VECTORS];
#pragma GCC unroll 8
    for (int r = 0; r < KEYS; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) sum[r][v] = Floats{};
    for (int64_t d = 0; d < width; ++d, packed += PANEL_QUERIES) {
        Floats query[VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) query[v] = load<Floats>(packed + v * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < KEYS; ++r) {
            Floats number = spread(row[r][d]);
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; ++v) sum[r][v] = multiply_add(number, query[v], sum[r][v]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < KEYS; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) {
            float* at = scores + r * QUERIES + v * LANES;
            if (add) sum[r][v] += load<Floats>(at);
            store(at, sum[r][v]);
        }
    if (!peak) return;
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) {
        Floats largest = load<Floats>(peak + v * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < KEYS; ++r) largest = larger(largest, sum[r][v]);
        store(peak + v * LANES, largest);
    }
}

template <int KEYS, int VECTORS>
inline void score_parts(const float* key, int64_t stride, int keys, const float* packed, int64_t width, float* scores,
                        float* peak) {
    int64_t d = 0;
    for (; width > WHOLE_WIDTH && d + PART_WIDTH < width; d += PART_WIDTH)
        score_panel<KEYS, VECTORS>(key + d, stride, keys, packed + d * PANEL_QUERIES, PART_WIDTH, d > 0, scores,
                                         nullptr);
    score_panel<KEYS, VECTORS>(key + d, stride, keys, packed + d * PANEL_QUERIES, width - d, d > 0, scores, peak);
}

// scores: room for BLOCK_KEYS + MOST_PANEL_KEYS rows of QUERIES.
inline void score_product(const float* key, int64_t stride, int keys, const float* packed, int queries, int64_t width,
                          float* scores, float* peak) {
    if (queries <= LANES) {  // one vector of queries: more keys, so that enough sums are under way
        for (int j = 0; j < keys; j += MOST_PANEL_KEYS)
            score_parts<MOST_PANEL_KEYS, 1>(key + j * stride, stride, keys - j, packed, width, scores + j * QUERIES, peak);
        return;
    }
    for (int j = 0; j < keys; j += PANEL_KEYS, key += PANEL_KEYS * stride, scores += PANEL_KEYS * QUERIES) {
        const float* panel = packed;
        int left = (queries + LANES - 1) / LANES, i = 0;
        for (; left >= PANEL_VECTORS; left -= PANEL_VECTORS, i += PANEL_QUERIES, panel += width * PANEL_QUERIES)
            score_parts<PANEL_KEYS, PANEL_VECTORS>(key, stride, keys - j, panel, width, scores + i, peak + i);
        if (left == 2) score_parts<PANEL_KEYS, 2>(key, stride, keys - j, panel, width, scores + i, peak + i);
        if (left == 1) score_parts<PANEL_KEYS, 1>(key, stride, keys - j, panel, width, scores + i, peak + i);
    }
}

// output[query][:] += sum over keys of weights[key][query] * value[key][:], for ROWS queries and VECTORS vectors of V.
template <int ROWS, int VECTORS>
LL_INLINE void value_panel(const float* weights, const float* value, int64_t stride, int keys, float* output,
                           int64_t output_stride) {
    Floats sum[ROWS][VECTORS];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; ++v) sum[r][v] = load<Floats>(output + r * output_stride + v * LANES);
    for (int j = 0; j < keys; ++j, weights += QUERIES, value += stride) {
        Floats numbers[VECTORS];
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; ++v) numbers[v] = load<Floats>(value + v * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) {
            Floats weight = spread(weights[r]);
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; ++v) sum[r][v] = multiply_add(weight, numbers[v], sum[r][v]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; ++v) store(output + r * output_stride + v * LANES, sum[r][v]);
}

template <int VECTORS>
inline void value_columns(const float* weights, const float* value, int64_t stride, int keys, int queries, float* output,
                          int64_t output_stride) {
    int i = 0;
    for (; i + VALUE_QUERIES <= queries; i += VALUE_QUERIES)
        value_panel<VALUE_QUERIES, VECTORS>(weights + i, value, stride, keys, output + i * output_stride, output_stride);
    for (; i + 2 <= queries; i += 2)
        value_panel<2, VECTORS>(weights + i, value, stride, keys, output + i * output_stride, output_stride);
    if (i < queries) value_panel<1, VECTORS>(weights + i, value, stride, keys, output + i * output_stride, output_stride);
}

// `columns` is a multiple of LANES: value rows are packed when they are not.
inline void value_product(const float* weights, const float* value, int64_t stride, int keys, int queries,
                          int64_t columns, float* output) {
    int64_t c = 0;
    if (queries == 1)  // a single row: more columns, so that enough sums are under way
        for (; c + 8 * LANES <= columns; c += 8 * LANES)
            value_panel<1, 8>(weights, value + c, stride, keys, output + c, columns);
    for (; c + VALUE_VECTORS * LANES <= columns; c += VALUE_VECTORS * LANES)
        value_columns<VALUE_VECTORS>(weights, value + c, stride, keys, queries, output + c, columns);
    if constexpr (VALUE_VECTORS > 2)
        for (; c + 2 * LANES <= columns; c += 2 * LANES)
            value_columns<2>(weights, value + c, stride, keys, queries, output + c, columns);
    for (; c < columns; c += LANES) value_columns<1>(weights, value + c, stride, keys, queries, output + c, columns);
}

// The same sums in the same order, key by key, but only over the pairs that are seen: a number that nobody may look at
// is never multiplied, not even by zero.
inline void value_product_of_seen(const float* weights, const uint8_t* seen, const float* value, int64_t stride,
                                  int keys, int queries, int64_t columns, float* output) {
    for (int i = 0; i < queries; ++i)
        for (int j = 0; j < keys; ++j) {
            if (!seen[j * QUERIES + i]) continue;
            Floats weight = spread(weights[j * QUERIES + i]);
            for (int64_t c = 0; c < columns; c += LANES) {
                float* to = output + i * columns + c;
                store(to, multiply_add(weight, load<Floats>(value + j * stride + c), load<Floats>(to)));
            }
        }
}
