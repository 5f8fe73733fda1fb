// The C interface: checks the arguments of a call and runs it on the kernels of the chosen instruction set.
#include "library.h"

#include <initializer_list>

#include "error.h"
#include "interrupt.h"
#include "isa.h"
#include "platform.h"

namespace limelight {
namespace {

int check_segment(const ll_call& call, int64_t s) {
    const ll_segment& g = call.segments[s];
    if (g.row < -1 || g.row >= call.batch)
        return fail("segment %lld: row must be -1 or below the batch size %lld; it is %lld", (long long)s,
                    (long long)call.batch, (long long)g.row);
    auto far = [](int64_t begin, int64_t end, int64_t offset) {
        return begin < end && (__builtin_add_overflow(begin, offset, &begin) ||
                               __builtin_add_overflow(end, offset, &end) || begin < -LL_FARTHEST || end > LL_FARTHEST);
    };
    bool queries = 0 <= g.query_begin && g.query_begin <= g.query_end && g.query_end <= call.queries;
    bool keys = 0 <= g.key_begin && g.key_begin <= g.key_end && g.key_end <= call.keys;
    if (!queries || !keys)
        return fail(
            "segment %lld: queries [%lld, %lld) and keys [%lld, %lld) must lie within %lld queries and %lld keys",
            (long long)s, (long long)g.query_begin, (long long)g.query_end, (long long)g.key_begin,
            (long long)g.key_end, (long long)call.queries, (long long)call.keys);
    if (far(g.query_begin, g.query_end, g.query_offset) || far(g.key_begin, g.key_end, g.key_offset))
        return fail("segment %lld: positions must lie from -2^60 to 2^60 - 1; query offset %lld, key offset %lld",
                    (long long)s, (long long)g.query_offset, (long long)g.key_offset);
    return DONE;
}

// Whether every key of the segment lies in a page.
int check_pages(const ll_call& call, int64_t s) {
    const ll_segment& g = call.segments[s];
    const ll_pages& pages = call.pages;
    if (g.key_begin == g.key_end) return DONE;
    int64_t first, last;
    bool outside = __builtin_add_overflow(g.key_begin, g.page_offset, &first) ||
                   __builtin_add_overflow(g.key_end - 1, g.page_offset, &last) || first < 0 ||
                   last / pages.size >= pages.length;
    if (outside)
        return fail("segment %lld: keys [%lld, %lld) with page offset %lld lie outside the table of %lld pages",
                    (long long)s, (long long)g.key_begin, (long long)g.key_end, (long long)g.page_offset,
                    (long long)pages.length);
    for (int64_t n = first / pages.size; n <= last / pages.size; ++n)
        if (pages.table[n] < 0 || pages.table[n] >= pages.count)
            return fail("entry %lld of the page table is %lld; there are %lld pages", (long long)n,
                        (long long)pages.table[n], (long long)pages.count);
    return DONE;
}

// Whether a product of sizes, in bytes with a margin, overflows.
bool overflows(std::initializer_list<int64_t> sizes) {
    int64_t product = 1024;
    for (int64_t size : sizes)
        if (__builtin_mul_overflow(product, size, &product)) return true;
    return false;
}

bool has_queries(const ll_call& call) { return call.batch > 0 && call.query_heads > 0 && call.queries > 0; }

int check(const ll_call& call) {
    if (call.version != LL_VERSION)
        return fail("the call is of version %lld, the library of %d: rebuild the library", (long long)call.version,
                    LL_VERSION);
    if (call.batch < 0 || call.queries < 0 || call.keys < 0 || call.width < 1 || call.value_width < 0)
        return fail("sizes must not be negative, and the width at least 1");
    if (call.key_heads < 1 || call.query_heads < 0 || call.query_heads % call.key_heads != 0)
        return fail("query heads must be a multiple of key heads; they are %lld and %lld", (long long)call.query_heads,
                    (long long)call.key_heads);
    int64_t heads = call.query_heads > call.key_heads ? call.query_heads : call.key_heads;
    int64_t length = call.queries > call.keys ? call.queries : call.keys;
    int64_t width = call.width > call.value_width ? call.width : call.value_width;
    if (call.batch > 0 && length > 0 && overflows({call.batch, heads, length, width}))
        return fail("%lld x %lld x %lld x %lld elements are more than memory can address", (long long)call.batch,
                    (long long)heads, (long long)length, (long long)width);
    if (call.threads < 1) return fail("threads must be at least 1; they are %lld", (long long)call.threads);
    if (call.query.strides[3] != 1 || call.key.strides[3] != 1 || call.value.strides[3] != 1 ||
        call.output.strides[3] != 1)
        return fail("the last stride of query, key, value and output must be 1");
    if (!(call.dropout >= 0.0 && call.dropout <= 1.0))
        return fail("dropout must be from 0 to 1; it is %g", call.dropout);
    if (call.span_count < 0 || call.span_count > LL_MAX_SPANS || call.intervals.count < 0 ||
        call.intervals.count > LL_MAX_SPANS)
        return fail("at most %d spans, or intervals for each query, are possible", LL_MAX_SPANS);
    if (call.rule_count < 0 || call.rule_count > LL_MAX_RULES)
        return fail("at most %d score rules are possible; there are %lld", LL_MAX_RULES, (long long)call.rule_count);
    if (call.tiles.state && call.tiles.bit_rows != 64 && call.tiles.bit_rows != 1)
        return fail("a tile of bits must have 64 rows or 1; it has %lld", (long long)call.tiles.bit_rows);
    constexpr int64_t MAX_KEYS = 0x7fffffff;  // the kernels keep the keys of the largest weights in 32 bits
    if (call.observation && call.observation->top > 0 && call.keys > MAX_KEYS)
        return fail("the largest weights are kept of at most %lld keys; there are %lld", (long long)MAX_KEYS,
                    (long long)call.keys);
    if (call.pages.table && (call.batch != 1 || call.pages.size < 1))
        return fail("keys in pages need a batch of 1 and pages of at least one key; they are %lld and %lld",
                    (long long)call.batch, (long long)call.pages.size);
    if (call.quantized) {
        const ll_quantized& q = *call.quantized;
        if (q.element < 0 || q.element >= LL_EIGHT_BITS)
            return fail("the type of keys and values must be 0 to %d; it is %lld", LL_EIGHT_BITS - 1,
                        (long long)q.element);
        if (call.compare) return fail("keys of 8 bits are compared by the dot product alone");
    }
    for (int64_t s = 0; s < call.segment_count; ++s) {
        if (int status = check_segment(call, s)) return status;
        if (int status = call.pages.table ? check_pages(call, s) : DONE) return status;
    }
    return DONE;
}

// --- Calls -----------------------------------------------------------------------------------------------------------

struct PeakJob {
    const Kernels* kernels;
    double seconds;
    double* rates;  // of each thread
};

void peak_task(void* context, int64_t n) {
    auto& job = *(PeakJob*)context;
    job.rates[n] = job.kernels->peak(job.seconds);
}

}  // namespace
}  // namespace limelight

