// Error messages of the C interface.
#pragma once

#include "library.h"

namespace limelight {

// Sets the message that ll_error_message returns in this thread, as printf would write it; returns BAD_ARGUMENT.
__attribute__((format(printf, 1, 2))) int fail(const char* format, ...);

}  // namespace limelight
