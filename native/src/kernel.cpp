// Compiled once for each instruction set, with LL_NAMESPACE naming it. All code is in anonymous namespaces inside
// that one: no function of one instruction set can be merged by the linker with that of another. For the same reason no
// header of the standard C++ library is used here.
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>
#if defined(LL_AVX512) || defined(LL_AVX2) || defined(LL_WIDE)
#include <immintrin.h>
#endif

#include "library.h"

namespace limelight {
namespace LL_NAMESPACE {
namespace {

#include "simd.h"
#include "arithmetic.h"
#include "visibility.h"
#include "products.h"
#include "scores.h"
#include "forward.h"
#include "observe.h"
#include "schedule.h"
#include "peak.h"

}  // namespace
}  // namespace LL_NAMESPACE

#define LL_STRING_OF(x) #x
#define LL_STRING(x) LL_STRING_OF(x)
#define LL_JOIN_OF(a, b) a##b
#define LL_JOIN(a, b) LL_JOIN_OF(a, b)

const Kernels LL_JOIN(LL_NAMESPACE, _kernels) = {LL_STRING(LL_NAMESPACE), LL_NAMESPACE::forward, LL_NAMESPACE::peak};

}  // namespace limelight
