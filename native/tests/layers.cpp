// The operations of a layer beside attention on random sizes, in every element type, on every instruction set of the
// machine: results do not depend on the number of threads, and no memory behind an array is accessed (each array ends
// at a page without access rights).
//
//     layers [calls] [seed]
#if defined(_WIN32)
#define NOMINMAX
#include <windows.h>
#else
#include <sys/mman.h>
#endif

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "../include/limelight.h"

namespace {

std::mt19937_64 random_bits;
int64_t among(int64_t low, int64_t high) { return low + (int64_t)(random_bits() % (uint64_t)(high - low + 1)); }

int64_t size_of(int64_t element) { return element == LL_FLOAT64 ? 8 : element == LL_FLOAT32 ? 4 : 2; }

constexpr size_t PAGE = 4096;

// Pages of memory, the last one without access rights; null when there are none.
char* map_pages(size_t bytes) {
#if defined(_WIN32)
    DWORD before;
    auto* pages = (char*)VirtualAlloc(nullptr, bytes, MEM_COMMIT | MEM_RESERVE, PAGE_READWRITE);
    return pages && VirtualProtect(pages + bytes - PAGE, PAGE, PAGE_NOACCESS, &before) ? pages : nullptr;
#else
    auto* pages = (char*)mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return pages != MAP_FAILED && mprotect(pages + bytes - PAGE, PAGE, PROT_NONE) == 0 ? pages : nullptr;
#endif
}

void unmap_pages(char* pages, size_t bytes) {
#if defined(_WIN32)
    (void)bytes;
    VirtualFree(pages, 0, MEM_RELEASE);
#else
    munmap(pages, bytes);
#endif
}

// An array that ends at a page without access rights.
struct Array {
    char *pages, *data;
    size_t bytes, mapped;
    explicit Array(int64_t size) : bytes((size_t)size) {
        mapped = (bytes + PAGE - 1) / PAGE * PAGE + PAGE;
        pages = map_pages(mapped);
        if (!pages) std::exit(2);
        data = pages + mapped - PAGE - bytes;
    }
    Array(const Array&) = delete;
    ~Array() { unmap_pages(pages, mapped); }
};

// Random elements of magnitude 1/2 to 2, which every element type represents.
void fill(Array& array, int64_t element) {
    int64_t size = size_of(element), count = (int64_t)array.bytes / size;
    for (int64_t i = 0; i < count; ++i) {
        double wide = (among(0, 1) ? 1.0 : -1.0) * (0.5 + 1.5 * (double)among(0, 4095) / 4096.0);
        float narrow = (float)wide;
        uint32_t bits;
        std::memcpy(&bits, &narrow, 4);
        uint16_t bfloat = (uint16_t)(bits >> 16);
        uint16_t half = (uint16_t)((bits >> 16 & 0x8000) | (((bits >> 23 & 0xff) - 112) << 10) | (bits >> 13 & 0x3ff));
        char* to = array.data + i * size;
        if (element == LL_FLOAT64) std::memcpy(to, &wide, 8);
        if (element == LL_FLOAT32) std::memcpy(to, &narrow, 4);
        if (element == LL_BFLOAT16) std::memcpy(to, &bfloat, 2);
        if (element == LL_FLOAT16) std::memcpy(to, &half, 2);
    }
}

bool failed = false;

// Compares what a step writes with one thread and with three.
void same(const char* what, const std::vector<Array*>& written, const std::function<int(int64_t threads)>& step) {
    std::vector<std::string> before;
    for (int64_t threads : {1, 3}) {
        for (Array* array : written) std::memset(array->data, 0x55, array->bytes);
        if (step(threads)) std::printf("%s failed: %s\n", what, ll_error_message()), failed = true;
        for (size_t n = 0; n < written.size(); ++n) {
            std::string found(written[n]->data, written[n]->bytes);
            if (threads == 1) before.push_back(found);
            else if (found != before[n])
                std::printf("%s: the result depends on the number of threads\n", what), failed = true;
        }
    }
}

void test_products(int64_t element) {
    int64_t size = size_of(element);
    int64_t rows = among(0, 16), width = among(0, 150), outputs = among(0, 200), more = among(0, 5);
    Array states(rows * width * size), first(outputs * width * size), second(more * width * size), bias(outputs * size);
    Array by_first(rows * outputs * size), by_second(rows * more * size);
    for (Array* array : {&states, &first, &second, &bias}) fill(*array, element);
    same("products", {&by_first, &by_second}, [&](int64_t threads) {
        ll_product product{element, threads, rows, width, states.data, width, 2, {}};
        product.matrices[0] = {first.data, width, bias.data, outputs, by_first.data};
        product.matrices[1] = {second.data, width, nullptr, more, by_second.data};
        return ll_product_forward(&product);
    });
}

void test_norm(int64_t element) {
    int64_t size = size_of(element), float_size = element == LL_FLOAT64 ? 8 : 4;
    int64_t rows = among(0, 300), width = among(1, 150), count = rows * width;
    Array x(count * size), weight(width * size), grad(count * size), result(count * size), inverse(rows * float_size);
    Array of_x(count * size), of_weight(width * size);
    for (Array* array : {&x, &weight, &grad}) fill(*array, element);
    auto norm = [&](int64_t threads) {
        return ll_norm{element, threads, rows,        width,        x.data,    width,     weight.data,
                       1e-5,    1.0,     result.data, inverse.data, grad.data, of_x.data, of_weight.data};
    };
    same("norm", {&result, &inverse}, [&](int64_t threads) {
        ll_norm arguments = norm(threads);
        return ll_norm_forward(&arguments);
    });
    same("gradient of a norm", {&of_x, &of_weight}, [&](int64_t threads) {
        ll_norm arguments = norm(threads);
        return ll_norm_backward(&arguments);
    });
}

void test_gate_and_sum(int64_t element) {
    int64_t size = size_of(element), count = among(0, 300) * among(1, 150);
    Array x(count * size), up(count * size), grad(count * size), result(count * size);
    Array of_x(count * size), of_up(count * size);
    for (Array* array : {&x, &up, &grad}) fill(*array, element);
    for (bool backward : {false, true})
        same(
            "gate", backward ? std::vector<Array*>{&of_x, &of_up} : std::vector<Array*>{&result}, [&](int64_t threads) {
                ll_gate gate{
                    element,   threads,   count, 1.5, 0.1, x.data, up.data, result.data, backward ? grad.data : nullptr,
                    of_x.data, of_up.data};
                return backward ? ll_gate_backward(&gate) : ll_gate_forward(&gate);
            });

    same("sum", {&of_up}, [&](int64_t threads) {
        ll_sum sum{element, threads, count, x.data, up.data, of_up.data};
        return ll_sum_forward(&sum);
    });
    same("steps", {&result, &of_x}, [&](int64_t threads) {
        struct {
            ll_step first;
            ll_sum sum;
            ll_step second;
            ll_gate gate;
        } steps{{LL_SUM, sizeof(ll_sum)},
                {element, threads, count, x.data, up.data, of_x.data},
                {LL_GATE, sizeof(ll_gate)},
                {element, threads, count, 1.0, 0.0, of_x.data, up.data, result.data, nullptr, nullptr, nullptr}};
        return ll_replay(&steps.first, sizeof steps);
    });
}

void test_matmul(int64_t element) {
    int64_t size = size_of(element), rows = among(0, 300);
    if (size > 2) {  // there is none for 16-bit elements
        int64_t steps = among(0, 300), columns = among(0, 140), across = among(0, 3);
        Array left(rows * steps * size), right(steps * columns * size), offset(columns * size),
            product(rows * columns * size);
        for (Array* array : {&left, &right, &offset}) fill(*array, element);
        same("matrices", {&product}, [&](int64_t threads) {
            ll_matmul asked{element,
                            threads,
                            rows,
                            steps,
                            columns,
                            left.data,
                            across & 1 ? 1 : steps,
                            across & 1 ? rows : 1,
                            right.data,
                            across & 2 ? 1 : columns,
                            across & 2 ? steps : 1,
                            offset.data,
                            product.data,
                            columns,
                            0};
            if (int status = ll_matmul_forward(&asked)) return status;
            asked.add = 1, asked.bias = nullptr;
            return ll_matmul_forward(&asked);
        });
    }
}

void test_rotation(int64_t element) {
    int64_t size = size_of(element);
    int64_t B = among(0, 2), H = among(0, 3), L = among(0, 40), turned = 2 * among(0, 40), D = turned + among(0, 3);
    Array heads(B * H * L * D * size), to(B * H * L * D * size), own(L * turned * size), partners(L * turned * size);
    for (Array* array : {&heads, &own, &partners}) fill(*array, element);
    same("rotation", {&to}, [&](int64_t threads) {
        ll_rotation rotation{element,
                             threads,
                             B,
                             H,
                             L,
                             D,
                             turned,
                             {heads.data, {H * L * D, D, H * D, 1}},
                             {to.data, {H * L * D, L * D, D, 1}},
                             own.data,
                             partners.data,
                             0,
                             turned,
                             -1.0};
        return ll_rotation_forward(&rotation);
    });
}

void one_call(int64_t element) {
    test_products(element);
    test_norm(element);
    test_gate_and_sum(element);
    test_matmul(element);
    test_rotation(element);
}

}  // namespace

int main(int argc, char** argv) {
    int64_t calls = argc > 1 ? std::atoll(argv[1]) : 100;
    random_bits.seed(argc > 2 ? (uint64_t)std::atoll(argv[2]) : 1);
    std::string names = ll_isa_list();
    for (size_t begin = 0; begin < names.size();) {
        size_t end = names.find(' ', begin);
        std::string name = names.substr(begin, end - begin);
        begin = end == std::string::npos ? names.size() : end + 1;
        if (ll_select_isa(name.c_str())) return 1;
        for (int64_t n = 0; n < calls && !failed; ++n) one_call(name == "wide" ? 0 : n % LL_ELEMENTS);
        std::printf("%s: %s\n", name.c_str(), failed ? "FAILED" : "passed");
    }
    return failed ? 1 : 0;
}
