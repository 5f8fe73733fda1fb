// What the processor and the operating system support, on x86.
#pragma once

namespace limelight {

struct Processor {
    bool intel = false;
    bool avx2 = false;        // with FMA and F16C
    bool avx512 = false;      // F, BW, DQ and VL
    bool avx512bf16 = false;  // with avx512
    bool amx = false;         // tiles of bfloat16, with avx512bf16
};

Processor this_processor();

// Asks the operating system for the AMX tile registers, 8 KiB for each thread.
bool request_amx();

}  // namespace limelight
