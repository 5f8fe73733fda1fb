#include "error.h"

#include <stdarg.h>
#include <stdio.h>

namespace limelight {
namespace {

thread_local char message[512] = "";

}  // namespace

int fail(const char* format, ...) {
    va_list values;
    va_start(values, format);
    vsnprintf(message, sizeof message, format, values);
    va_end(values);
    return BAD_ARGUMENT;
}

}  // namespace limelight

const char* ll_error_message(void) { return limelight::message; }
