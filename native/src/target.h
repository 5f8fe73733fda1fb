// The instruction set and the element type of this translation unit.
//
// CMake compiles kernel.cpp once for each pair of the two, and LL_NAMESPACE names the pair. All code lies in an
// anonymous namespace inside that one, so the linker cannot merge a function of one instruction set with that of
// another. For the same reason the kernels include no header of the standard C++ library.
//
// Stored: an element as it lies in memory.
//   Float: the type in which sums are accumulated: double for float64, else float.
//   Int: an integer as wide as a Float.
#pragma once

#include <stddef.h>
#include <stdint.h>

#if !defined(LL_NAMESPACE)  // a header that is opened alone, in an editor or by a checker
#define LL_NAMESPACE generic_float32
#endif

#if defined(LL_AVX512) || defined(LL_AVX2) || defined(LL_WIDE)
#include <immintrin.h>
#elif defined(LL_NEON)
#include <arm_neon.h>
#endif

namespace limelight::LL_NAMESPACE {
namespace {

#define LL_INLINE inline __attribute__((always_inline))

#if defined(LL_OF_FLOAT64)
typedef double Float;
typedef int64_t Int;
typedef double Stored;
#elif defined(LL_OF_BFLOAT16) || defined(LL_OF_FLOAT16)
typedef float Float;
typedef int32_t Int;
typedef uint16_t Stored;
#else
typedef float Float;
typedef int32_t Int;
typedef float Stored;
#endif

#if defined(LL_AVX512) || defined(LL_WIDE)
constexpr int VECTOR_BYTES = 64;
#elif defined(LL_AVX2)
constexpr int VECTOR_BYTES = 32;
#else
constexpr int VECTOR_BYTES = 16;
#endif
constexpr int LANES = VECTOR_BYTES / (int)sizeof(Float);

}  // namespace
}  // namespace limelight::LL_NAMESPACE
