// Where keys and values lie in memory: in rows at equal distances, or in pages.
#pragma once

#include "../library.h"
#include "../simd/vector.h"
#include "../tiles/shapes.h"
#include "blocks.h"
#include "problem.h"
#include "visibility.h"

namespace limelight::LL_NAMESPACE {
namespace {

// Rows of memory at equal distances.
struct StridedRows {
    const Stored* row;
    int64_t stride, width;
    int keys;
    const Stored* at(int j) const { return row + j * stride; }
};

LL_INLINE bool in_pages(const ll_call& call) { return call.pages.table != nullptr; }

// Row `key` of a tensor of keys or values, for a segment and a key head.
LL_INLINE const Stored* key_row(const ll_call& call, const ll_tensor& tensor, const ll_segment& segment, int64_t row,
                                int64_t key_head, int64_t key) {
    if (!in_pages(call)) return row_at<const Stored>(tensor, row, key_head, key);
    int64_t slot = key + segment.page_offset, size = call.pages.size;
    return row_at<const Stored>(tensor, call.pages.table[slot / size], key_head, slot % size);
}
LL_INLINE const Stored* key_row(const ll_call& call, const ll_tensor& tensor, const Tile& tile, int64_t key) {
    return key_row(call, tensor, *tile.segment, tile.row, tile.key_head, key);
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

// Copies rows of some keys of a segment from pages; that of key `first` to `copy`.
inline void copy_rows(const ll_call& call, const ll_tensor& tensor, int64_t width, const ll_segment& segment,
                      int64_t key_head, Range keys, int64_t first, Stored* copy) {
    for_each_page(call, segment, keys, [&](int64_t key, int64_t count) {
        const Stored* row = key_row(call, tensor, segment, 0, key_head, key);
        for (int64_t j = 0; j < count; ++j)
            __builtin_memcpy(copy + (key + j - first) * width, row + j * tensor.strides[2],
                             sizeof(Stored) * (size_t)width);
    });
}

// The rows of a block's keys or values: as they lie, or where they lie in pages, copied; those before the segment are
// zero then.
inline StridedRows rows_of(const ll_call& call, const ll_tensor& tensor, int64_t width, const Tile& tile,
                           const Block& block, Stored* copy) {
    if (!in_pages(call)) return {key_row(call, tensor, tile, block.begin), tensor.strides[2], width, block.count};
    __builtin_memset(copy, 0, sizeof(Stored) * (size_t)(block.count * width));
    copy_rows(call, tensor, width, *tile.segment, tile.key_head, keys_read(call, tile, block), block.begin, copy);
    return {copy, width, width, block.count};
}

}  // namespace
}  // namespace limelight::LL_NAMESPACE
