// What operating systems do differently: memory, clocks, and threads that sleep until they are woken.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace limelight {

// Memory aligned to 64 bytes (null when there is none), and its return.
void* allocate_aligned(size_t bytes);
void free_aligned(void* memory);

// See ll_use_huge_pages.
int64_t use_huge_pages(void* memory, int64_t bytes, double seconds);

double seconds_now();         // never decreases
double coarse_seconds_now();  // accurate to some milliseconds, and faster to read

// Whether Python's signal handlers may be due in this thread: they run in the main thread alone.
bool may_handle_signals();

// Lets another thread run on this processor.
void yield_processor();

// Sleeps while *value is `asleep`; may return early. `wake` wakes at least one sleeper, and never reads *value.
void sleep_while(const uint32_t* value, uint32_t asleep);
void wake(const uint32_t* value);

// Starts a thread that nothing waits for, with 8 MiB of stack and every signal blocked.
bool start_thread(void (*run)(void*), void* context);

// Calls a function in every child of fork().
void at_fork(void (*in_child)());

}  // namespace limelight
