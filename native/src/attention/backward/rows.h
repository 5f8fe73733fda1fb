// What a backward pass computes once for each query and key, before the tiles of pairs.
#pragma once

#include "../../library.h"
#include "../../simd/elementary.h"
#include "../../simd/elements.h"
#include "../../simd/vector.h"
#include "../../tiles/operands.h"
#include "../problem.h"
#include "pass.h"

namespace limelight::LL_NAMESPACE {
namespace {

// Delta, the peak and the sink's gradient of each query, and which rows are not finite.
struct BackwardRows {
    const BackwardPass& pass;
    uint8_t *nonfinite_keys, *nonfinite_queries, *nonfinite_grads;
    bool* large;  // set where a row must be recomputed: see is_unknown
    static constexpr int64_t PIECE = 64;

    int64_t query_pieces() const { return (pass.problem.call.queries + PIECE - 1) / PIECE; }
    int64_t key_pieces() const { return (pass.problem.call.keys + PIECE - 1) / PIECE; }
    int64_t query_pieces_of_group() const {
        return pass.problem.call.query_heads / pass.problem.call.key_heads * query_pieces();
    }

    void query_piece(int64_t n) const {
        const ll_call& call = pass.problem.call;
        const ll_gradients& gradients = pass.gradients;
        int64_t map = n / query_pieces(), first = n % query_pieces() * PIECE, stop = min(first + PIECE, call.queries);
        for (int64_t i = first; i < stop; ++i) {
            const Stored* output =
                row_at<const Stored>(gradients.output, map / call.query_heads, map % call.query_heads, i);
            const Stored* grad =
                row_at<const Stored>(gradients.grad_output, map / call.query_heads, map % call.query_heads, i);
            // In double precision: where one key has nearly all the weight, dP - delta is a difference of nearly equal
            // numbers.
            constexpr int HALF = LANES / 2;
            typedef Float Some __attribute__((vector_size(sizeof(Float) * HALF)));
            typedef double Doubles __attribute__((vector_size(sizeof(double) * HALF)));
            Doubles parts{};
            alignas(64) Float y[LANES], dy[LANES];
            for (int64_t c = 0; c < call.value_width; c += LANES) {
                int64_t count = min<int64_t>(LANES, call.value_width - c);
                read_row(output + c, count, y, LANES), read_row(grad + c, count, dy, LANES);
                // A query that sees no key has the output 0 and delta 0, whatever its gradient is.
                store(dy, load<Vec>(y) == 0 ? Vec{} : load<Vec>(dy));
                for (int x = 0; x < LANES; x += HALF)
                    parts += __builtin_convertvector(load<Some>(y + x), Doubles) *
                             __builtin_convertvector(load<Some>(dy + x), Doubles);
            }
            double all = 0;
            for (int x = 0; x < HALF; ++x) all += parts[x];
            Float sum = (Float)all, logsumexp = ((const Float*)gradients.logsumexp)[map * call.queries + i];
            if (gradients.grad_logsumexp) sum -= ((const Float*)gradients.grad_logsumexp)[map * call.queries + i];
            pass.delta[map * call.queries + i] = sum;
            nonfinite_queries[map * call.queries + i] = !finite_row(
                row_at<const Stored>(call.query, map / call.query_heads, map % call.query_heads, i), call.width);
            nonfinite_grads[map * call.queries + i] = !finite_row(grad, call.value_width);
            double natural = (double)pass.problem.natural;
            Float peak = (Float)((double)logsumexp / natural);
            double shift = __builtin_fma(-natural, (double)peak, (double)logsumexp) * EXACT_LOG2_E;
            begin_row(pass, map * call.queries + i, peak, peak - peak == 0 ? shift : 0);
            if (is_large(logsumexp) || is_unknown(pass, sum)) __atomic_store_n(large, true, __ATOMIC_RELAXED);
        }
    }

    void key_piece(int64_t n) const {
        const ll_call& call = pass.problem.call;
        int64_t map = n / key_pieces(), first = n % key_pieces() * PIECE, stop = min(first + PIECE, call.keys);
        for (int64_t j = first; j < stop; ++j)
            nonfinite_keys[map * call.keys + j] =
                !finite_row(row_at<const Stored>(call.key, map / call.key_heads, map % call.key_heads, j), call.width);
    }
};

// The tasks of a key head follow those of the query heads of its group.
inline void backward_rows_task(void* context, int64_t n) {
    const BackwardRows& rows = *(const BackwardRows*)context;
    int64_t queries = rows.query_pieces_of_group(), each = queries + rows.key_pieces();
    int64_t map = n / each, piece = n % each;
    if (piece < queries) rows.query_piece(map * queries + piece);
    else rows.key_piece(map * rows.key_pieces() + piece - queries);
}

}  // namespace
}  // namespace limelight::LL_NAMESPACE
