/* Limelight's native kernels: exact attention on a CPU, memory linear in the length.
 *
 * A plain C interface: pointers, sizes, strides. Strides count elements and may be zero or negative; the last stride of
 * query, key, value and output is 1. Every field is eight bytes wide, so a caller can pack a call as 64-bit words.
 *
 * Terms: a *token index* counts along a tensor; a *position* is the argument of patterns, distances and dropout.
 * Inside a segment, query position = index + query_offset and key position = index + key_offset.
 */
#ifndef LIMELIGHT_H
#define LIMELIGHT_H

#include <stdint.h>

#if defined(_WIN32) && defined(limelight_native_EXPORTS)
#define LL_API __declspec(dllexport)
#elif defined(_WIN32)
#define LL_API __declspec(dllimport)
#elif defined(__GNUC__)
#define LL_API __attribute__((visibility("default")))
#else
#define LL_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define LL_VERSION 8
#define LL_MAX_SPANS 4 /* spans of a call, and key intervals of a query */
#define LL_MAX_RULES 8
#define LL_LOWEST (INT64_MIN / 4) /* no bound; adding a position to it does not overflow */
#define LL_HIGHEST (INT64_MAX / 4)
#define LL_FARTHEST ((int64_t)1 << 60) /* positions of tokens are from -LL_FARTHEST to LL_FARTHEST - 1 */
#define LL_INTERRUPTED 3               /* returned by a call that a signal handler ended */

/* Element type of query, key, value and output. Sums are accumulated in *floats*: double for float64, else float.
 * Every other array (logsumexp, sink, tensors of score rules, observations) holds such floats. */
typedef enum ll_element { LL_FLOAT32 = 0, LL_FLOAT64 = 1, LL_BFLOAT16 = 2, LL_FLOAT16 = 3, LL_ELEMENTS = 4 } ll_element;

/* (B, H, L, D); the stride of D is 1 where a structure below requires it. */
typedef struct ll_tensor {
    void* data;
    int64_t strides[4];
} ll_tensor;

/* One document: a range of queries, which see keys of one range only. */
typedef struct ll_segment {
    int64_t row; /* batch row, or -1: the segment holds in every batch row */
    int64_t query_begin, query_end;
    int64_t key_begin, key_end;
    int64_t query_offset, key_offset;
    int64_t dropout_row;   /* row id of the dropout counter; with row = -1: batch index * segment_count + dropout_row */
    int64_t page_offset;   /* see ll_pages */
    int64_t whole_queries; /* queries of the document, where these are a part of it; 0: these are all of it */
    int64_t keys_before;   /* keys of the document before key_begin, where these are a part of it; else 0 */
} ll_segment;

/* Keys and values in pages: key and value are (pages, Hkv, size, D), and the batch size is 1. Key index k of a segment
 * lies in slot (k + page_offset) % size of page table[(k + page_offset) / size]. */
typedef struct ll_pages {
    const int32_t* table; /* null: not in pages */
    int64_t length;       /* of the table */
    int64_t count, size;  /* pages, and keys of each */
} ll_pages;

/* Key positions [start, end) seen by a query at position p, while query_from <= p < query_to:
 *   from  max(start, p + start_offset, floor(p / chunk) * chunk + chunk_start)
 *   up to min(end,   p + end_offset,   floor(p / chunk) * chunk + chunk_end)      (no chunk terms when chunk = 0)
 * A query sees the union of the spans, within its segment's keys. */
typedef struct ll_span {
    int64_t query_from, query_to;
    int64_t start, start_offset;
    int64_t chunk, chunk_start;
    int64_t end, end_offset;
    int64_t chunk_end, reserved;
} ll_span;

/* Instead of spans: key *indices* [starts, ends) per interval, row, head and query; query stride 1, others may be 0.
 * The intervals of one query are sorted and disjoint; an empty one has end <= start. */
typedef struct ll_intervals {
    const int32_t* starts; /* null: spans are used */
    const int32_t* ends;
    int64_t count;
    int64_t interval_stride, row_stride, head_stride;
} ll_intervals;

/* Also required of a seen pair, when `state` is not null: 64 x 64 tiles of token indices (64 keys by all queries
 * when bit_rows = 1). state: -1 no pair, -2 every pair, t >= 0: words bits[t * bit_rows + (index of the query in its
 * tile)], bit (key % 64) set where the pair may be seen. */
typedef struct ll_tile_map {
    const int32_t* state;
    int64_t row_stride, head_stride, query_stride;
    const uint64_t* bits;
    int64_t bit_rows; /* 64 or 1 */
} ll_tile_map;

