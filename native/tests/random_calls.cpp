// Random calls of every kind, forward and backward, in every element type and with keys of 8 bits, on every
// instruction set of the machine: results do not depend on the number of threads, bit by bit, and are close to those of
// `generic`, which reads keys as rows at equal distances where the call has them in pages. Some calls have scores of up
// to 2^110. Under a sanitizer (-DLIMELIGHT_SANITIZE=...) this also shows that no memory outside of an array is accessed
// (each is exactly as large as the call needs), that there is no undefined behavior, and no data race.
//
//     random_calls [calls] [seed]

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <random>
#include <string>
#include <vector>

#include "../include/limelight.h"
#include "random_arrays.h"

namespace {

struct RandomCall {
    Arrays inputs;
    ll_call call = {};
    ll_observation observation = {};
    bool observes;
    int64_t B, Hkv, Hq, Lq, Lk, D, Dv, element, number;
    std::vector<ll_segment> segments;
    bool paged, alike;                  // alike: documents of a few queries that begin with the same pages
    ll_tensor rows_of[2], pages_of[2];  // keys and values
    bool quantized = false;             // keys and values have 8 bits, and there is no backward pass
    ll_quantized in_rows = {}, in_pages = {};
    std::vector<int32_t> table;
    ll_pages pages = {};
    ll_span spans[2];
    std::vector<ll_rule> rules;
    std::vector<int64_t> heads, rows, pairs, bias_dims[LL_MAX_RULES];
    bool wanted[5 + LL_MAX_RULES];
    bool large;  // scores up to 2^110 without rounding errors, which such scores would turn into any weights
    bool with_lse_gradient;

    explicit RandomCall(int64_t e) : element(e), number(number_of(e)) {
        large = one_in(6), paged = one_in(3), alike = paged && one_in(3);
        B = paged ? 1 : among(1, 2), Hkv = among(1, 2), Hq = Hkv * among(1, 2);
        Lq = one_in(8) ? 0 : among(1, one_in(3) ? 150 : 50), Lk = one_in(8) ? 0 : among(1, one_in(4) ? 700 : 140);
        if (alike) Lq = 3 * among(1, 4), Lk = 3 * among(500, 1200);
        D = one_in(8) ? 290 : among(1, 80), Dv = one_in(8) ? 290 : among(1, 80);
        if (one_in(3)) D = 16 * among(1, 5), Dv = 16 * among(1, 5);  // rows that products read in place
        call.version = LL_VERSION, call.element = element;
        call.batch = B, call.query_heads = Hq, call.key_heads = Hkv, call.queries = Lq, call.keys = Lk;
        call.width = D, call.value_width = Dv;
        int64_t query_size = B * Hq * Lq * D;
        char* query = large ? inputs.small_integers(query_size, element) : inputs.normals(query_size, element);
        call.query = shaped(query, B, Hq, Lq, D, among(0, 2));
        call.key = input(Hkv, Lk, D, large), call.value = input(Hkv, Lk, Dv);
        call.sink = one_in(2) ? inputs.normals(Hq, number) : nullptr;
        call.compare = one_in(5) && !large ? inputs.normals(Hq * D, number) : nullptr;
        call.scale = large ? std::ldexp(1.0, (int)among(0, 100)) : 0.2, call.dropout = one_in(3) ? 0.3 : 0.0,
        call.seed = random_bits();
        choose_segments(), choose_pattern(), choose_rules(), choose_observation();
        rows_of[0] = call.key, rows_of[1] = call.value;
        quantized = !call.compare && !large && one_in(3);
        if (paged) lay_out_pages();
        if (quantized) quantize();
        for (bool& each : wanted) each = !one_in(4);
        with_lse_gradient = one_in(2);
    }

    ll_tensor input(int64_t H, int64_t L, int64_t width, bool integers = false) {
        int64_t count = B * H * L * width;
        char* data = integers ? inputs.small_integers(count, element) : inputs.normals(count, element);
        if (one_in(5) && L > 0)
            put(data + among(0, B * H * L * width - 1) * size_of(element), element,
                one_in(2) ? __builtin_nan("") : __builtin_inf());
        return shaped(data, B, H, L, width, among(0, 2));
    }

