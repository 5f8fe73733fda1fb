// The peak rate of one thread: independent multiply-adds in registers, as many as the score product keeps in flight.
#pragma once

#include "../platform.h"
#include "../simd/vector.h"
#include "amx.h"
#include "shapes.h"

namespace limelight::LL_NAMESPACE {
namespace {

#if defined(LL_AMX)

inline double peak(double seconds) {
    TileRegisters registers;
    constexpr int STEPS = 1024;
    double start = seconds_now(), taken = 0.0, steps = 0.0;
    while (taken < seconds) {
        for (int step = 0; step < STEPS; ++step) {
            _tile_dpbf16ps(0, 6, 7);
            _tile_dpbf16ps(1, 6, 7);
            _tile_dpbf16ps(2, 6, 7);
            _tile_dpbf16ps(3, 6, 7);
            _tile_dpbf16ps(4, 6, 7);
            _tile_dpbf16ps(5, 6, 7);
        }
        steps += STEPS;
        taken = seconds_now() - start;
    }
    return 2.0 * 6 * TILE * TILE * 2 * TILE * steps / taken * 1e-9;
}

#else

inline double peak(double seconds) {
    constexpr int CHAINS = PANEL_KEYS * PANEL_VECTORS, STEPS = 4096;
    Vec sum[CHAINS];
    for (int c = 0; c < CHAINS; ++c) sum[c] = broadcast((Float)c);
#if defined(LL_PAIRS)
    volatile Factor left = 0x3f7f3f7f, right = 0x3a803a80;  // 0.996, 0.001; volatile: not known at compile time
#else
    volatile Factor left = (Float)0.999, right = (Float)0.001;
#endif
    FactorVec a = broadcast_factor(left), b = broadcast_factor(right);
    double start = seconds_now(), taken = 0.0, steps = 0.0;
    while (taken < seconds) {
        for (int step = 0; step < STEPS; ++step)
#pragma GCC unroll 24
            for (int c = 0; c < CHAINS; ++c) sum[c] = multiply_add(a, b, sum[c]);
        steps += STEPS;
        taken = seconds_now() - start;
    }
    Vec all{};
    for (int c = 0; c < CHAINS; ++c) all += sum[c];
    volatile Float kept = reduce_add(all);
    (void)kept;
    return 2.0 * CHAINS * LANES * FOLD * steps / taken * 1e-9;
}

#endif

}  // namespace
}  // namespace limelight::LL_NAMESPACE
