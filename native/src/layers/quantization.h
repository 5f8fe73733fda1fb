// Heads as rows of 8 bits with a scale each.
#pragma once

#include "../attention/problem.h"
#include "../library.h"
#include "../simd/eight_bits.h"
#include "../simd/elements.h"
#include "../simd/hadamard.h"
#include "../task.h"
#include "rows.h"

namespace limelight::LL_NAMESPACE {
namespace {

// Rounds to nearest, ties to even; |v| is at most the largest number of the type, but for a rounding error.
LL_INLINE ByteVec narrow_to_bytes(int64_t kind, Vec v) {
    if (kind == LL_INT8) {
        constexpr Float ROUND = (Float)1.5 * (Float)((int64_t)1 << (sizeof(Float) == 8 ? 52 : 23));
        Vec whole = (v + ROUND) - ROUND;
        whole = whole > 127 ? broadcast(127) : whole < -127 ? broadcast(-127) : whole;
        return (ByteVec) __builtin_convertvector(__builtin_convertvector(whole, SingleInt), SignedByteVec);
    }
    int shift = kind == LL_FLOAT8_E4M3 ? 20 : 21;
    uint32_t bias = kind == LL_FLOAT8_E4M3 ? 120u << 3 : 112u << 2, most = kind == LL_FLOAT8_E4M3 ? 0x7e : 0x7b;
    // Adding it leaves the rounded subnormal number in the low bits.
    float magic = kind == LL_FLOAT8_E4M3 ? 0x1p14f : 0x1p7f, least = kind == LL_FLOAT8_E4M3 ? 0x1p-6f : 0x1p-14f;
    UintVec bits = bit_cast<UintVec>(__builtin_convertvector(v, SingleVec)), sign = bits >> 24 & 0x80;
    bits &= 0x7fffffff;
    UintVec normal = ((bits + ((1u << (shift - 1)) - 1) + (bits >> shift & 1)) >> shift) - bias;
    UintVec small = bit_cast<UintVec>(bit_cast<SingleVec>(bits) + magic) - __builtin_bit_cast(uint32_t, magic);
    UintVec found = bits < __builtin_bit_cast(uint32_t, least) ? small : normal;
    found = found > most ? broadcast_uint(most) : found;
    return __builtin_convertvector(found | sign, ByteVec);
}

struct QuantizationJob {
    const ll_quantization& quantization;
    int64_t piece;
    int status;
};

inline void quantize_row(const ll_quantization& q, Float* row, const Stored* from, uint8_t* to, Float& scale) {
    constexpr Float MOST[LL_EIGHT_BITS] = {127, 448, 57344};
    read_row(from, q.width, row, q.width);
    if (q.rotated) hadamard(row, q.width);
    Float largest = 0, finite = 0;
    for (int64_t d = 0; d < q.width; ++d) {
        largest = max(largest, row[d] < 0 ? -row[d] : row[d]);
        finite += row[d] - row[d];
    }
    scale = finite == 0 ? largest / MOST[q.quantized] : (Float)__builtin_nan("");
    if (!(scale > 0)) return (void)__builtin_memset(to, 0, (size_t)q.width);
    for (int64_t d = 0; d < q.width; d += LANES) {
        int64_t count = min<int64_t>(LANES, q.width - d);
        ByteVec bytes = narrow_to_bytes(q.quantized, load_partial(row + d, count) / scale);
        if (count == LANES) store(to + d, bytes);
        else
            for (int64_t x = 0; x < count; ++x) to[d + x] = bytes[x];
    }
}

inline void quantization_task(void* context, int64_t n) {
    QuantizationJob& job = *(QuantizationJob*)context;
    const ll_quantization& q = job.quantization;
    Float* row = (Float*)scratch(sizeof(Float) * (size_t)q.width);
    if (!row) return __atomic_store_n(&job.status, (int)OUT_OF_MEMORY, __ATOMIC_RELAXED);
    int64_t first = n * job.piece, stop = min(first + job.piece, q.batch * q.heads * q.length);
    for (int64_t at = first; at < stop; ++at) {
        int64_t b = at / (q.heads * q.length), h = at / q.length % q.heads, l = at % q.length;
        quantize_row(q, row, row_at<const Stored>(q.states, b, h, l), row_at<uint8_t>(q.data, b, h, l),
                     *row_at<Float>(q.scale, b, h, l));
    }
}

inline int quantization(const ll_quantization& q) {
    QuantizationJob job{q, max<int64_t>(1, TASK / q.width), DONE};
    int64_t rows = q.batch * q.heads * q.length;
    parallel(q.threads, (rows + job.piece - 1) / job.piece, quantization_task, &job, q.threads);
    return job.status;
}

}  // namespace
}  // namespace limelight::LL_NAMESPACE