typedef enum ll_rule_kind {
    LL_BIAS = 0,           /* s += tensor[b, h, q, k] */
    LL_ALIBI = 1,          /* s -= tensor[b, h] * |key position - query position| */
    LL_DISTANCE_TABLE = 2, /* s += tensor[h][clamp(key position - query position + parameters[0], 0, W - 1)],
                              W = parameters[1]; strides[1] steps over heads, strides[3] over the table */
    LL_SOFTCAP = 3         /* s = parameters[0] * tanh(s / parameters[0]) */
} ll_rule_kind;

typedef struct ll_rule {
    int64_t kind;
    double parameters[2];
    ll_tensor tensor;
    int64_t stored; /* not zero: a bias whose tensor holds elements of the query's type instead of floats */
} ll_rule;

/* What to record. Outputs are contiguous and initialised by the caller (zeros; logsumexp, max_score -inf; keys -1),
 * since queries that belong to no segment are not written. Null: not recorded. H = head_count. */
typedef struct ll_observation {
    const int64_t* heads; /* the query heads observed */
    int64_t head_count;
    void* logsumexp;  /* (B, H, Lq) */
    void* max_score;  /* (B, H, Lq) */
    void* max_weight; /* (B, H, Lq) */
    void* entropy;    /* (B, H, Lq) nats */
    void* distance;   /* (B, H, Lq) positions */
    int64_t top;
    void* top_weights;    /* (B, H, Lq, top) */
    int64_t* top_keys;    /* (B, H, Lq, top) */
    void* received;       /* (B, H, Lk) */
    const void* features; /* (Lk, F) */
    int64_t feature_count, feature_stride;
    void* features_out;  /* (B, H, Lq, F) */
    const int64_t* rows; /* query indices, ascending */
    int64_t row_count;
    void* rows_out;       /* (B, H, R, Lk) */
    const int64_t* pairs; /* (P, 2) query, key indices; queries ascending */
    int64_t pair_count;
    void* pairs_out; /* (B, H, P) */
    int64_t block_queries, block_keys;
    void* blocks_out; /* (B, H, ceil(Lq / block_queries), ceil(Lk / block_keys)) */
} ll_observation;

/* Elements of 8 bits: int8 from -127 to 127 (-128 is none), and float8 with 4 or 5 bits of exponent (e4m3fn, e5m2). */
typedef enum ll_eight_bits { LL_INT8 = 0, LL_FLOAT8_E4M3 = 1, LL_FLOAT8_E5M2 = 2, LL_EIGHT_BITS = 3 } ll_eight_bits;

/* Keys and values of 8 bits, whose strides count bytes. Key j is key_scale[j] times the elements of its row, and so are
 * values. Scales are floats: (B, Hkv, Lk, 1), or (pages, Hkv, size, 1) of keys in pages. */
typedef struct ll_quantized {
    int64_t element; /* ll_eight_bits */
    int64_t rotated; /* not zero: keys and values are rotated as ll_quantization does it, and the kernels rotate
                        queries and outputs */
    ll_tensor key_scale, value_scale;
} ll_quantized;

typedef struct ll_call {
    int64_t version, element; /* LL_VERSION, ll_element */
    int64_t batch, query_heads, key_heads, queries, keys, width, value_width;
    ll_tensor query, key, value, output; /* elements */
    void* logsumexp;                     /* (B, Hq, Lq) contiguous, or null; natural logarithm, sink included */
    const void* sink;                    /* (Hq) or null */
    const void* compare; /* (Hq, D): s = sum over d of compare[h][d] * tanh(q[d] + k[d]); null: s = scale * q . k */
    double scale, dropout;
    uint64_t seed;
    int64_t threads;
    const ll_segment* segments; /* null: they follow this structure directly, then the spans */
    int64_t segment_count;
    const ll_span* spans; /* null: they follow the segments */
    int64_t span_count;
    ll_intervals intervals;
    ll_tile_map tiles;
    ll_pages pages;
    const ll_rule* rules;
    int64_t rule_count;
    const ll_observation* observation;
    const ll_quantized* quantized; /* null: keys and values are elements. There is no gradient, nor `compare` */
} ll_call;

/* The gradient of a loss, given its gradients with respect to the output and the logsumexp of a call (`call.output`
 * is not read). Null: not computed. Gradients of query, key and value are elements, overwritten for queries and keys
 * that belong to a segment; the others are floats, initialised by the caller (zeros) and accumulated into, except
 * `uncleared` ones. */