    void choose_segments() {
        switch (alike ? 3 : among(0, 2)) {
            case 0: segments.push_back({-1, 0, Lq, 0, Lk, Lk - Lq, 0, 0, 0, 0, 0}); break;
            case 1:  // padding: a segment for each row
                for (int64_t b = 0; b < B; ++b) {
                    int64_t q = among(0, Lq), k = among(0, Lk);
                    segments.push_back({b, 0, q, Lk - k, Lk, among(-5, 40), among(-5, 5), b, 0, 0, 0});
                }
                break;
            case 3:
                for (int64_t d = 0, q = Lq / 3, k = Lk / 3; d < 3; ++d)
                    segments.push_back({-1, d * q, d * q + q, d * k, d * k + k, k - q - d * q, -d * k, d, 0, 0, 0});
                break;
            default:  // documents
                for (int64_t d = 0, q = 0, k = 0; d < 3; ++d) {
                    int64_t more_q = d == 2 ? Lq : among(q, Lq), more_k = d == 2 ? Lk : among(k, Lk);
                    segments.push_back({-1, q, more_q, k, more_k, more_k - more_q, -k, d, 0, 0, 0});
                    q = more_q, k = more_k;
                }
        }
        for (ll_segment& segment : segments)
            if (one_in(6) && !alike) segment.whole_queries = among(1, 40), segment.keys_before = among(0, 70);
        call.segments = segments.data(), call.segment_count = (int64_t)segments.size();
    }

    // Copies the keys and values of the segments to pages in random order; what remains of these is NaN.
    void lay_out_pages() {
        const int64_t sizes[] = {1, 3, 16, 32, 50, 64};
        pages.size = sizes[among(0, 5)];
        int64_t skipped = among(0, 2 * pages.size);  // keys of the first pages
        for (ll_segment& segment : segments) {
            int64_t before = among(0, 2);
            if (!alike) skipped = among(0, 2 * pages.size);
            table.insert(table.end(), (size_t)before, -1);
            segment.page_offset = (int64_t)table.size() * pages.size + skipped - segment.key_begin;
            int64_t count = skipped + segment.key_end - segment.key_begin, same = alike ? among(0, count) : 0;
            for (int64_t key = 0; key < count; key += pages.size) {
                bool repeats = key < same && &segment != segments.data();
                int64_t first = (segments[0].page_offset + segments[0].key_begin) / pages.size - skipped / pages.size;
                table.push_back(repeats ? table[(size_t)(first + key / pages.size)] : (int32_t)pages.count++);
            }
        }
        std::vector<int32_t> order((size_t)pages.count);
        for (size_t n = 0; n < order.size(); ++n) order[n] = (int32_t)n;
        std::shuffle(order.begin(), order.end(), random_bits);
        for (int32_t& entry : table)
            if (entry >= 0) entry = order[(size_t)entry];
        pages.table = table.data(), pages.length = (int64_t)table.size();
        for (int n = 0; n < 2; ++n) {
            int64_t width = n == 0 ? D : Dv, bytes = width * size_of(element), count = pages.count * Hkv * pages.size;
            char* data = inputs.zeros(count * bytes);
            for (int64_t at = 0; at < count * width; ++at)
                put(data + at * size_of(element), element, __builtin_nan(""));
            bool by_slot = one_in(2);  // (pages, size, Hkv, D)
            int64_t page = Hkv * pages.size * width;
            if (by_slot) pages_of[n] = {data, {page, width, Hkv * width, 1}};
            else pages_of[n] = {data, {page, pages.size * width, width, 1}};
            std::vector<bool> written((size_t)(pages.count * pages.size));
            for (const ll_segment& segment : segments)
                for (int64_t key = segment.key_begin; key < segment.key_end; ++key) {
                    int64_t slot = key + segment.page_offset, number = pages.table[slot / pages.size];
                    size_t place = (size_t)(number * pages.size + slot % pages.size);
                    for (int64_t h = 0; h < Hkv; ++h) {
                        char* to = element_of(pages_of[n], number, h, slot % pages.size);
                        char* row = element_of(rows_of[n], 0, h, key);
                        if (written[place]) std::memcpy(row, to, (size_t)bytes);
                        else std::memcpy(to, row, (size_t)bytes);
                    }
                    written[place] = true;
                }
        }
    }
    char* element_of(const ll_tensor& tensor, int64_t b, int64_t h, int64_t i, int64_t size = 0) const {
        int64_t at = b * tensor.strides[0] + h * tensor.strides[1] + i * tensor.strides[2];
        return (char*)tensor.data + at * (size ? size : size_of(element));
    }

