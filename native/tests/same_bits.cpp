// The AVX-512 kernels and `wide` (the same tiles on AVX2) return the same bits, on random calls of every kind.
// On a machine that cannot run both, the test is skipped (exit code 77).

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "../include/limelight.h"

namespace {

std::mt19937_64 random_bits(1);
int64_t among(int64_t low, int64_t high) { return low + (int64_t)(random_bits() % (uint64_t)(high - low + 1)); }
bool one_in(int64_t n) { return among(1, n) == 1; }

std::vector<float> normal(int64_t count, float scale = 1.0f) {
    std::normal_distribution<float> draw;
    std::vector<float> numbers((size_t)count + 1);
    for (float& x : numbers) x = scale * draw(random_bits);
    return numbers;
}

ll_tensor dense(std::vector<float>& numbers, int64_t H, int64_t L, int64_t D) {
    return {numbers.data(), {H * L * D, L * D, D, 1}};
}

struct Outputs {
    std::vector<float> floats;
    std::vector<int64_t> keys;
};

// Runs the call on one instruction set and returns all that it writes.
Outputs run(const char* isa, ll_call call, ll_observation observation, bool observe) {
    int64_t B = call.batch, Hq = call.query_heads, Lq = call.queries, Lk = call.keys, rows = B * Hq * Lq;
    int64_t nq = Lq / observation.block_queries + 1, nk = Lk / observation.block_keys + 1;
    std::vector<int64_t> sizes = {
        rows * call.value_width, rows, rows, rows, rows, rows, rows, rows * observation.top, B * Hq * Lk,
        B * Hq * nq * nk};
    int64_t total = 0;
    for (int64_t size : sizes) total += size;
    Outputs out{std::vector<float>((size_t)total + 1), std::vector<int64_t>((size_t)(rows * observation.top) + 1, -1)};
    float* next = out.floats.data();
    float* parts[10];
    for (int i = 0; i < 10; next += sizes[(size_t)i++]) parts[i] = next;
    call.output = {parts[0], {Hq * Lq * call.value_width, Lq * call.value_width, call.value_width, 1}};
    call.logsumexp = parts[1];
    observation.logsumexp = parts[2], observation.max_score = parts[3], observation.max_weight = parts[4];
    observation.entropy = parts[5], observation.distance = parts[6], observation.top_weights = parts[7];
    observation.top_keys = out.keys.data(), observation.received = parts[8], observation.blocks_out = parts[9];
    call.observation = observe ? &observation : nullptr;
    if (ll_select_isa(isa) != 0 || ll_forward(&call) != 0) {
        std::printf("failed: %s\n", ll_error_message());
        std::exit(1);
    }
    return out;
}

bool one_call() {
    int64_t B = among(1, 2), Hkv = among(1, 2), Hq = Hkv * among(1, 2), Lq = among(0, 150), Lk = among(0, 300);
    int64_t D = among(1, 80), Dv = among(1, 80);
    auto query = normal(B * Hq * Lq * D), key = normal(B * Hkv * Lk * D), value = normal(B * Hkv * Lk * Dv);
    auto bias = normal(Lq * Lk), slopes = normal(B * Hq, 0.05f), sink = normal(Hq), table = normal(Hq * 64);
    if (one_in(4) && Lk) value[(size_t)among(0, B * Hkv * Lk * Dv - 1)] = __builtin_nanf("");
    if (one_in(4) && Lq) bias[(size_t)among(0, Lq * Lk)] = -__builtin_inff();

    ll_segment segment = {-1, 0, Lq, 0, Lk, Lk - Lq, 0, 0, 0, 0, 0};
    ll_span causal = {LL_LOWEST, LL_HIGHEST, LL_LOWEST, LL_LOWEST, 0, LL_LOWEST, LL_HIGHEST, 1, LL_HIGHEST, 0};
    ll_span window = causal, first = causal, chunk = causal;
    window.start_offset = -among(0, 40);
    first.end_offset = LL_HIGHEST, first.end = among(0, 9);
    chunk.chunk = among(1, 90), chunk.chunk_start = 0, chunk.chunk_end = chunk.chunk;
    ll_span full = first;
    full.end = LL_HIGHEST;
    ll_span choices[][2] = {{full, full}, {causal, causal}, {window, first}, {chunk, window}};
    auto& spans = choices[among(0, 3)];

    ll_rule rules[4] = {{LL_BIAS, {0, 0}, {bias.data(), {0, 0, Lk, 1}}, 0},
                        {LL_ALIBI, {0, 0}, {slopes.data(), {Hq, 1, 0, 0}}, 0},
                        {LL_SOFTCAP, {2.5, 0}, {nullptr, {0, 0, 0, 0}}, 0},
                        {LL_DISTANCE_TABLE, {32, 64}, {table.data(), {0, 64, 0, 1}}, 0}};
    int64_t skipped = among(0, 3);

    ll_call call = {};
    call.version = LL_VERSION;
    call.batch = B, call.query_heads = Hq, call.key_heads = Hkv, call.queries = Lq, call.keys = Lk;
    call.width = D, call.value_width = Dv;
    call.query = dense(query, Hq, Lq, D), call.key = dense(key, Hkv, Lk, D), call.value = dense(value, Hkv, Lk, Dv);
    call.sink = one_in(2) ? sink.data() : nullptr;
    call.scale = 0.2, call.dropout = one_in(3) ? 0.3 : 0.0, call.seed = random_bits(), call.threads = 1;
    call.segments = &segment, call.segment_count = 1;
    call.spans = spans, call.span_count = 2;
    call.rules = rules + skipped, call.rule_count = one_in(2) ? 0 : 4 - skipped;

    std::vector<int64_t> heads;
    for (int64_t h = 0; h < Hq; ++h) heads.push_back(h);
    ll_observation observation = {};
    observation.heads = heads.data(), observation.head_count = Hq;
    observation.top = among(1, 5), observation.block_queries = among(1, 70), observation.block_keys = among(1, 70);
    bool observe = one_in(2);

    Outputs a = run("avx512", call, observation, observe), b = run("wide", call, observation, observe);
    return std::memcmp(a.floats.data(), b.floats.data(), a.floats.size() * sizeof(float)) == 0 && a.keys == b.keys;
}

}  // namespace

int main(int argc, char** argv) {
    int64_t count = argc > 1 ? std::atoll(argv[1]) : 500;
    if (ll_select_isa("avx512") != 0 || ll_select_isa("wide") != 0) {
        std::printf("skipped: this machine cannot run both AVX-512 and AVX2; it has: %s\n", ll_isa_list());
        return 77;
    }
    int64_t wrong = 0;
    for (int64_t i = 0; i < count; ++i)
        if (!one_call()) {
            if (wrong++ < 5) std::printf("call %lld: the bits differ\n", (long long)i);
        }
    std::printf("%lld of %lld calls have the same bits\n", (long long)(count - wrong), (long long)count);
    return wrong != 0;
}