typedef struct ll_gradients {
    ll_tensor output, grad_output;
    const void* logsumexp;      /* (B, Hq, Lq), as the forward pass wrote it */
    const void* grad_logsumexp; /* (B, Hq, Lq), or null */
    ll_tensor query, key, value;
    void* sink;    /* (B, Hq, Lq): each query's share of the sink's gradient */
    void* compare; /* (B, Hq, Lq, D): each query's share of the gradient of `compare` */
    /* LL_BIAS: strides as a bias, 0 where summed. LL_ALIBI, and a bias that is summed along keys: (B, Hq, Lq, 1), each
     * query's share, strides[3] = 0. LL_DISTANCE_TABLE: (B, Hq, 1, W). */
    ll_tensor rules[LL_MAX_RULES];
    /* Bit r: rules[r] is uninitialised and overwritten. Possible for an LL_BIAS of all pairs, (B, Hq, Lq, Lk)
     * contiguous with several queries and keys, of a call whose one segment holds them all. */
    uint64_t uncleared;
} ll_gradients;

/* Every function that returns int returns zero, or an error number; ll_error_message() of the same thread describes
 * it. Outputs of queries that belong to no segment are left as the caller initialised them. */
LL_API int ll_forward(const ll_call* call);
LL_API int ll_backward(const ll_call* call, const ll_gradients* gradients);

/* The other operations of a layer. A row is `width` (or `inputs`) elements with stride 1. Results and gradients are
 * contiguous unless the structure has strides for them, and overwritten. */

#define LL_MAX_MATRICES 4

/* A matrix (outputs, inputs), and the result (rows, outputs). */
typedef struct ll_matrix {
    const void* weight;
    int64_t weight_stride;
    const void* bias; /* (outputs) or null */
    int64_t outputs;
    void* result;
} ll_matrix;

/* result = states @ weight^T + bias of each matrix, for few rows of states (rows, inputs). */
typedef struct ll_product {
    int64_t element, threads;
    int64_t rows, inputs;
    const void* states;
    int64_t state_stride;
    int64_t count; /* of matrices */
    ll_matrix matrices[LL_MAX_MATRICES];
} ll_product;

/* RMS norm: result = (offset + weight) * states * inverse, inverse = 1 / sqrt(mean(states^2) + epsilon), of (rows,
 * width). */
typedef struct ll_norm {
    int64_t element, threads;
    int64_t rows, width;
    const void* states;
    int64_t state_stride;
    const void* weight; /* (width) */
    double epsilon, offset;
    void* result;
    void* inverse;     /* (rows) floats: written by ll_norm_forward unless null, read by ll_norm_backward */
    const void* grad;  /* (rows, width) */
    void* grad_states; /* (rows, width), or null: not computed */
    void* grad_weight; /* (width), or null */
} ll_norm;

/* Gated activation: result = x * sigmoid(linear * x + cubic * x^3) * up, x = gate. SiLU has (1, 0), the tanh
 * approximation of GELU (2 sqrt(2 / pi), 0.044715 * 2 sqrt(2 / pi)). The backward pass reads `grad`, the gradient of
 * the result. */
typedef struct ll_gate {
    int64_t element, threads;
    int64_t count;
    double linear, cubic;
    const void* gate;
    const void* up;
    void* result;
    const void* grad;
    void* grad_gate;
    void* grad_up;
} ll_gate;

/* Rotary embedding of the pairs (i, rotated / 2 + i) of each head: each feature times `own` of its index, plus the
 * other of its pair times direction * `partners` of its index; features from `rotated` on are copied. own and
 * partners: (batch, length, rotated), last stride 1; direction -1 rotates back. */
typedef struct ll_rotation {
    int64_t element, threads;
    int64_t batch, heads, length, width, rotated;
    ll_tensor states, result; /* (batch, heads, length, width), last stride 1 */
    const void* own;
    const void* partners;
    int64_t row_stride, token_stride;
    double direction;
} ll_rotation;

/* result = left + right. */
typedef struct ll_sum {
    int64_t element, threads;
    int64_t count;
    const void* left;
    const void* right;
    void* result;
} ll_sum;

/* result (rows, columns) = left (rows, steps) * right (steps, columns) + bias, of float32 or float64; with `add` the
 * product is added to the result and the bias is not read. One stride of left, and one of right, must be 1; that of
 * the result's columns is 1. */
typedef struct ll_matmul {
    int64_t element, threads;
    int64_t rows, steps, columns;
    const void* left;
    int64_t left_row, left_step;
    const void* right;
    int64_t right_step, right_column;
    const void* bias; /* (columns) or null */
    void* result;
    int64_t result_row;
    int64_t add;
} ll_matmul;

/* Heads as rows of 8 bits: data = round(states / scale), scale = max |states| / M of each row, where M is 127, 448 or
 * 57344, the largest element; data of a row that is zero is 0, and that of a row that is not finite too, with the scale
 * NaN. With `rotated`, a row is first multiplied by a Hadamard matrix whose size is the largest power of two that
 * divides the width, as a block along the diagonal, divided by the root of its size: its own inverse. */
