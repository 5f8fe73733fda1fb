// Compiled once for each instruction set and element type, with LL_NAMESPACE naming both. All code is in anonymous namespaces inside
// that one: no function of one instruction set can be merged by the linker with that of another. For the same reason no
// header of the standard C++ library is used here.
#include <sched.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>
#if defined(LL_AVX512) || defined(LL_AVX2) || defined(LL_WIDE)
#include <immintrin.h>
#elif defined(LL_NEON)
#include <arm_neon.h>
#endif

#include "library.h"

namespace limelight {
namespace LL_NAMESPACE {
namespace {

#include "simd.h"
#include "elements.h"
#include "arithmetic.h"
#include "visibility.h"
#include "products.h"
#include "operands.h"
#include "tiles.h"
#include "sums.h"
#include "additive.h"
#include "scores.h"
#include "forward.h"
#include "observe.h"
#include "backward.h"
#include "schedule.h"
#include "decode.h"
#include "peak.h"
#include "layers.h"
#include "matrix.h"

}  // namespace
}  // namespace LL_NAMESPACE

#define LL_JOIN_OF(a, b) a##b
#define LL_JOIN(a, b) LL_JOIN_OF(a, b)

extern const Kernels LL_JOIN(LL_NAMESPACE, _kernels);
const Kernels LL_JOIN(LL_NAMESPACE, _kernels) = {
    LL_NAMESPACE::forward, LL_NAMESPACE::backward,      LL_NAMESPACE::peak, LL_NAMESPACE::multiply,
    LL_NAMESPACE::norm,    LL_NAMESPACE::norm_backward, LL_NAMESPACE::gate, LL_NAMESPACE::rotation,
    LL_NAMESPACE::sum,
#if defined(LL_OF_BFLOAT16) || defined(LL_OF_FLOAT16)
    nullptr,
#else
    LL_NAMESPACE::matmul,
#endif
};

}  // namespace limelight
