#include "isa.h"

#include <stdlib.h>
#include <string.h>
#if defined(LL_HAS_AMX)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "error.h"
#include "interrupt.h"

namespace limelight {

// The tables of kernels, one for each instruction set and element type, from kernel.cpp.
#define LL_SET(isa) isa##_float32_kernels, isa##_float64_kernels, isa##_bfloat16_kernels, isa##_float16_kernels
extern const Kernels LL_SET(generic);
#if defined(LL_HAS_X86)
extern const Kernels LL_SET(avx2), LL_SET(avx512), avx512bf16_bfloat16_kernels;
#if defined(LL_HAS_WIDE)
extern const Kernels wide_float32_kernels;
#endif
#if defined(LL_HAS_AMX)
extern const Kernels amx_bfloat16_kernels;
#endif
#elif defined(LL_HAS_NEON)
extern const Kernels LL_SET(neon);
#endif
namespace {

#define LL_LIST(isa) {&isa##_float32_kernels, &isa##_float64_kernels, &isa##_bfloat16_kernels, &isa##_float16_kernels}

#if defined(LL_HAS_AMX)
// The operating system allows the AMX tile registers, 8 KiB for each thread, on request.
bool request_amx() {
    constexpr long REQUEST = 0x1023, TILE_DATA = 18;
    return __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") &&
           syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
}
#endif

// Best first. `wide` has AVX-512's tile shapes in AVX2 code, to test that logic on machines without AVX-512; it is
// never chosen automatically.
struct Isas {
    Isa list[8];
    int count = 0;
    Isas() {
#if defined(LL_HAS_X86)
        __builtin_cpu_init();
        bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
        bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
        // Intel's cores multiply pairs of bfloat16 at half the rate of float32: slower than avx512 there.
        bool pairs = avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vbmi") &&
                     __builtin_cpu_supports("avx512vnni");
        bool slow_pairs = __builtin_cpu_is("intel");
        Isa bf16{"avx512bf16", pairs, LL_LIST(avx512)};
        bf16.kernels[LL_BFLOAT16] = &avx512bf16_bfloat16_kernels;
#if defined(LL_HAS_AMX)
        Isa amx{"amx", pairs && request_amx(), LL_LIST(avx512)};
        amx.kernels[LL_BFLOAT16] = &amx_bfloat16_kernels;
        list[count++] = amx;
#endif
        if (!slow_pairs) list[count++] = bf16;
        list[count++] = {"avx512", avx512, LL_LIST(avx512)};
        if (slow_pairs) list[count++] = bf16;
        list[count++] = {"avx2", avx2, LL_LIST(avx2)};
        list[count++] = {"generic", true, LL_LIST(generic)};
#if defined(LL_HAS_WIDE)
        list[count++] = {"wide", avx2, {&wide_float32_kernels, nullptr, nullptr, nullptr}};
#endif
#else
#if defined(LL_HAS_NEON)
        list[count++] = {"neon", true, LL_LIST(neon)};  // every 64-bit ARM has it
#endif
        list[count++] = {"generic", true, LL_LIST(generic)};
#endif
    }
};

const Isas& isas() {
    static const Isas all;
    return all;
}

const char* available() {
    static thread_local char names[64];
    names[0] = 0;
    for (int i = 0; i < isas().count; ++i)
        if (isas().list[i].runs) {
            if (names[0]) strcat(names, " ");
            strcat(names, isas().list[i].name);
        }
    return names;
}

const Isa* selected = nullptr;

}  // namespace

const Isa* find_isa(const char* name) {
    for (int i = 0; i < isas().count; ++i) {
        const Isa& isa = isas().list[i];
        if (isa.runs && (!name || !*name || strcmp(name, isa.name) == 0)) return &isa;
    }
    fail(
        "instruction set '%s' is not available: it is unknown, or this machine cannot run it. Available: %s "
        "(set LIMELIGHT_ISA to one of them, or unset it)",
        name, available());
    return nullptr;
}

const Isa* selected_isa() {
    const Isa* found = __atomic_load_n(&selected, __ATOMIC_ACQUIRE);
    if (found) return found;
    found = find_isa(getenv("LIMELIGHT_ISA"));
    if (found) __atomic_store_n(&selected, found, __ATOMIC_RELEASE);
    return found;
}

const Kernels* kernels_of(const Isa* isa, int64_t element) {
    if (!isa) return nullptr;
    if (signal_poll.in_handler) {  // this thread's scratch memory is in use
        fail("a signal handler called a kernel in the middle of another call");
        return nullptr;
    }
    if (element < 0 || element >= LL_ELEMENTS) {
        fail("the element type must be 0 to %d; it is %lld", LL_ELEMENTS - 1, (long long)element);
        return nullptr;
    }
    if (!isa->kernels[element])
        fail("instruction set '%s' has no kernels for element type %lld", isa->name, (long long)element);
    return isa->kernels[element];
}

}  // namespace limelight

using namespace limelight;

const char* ll_isa_name(void) {
    const Isa* found = selected_isa();
    return found ? found->name : "";
}

const char* ll_isa_list(void) { return available(); }

int ll_select_isa(const char* name) {
    const Isa* found = name ? find_isa(name) : nullptr;
    if (name && !found) return BAD_ARGUMENT;
    __atomic_store_n(&selected, found, __ATOMIC_RELEASE);
    return selected_isa() ? DONE : BAD_ARGUMENT;
}
