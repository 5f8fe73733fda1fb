// Random numbers in every element type, and the arrays of a call.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <random>
#include <string>
#include <vector>

#include "../include/limelight.h"

namespace {

#if defined(__aarch64__)
typedef __fp16 Half;  // GCC 12 has no _Float16 there
#else
typedef _Float16 Half;
#endif

std::mt19937_64 random_bits;
int64_t among(int64_t low, int64_t high) { return low + (int64_t)(random_bits() % (uint64_t)(high - low + 1)); }
bool one_in(int64_t n) { return among(1, n) == 1; }
double normal() { return std::normal_distribution<double>()(random_bits); }

int64_t size_of(int64_t element) { return element == LL_FLOAT64 ? 8 : element == LL_FLOAT32 ? 4 : 2; }
int64_t number_of(int64_t element) { return element == LL_FLOAT64 ? LL_FLOAT64 : LL_FLOAT32; }

void put(char* to, int64_t element, double x) {
    float narrow = (float)x;
    if (element == LL_FLOAT64) std::memcpy(to, &x, 8);
    if (element == LL_FLOAT32) std::memcpy(to, &narrow, 4);
    if (element == LL_BFLOAT16) std::memcpy(to, (char*)&narrow + 2, 2);
    if (element == LL_FLOAT16) {
        Half half = (Half)narrow;
        std::memcpy(to, &half, 2);
    }
}

double get(const char* from, int64_t element) {
    double x;
    float narrow = 0;
    Half half;
    if (element == LL_FLOAT64) return std::memcpy(&x, from, 8), x;
    if (element == LL_FLOAT16) return std::memcpy(&half, from, 2), (double)half;
    if (element == LL_BFLOAT16) return std::memcpy((char*)&narrow + 2, from, 2), narrow;
    return std::memcpy(&narrow, from, 4), narrow;
}

// The arrays of one call, each exactly as large as needed.
struct Arrays {
    std::deque<std::vector<char>> held;
    std::deque<int64_t> elements;  // of each array; -1: not compared with other instruction sets

    char* zeros(int64_t bytes, int64_t element = -1) {
        held.emplace_back((size_t)bytes), elements.push_back(element);
        return held.back().data();
    }
    // An odd number of elements starts at the second one: nothing is aligned to more than an element.
    char* numbers(int64_t count, int64_t element) {
        int64_t first = count % 2;
        return zeros((count + first) * size_of(element), element) + first * size_of(element);
    }

    // Whether every array is close to that of `other`, relative to its largest element, and finite where that one is.
    bool near(const Arrays& other, double tolerance) const {
        for (size_t a = 0; a < held.size(); ++a) {
            if (elements[a] < 0) continue;
            double largest = 0.1, apart = 0;  // smaller results may be differences of larger terms
            for (size_t at = 0; at < held[a].size(); at += (size_t)size_of(elements[a])) {
                double x = get(held[a].data() + at, elements[a]), y = get(other.held[a].data() + at, elements[a]);
                if (std::isfinite(x) != std::isfinite(y)) return false;
                if (!std::isfinite(y)) continue;
                largest = std::fmax(largest, std::fabs(y)), apart = std::fmax(apart, std::fabs(x - y));
            }
            if (apart > tolerance * largest) return false;
        }
        return true;
    }
    char* normals(int64_t count, int64_t element, double scale = 1.0) {
        int64_t first = count % 2;
        char* data = zeros((count + first) * size_of(element)) + first * size_of(element);
        for (int64_t n = 0; n < count; ++n) put(data + n * size_of(element), element, scale * normal());
        return data;
    }
    char* small_integers(int64_t count, int64_t element) {
        char* data = zeros(count * size_of(element));
        for (int64_t n = 0; n < count; ++n) put(data + n * size_of(element), element, (double)among(-2, 2));
        return data;
    }
    std::string all() const {
        std::string bytes;
        for (const auto& array : held) bytes.append(array.data(), array.size());
        return bytes;
    }
};

// (B, H, L, D): contiguous, a view of (B, L, H, D), or one row repeated for the whole batch.
ll_tensor shaped(char* data, int64_t B, int64_t H, int64_t L, int64_t D, int64_t kind) {
    if (kind == 1) return {data, {L * H * D, D, H * D, 1}};
    if (kind == 2 && B > 1) return {data, {0, L * D, D, 1}};
    return {data, {H * L * D, L * D, D, 1}};
}

}  // namespace
