// The instruction sets for which the library has kernels, and the one in use.
#pragma once

#include "library.h"

namespace limelight {

struct Isa {
    const char* name;
    bool runs;  // on this machine
    const Kernels* kernels[LL_ELEMENTS];
};

// The instruction set with this name, or the best one if `name` is null or empty. Null, after an error message, if this
// machine cannot run it.
const Isa* find_isa(const char* name);

// The instruction set in use: by default that of LIMELIGHT_ISA, or the best one. Null, after an error message, if there
// is none of that name.
const Isa* selected_isa();

// The kernels of an instruction set for an element type; null, after an error message, if it has none.
const Kernels* kernels_of(const Isa* isa, int64_t element);

}  // namespace limelight
