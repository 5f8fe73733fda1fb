// The kernels of one instruction set and element type, as the table that library.cpp chooses from (see target.h).
#include "attention/backward/backward.h"
#include "attention/forward/forward.h"
#include "layers/gate.h"
#include "layers/linear.h"
#include "layers/matmul.h"
#include "layers/norm.h"
#include "layers/quantization.h"
#include "layers/rotary.h"
#include "library.h"
#include "tiles/peak.h"

#define LL_JOIN_OF(a, b) a##b
#define LL_JOIN(a, b) LL_JOIN_OF(a, b)

namespace limelight {

extern const Kernels LL_JOIN(LL_NAMESPACE, _kernels);
const Kernels LL_JOIN(LL_NAMESPACE, _kernels) = {
    LL_NAMESPACE::forward,
    LL_NAMESPACE::backward,
    LL_NAMESPACE::peak,
    LL_NAMESPACE::multiply,
    LL_NAMESPACE::norm,
    LL_NAMESPACE::norm_backward,
    LL_NAMESPACE::gate,
    LL_NAMESPACE::rotation,
    LL_NAMESPACE::sum,
#if defined(LL_OF_BFLOAT16) || defined(LL_OF_FLOAT16)
    nullptr,
#else
    LL_NAMESPACE::matmul,
#endif
    LL_NAMESPACE::quantization,
};

}  // namespace limelight
