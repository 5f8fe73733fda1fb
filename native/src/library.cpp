// The C interface: checks a call, chooses an instruction set, lends threads and memory to the kernels.
#include "library.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <initializer_list>
#include <time.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__APPLE__)
#include <pthread.h>
#endif

namespace limelight {
namespace {

thread_local char message[512] = "";

__attribute__((format(printf, 1, 2))) int fail(const char* format, ...) {
    va_list values;
    va_start(values, format);
    vsnprintf(message, sizeof message, format, values);
    va_end(values);
    return BAD_ARGUMENT;
}

// --- Interruption ----------------------------------------------------------------------------------------------------

// Functions of CPython, see the header.
struct SignalFunctions {
    int (*acquire)(void);
    void (*release)(int);
    int (*check)(void);
    void (*fetch)(void**, void**, void**);
};
SignalFunctions python;
bool has_python = false;
void* exception[3];  // of the main thread

// When this thread checks for signals.
struct SignalCheck {
    bool in_call = false, running = false;  // whether the thread runs a call; whether it runs signal handlers now
    int passed = 0;                         // calls of `interrupted`, most of which do not read the clock
    double due = 0;                         // time of the next check; 0: the call has not read the clock
};
thread_local SignalCheck signal_check;

// Marks this thread as one that runs a call.
struct CallScope {
    bool before = signal_check.in_call;
    CallScope() {
        if (!before) signal_check.in_call = true, signal_check.due = 0;
    }
    ~CallScope() { signal_check.in_call = before; }
    CallScope(const CallScope&) = delete;
};

bool is_main_thread() {
#if defined(__linux__)
    return syscall(SYS_gettid) == getpid();
#elif defined(__APPLE__)
    return pthread_main_np() != 0;
#else
    return false;
#endif
}

double now() {
    timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

bool handler_raised() {
    constexpr double FIRST = 0.2, AGAIN = 0.1;  // seconds
    double time = now();
    if (signal_check.due == 0) signal_check.due = time + FIRST;
    if (time < signal_check.due) return false;
    signal_check.due = time + AGAIN;
    if (!__atomic_load_n(&has_python, __ATOMIC_ACQUIRE) || !is_main_thread()) return false;
    signal_check.running = true;
    int state = python.acquire();
    bool raised = python.check() != 0;
    if (raised) python.fetch(exception, exception + 1, exception + 2);
    python.release(state);
    signal_check.running = false;
    return raised;
}

}  // namespace

bool interrupted() {
    constexpr int PASSES = 4;
    return signal_check.in_call && !signal_check.running && ++signal_check.passed % PASSES == 0 && handler_raised();
}

namespace {

// --- Instruction sets ------------------------------------------------------------------------------------------------

// The kernels of an instruction set, by ll_element; built by CMake from one source.
#define LL_SET(isa) isa##_float32_kernels, isa##_float64_kernels, isa##_bfloat16_kernels, isa##_float16_kernels
}  // namespace
extern const Kernels LL_SET(generic);
#if defined(LL_HAS_X86)
extern const Kernels LL_SET(avx2), LL_SET(avx512), avx512bf16_bfloat16_kernels, wide_float32_kernels;
#if defined(LL_HAS_AMX)
extern const Kernels amx_bfloat16_kernels;
#endif
#elif defined(LL_HAS_NEON)
extern const Kernels LL_SET(neon);
#endif
namespace {

struct Isa {
    const char* name;
    bool runs;
    const Kernels* kernels[LL_ELEMENTS];
};

#define LL_LIST(isa) {&isa##_float32_kernels, &isa##_float64_kernels, &isa##_bfloat16_kernels, &isa##_float16_kernels}

#if defined(LL_HAS_AMX)
// The operating system gives a process the AMX tiles, 8 KiB for each thread, on request.
bool request_amx_tiles() {
    constexpr long REQUEST = 0x1023, TILE_DATA = 18;
    return __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") &&
           syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
}
#endif

// Best first. `wide` is AVX-512's tile shapes on AVX2: its logic, testable where AVX-512 is not; never chosen by itself.
struct Isas {
    Isa list[8];
    int count = 0;
    Isas() {
#if defined(LL_HAS_X86)
        __builtin_cpu_init();
        bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
        bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
        // Intel's cores multiply pairs of bfloat16 at half the rate at which they multiply float32: there it is no gain.
        bool pairs = avx512 && __builtin_cpu_supports("avx512bf16"), slow = __builtin_cpu_is("intel");
        Isa with_pairs{"avx512bf16", pairs, LL_LIST(avx512)};
        with_pairs.kernels[LL_BFLOAT16] = &avx512bf16_bfloat16_kernels;
#if defined(LL_HAS_AMX)
        Isa matrix{"amx", pairs && request_amx_tiles(), LL_LIST(avx512)};
        matrix.kernels[LL_BFLOAT16] = &amx_bfloat16_kernels;
        list[count++] = matrix;
#endif
        if (!slow) list[count++] = with_pairs;
        list[count++] = {"avx512", avx512, LL_LIST(avx512)};
        if (slow) list[count++] = with_pairs;
        list[count++] = {"avx2", avx2, LL_LIST(avx2)};
        list[count++] = {"generic", true, LL_LIST(generic)};
        list[count++] = {"wide", avx2, {&wide_float32_kernels, nullptr, nullptr, nullptr}};
#else
#if defined(LL_HAS_NEON)
        list[count++] = {"neon", true, LL_LIST(neon)};  // every 64-bit ARM has it
#endif
        list[count++] = {"generic", true, LL_LIST(generic)};
#endif
    }
};

const Isas& isas() {
    static const Isas all;
    return all;
}

const char* available() {
    static thread_local char names[64];
    names[0] = 0;
    for (int i = 0; i < isas().count; ++i)
        if (isas().list[i].runs) {
            if (names[0]) strcat(names, " ");
            strcat(names, isas().list[i].name);
        }
    return names;
}

const Isa* find(const char* name) {
    for (int i = 0; i < isas().count; ++i) {
        const Isa& isa = isas().list[i];
        if (isa.runs && (!name || !*name || strcmp(name, isa.name) == 0)) return &isa;
    }
    fail("instruction set '%s' is not available: it is unknown, or this machine cannot run it. Available: %s "
         "(set LIMELIGHT_ISA to one of them, or unset it)",
         name, available());
    return nullptr;
}

const Isa* selected = nullptr;

const Isa* isa() {
    const Isa* found = __atomic_load_n(&selected, __ATOMIC_ACQUIRE);
    if (found) return found;
    found = find(getenv("LIMELIGHT_ISA"));
    if (found) __atomic_store_n(&selected, found, __ATOMIC_RELEASE);
    return found;
}

const Kernels* kernels_of(const Isa* isa, int64_t element) {
    if (!isa) return nullptr;
    if (signal_check.running) {  // memory of this thread is in use
        fail("a signal handler called a kernel in the middle of another call");
        return nullptr;
    }
    if (element < 0 || element >= LL_ELEMENTS) {
        fail("the element type must be 0 to %d; it is %lld", LL_ELEMENTS - 1, (long long)element);
        return nullptr;
    }
    if (!isa->kernels[element]) fail("instruction set '%s' has no kernels for element type %lld", isa->name, (long long)element);
    return isa->kernels[element];
}

// --- Checks ----------------------------------------------------------------------------------------------------------

int check_segment(const ll_call& call, int64_t s) {
    const ll_segment& g = call.segments[s];
    if (g.row < -1 || g.row >= call.batch)
        return fail("segment %lld: row must be -1 or below the batch size %lld; it is %lld", (long long)s,
                    (long long)call.batch, (long long)g.row);
    auto far = [](int64_t begin, int64_t end, int64_t offset) {
        return begin < end && (__builtin_add_overflow(begin, offset, &begin) || __builtin_add_overflow(end, offset, &end) ||
                               begin < -LL_FARTHEST || end > LL_FARTHEST);
    };
    bool queries = 0 <= g.query_begin && g.query_begin <= g.query_end && g.query_end <= call.queries;
    bool keys = 0 <= g.key_begin && g.key_begin <= g.key_end && g.key_end <= call.keys;
    if (!queries || !keys)
        return fail("segment %lld: queries [%lld, %lld) and keys [%lld, %lld) must lie within %lld queries and %lld keys",
                    (long long)s, (long long)g.query_begin, (long long)g.query_end, (long long)g.key_begin,
                    (long long)g.key_end, (long long)call.queries, (long long)call.keys);
    if (far(g.query_begin, g.query_end, g.query_offset) || far(g.key_begin, g.key_end, g.key_offset))
        return fail("segment %lld: positions must lie from -2^60 to 2^60 - 1; query offset %lld, key offset %lld", (long long)s,
                    (long long)g.query_offset, (long long)g.key_offset);
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
        return fail("%lld x %lld x %lld x %lld numbers are more than memory can address", (long long)call.batch, (long long)heads,
                    (long long)length, (long long)width);
    if (call.threads < 1) return fail("threads must be at least 1; they are %lld", (long long)call.threads);
    if (call.query.strides[3] != 1 || call.key.strides[3] != 1 || call.value.strides[3] != 1 ||
        call.output.strides[3] != 1)
        return fail("the last stride of query, key, value and output must be 1");
    if (!(call.dropout >= 0.0 && call.dropout <= 1.0)) return fail("dropout must be from 0 to 1; it is %g", call.dropout);
    if (call.span_count < 0 || call.span_count > LL_MAX_SPANS || call.intervals.count < 0 ||
        call.intervals.count > LL_MAX_SPANS)
        return fail("at most %d spans, or intervals for each query, are possible", LL_MAX_SPANS);
    if (call.rule_count < 0 || call.rule_count > LL_MAX_RULES)
        return fail("at most %d score rules are possible; there are %lld", LL_MAX_RULES, (long long)call.rule_count);
    if (call.tiles.state && call.tiles.bit_rows != 64 && call.tiles.bit_rows != 1)
        return fail("a tile of bits must have 64 rows or 1; it has %lld", (long long)call.tiles.bit_rows);
    constexpr int64_t MOST_KEYS = 0x7fffffff;  // the kernels keep the keys of the largest weights in 32 bits
    if (call.observation && call.observation->top > 0 && call.keys > MOST_KEYS)
        return fail("the largest weights are kept of at most %lld keys; there are %lld", (long long)MOST_KEYS,
                    (long long)call.keys);
    for (int64_t s = 0; s < call.segment_count; ++s)
        if (int status = check_segment(call, s)) return status;
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
const Kernels* read_call(const ll_call* given, ll_call& call) {
    call = *given;
    if (!call.segments) call.segments = (const ll_segment*)(given + 1);
    if (!call.spans) {
        bool inlined = !given->segments;
        call.spans = (const ll_span*)((const ll_segment*)(given + 1) + (inlined ? call.segment_count : 0));
    }
    if (check(call)) return nullptr;
    return kernels_of(isa(), call.element);
}

int finished(int status) {
    if (status == OUT_OF_MEMORY) fail("out of memory for the scratch of the kernels");
    if (status == INTERRUPTED) fail("interrupted");
    return status;
}

}  // namespace

int ll_forward(const ll_call* given) {
    ll_call call;
    const Kernels* found = read_call(given, call);
    if (!found) return BAD_ARGUMENT;
    CallScope scope;
    return has_queries(call) ? finished(found->forward(call)) : DONE;
}

int ll_backward(const ll_call* given, const ll_gradients* wanted) {
    ll_call call;
    const Kernels* found = read_call(given, call);
    if (!found) return BAD_ARGUMENT;
    if (has_queries(call) && (!wanted->logsumexp || (call.value_width > 0 && (!wanted->output.data || !wanted->grad_output.data))))
        return fail("the backward pass needs the output, its gradient, and the logsumexp");
    if (wanted->output.strides[3] != 1 || wanted->grad_output.strides[3] != 1 ||
        (wanted->query.data && wanted->query.strides[3] != 1) || (wanted->key.data && wanted->key.strides[3] != 1) ||
        (wanted->value.data && wanted->value.strides[3] != 1))
        return fail("the last stride of an output and of a gradient must be 1");
    CallScope scope;
    return finished(found->backward(call, *wanted));
}

int ll_product_forward(const ll_product* product) {
    if (product->rows < 0 || product->inputs < 0) return fail("sizes must not be negative");
    if (product->count < 0 || product->count > LL_MAX_MATRICES)
        return fail("at most %d matrices are possible; there are %lld", LL_MAX_MATRICES, (long long)product->count);
    for (int64_t n = 0; n < product->count; ++n)
        if (product->matrices[n].outputs < 0) return fail("sizes must not be negative");
    const Kernels* found = kernels_of(isa(), product->element);
    return found ? finished(found->multiply(*product)) : BAD_ARGUMENT;
}

int ll_norm_forward(const ll_norm* norm) {
    if (norm->rows < 0 || norm->width < 1) return fail("a norm needs rows of at least one number");
    const Kernels* found = kernels_of(isa(), norm->element);
    return found ? finished(found->norm(*norm)) : BAD_ARGUMENT;
}

int ll_norm_backward(const ll_norm* norm) {
    if (norm->rows < 0 || norm->width < 1) return fail("a norm needs rows of at least one number");
    if (norm->rows > 0 && (!norm->inverse || !norm->grad)) return fail("the backward pass needs `inverse` and `grad`");
    const Kernels* found = kernels_of(isa(), norm->element);
    return found ? finished(found->norm_backward(*norm)) : BAD_ARGUMENT;
}

int ll_gate_forward(const ll_gate* gate) {
    if (gate->count < 0) return fail("sizes must not be negative");
    if (gate->grad) return fail("the forward pass of a gate has no gradient");
    const Kernels* found = kernels_of(isa(), gate->element);
    return found ? finished(found->gate(*gate)) : BAD_ARGUMENT;
}

int ll_gate_backward(const ll_gate* gate) {
    if (gate->count < 0) return fail("sizes must not be negative");
    if (gate->count > 0 && !gate->grad) return fail("the backward pass needs `grad`");
    const Kernels* found = kernels_of(isa(), gate->element);
    return found ? finished(found->gate(*gate)) : BAD_ARGUMENT;
}

int ll_rotation_forward(const ll_rotation* rotation) {
    const ll_rotation& r = *rotation;
    if (r.batch < 0 || r.heads < 0 || r.length < 0 || r.rotated < 0 || r.rotated % 2 || r.rotated > r.width)
        return fail("the number of rotated features must be even and at most the head width");
    if (r.states.strides[3] != 1 || r.result.strides[3] != 1) return fail("the last stride of heads must be 1");
    const Kernels* found = kernels_of(isa(), r.element);
    return found ? finished(found->rotation(r)) : BAD_ARGUMENT;
}

int ll_sum_forward(const ll_sum* sum) {
    if (sum->count < 0) return fail("sizes must not be negative");
    const Kernels* found = kernels_of(isa(), sum->element);
    return found ? finished(found->sum(*sum)) : BAD_ARGUMENT;
}

int ll_matmul_forward(const ll_matmul* matmul) {
    const ll_matmul& m = *matmul;
    if (m.rows < 0 || m.steps < 0 || m.columns < 0) return fail("sizes must not be negative");
    if ((m.left_row != 1 && m.left_step != 1) || (m.right_step != 1 && m.right_column != 1))
        return fail("one of a matrix's strides must be 1");
    const Kernels* found = kernels_of(isa(), m.element);
    if (found && !found->matmul) return fail("matrices of 16-bit elements are not multiplied here");
    if (!found) return BAD_ARGUMENT;
    CallScope scope;
    return finished(found->matmul(m));
}

int ll_replay(const ll_step* steps, int64_t bytes) {
    const char *at = (const char*)steps, *end = at + bytes;
    while (at < end) {
        const ll_step& step = *(const ll_step*)at;
        const char* what = at + sizeof(ll_step);
        at = what + step.bytes;
        if (step.bytes < 0 || at > end) return fail("a captured operation reaches beyond the end of the captured bytes");
        int status = DONE;
        switch (step.kind) {
            case LL_PRODUCT: status = ll_product_forward((const ll_product*)what); break;
            case LL_NORM: status = ll_norm_forward((const ll_norm*)what); break;
            case LL_GATE: status = ll_gate_forward((const ll_gate*)what); break;
            case LL_ROTATION: status = ll_rotation_forward((const ll_rotation*)what); break;
            case LL_SUM: status = ll_sum_forward((const ll_sum*)what); break;
            case LL_FORWARD: status = ll_forward((const ll_call*)what); break;
            default: return fail("there is no captured operation of kind %lld", (long long)step.kind);
        }
        if (status) return status;
    }
    return DONE;
}

void ll_set_signal_functions(int (*acquire)(void), void (*release)(int), int (*check)(void), void (*fetch)(void**, void**, void**)) {
    python = {acquire, release, check, fetch};
    __atomic_store_n(&has_python, true, __ATOMIC_RELEASE);
}

void ll_take_exception(void** to) {
    for (int n = 0; n < 3; ++n) to[n] = exception[n], exception[n] = nullptr;
}

const char* ll_error_message(void) { return message; }

const char* ll_isa_name(void) {
    const Isa* found = isa();
    return found ? found->name : "";
}

const char* ll_isa_list(void) { return available(); }

int ll_select_isa(const char* name) {
    const Isa* found = name ? find(name) : nullptr;
    if (name && !found) return BAD_ARGUMENT;
    __atomic_store_n(&selected, found, __ATOMIC_RELEASE);
    return isa() ? DONE : BAD_ARGUMENT;
}

int ll_has_openmp(void) { return has_openmp(); }

double ll_measure_peak(const char* name, int64_t element, int64_t threads, double seconds) {
    const Kernels* found = kernels_of(name ? find(name) : isa(), element);
    if (!found) return -1.0;
    constexpr int64_t MOST_THREADS = 1024;
    if (threads < 1 || threads > MOST_THREADS) return -1.0;
    double rates[MOST_THREADS] = {}, sum = 0.0;
    PeakJob job{found, seconds, rates};
    parallel(threads, threads, peak_task, &job);
    for (int64_t n = 0; n < threads; ++n) sum += rates[n];
    return sum;
}
