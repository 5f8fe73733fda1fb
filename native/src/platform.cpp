#include "platform.h"

#include <stdlib.h>

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
// after windows.h
#include <malloc.h>
#else
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <time.h>
#endif
#if defined(__linux__)
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace limelight {
namespace {

constexpr size_t STACK = 8 << 20;  // bytes

struct Start {
    void (*run)(void*);
    void* context;
};

// Runs what `start_thread` was given.
void run_started(void* given) {
    Start start = *(Start*)given;
    free(given);
    start.run(start.context);
}

#if defined(_WIN32)
DWORD WINAPI entry(void* given) { return run_started(given), 0; }
#else
void* entry(void* given) { return run_started(given), nullptr; }

double seconds_of(clockid_t clock) {
    timespec time;
    clock_gettime(clock, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}
#endif

// Whether the system has started the thread.
bool start_by_system(Start* start) {
#if defined(_WIN32)
    HANDLE thread = CreateThread(nullptr, STACK, entry, start, STACK_SIZE_PARAM_IS_A_RESERVATION, nullptr);
    if (thread) CloseHandle(thread);
    return thread != nullptr;
#else
    sigset_t all, before;
    pthread_attr_t attributes;
    pthread_t thread;
    sigfillset(&all);
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_sigmask(SIG_SETMASK, &all, &before);  // inherited
    bool started = pthread_create(&thread, &attributes, entry, start) == 0;
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    pthread_attr_destroy(&attributes);
    return started;
#endif
}

}  // namespace

bool start_thread(void (*run)(void*), void* context) {
    auto* start = (Start*)malloc(sizeof(Start));
    if (!start) return false;
    *start = {run, context};
    bool started = start_by_system(start);
    if (!started) free(start);
    return started;
}

#if defined(_WIN32)

void* allocate_aligned(size_t bytes) { return _aligned_malloc(bytes, 64); }
void free_aligned(void* memory) { _aligned_free(memory); }

double seconds_now() {
    LARGE_INTEGER count, per_second;
    QueryPerformanceCounter(&count);
    QueryPerformanceFrequency(&per_second);
    return (double)count.QuadPart / (double)per_second.QuadPart;
}

double coarse_seconds_now() { return 1e-3 * (double)GetTickCount64(); }
bool may_handle_signals() { return true; }  // Python checks the thread
void yield_processor() { SwitchToThread(); }

void at_fork(void (*)()) {}
int64_t use_huge_pages(void*, int64_t, double) { return -1; }

// One place for all sleepers: those of another address wake early. (WaitOnAddress is in a library of its own, which
// toolchains know by different names.)
SRWLOCK sleeping = SRWLOCK_INIT;
CONDITION_VARIABLE changed = CONDITION_VARIABLE_INIT;

void sleep_while(const uint32_t* value, uint32_t asleep) {
    AcquireSRWLockExclusive(&sleeping);
    if (__atomic_load_n(value, __ATOMIC_ACQUIRE) == asleep) SleepConditionVariableSRW(&changed, &sleeping, INFINITE, 0);
    ReleaseSRWLockExclusive(&sleeping);
}

void wake(const uint32_t*) {
    AcquireSRWLockExclusive(&sleeping);
    ReleaseSRWLockExclusive(&sleeping);
    WakeAllConditionVariable(&changed);
}

#else

void* allocate_aligned(size_t bytes) {
    void* memory = nullptr;
    return posix_memalign(&memory, 64, bytes) == 0 ? memory : nullptr;
}

void free_aligned(void* memory) { free(memory); }
double seconds_now() { return seconds_of(CLOCK_MONOTONIC); }
void yield_processor() { sched_yield(); }
void at_fork(void (*in_child)()) { pthread_atfork(nullptr, nullptr, in_child); }

#if defined(__linux__)

double coarse_seconds_now() { return seconds_of(CLOCK_MONOTONIC_COARSE); }

int64_t use_huge_pages(void* memory, int64_t bytes, double seconds) {
    constexpr int64_t HUGE_PAGE = 2 << 20, PIECE = 16 * HUGE_PAGE;
    constexpr int COLLAPSE = 25;  // MADV_COLLAPSE of Linux 6.1, which older headers do not have
    int64_t begin = ((int64_t)memory + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    int64_t end = ((int64_t)memory + bytes) / HUGE_PAGE * HUGE_PAGE;
    if (begin >= end) return 0;
    if (madvise((void*)begin, (size_t)(end - begin), MADV_HUGEPAGE)) return -1;
    int64_t at = begin;
    for (double last = seconds_now() + seconds; at < end && seconds_now() < last;) {
        int64_t size = end - at < PIECE ? end - at : PIECE;
        if (madvise((void*)at, (size_t)size, COLLAPSE)) break;  // no memory in one piece, or an older system
        at += size;
    }
    return at - begin;
}

bool may_handle_signals() { return syscall(SYS_gettid) == getpid(); }

void sleep_while(const uint32_t* value, uint32_t asleep) {
    syscall(SYS_futex, value, FUTEX_WAIT_PRIVATE, asleep, nullptr, nullptr, 0);
}

void wake(const uint32_t* value) { syscall(SYS_futex, value, FUTEX_WAKE_PRIVATE, 1, nullptr, nullptr, 0); }

#else

double coarse_seconds_now() { return seconds_now(); }
int64_t use_huge_pages(void*, int64_t, double) { return -1; }
#if defined(__APPLE__)
bool may_handle_signals() { return pthread_main_np() != 0; }
#else
bool may_handle_signals() { return true; }  // Python checks the thread
#endif

// One place for all sleepers: those of another address wake early.
pthread_mutex_t sleeping = PTHREAD_MUTEX_INITIALIZER;
pthread_cond_t changed = PTHREAD_COND_INITIALIZER;

void sleep_while(const uint32_t* value, uint32_t asleep) {
    pthread_mutex_lock(&sleeping);
    if (__atomic_load_n(value, __ATOMIC_ACQUIRE) == asleep) pthread_cond_wait(&changed, &sleeping);
    pthread_mutex_unlock(&sleeping);
}

void wake(const uint32_t*) {
    pthread_mutex_lock(&sleeping);
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&sleeping);
}

#endif
#endif

}  // namespace limelight
