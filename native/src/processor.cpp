// The compilers' own __builtin_cpu_supports needs a run-time library that not every toolchain brings.
#include "processor.h"

#if defined(LL_HAS_X86)
#include <cpuid.h>
#include <string.h>
#if defined(LL_HAS_AMX)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace limelight {
namespace {

struct Registers {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    Registers(unsigned leaf, unsigned subleaf) { __get_cpuid_count(leaf, subleaf, &eax, &ebx, &ecx, &edx); }
};

bool has(unsigned bits, int bit) { return bits >> bit & 1; }

// The registers that the operating system saves when it switches threads (XCR0).
unsigned saved_registers() {
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

}  // namespace

Processor this_processor() {
    constexpr unsigned YMM = 0x6, ZMM = 0xe6, TILES = 0x60000;
    constexpr int OSXSAVE = 27, AVX = 28, FMA = 12, F16C = 29;                          // leaf 1, ecx
    constexpr int AVX2 = 5, AVX512F = 16, AVX512DQ = 17, AVX512BW = 30, AVX512VL = 31;  // leaf 7, ebx
    constexpr int AVX512VBMI = 1, AVX512VNNI = 11;                                      // leaf 7, ecx
    constexpr int AMX_BF16 = 22, AMX_TILE = 24;                                         // leaf 7, edx
    constexpr int AVX512BF16 = 5;                                                       // leaf 7, subleaf 1, eax
    Processor found;
    Registers vendor(0, 0), basic(1, 0), extended(7, 0), more(7, extended.eax >= 1 ? 1 : 0);
    found.intel = memcmp(&vendor.ebx, "Genu", 4) == 0 && memcmp(&vendor.edx, "ineI", 4) == 0;
    if (!has(basic.ecx, OSXSAVE) || !has(basic.ecx, AVX)) return found;
    unsigned saved = saved_registers();
    found.avx2 = (saved & YMM) == YMM && has(basic.ecx, FMA) && has(basic.ecx, F16C) && has(extended.ebx, AVX2);
    found.avx512 = found.avx2 && (saved & ZMM) == ZMM && has(extended.ebx, AVX512F) && has(extended.ebx, AVX512BW) &&
                   has(extended.ebx, AVX512DQ) && has(extended.ebx, AVX512VL);
    found.avx512bf16 = found.avx512 && has(extended.ecx, AVX512VBMI) && has(extended.ecx, AVX512VNNI) &&
                       extended.eax >= 1 && has(more.eax, AVX512BF16);
    found.amx =
        found.avx512bf16 && (saved & TILES) == TILES && has(extended.edx, AMX_TILE) && has(extended.edx, AMX_BF16);
    return found;
}

bool request_amx() {
#if defined(LL_HAS_AMX)
    constexpr long REQUEST = 0x1023, TILE_DATA = 18;
    return syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
#else
    return false;
#endif
}

}  // namespace limelight
#endif