typedef struct ll_quantization {
    int64_t element, threads;
    int64_t batch, heads, length, width;
    int64_t quantized, rotated; /* ll_eight_bits; see above */
    ll_tensor states;           /* (batch, heads, length, width), last stride 1 */
    ll_tensor data;             /* the same, of bytes */
    ll_tensor scale;            /* (batch, heads, length, 1) floats */
} ll_quantization;

/* One captured operation, see `ll_replay`: its kind, and how many bytes follow, which hold the structure of that
 * kind. */
typedef enum ll_step_kind {
    LL_PRODUCT = 0,
    LL_NORM = 1,
    LL_GATE = 2,
    LL_ROTATION = 3,
    LL_SUM = 4,
    LL_FORWARD = 5, /* ll_call, followed by its segments and spans */
    LL_QUANTIZATION = 6
} ll_step_kind;
typedef struct ll_step {
    int64_t kind, bytes;
} ll_step;

LL_API int ll_product_forward(const ll_product* product);
LL_API int ll_norm_forward(const ll_norm* norm);
LL_API int ll_norm_backward(const ll_norm* norm);
LL_API int ll_gate_forward(const ll_gate* gate);
LL_API int ll_gate_backward(const ll_gate* gate);
LL_API int ll_rotation_forward(const ll_rotation* rotation);
LL_API int ll_sum_forward(const ll_sum* sum);
LL_API int ll_matmul_forward(const ll_matmul* matmul);
LL_API int ll_quantization_forward(const ll_quantization* quantization);

/* Runs captured operations in order, as many as lie in `bytes`, up to the first that fails. */
LL_API int ll_replay(const ll_step* steps, int64_t bytes);

/* A long call ends when a signal handler raises an exception. The functions are CPython's PyGILState_Ensure,
 * PyGILState_Release, PyErr_CheckSignals and PyErr_Fetch, so that nothing of Python is linked. Only the main thread
 * of the process calls them, from 0.2 s on about ten times a second, between pieces of its work. The call then
 * returns LL_INTERRUPTED, and `ll_take_exception` moves the exception (type, value, traceback) out, for
 * PyErr_Restore. */
LL_API void ll_set_signal_functions(int (*acquire)(void), void (*release)(int), int (*check)(void),
                                    void (*fetch)(void**, void**, void**));
LL_API void ll_take_exception(void** exception);

/* Functions of the OpenMP runtime that the process has loaded (PyTorch's), so that calls share its threads: those of
 * GNU's interface (GOMP_parallel, omp_get_thread_num), or of LLVM's and Intel's (__kmpc_fork_call,
 * __kmpc_push_num_threads, __kmpc_global_thread_num); of both omp_in_parallel. The others are null. */
typedef struct ll_openmp {
    int (*in_parallel)(void);
    void (*gnu_parallel)(void (*task)(void*), void* context, unsigned threads, unsigned flags);
    int (*gnu_thread)(void);
    void (*llvm_fork)(const void* place, int32_t count, void (*task)(int32_t*, int32_t* thread, void*), ...);
    void (*llvm_push_threads)(const void* place, int32_t caller, int32_t threads);
    int32_t (*llvm_thread)(const void* place);
} ll_openmp;

/* From now on calls use the threads of that runtime; null: the library's own, as at first. Not during a call. */
LL_API void ll_set_openmp(const ll_openmp* runtime);

/* From now on the system gives memory of [memory, memory + bytes) in huge pages where it can (Linux, unless it is set
 * to "never"). What already lies there is moved into huge pages, from the beginning on, until `seconds` are over.
 * Returns how many bytes were moved; negative where the system refuses. */
LL_API int64_t ll_use_huge_pages(void* memory, int64_t bytes, double seconds);

/* One field of a structure of this header as the library was compiled, so that a caller that packs bytes can
 * compare. */
typedef struct ll_field {
    const char* structure;
    const char* field;    /* null: the structure as a whole */
    int64_t offset, size; /* bytes */
    int64_t type;         /* of its elements: 'q' int64_t, 'Q' uint64_t, 'd' double, 'P' pointer, 'T' a structure */
} ll_field;

/* Every structure of this header that callers pack, followed by its fields in order; a null structure ends the
 * table. */
LL_API const ll_field* ll_layout(void);

LL_API const char* ll_error_message(void);
LL_API const char* ll_isa_name(void);       /* the instruction set in use: "avx2" */
LL_API const char* ll_isa_list(void);       /* all that this machine can run, best first: "avx512 avx2 generic wide" */
LL_API int ll_select_isa(const char* name); /* for tests; null: the default (LIMELIGHT_ISA, else the best) */

/* Peak GFLOP/s: independent multiply-adds in registers, summed over threads; negative on error. */
LL_API double ll_measure_peak(const char* isa, int64_t element, int64_t threads, double seconds);

#ifdef __cplusplus
}
#endif
#endif
