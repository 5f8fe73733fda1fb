// Python's signal handlers, which run during a long call (see ll_set_signal_functions).
#pragma once

#include "library.h"

namespace limelight {

// The state of polling for signals in one thread.
struct SignalPoll {
    bool in_call = false, in_handler = false;  // whether a call is running; whether it is running Python's handlers
    int skipped = 0;                           // calls of `interrupted`, of which only some read the clock
    double due = 0;                            // when handlers run next; 0: not set in this call
};
extern constinit thread_local SignalPoll signal_poll;

// During its lifetime, `interrupted` polls for signals in this thread.
struct ActiveCall {
    bool before = signal_poll.in_call;
    ActiveCall() {
        if (!before) signal_poll.in_call = true, signal_poll.due = 0;
    }
    ~ActiveCall() { signal_poll.in_call = before; }
    ActiveCall(const ActiveCall&) = delete;
};

}  // namespace limelight
