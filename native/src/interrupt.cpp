#include "interrupt.h"

#include "platform.h"

namespace limelight {

constinit thread_local SignalPoll signal_poll;

namespace {

struct PythonFunctions {
    int (*acquire)(void);
    void (*release)(int);
    int (*check)(void);
    void (*fetch)(void**, void**, void**);
};
PythonFunctions python;
bool has_python = false;
void* exception[3];  // type, value and traceback, raised by a handler in the main thread

// Runs Python's signal handlers when they are due; returns whether one has raised an exception.
bool poll_signals() {
    constexpr double FIRST_POLL = 0.2, POLL_INTERVAL = 0.1;  // seconds
    double time = coarse_seconds_now();
    if (signal_poll.due == 0) signal_poll.due = time + FIRST_POLL;
    if (time < signal_poll.due) return false;
    signal_poll.due = time + POLL_INTERVAL;
    if (!__atomic_load_n(&has_python, __ATOMIC_ACQUIRE) || !may_handle_signals()) return false;
    signal_poll.in_handler = true;
    int state = python.acquire();
    bool raised = python.check() != 0;
    if (raised) python.fetch(exception, exception + 1, exception + 2);
    python.release(state);
    signal_poll.in_handler = false;
    return raised;
}

}  // namespace

bool interrupted() {
    constexpr int CALLS_PER_POLL = 16;  // a call comes every few microseconds, and the clock takes a quarter of one
    return signal_poll.in_call && !signal_poll.in_handler && ++signal_poll.skipped % CALLS_PER_POLL == 0 &&
           poll_signals();
}

}  // namespace limelight

using namespace limelight;

void ll_set_signal_functions(int (*acquire)(void), void (*release)(int), int (*check)(void),
                             void (*fetch)(void**, void**, void**)) {
    python = {acquire, release, check, fetch};
    __atomic_store_n(&has_python, true, __ATOMIC_RELEASE);
}

void ll_take_exception(void** to) {
    for (int n = 0; n < 3; ++n) to[n] = exception[n], exception[n] = nullptr;
}