using namespace limelight;

namespace {

// The call with the arrays that follow it, checked; null where it is invalid, with an error message.
const Kernels* read_call(const ll_call* arguments, ll_call& call) {
    call = *arguments;
    if (!call.segments) call.segments = (const ll_segment*)(arguments + 1);
    if (!call.spans) {
        bool inlined = !arguments->segments;
        call.spans = (const ll_span*)((const ll_segment*)(arguments + 1) + (inlined ? call.segment_count : 0));
    }
    if (check(call)) return nullptr;
    return kernels_of(selected_isa(), call.element);
}

int finished(int status) {
    if (status == OUT_OF_MEMORY) fail("out of memory for the scratch of the kernels");
    if (status == INTERRUPTED) fail("interrupted");
    return status;
}

}  // namespace

int ll_forward(const ll_call* arguments) {
    ll_call call;
    const Kernels* found = read_call(arguments, call);
    if (!found) return BAD_ARGUMENT;
    ActiveCall active;
    return has_queries(call) ? finished(found->forward(call)) : DONE;
}

int ll_backward(const ll_call* arguments, const ll_gradients* gradients) {
    ll_call call;
    const Kernels* found = read_call(arguments, call);
    if (!found) return BAD_ARGUMENT;
    if (has_queries(call) &&
        (!gradients->logsumexp || (call.value_width > 0 && (!gradients->output.data || !gradients->grad_output.data))))
        return fail("the backward pass needs the output, its gradient, and the logsumexp");
    if (gradients->output.strides[3] != 1 || gradients->grad_output.strides[3] != 1 ||
        (gradients->query.data && gradients->query.strides[3] != 1) ||
        (gradients->key.data && gradients->key.strides[3] != 1) ||
        (gradients->value.data && gradients->value.strides[3] != 1))
        return fail("the last stride of an output and of a gradient must be 1");
    if (call.pages.table) return fail("there is no backward pass for keys in pages");
    if (call.quantized) return fail("there is no backward pass for keys of 8 bits");
    ActiveCall active;
    return finished(found->backward(call, *gradients));
}

int ll_product_forward(const ll_product* product) {
    if (product->rows < 0 || product->inputs < 0) return fail("sizes must not be negative");
    if (product->count < 0 || product->count > LL_MAX_MATRICES)
        return fail("at most %d matrices are possible; there are %lld", LL_MAX_MATRICES, (long long)product->count);
    for (int64_t n = 0; n < product->count; ++n)
        if (product->matrices[n].outputs < 0) return fail("sizes must not be negative");
    const Kernels* found = kernels_of(selected_isa(), product->element);
    return found ? finished(found->multiply(*product)) : BAD_ARGUMENT;
}

int ll_norm_forward(const ll_norm* norm) {
    if (norm->rows < 0 || norm->width < 1) return fail("a norm needs rows of at least one element");
    const Kernels* found = kernels_of(selected_isa(), norm->element);
    return found ? finished(found->norm(*norm)) : BAD_ARGUMENT;
}

