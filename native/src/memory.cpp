// Memory that threads keep between calls.
#include "library.h"
#include "platform.h"

namespace limelight {
namespace {

struct Memory {
    void* data = nullptr;
    size_t size = 0;
    ~Memory() { free_aligned(data); }
};
thread_local Memory memory;

constexpr size_t MAX_KEPT = 8 << 20;  // bytes of a piece
thread_local Memory kept[4];

}  // namespace

void* scratch(size_t bytes) {
    if (memory.data && memory.size >= bytes) return memory.data;
    free_aligned(memory.data);
    size_t rounded = bytes / 4096 * 4096 + 4096;  // at least one page: null means failure
    memory.data = allocate_aligned(rounded);
    memory.size = memory.data ? rounded : 0;
    return memory.data;
}

void* borrow(size_t& bytes) {
    Memory* best = nullptr;
    for (Memory& piece : kept)
        if (piece.data && piece.size >= bytes && (!best || piece.size < best->size)) best = &piece;
    if (best) {
        void* found = best->data;
        bytes = best->size, best->data = nullptr;
        return found;
    }
    bytes = (bytes + 63) / 64 * 64;
    return allocate_aligned(bytes);
}

void give_back(void* memory, size_t bytes) {
    for (Memory& piece : kept)
        if (memory && !piece.data && bytes <= MAX_KEPT) {
            piece.data = memory, piece.size = bytes;
            return;
        }
    free_aligned(memory);
}

}  // namespace limelight
