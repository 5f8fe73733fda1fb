// The structures of the C interface as they were compiled, for callers that pack their bytes.
#include <stddef.h>

#include "../include/limelight.h"

namespace {

template <typename T>
constexpr int64_t type_of = 'T';
template <>
constexpr int64_t type_of<int64_t> = 'q';
template <>
constexpr int64_t type_of<uint64_t> = 'Q';
template <>
constexpr int64_t type_of<double> = 'd';
template <typename T>
constexpr int64_t type_of<T*> = 'P';
template <typename T, size_t N>
constexpr int64_t type_of<T[N]> = type_of<T>;

#define LL_WHOLE(structure) {#structure, nullptr, 0, sizeof(structure), type_of<structure>}
#define LL_FIELD(structure, field) \
    {#structure, #field, offsetof(structure, field), sizeof(structure::field), type_of<decltype(structure::field)>}

// clang-format off
const ll_field FIELDS[] = {
    LL_WHOLE(ll_tensor), LL_FIELD(ll_tensor, data), LL_FIELD(ll_tensor, strides),
    LL_WHOLE(ll_segment), LL_FIELD(ll_segment, row), LL_FIELD(ll_segment, query_begin), LL_FIELD(ll_segment, query_end),
        LL_FIELD(ll_segment, key_begin), LL_FIELD(ll_segment, key_end), LL_FIELD(ll_segment, query_offset),
        LL_FIELD(ll_segment, key_offset), LL_FIELD(ll_segment, dropout_row), LL_FIELD(ll_segment, page_offset),
        LL_FIELD(ll_segment, whole_queries),
        LL_FIELD(ll_segment, keys_before),
    LL_WHOLE(ll_pages), LL_FIELD(ll_pages, table), LL_FIELD(ll_pages, length), LL_FIELD(ll_pages, count),
        LL_FIELD(ll_pages, size),
    LL_WHOLE(ll_span), LL_FIELD(ll_span, query_from), LL_FIELD(ll_span, query_to), LL_FIELD(ll_span, start),
        LL_FIELD(ll_span, start_offset), LL_FIELD(ll_span, chunk), LL_FIELD(ll_span, chunk_start),
        LL_FIELD(ll_span, end), LL_FIELD(ll_span, end_offset), LL_FIELD(ll_span, chunk_end),
        LL_FIELD(ll_span, reserved),
    LL_WHOLE(ll_intervals), LL_FIELD(ll_intervals, starts), LL_FIELD(ll_intervals, ends), LL_FIELD(ll_intervals, count),
        LL_FIELD(ll_intervals, interval_stride), LL_FIELD(ll_intervals, row_stride),
        LL_FIELD(ll_intervals, head_stride),
    LL_WHOLE(ll_tile_map), LL_FIELD(ll_tile_map, state), LL_FIELD(ll_tile_map, row_stride),
        LL_FIELD(ll_tile_map, head_stride), LL_FIELD(ll_tile_map, query_stride), LL_FIELD(ll_tile_map, bits),
        LL_FIELD(ll_tile_map, bit_rows),
    LL_WHOLE(ll_rule), LL_FIELD(ll_rule, kind), LL_FIELD(ll_rule, parameters), LL_FIELD(ll_rule, tensor),
        LL_FIELD(ll_rule, stored),
    LL_WHOLE(ll_observation), LL_FIELD(ll_observation, heads), LL_FIELD(ll_observation, head_count),
        LL_FIELD(ll_observation, logsumexp), LL_FIELD(ll_observation, max_score), LL_FIELD(ll_observation, max_weight),
        LL_FIELD(ll_observation, entropy), LL_FIELD(ll_observation, distance), LL_FIELD(ll_observation, top),
        LL_FIELD(ll_observation, top_weights), LL_FIELD(ll_observation, top_keys), LL_FIELD(ll_observation, received),
        LL_FIELD(ll_observation, features), LL_FIELD(ll_observation, feature_count),
        LL_FIELD(ll_observation, feature_stride), LL_FIELD(ll_observation, features_out),
        LL_FIELD(ll_observation, rows), LL_FIELD(ll_observation, row_count), LL_FIELD(ll_observation, rows_out),
        LL_FIELD(ll_observation, pairs), LL_FIELD(ll_observation, pair_count), LL_FIELD(ll_observation, pairs_out),
        LL_FIELD(ll_observation, block_queries), LL_FIELD(ll_observation, block_keys),
        LL_FIELD(ll_observation, blocks_out),
    LL_WHOLE(ll_quantized), LL_FIELD(ll_quantized, element), LL_FIELD(ll_quantized, rotated),
        LL_FIELD(ll_quantized, key_scale), LL_FIELD(ll_quantized, value_scale),
    LL_WHOLE(ll_call), LL_FIELD(ll_call, version), LL_FIELD(ll_call, element), LL_FIELD(ll_call, batch),
        LL_FIELD(ll_call, query_heads), LL_FIELD(ll_call, key_heads), LL_FIELD(ll_call, queries),
        LL_FIELD(ll_call, keys), LL_FIELD(ll_call, width), LL_FIELD(ll_call, value_width), LL_FIELD(ll_call, query),
        LL_FIELD(ll_call, key), LL_FIELD(ll_call, value), LL_FIELD(ll_call, output), LL_FIELD(ll_call, logsumexp),
        LL_FIELD(ll_call, sink), LL_FIELD(ll_call, compare), LL_FIELD(ll_call, scale), LL_FIELD(ll_call, dropout),
        LL_FIELD(ll_call, seed), LL_FIELD(ll_call, threads), LL_FIELD(ll_call, segments),
        LL_FIELD(ll_call, segment_count), LL_FIELD(ll_call, spans), LL_FIELD(ll_call, span_count),
        LL_FIELD(ll_call, intervals), LL_FIELD(ll_call, tiles), LL_FIELD(ll_call, pages), LL_FIELD(ll_call, rules),
        LL_FIELD(ll_call, rule_count),
        LL_FIELD(ll_call, observation), LL_FIELD(ll_call, quantized),
    LL_WHOLE(ll_gradients), LL_FIELD(ll_gradients, output), LL_FIELD(ll_gradients, grad_output),
        LL_FIELD(ll_gradients, logsumexp), LL_FIELD(ll_gradients, grad_logsumexp), LL_FIELD(ll_gradients, query),
        LL_FIELD(ll_gradients, key), LL_FIELD(ll_gradients, value), LL_FIELD(ll_gradients, sink),
        LL_FIELD(ll_gradients, compare), LL_FIELD(ll_gradients, rules), LL_FIELD(ll_gradients, uncleared),
    LL_WHOLE(ll_matrix), LL_FIELD(ll_matrix, weight), LL_FIELD(ll_matrix, weight_stride), LL_FIELD(ll_matrix, bias),
        LL_FIELD(ll_matrix, outputs), LL_FIELD(ll_matrix, result),
    LL_WHOLE(ll_product), LL_FIELD(ll_product, element), LL_FIELD(ll_product, threads), LL_FIELD(ll_product, rows),
        LL_FIELD(ll_product, inputs), LL_FIELD(ll_product, states), LL_FIELD(ll_product, state_stride),
        LL_FIELD(ll_product, count), LL_FIELD(ll_product, matrices),
    LL_WHOLE(ll_norm), LL_FIELD(ll_norm, element), LL_FIELD(ll_norm, threads), LL_FIELD(ll_norm, rows),
        LL_FIELD(ll_norm, width), LL_FIELD(ll_norm, states), LL_FIELD(ll_norm, state_stride), LL_FIELD(ll_norm, weight),
        LL_FIELD(ll_norm, epsilon), LL_FIELD(ll_norm, offset), LL_FIELD(ll_norm, result), LL_FIELD(ll_norm, inverse),
        LL_FIELD(ll_norm, grad), LL_FIELD(ll_norm, grad_states), LL_FIELD(ll_norm, grad_weight),
    LL_WHOLE(ll_gate), LL_FIELD(ll_gate, element), LL_FIELD(ll_gate, threads), LL_FIELD(ll_gate, count),
        LL_FIELD(ll_gate, linear), LL_FIELD(ll_gate, cubic), LL_FIELD(ll_gate, gate), LL_FIELD(ll_gate, up),
        LL_FIELD(ll_gate, result), LL_FIELD(ll_gate, grad), LL_FIELD(ll_gate, grad_gate), LL_FIELD(ll_gate, grad_up),
    LL_WHOLE(ll_rotation), LL_FIELD(ll_rotation, element), LL_FIELD(ll_rotation, threads), LL_FIELD(ll_rotation, batch),
        LL_FIELD(ll_rotation, heads), LL_FIELD(ll_rotation, length), LL_FIELD(ll_rotation, width),
        LL_FIELD(ll_rotation, rotated), LL_FIELD(ll_rotation, states), LL_FIELD(ll_rotation, result),
        LL_FIELD(ll_rotation, own), LL_FIELD(ll_rotation, partners), LL_FIELD(ll_rotation, row_stride),
        LL_FIELD(ll_rotation, token_stride), LL_FIELD(ll_rotation, direction),
    LL_WHOLE(ll_sum), LL_FIELD(ll_sum, element), LL_FIELD(ll_sum, threads), LL_FIELD(ll_sum, count),
        LL_FIELD(ll_sum, left), LL_FIELD(ll_sum, right), LL_FIELD(ll_sum, result),
    LL_WHOLE(ll_matmul), LL_FIELD(ll_matmul, element), LL_FIELD(ll_matmul, threads), LL_FIELD(ll_matmul, rows),
        LL_FIELD(ll_matmul, steps), LL_FIELD(ll_matmul, columns), LL_FIELD(ll_matmul, left),
        LL_FIELD(ll_matmul, left_row), LL_FIELD(ll_matmul, left_step), LL_FIELD(ll_matmul, right),
        LL_FIELD(ll_matmul, right_step), LL_FIELD(ll_matmul, right_column), LL_FIELD(ll_matmul, bias),
        LL_FIELD(ll_matmul, result), LL_FIELD(ll_matmul, result_row), LL_FIELD(ll_matmul, add),
    LL_WHOLE(ll_quantization), LL_FIELD(ll_quantization, element), LL_FIELD(ll_quantization, threads),
        LL_FIELD(ll_quantization, batch), LL_FIELD(ll_quantization, heads), LL_FIELD(ll_quantization, length),
        LL_FIELD(ll_quantization, width), LL_FIELD(ll_quantization, quantized), LL_FIELD(ll_quantization, rotated),
        LL_FIELD(ll_quantization, states), LL_FIELD(ll_quantization, data), LL_FIELD(ll_quantization, scale),
    LL_WHOLE(ll_step), LL_FIELD(ll_step, kind), LL_FIELD(ll_step, bytes),
    {nullptr, nullptr, 0, 0, 0},
};
// clang-format on

}  // namespace

const ll_field* ll_layout(void) { return FIELDS; }
