#include "pool.h"

#include "platform.h"

namespace limelight {
namespace {

// How long a thread that waits keeps its processor before it sleeps: longer than what separates two regions of a layer,
// and short for another library's threads that need the processor.
constexpr double SPIN = 50e-6;  // seconds

// Tells the processor that a loop waits for another thread.
void pause_briefly() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb");  // about as long as a pause on x86; `yield` takes one cycle
#endif
}

// Returns when `done()`, at once or after some time, or when SPIN has passed.
template <class Done>
bool spin(const Done& done) {
    constexpr int PAUSES = 16;
    for (double end = 0;;) {
        for (int n = 0; n < PAUSES; ++n) {
            if (done()) return true;
            pause_briefly();
        }
        double now = seconds_now();
        if (end == 0) end = now + SPIN;
        if (now >= end) return done();
    }
}

struct Job {
    Region& region;
    uint32_t ticket;       // unlike those of the jobs before
    uint32_t working = 0;  // threads that have been given the job and have not finished it
};
constexpr uint32_t CALLER_SLEEPS = 1u << 31;  // in `working`

// What a worker is doing, in the lowest bits of `state`; above them, the ticket of its job.
enum State : uint32_t { NOT_STARTED, IDLE, ASLEEP, CLAIMED, GIVEN, WORKING };
constexpr uint32_t TICKET = 8;

struct alignas(128) Worker {
    uint32_t state;
    Job* job;

    bool change(uint32_t from, uint32_t to) {
        return __atomic_compare_exchange_n(&state, &from, to, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED);
    }
    uint32_t now() const { return __atomic_load_n(&state, __ATOMIC_ACQUIRE); }
};

constexpr int64_t MAX_WORKERS = 255;
Worker workers[MAX_WORKERS];
uint32_t last_ticket = 0;
thread_local bool working = false;

bool is_given(uint32_t state) { return state % TICKET == GIVEN; }

void work_on(Worker& worker) {
    Job& job = *worker.job;
    job.region.work(&worker - workers + 1);
    __atomic_store_n(&worker.state, (uint32_t)IDLE, __ATOMIC_RELEASE);
    // The job may be gone after this.
    const uint32_t* address = &job.working;
    if (__atomic_sub_fetch(&job.working, 1, __ATOMIC_ACQ_REL) == CALLER_SLEEPS) wake(address);
}

void worker_loop(void* context) {
    Worker& worker = *(Worker*)context;
    working = true;
    for (;;) {
        uint32_t state = worker.now();
        if (is_given(state)) {
            if (worker.change(state, state - GIVEN + WORKING)) work_on(worker);
        } else if (state == IDLE) {
            if (!spin([&] { return worker.now() != IDLE; })) worker.change(IDLE, ASLEEP);
        } else if (state == ASLEEP) {
            sleep_while(&worker.state, ASLEEP);
        } else {
            pause_briefly();  // claimed: the job follows
        }
    }
}

// Gives a job to a worker that has none; false where there is no such worker in this place.
bool give(Worker& worker, Job& job) {
    uint32_t state = worker.now();
    if (state > ASLEEP || !worker.change(state, CLAIMED)) return false;
    worker.job = &job;
    __atomic_add_fetch(&job.working, 1, __ATOMIC_RELAXED);
    __atomic_store_n(&worker.state, job.ticket + GIVEN, __ATOMIC_RELEASE);
    if (state == ASLEEP) wake(&worker.state);
    if (state != NOT_STARTED || start_thread(worker_loop, &worker)) return true;
    __atomic_store_n(&worker.state, (uint32_t)NOT_STARTED, __ATOMIC_RELEASE);
    __atomic_sub_fetch(&job.working, 1, __ATOMIC_RELAXED);
    return false;
}

}  // namespace

void run_in_pool(Region& region, int64_t threads) {
    Job job{region, __atomic_add_fetch(&last_ticket, TICKET, __ATOMIC_RELAXED)};
    int64_t given = 0, end = 0;
    for (; end < MAX_WORKERS && given < threads - 1; ++end) given += give(workers[end], job);
    working = true;
    region.work(0);
    working = false;
    for (int64_t n = 0; n < end; ++n)  // all tasks are taken
        if (workers[n].change(job.ticket + GIVEN, IDLE)) __atomic_sub_fetch(&job.working, 1, __ATOMIC_RELAXED);
    if (spin([&] { return __atomic_load_n(&job.working, __ATOMIC_ACQUIRE) == 0; })) return;
    uint32_t left = __atomic_or_fetch(&job.working, CALLER_SLEEPS, __ATOMIC_ACQ_REL);
    for (; left != CALLER_SLEEPS; left = __atomic_load_n(&job.working, __ATOMIC_ACQUIRE))
        sleep_while(&job.working, left);
}

bool in_pool() { return working; }

void forget_pool() {
    for (Worker& worker : workers) worker.state = NOT_STARTED;
}

}  // namespace limelight