    // Random bytes and scales in the place of keys and values, in rows and in pages; scales of empty slots are NaN.
    void quantize() {
        const double sizes[LL_EIGHT_BITS] = {0.02, 0.02, 1e-4};
        in_rows.element = among(0, LL_EIGHT_BITS - 1), in_rows.rotated = one_in(2);
        in_pages = in_rows;
        for (int n = 0; n < 2; ++n) {
            int64_t width = n == 0 ? D : Dv, item = size_of(number);
            char* bytes = inputs.zeros(B * Hkv * Lk * width);
            for (int64_t at = 0; at < B * Hkv * Lk * width; ++at) {
                int64_t sign = one_in(2) ? 128 : 0;
                bytes[at] = (char)(in_rows.element == LL_INT8 ? among(-127, 127) : sign + among(0, 100));
            }
            ll_tensor scale = shaped(inputs.normals(B * Hkv * Lk, number, sizes[in_rows.element]), B, Hkv, Lk, 1, 0);
            rows_of[n] = shaped(bytes, B, Hkv, Lk, width, among(0, 1));
            if (paged) {
                int64_t count = pages.count * Hkv * pages.size;
                pages_of[n] = shaped(inputs.zeros(count * width), pages.count, Hkv, pages.size, width, among(0, 1));
                ll_tensor of_pages = shaped(inputs.normals(count, number), pages.count, Hkv, pages.size, 1, 0);
                for (int64_t at = 0; at < count; ++at) put((char*)of_pages.data + at * item, number, __builtin_nan(""));
                std::vector<bool> written((size_t)(pages.count * pages.size));
                for (const ll_segment& segment : segments)
                    for (int64_t key = segment.key_begin; key < segment.key_end; ++key) {
                        int64_t slot = key + segment.page_offset, page = pages.table[slot / pages.size];
                        size_t place = (size_t)(page * pages.size + slot % pages.size);
                        for (int64_t h = 0; h < Hkv; ++h) {
                            char* pairs_of[2][2] = {{element_of(pages_of[n], page, h, slot % pages.size, 1),
                                                     element_of(rows_of[n], 0, h, key, 1)},
                                                    {element_of(of_pages, page, h, slot % pages.size, item),
                                                     element_of(scale, 0, h, key, item)}};
                            for (int x = 0; x < 2; ++x) {
                                char *stored = pairs_of[x][0], *row = pairs_of[x][1];
                                size_t size = (size_t)(x == 0 ? width : item);
                                if (written[place]) std::memcpy(row, stored, size);
                                else std::memcpy(stored, row, size);
                            }
                        }
                        written[place] = true;
                    }
                (n == 0 ? in_pages.key_scale : in_pages.value_scale) = of_pages;
            }
            (n == 0 ? in_rows.key_scale : in_rows.value_scale) = scale;
        }
    }

    void choose_pattern() {
        ll_span causal = {LL_LOWEST, LL_HIGHEST, LL_LOWEST, LL_LOWEST, 0, LL_LOWEST, LL_HIGHEST, 1, LL_HIGHEST, 0};
        ll_span window = causal, first = causal, chunk = causal, full = causal;
        window.start_offset = -among(0, 40);
        first.end_offset = LL_HIGHEST, first.end = among(0, 9);
        chunk.chunk = among(1, 90), chunk.chunk_start = 0, chunk.chunk_end = chunk.chunk;
        full.end_offset = LL_HIGHEST;
        ll_span choices[][2] = {{full, full}, {causal, causal}, {window, first}, {chunk, window}};
        std::memcpy(spans, choices[among(0, 3)], sizeof spans);
        call.spans = spans, call.span_count = 2;
        if (one_in(4)) {  // two intervals of each query instead
            auto* bounds = (int32_t*)inputs.zeros(4 * 4 * Lq);
            for (int64_t i = 0; i < Lq; ++i) {
                int64_t at = 0;
                for (int64_t n = 0; n < 4; ++n) {
                    at = among(at, Lk);
                    bounds[(n % 2 * 2 + n / 2) * Lq + i] = (int32_t)at;
                }
            }
            call.intervals = {bounds, bounds + 2 * Lq, 2, Lq, 0, 0};
        }
        if (one_in(4)) {
            int64_t tq = (Lq + 63) / 64, tk = (Lk + 63) / 64, mixed = among(0, 2);
            auto* state = (int32_t*)inputs.zeros(4 * tq * tk);
            for (int64_t t = 0; t < tq * tk; ++t) state[t] = (int32_t)among(-2, mixed);
            auto* bits = (uint64_t*)inputs.zeros(8 * 64 * (mixed + 1));
            for (int64_t n = 0; n < 64 * (mixed + 1); ++n) bits[n] = random_bits() | random_bits();
            call.tiles = {state, 0, 0, tk, bits, 64};
        }
    }

