// What a backward pass works out for each query and key before it looks at pairs.
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

// What does not depend on pairs: delta, the peak and the sink's gradient for each query, and which rows are not finite.
struct ReverseRows {
    const Reverse& reverse;
    uint8_t *aside, *query_aside, *grad_aside;
    bool* large;  // whether there is a row whose logsumexp does not tell its weights
    static constexpr int64_t PIECE = 64;

    int64_t query_pieces() const { return (reverse.problem.call.queries + PIECE - 1) / PIECE; }
    int64_t key_pieces() const { return (reverse.problem.call.keys + PIECE - 1) / PIECE; }
    int64_t query_pieces_of_group() const {
        return reverse.problem.call.query_heads / reverse.problem.call.key_heads * query_pieces();
    }

    void query_piece(int64_t n) const {
        const ll_call& call = reverse.problem.call;
        const ll_gradients& wanted = reverse.wanted;
        int64_t map = n / query_pieces(), first = n % query_pieces() * PIECE, stop = least(first + PIECE, call.queries);
        for (int64_t i = first; i < stop; ++i) {
            const Stored* output = line<const Stored>(wanted.output, map / call.query_heads, map % call.query_heads, i);
            const Stored* grad =
                line<const Stored>(wanted.grad_output, map / call.query_heads, map % call.query_heads, i);
            // In doubles: where one key has nearly all the weight, dP - delta is a difference of equals.
            constexpr int HALF = LANES / 2;
            typedef Number Some __attribute__((vector_size(sizeof(Number) * HALF)));
            typedef double Doubles __attribute__((vector_size(sizeof(double) * HALF)));
            Doubles parts{};
            alignas(64) Number y[LANES], dy[LANES];
            for (int64_t c = 0; c < call.value_width; c += LANES) {
                int64_t some = least<int64_t>(LANES, call.value_width - c);
                read_row(output + c, some, y, LANES), read_row(grad + c, some, dy, LANES);
                // A query that sees nothing has the output 0, whatever its gradient is.
                store(dy, load<Numbers>(y) == 0 ? Numbers{} : load<Numbers>(dy));
                for (int x = 0; x < LANES; x += HALF)
                    parts += __builtin_convertvector(load<Some>(y + x), Doubles) *
                             __builtin_convertvector(load<Some>(dy + x), Doubles);
            }
            double all = 0;
            for (int x = 0; x < HALF; ++x) all += parts[x];
            Number sum = (Number)all, logsumexp = ((const Number*)wanted.logsumexp)[map * call.queries + i];
            if (wanted.grad_logsumexp) sum -= ((const Number*)wanted.grad_logsumexp)[map * call.queries + i];
            reverse.delta[map * call.queries + i] = sum;
            query_aside[map * call.queries + i] = !finite_row(
                line<const Stored>(call.query, map / call.query_heads, map % call.query_heads, i), call.width);
            grad_aside[map * call.queries + i] = !finite_row(grad, call.value_width);
            double natural = (double)reverse.problem.natural;
            Number peak = (Number)((double)logsumexp / natural);
            double less = __builtin_fma(-natural, (double)peak, (double)logsumexp) * EXACT_LOG2_E;
            begin_row(reverse, map * call.queries + i, peak, peak - peak == 0 ? less : 0);
            if (is_large(logsumexp)) __atomic_store_n(large, true, __ATOMIC_RELAXED);
        }
    }

    void key_piece(int64_t n) const {
        const ll_call& call = reverse.problem.call;
        int64_t map = n / key_pieces(), first = n % key_pieces() * PIECE, stop = least(first + PIECE, call.keys);
        for (int64_t j = first; j < stop; ++j)
            aside[map * call.keys + j] =
                !finite_row(line<const Stored>(call.key, map / call.key_heads, map % call.key_heads, j), call.width);
    }
};

// Tasks of a key head and the query heads of its group follow each other.
inline void reverse_rows_task(void* context, int64_t n) {
    const ReverseRows& rows = *(const ReverseRows*)context;
    int64_t queries = rows.query_pieces_of_group(), each = queries + rows.key_pieces();
    int64_t map = n / each, piece = n % each;
    if (piece < queries) rows.query_piece(map * queries + piece);
    else rows.key_piece(map * rows.key_pieces() + piece - queries);
}

}  // namespace
}  // namespace limelight::LL_NAMESPACE
