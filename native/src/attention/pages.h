// Where keys and values lie in memory: in rows at equal distances, or in pages.
#pragma once

#include "../library.h"
#include "../simd/eight_bits.h"
#include "../simd/elements.h"
#include "../simd/vector.h"
#include "../tiles/operands.h"
#include "../tiles/shapes.h"
#include "blocks.h"
#include "problem.h"
#include "visibility.h"

namespace limelight::LL_NAMESPACE {
namespace {

// Rows of memory at equal distances.
template <class T>
struct RowsOf {
    const T* row;
    int64_t stride, width;
    int keys;
    const T* at(int j) const { return row + j * stride; }
};
typedef RowsOf<Stored> StridedRows;

LL_INLINE bool in_pages(const ll_call& call) { return call.pages.table != nullptr; }

// Whether keys and values cannot be read as rows of elements: they lie in pages, or have 8 bits.
LL_INLINE bool must_copy(const ll_call& call) { return in_pages(call) || call.quantized; }

constexpr int MIN_PAGE = 16;                         // keys of the smallest page that products read in place
constexpr int MAX_RUNS = BLOCK_KEYS / MIN_PAGE + 1;  // pages that the keys of a block may lie in

// Whether the products of tiles can read keys and values where they lie: as elements in rows, or in pages that are not
// too small.
LL_INLINE bool in_place(const ll_call& call) {
    return !call.quantized && (!in_pages(call) || (PAGES_IN_PLACE && call.pages.size >= MIN_PAGE));
}

// Whether queries and outputs are rotated, because keys and values are.
LL_INLINE bool rotates(const ll_call& call) { return call.quantized && call.quantized->rotated; }

// Row `key` of a tensor of keys, values or scales with elements of type T, for a segment and a key head.
template <class T = Stored>
LL_INLINE const T* key_row(const ll_call& call, const ll_tensor& tensor, const ll_segment& segment, int64_t row,
                           int64_t key_head, int64_t key) {
    if (!in_pages(call)) return row_at<const T>(tensor, row, key_head, key);
    int64_t slot = key + segment.page_offset, size = call.pages.size;
    return row_at<const T>(tensor, call.pages.table[slot / size], key_head, slot % size);
}
template <class T = Stored>
LL_INLINE const T* key_row(const ll_call& call, const ll_tensor& tensor, const Tile& tile, int64_t key) {
    return key_row<T>(call, tensor, *tile.segment, tile.row, tile.key_head, key);
}

// How many keys of [key, end) lie in the page of the first.
LL_INLINE int64_t keys_together(const ll_call& call, const ll_segment& segment, int64_t key, int64_t end) {
    if (!in_pages(call)) return end - key;
    return min(end - key, call.pages.size - (key + segment.page_offset) % call.pages.size);
}

// f(key, number of keys) for each page that some of these keys of a segment lie in.
template <class F>
LL_INLINE void for_each_page(const ll_call& call, const ll_segment& segment, Range keys, F f) {
    for (int64_t count, key = keys.begin; key < keys.end; key += count) {
        count = keys_together(call, segment, key, keys.end);
        f(key, count);
    }
}

// The keys of a block that a tile reads. A block may begin before those of the segment; no query sees that key, and in
// pages it has no place.
LL_INLINE Range keys_read(const ll_call& call, const Tile& tile, const Block& block) {
    return {in_pages(call) ? max(block.begin, tile.segment->key_begin) : block.begin, block.begin + block.count};
}

// f(row, begin, end) for keys [begin, end) of a block that lie at equal distances in an operand, the first of them at
// `row`: those in each page, or all.
template <class F>
LL_INLINE void for_each_run(const ll_call& call, const Operand& operand, const Tile& tile, const Block& block, F f) {
    bool paged = PAGES_IN_PLACE && operand.paged;
    if (!paged) return f(operand.row(tile.row, tile.key_head, block.begin), 0, block.count);
    Range keys = keys_read(call, tile, block);
    for_each_page(call, *tile.segment, keys, [&](int64_t key, int64_t count) {
        int64_t slot = key + tile.segment->page_offset, size = call.pages.size, begin = key - block.begin;
        f(operand.row(call.pages.table[slot / size], tile.key_head, slot % size), (int)begin, (int)(begin + count));
    });
}

// The scales of the keys or values of a call whose elements have 8 bits.
LL_INLINE const ll_tensor& scale_of(const ll_call& call, const ll_tensor& tensor) {
    return &tensor == &call.key ? call.quantized->key_scale : call.quantized->value_scale;
}

// Rows of 8 bits times their scales, rounded to elements.
inline __attribute__((noinline)) void dequantize_rows(int64_t kind, const uint8_t* from, int64_t stride, int rows,
                                                      int64_t width, const Float* scale, int64_t scale_stride,
                                                      Stored* to) {
    read_bytes(kind, from, stride, rows, width, to);
    for (int j = 0; j < rows; ++j, to += width)
        for (int64_t d = 0; d < width; d += LANES) {
            alignas(64) Float row[LANES];
            int64_t count = min<int64_t>(LANES, width - d);
            store(row, read_partial(to + d, count) * scale[j * scale_stride]);
            write_row(row, count, to + d);
        }
}

// Copies rows of some keys of a segment to `copy`, as elements; that of key `first` to its beginning.
inline void copy_rows(const ll_call& call, const ll_tensor& tensor, int64_t width, const ll_segment& segment,
                      int64_t batch_row, int64_t key_head, Range keys, int64_t first, Stored* copy) {
    for_each_page(call, segment, keys, [&](int64_t key, int64_t count) {
        Stored* to = copy + (key - first) * width;
        if (call.quantized) {
            const ll_tensor& scale = scale_of(call, tensor);
            return dequantize_rows(call.quantized->element,
                                   key_row<uint8_t>(call, tensor, segment, batch_row, key_head, key), tensor.strides[2],
                                   (int)count, width, key_row<Float>(call, scale, segment, batch_row, key_head, key),
                                   scale.strides[2], to);
        }
        const Stored* row = key_row(call, tensor, segment, batch_row, key_head, key);
        for (int64_t j = 0; j < count; ++j)
            __builtin_memcpy(to + j * width, row + j * tensor.strides[2], sizeof(Stored) * (size_t)width);
    });
}

// The rows of a block's keys or values: as they lie, or where that is not possible, copied; those before the segment
// are zero then.
inline StridedRows rows_of(const ll_call& call, const ll_tensor& tensor, int64_t width, const Tile& tile,
                           const Block& block, Stored* copy) {
    if (!must_copy(call)) return {key_row(call, tensor, tile, block.begin), tensor.strides[2], width, block.count};
    __builtin_memset(copy, 0, sizeof(Stored) * (size_t)(block.count * width));
    copy_rows(call, tensor, width, *tile.segment, tile.row, tile.key_head, keys_read(call, tile, block), block.begin,
              copy);
    return {copy, width, width, block.count};
}

}  // namespace
}  // namespace limelight::LL_NAMESPACE