    void choose_rules() {
        for (int64_t n = one_in(2) || large ? 0 : among(1, 4); n > 0; --n) {
            ll_rule rule = {among(0, 3), {0, 0}, {nullptr, {0, 0, 0, 0}}, 0};
            if (rule.kind == LL_BIAS) {
                int64_t sizes[4] = {B, Hq, Lq, Lk}, step = 1;
                auto& dims = bias_dims[rules.size()];
                dims.assign(4, 1);
                for (int d = 3; d >= 0; --d) {
                    if (one_in(3)) continue;
                    dims[(size_t)d] = sizes[d], rule.tensor.strides[d] = step, step *= sizes[d];
                }
                rule.stored = one_in(2);
                rule.tensor.data = inputs.normals(step, rule.stored ? element : number);
            }
            if (rule.kind == LL_ALIBI) rule.tensor = {inputs.normals(B * Hq, number, 0.05), {Hq, 1, 0, 0}};
            if (rule.kind == LL_SOFTCAP) rule.parameters[0] = 2.5;
            if (rule.kind == LL_DISTANCE_TABLE) {  // an entry for each distance, as the gradient requires
                double most = (double)(Lq + Lk + 60);
                rule.parameters[0] = most, rule.parameters[1] = 2 * most;
                rule.tensor = {inputs.normals(Hq * 2 * (int64_t)most, number), {0, 2 * (int64_t)most, 0, 1}};
            }
            rules.push_back(rule);
        }
        call.rules = rules.data(), call.rule_count = (int64_t)rules.size();
    }

    void choose_observation() {
        observes = one_in(3);
        for (int64_t h = 0; h < Hq; h += among(1, 2)) heads.push_back(h);
        for (int64_t i = among(0, 20); i < Lq; i += among(1, 30)) rows.push_back(i);
        for (int64_t i = among(0, 20); i < Lq && Lk > 0; i += among(0, 30))
            pairs.push_back(i), pairs.push_back(among(0, Lk - 1));
        observation.heads = heads.data(), observation.head_count = (int64_t)heads.size();
        observation.rows = rows.data(), observation.row_count = (int64_t)rows.size();
        observation.pairs = pairs.data(), observation.pair_count = (int64_t)pairs.size() / 2;
        observation.top = among(1, 5), observation.block_queries = among(1, 70), observation.block_keys = among(1, 70);
        observation.feature_count = among(1, 20), observation.feature_stride = observation.feature_count;
        observation.features = inputs.normals(Lk * observation.feature_count, number);
    }

    void may_fail(int status) const {
        if (status == 0) return;
        std::printf("failed: %s\n", ll_error_message());
        std::exit(1);
    }