int ll_norm_backward(const ll_norm* norm) {
    if (norm->rows < 0 || norm->width < 1) return fail("a norm needs rows of at least one element");
    if (norm->rows > 0 && (!norm->inverse || !norm->grad)) return fail("the backward pass needs `inverse` and `grad`");
    const Kernels* found = kernels_of(selected_isa(), norm->element);
    return found ? finished(found->norm_backward(*norm)) : BAD_ARGUMENT;
}

int ll_gate_forward(const ll_gate* gate) {
    if (gate->count < 0) return fail("sizes must not be negative");
    if (gate->grad) return fail("the forward pass of a gate has no gradient");
    const Kernels* found = kernels_of(selected_isa(), gate->element);
    return found ? finished(found->gate(*gate)) : BAD_ARGUMENT;
}

int ll_gate_backward(const ll_gate* gate) {
    if (gate->count < 0) return fail("sizes must not be negative");
    if (gate->count > 0 && !gate->grad) return fail("the backward pass needs `grad`");
    const Kernels* found = kernels_of(selected_isa(), gate->element);
    return found ? finished(found->gate(*gate)) : BAD_ARGUMENT;
}

int ll_rotation_forward(const ll_rotation* rotation) {
    const ll_rotation& r = *rotation;
    if (r.batch < 0 || r.heads < 0 || r.length < 0 || r.rotated < 0 || r.rotated % 2 || r.rotated > r.width)
        return fail("the number of rotated features must be even and at most the head width");
    if (r.states.strides[3] != 1 || r.result.strides[3] != 1) return fail("the last stride of heads must be 1");
    const Kernels* found = kernels_of(selected_isa(), r.element);
    return found ? finished(found->rotation(r)) : BAD_ARGUMENT;
}

int ll_sum_forward(const ll_sum* sum) {
    if (sum->count < 0) return fail("sizes must not be negative");
    const Kernels* found = kernels_of(selected_isa(), sum->element);
    return found ? finished(found->sum(*sum)) : BAD_ARGUMENT;
}

int ll_matmul_forward(const ll_matmul* matmul) {
    const ll_matmul& m = *matmul;
    if (m.rows < 0 || m.steps < 0 || m.columns < 0) return fail("sizes must not be negative");
    if ((m.left_row != 1 && m.left_step != 1) || (m.right_step != 1 && m.right_column != 1))
        return fail("one of a matrix's strides must be 1");
    const Kernels* found = kernels_of(selected_isa(), m.element);
    if (found && !found->matmul) return fail("matrices of 16-bit elements are not multiplied here");
    if (!found) return BAD_ARGUMENT;
    ActiveCall active;
    return finished(found->matmul(m));
}

int ll_quantization_forward(const ll_quantization* quantization) {
    const ll_quantization& q = *quantization;
    if (q.batch < 0 || q.heads < 0 || q.length < 0 || q.width < 1)
        return fail("sizes must not be negative, and the width at least 1");
    if (q.quantized < 0 || q.quantized >= LL_EIGHT_BITS)
        return fail("the type of the data must be 0 to %d; it is %lld", LL_EIGHT_BITS - 1, (long long)q.quantized);
    if (q.states.strides[3] != 1 || q.data.strides[3] != 1) return fail("the last stride of heads must be 1");
    const Kernels* found = kernels_of(selected_isa(), q.element);
    return found ? finished(found->quantization(q)) : BAD_ARGUMENT;
}

int ll_replay(const ll_step* steps, int64_t bytes) {
    const char *at = (const char*)steps, *end = at + bytes;
    while (at < end) {
        const ll_step& step = *(const ll_step*)at;
        const char* what = at + sizeof(ll_step);
        at = what + step.bytes;
        if (step.bytes < 0 || at > end)
            return fail("a captured operation reaches beyond the end of the captured bytes");
        int status = DONE;
        switch (step.kind) {
            case LL_PRODUCT: status = ll_product_forward((const ll_product*)what); break;
            case LL_NORM: status = ll_norm_forward((const ll_norm*)what); break;
            case LL_GATE: status = ll_gate_forward((const ll_gate*)what); break;
            case LL_ROTATION: status = ll_rotation_forward((const ll_rotation*)what); break;
            case LL_SUM: status = ll_sum_forward((const ll_sum*)what); break;
            case LL_FORWARD: status = ll_forward((const ll_call*)what); break;
            case LL_QUANTIZATION: status = ll_quantization_forward((const ll_quantization*)what); break;
            default: return fail("there is no captured operation of kind %lld", (long long)step.kind);
        }
        if (status) return status;
    }
    return DONE;
}

int64_t ll_use_huge_pages(void* memory, int64_t bytes, double seconds) {
    return use_huge_pages(memory, bytes, seconds);
}

double ll_measure_peak(const char* name, int64_t element, int64_t threads, double seconds) {
    const Kernels* found = kernels_of(name ? find_isa(name) : selected_isa(), element);
    if (!found) return -1.0;
    constexpr int64_t MAX_THREADS = 1024;
    if (threads < 1 || threads > MAX_THREADS) return -1.0;
    double rates[MAX_THREADS] = {}, sum = 0.0;
    PeakJob job{found, seconds, rates};
    parallel(threads, threads, peak_task, &job);
    for (int64_t n = 0; n < threads; ++n) sum += rates[n];
    return sum;
}
