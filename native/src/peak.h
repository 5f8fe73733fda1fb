// The machine's peak: independent multiply-adds in registers, as many as the first product keeps in flight.

inline double seconds_now() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

inline double peak(double seconds) {
    constexpr int CHAINS = PANEL_KEYS * PANEL_VECTORS, STEPS = 4096;
    Floats sum[CHAINS];
    for (int c = 0; c < CHAINS; ++c) sum[c] = spread((float)c);
    volatile float factor = 0.999f, term = 0.001f;  // not known at compile time
    Floats a = spread(factor), b = spread(term);
    double start = seconds_now(), taken = 0.0, steps = 0.0;
    while (taken < seconds) {
        for (int step = 0; step < STEPS; ++step)
#pragma GCC unroll 24
            for (int c = 0; c < CHAINS; ++c) sum[c] = multiply_add(sum[c], a, b);
        steps += STEPS;
        taken = seconds_now() - start;
    }
    Floats all{};
    for (int c = 0; c < CHAINS; ++c) all += sum[c];
    volatile float kept = sum_of_lanes(all);
    (void)kept;
    return 2.0 * CHAINS * LANES * steps / taken * 1e-9;
}