    // All arrays that a forward and a backward pass write; `as_rows`: with keys as rows at equal distances.
    Arrays run(int64_t threads, bool as_rows = false) {
        Arrays written;
        call.threads = threads;
        call.key = rows_of[0], call.value = rows_of[1], call.quantized = quantized ? &in_rows : nullptr;
        if (paged && !as_rows) {
            call.key = pages_of[0], call.value = pages_of[1], call.pages = pages;
            if (quantized) call.quantized = &in_pages;
        }
        int64_t n = size_of(number), all = B * Hq * Lq, seen = B * (int64_t)heads.size() * Lq;
        call.output = shaped(written.numbers(all * Dv, element), B, Hq, Lq, Dv, 0);
        call.logsumexp = written.numbers(all, number);
        observe(written, n, seen);
        call.observation = observes ? &observation : nullptr;
        may_fail(ll_forward(&call));
        call.observation = nullptr;
        call.key = rows_of[0], call.value = rows_of[1], call.pages = {}, call.quantized = nullptr;
        if (quantized || large) return written;  // gradients multiply rounding errors by the scale

        ll_gradients g = {};
        Arrays upstream;
        std::mt19937_64 kept = random_bits;
        g.output = call.output, g.logsumexp = call.logsumexp;
        g.grad_output = shaped(upstream.normals(all * Dv, element), B, Hq, Lq, Dv, 1);
        if (with_lse_gradient) g.grad_logsumexp = upstream.normals(all, number);
        random_bits = kept;  // the same for any number of threads
        if (wanted[0]) g.query = shaped(written.numbers(all * D, element), B, Hq, Lq, D, 1);
        if (wanted[1]) g.key = shaped(written.numbers(B * Hkv * Lk * D, element), B, Hkv, Lk, D, 0);
        if (wanted[2]) g.value = shaped(written.numbers(B * Hkv * Lk * Dv, element), B, Hkv, Lk, Dv, 1);
        if (wanted[3] && call.sink) g.sink = written.numbers(all, number);
        if (wanted[4] && call.compare) g.compare = written.numbers(all * D, number);
        for (size_t r = 0; r < rules.size(); ++r) {
            if (!wanted[5 + r]) continue;
            const ll_rule& rule = rules[r];
            int64_t compared = element == number ? number : -1;  // sums of thousands of rounded terms differ too much
            if (rule.kind == LL_ALIBI) g.rules[r] = {written.zeros(all * n, compared), {Hq * Lq, Lq, 1, 0}};
            if (rule.kind == LL_DISTANCE_TABLE) {
                int64_t W = (int64_t)rule.parameters[1];
                g.rules[r] = {written.zeros(B * Hq * W * n, compared), {Hq * W, W, 0, 1}};
            }
            if (rule.kind != LL_BIAS) continue;
            auto dims = bias_dims[r];
            if (dims[3] == 1) dims = {B, Hq, Lq, 1};
            int64_t step = 1;
            for (int d = 3; d >= 0; step *= dims[(size_t)d--]) g.rules[r].strides[d] = dims[(size_t)d] == 1 ? 0 : step;
            char* data = written.zeros(step * n, compared);
            g.rules[r].data = data;
            bool whole = segments.size() == 1 && segments[0].row < 0 && Lq > 1 && Lk > 1;
            if (step != all * Lk || !whole) continue;
            g.uncleared |= (uint64_t)1 << r;
            memset(data, 0xff, (size_t)(step * n));  // NaN
        }
        may_fail(ll_backward(&call, &g));
        return written;
    }

    void observe(Arrays& written, int64_t n, int64_t seen) {
        int64_t H = (int64_t)heads.size();
        ll_observation& o = observation;
        for (void** to : {&o.logsumexp, &o.max_score, &o.max_weight, &o.entropy, &o.distance})
            *to = written.zeros(seen * n);
        o.top_weights = written.zeros(seen * o.top * n), o.top_keys = (int64_t*)written.zeros(seen * o.top * 8);
        o.received = written.zeros(B * H * Lk * n), o.features_out = written.zeros(seen * o.feature_count * n);
        o.rows_out = written.zeros(B * H * o.row_count * Lk * n), o.pairs_out = written.zeros(B * H * o.pair_count * n);
        int64_t nq = (Lq + o.block_queries - 1) / o.block_queries, nk = (Lk + o.block_keys - 1) / o.block_keys;
        o.blocks_out = written.zeros(B * H * nq * nk * n);
    }
};

}  // namespace

int main(int argc, char** argv) {
    int64_t count = argc > 1 ? std::atoll(argv[1]) : 200, wrong = 0;
    random_bits.seed(argc > 2 ? (uint64_t)std::atoll(argv[2]) : 1);
    std::vector<std::string> isas;
    std::string list = ll_isa_list(), rest = list + " ";
    for (size_t at; (at = rest.find(' ')) != std::string::npos; rest = rest.substr(at + 1))
        isas.push_back(rest.substr(0, at));
    for (int64_t i = 0; i < count; ++i) {
        const std::string& isa = isas[(size_t)(i % (int64_t)isas.size())];
        RandomCall call(isa == "wide" ? (int64_t)LL_FLOAT32 : among(0, LL_ELEMENTS - 1));
        if (ll_select_isa(isa.c_str()) != 0) return 1;
        int64_t threads = among(2, 4);  // drawn before `run`, which restores the state of the generator
        Arrays one = call.run(1);
        const char* what = nullptr;
        if (call.run(threads).all() != one.all()) what = "results depend on the number of threads";
        if (ll_select_isa("generic") != 0) return 1;
        constexpr double TOLERANCES[] = {1e-3, 1e-9, 0.15, 0.03};
        if (!one.near(call.run(1, true), TOLERANCES[call.element])) what = "not close to generic";
        if (what && wrong++ < 5)
            std::printf("call %lld, %s, element %lld: %s\n", (long long)i, isa.c_str(), (long long)call.element, what);
    }
    std::printf("%lld of %lld calls have the same bits with 1 and more threads, and are near those of generic (%s)\n",
                (long long)(count - wrong), (long long)count, list.c_str());
    return wrong != 0;
}
