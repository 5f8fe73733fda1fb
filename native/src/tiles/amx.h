// The products on Intel's AMX tiles: a tile register holds 16 rows of 64 bytes. C += A B, where a row of A is 16
// factors (32 bfloat16 elements) of one row of C, and a row of B one factor of each of 16 columns.
#pragma once

#include "../simd/vector.h"
#include "reach.h"
#include "shapes.h"

namespace limelight::LL_NAMESPACE {
namespace {

#if defined(LL_AMX)

struct TileRegisters {
    TileRegisters() {
        struct alignas(64) {
            uint8_t palette = 1, start = 0, reserved[14] = {};
            uint16_t bytes[16] = {};
            uint8_t rows[16] = {};
        } shape;
        for (int t = 0; t < 8; ++t) shape.bytes[t] = 64, shape.rows[t] = TILE;
        _tile_loadconfig(&shape);
    }
    ~TileRegisters() { _tile_release(); }
    TileRegisters(const TileRegisters&) = delete;
};

// C (16 rows by 16 * VECTORS columns) of `steps` tiles of A, side by side, and of B, one below the other. Strides in
// bytes.
template <int VECTORS, bool ADD>
LL_INLINE void tile_panel(const Factor* a, int64_t a_stride, int64_t a_step, const Factor* b, int64_t b_stride,
                          int64_t steps, Float* c, int64_t c_stride) {
    if (ADD) {
        _tile_loadd(0, c, c_stride);
        if (VECTORS > 1) _tile_loadd(1, c + TILE, c_stride);
        if (VECTORS > 2) _tile_loadd(2, c + 2 * TILE, c_stride);
        if (VECTORS > 3) _tile_loadd(3, c + 3 * TILE, c_stride);
    } else {
        _tile_zero(0);
        if (VECTORS > 1) _tile_zero(1);
        if (VECTORS > 2) _tile_zero(2);
        if (VECTORS > 3) _tile_zero(3);
    }
    for (int64_t k = 0; k < steps; ++k, a += a_step, b += TILE * b_stride / (int64_t)sizeof(Factor)) {
        _tile_loadd(4, a, a_stride);
        _tile_loadd(5, b, b_stride);
        _tile_dpbf16ps(0, 4, 5);
        if (VECTORS > 1) {
            _tile_loadd(6, b + TILE, b_stride);
            _tile_dpbf16ps(1, 4, 6);
        }
        if (VECTORS > 2) {
            _tile_loadd(7, b + 2 * TILE, b_stride);
            _tile_dpbf16ps(2, 4, 7);
        }
        if (VECTORS > 3) {
            _tile_loadd(5, b + 3 * TILE, b_stride);
            _tile_dpbf16ps(3, 4, 5);
        }
    }
    _tile_stored(0, c, c_stride);
    if (VECTORS > 1) _tile_stored(1, c + TILE, c_stride);
    if (VECTORS > 2) _tile_stored(2, c + 2 * TILE, c_stride);
    if (VECTORS > 3) _tile_stored(3, c + 3 * TILE, c_stride);
}

template <bool ADD>
LL_INLINE void tile_panels(int64_t vectors, const Factor* a, int64_t a_stride, int64_t a_step, const Factor* b,
                           int64_t b_stride, int64_t steps, Float* c, int64_t c_stride) {
    for (; vectors >= 4; vectors -= 4, b += 4 * TILE, c += 4 * TILE)
        tile_panel<4, ADD>(a, a_stride, a_step, b, b_stride, steps, c, c_stride);
    if (vectors == 3) tile_panel<3, ADD>(a, a_stride, a_step, b, b_stride, steps, c, c_stride);
    if (vectors == 2) tile_panel<2, ADD>(a, a_stride, a_step, b, b_stride, steps, c, c_stride);
    if (vectors == 1) tile_panel<1, ADD>(a, a_stride, a_step, b, b_stride, steps, c, c_stride);
}

// As in register_tile.h; the rows of scores up to the next multiple of 16 keys are written too.
inline void score_product(const Factor* key, int64_t stride, int begin, int end, const Factor* packed, int queries,
                          int64_t width, Float* scores, Float* peak, const Reach*) {
    constexpr int64_t BYTES = sizeof(Factor);
    int64_t vectors = (queries + TILE - 1) / TILE;
    int keys = end - begin;
    scores += begin * QUERIES;
    for (int j = 0; j < keys; j += TILE, key += TILE * stride, scores += TILE * QUERIES) {
        alignas(64) Factor last[TILE * TILE];
        if (j + TILE <= keys) {
            tile_panels<false>(vectors, key, stride * BYTES, TILE, packed, PANEL_QUERIES * BYTES, width / TILE, scores,
                               QUERIES * BYTES);
        } else  // memory beyond the last key may not be readable
            for (int64_t d = 0; d < width; d += TILE) {
                for (int r = 0; r < TILE; ++r)
                    for (int x = 0; x < TILE; ++x)
                        last[r * TILE + x] = j + r < keys ? load<Factor>(key + r * stride + d + x) : 0;
                const Factor* panel = packed + d * PANEL_QUERIES;
                if (d == 0)
                    tile_panels<false>(vectors, last, TILE * BYTES, 0, panel, PANEL_QUERIES * BYTES, 1, scores,
                                       QUERIES * BYTES);
                else
                    tile_panels<true>(vectors, last, TILE * BYTES, 0, panel, PANEL_QUERIES * BYTES, 1, scores,
                                      QUERIES * BYTES);
            }
        for (int i = 0; i < queries; i += LANES) {
            Vec largest = load<Vec>(peak + i);
            for (int r = 0; r < min(TILE, keys - j); ++r) largest = max(largest, load<Vec>(scores + r * QUERIES + i));
            store(peak + i, largest);
        }
    }
}

#else

struct TileRegisters {};

#endif

}  // namespace
}  // namespace limelight::LL_NAMESPACE
