// `parallel` on the library's own threads: every task runs once, from several callers at a time, inside of other tasks,
// after pauses of every length, and in a child of fork().
//
//     threads [calls] [fork, or no-fork] [number of threads: prints how long an empty region takes]
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <thread>
#include <vector>

#if !defined(_WIN32)
#include <sys/wait.h>
#include <unistd.h>
#endif

#include "../src/library.h"
#include "../src/platform.h"

namespace {

struct Counts {
    std::vector<int64_t> of_task;
    bool nested;
};

void task(void* context, int64_t n) {
    auto& counts = *(Counts*)context;
    if (counts.nested) {
        Counts inner{std::vector<int64_t>(5), false};
        limelight::parallel(3, 5, task, &inner);
        for (int64_t count : inner.of_task) counts.of_task[(size_t)n] += count - 1;
    }
    ++counts.of_task[(size_t)n];  // no atomic addition: each task has a place of its own
}

std::atomic<bool> failed = false;

void call(int64_t threads, int64_t tasks, bool nested, int64_t ranges) {
    Counts counts{std::vector<int64_t>((size_t)tasks), nested};
    limelight::parallel(threads, tasks, task, &counts, ranges);
    for (int64_t count : counts.of_task)
        if (count != 1) failed = true;
}

void random_calls(int64_t calls, uint64_t seed) {
    std::mt19937_64 random(seed);
    for (int64_t n = 0; n < calls; ++n) {
        call((int64_t)(random() % 9), (int64_t)(random() % 40), random() % 8 == 0, (int64_t)(random() % 5));
        if (random() % 16 == 0) std::this_thread::sleep_for(std::chrono::microseconds(random() % 200));
    }
}

// Whether a child of fork() computes on several threads.
bool child_works() {
#if defined(_WIN32) || defined(__SANITIZE_THREAD__)  // the sanitizer starts no threads after a fork
    return true;
#else
    int status = 0;
    pid_t child = fork();
    if (child == 0) {
        random_calls(100, 0);
        _exit(failed);
    }
    return waitpid(child, &status, 0) == child && status == 0;
#endif
}

void empty(void*, int64_t) {}

void print_latency(int64_t threads) {
    double best = 1;
    for (int n = 0; n < 200; ++n) {
        double start = limelight::seconds_now();
        for (int i = 0; i < 100; ++i) limelight::parallel(threads, threads, empty, nullptr);
        double taken = (limelight::seconds_now() - start) / 100;
        if (taken < best) best = taken;
    }
    std::printf("an empty region of %d threads: %.2f us\n", (int)threads, 1e6 * best);
}

}  // namespace

int main(int argc, char** argv) {
    int64_t calls = argc > 1 ? std::atoll(argv[1]) : 2000;
    random_calls(calls, 1);
    if ((argc <= 2 || std::string(argv[2]) != "no-fork") && !child_works())
        std::printf("a child of fork() fails\n"), failed = true;
    std::vector<std::thread> callers;
    for (uint64_t seed = 2; seed < 5; ++seed) callers.emplace_back(random_calls, calls, seed);
    for (std::thread& caller : callers) caller.join();
    if (argc > 3) print_latency(std::atoll(argv[3]));
    std::printf("%s\n", failed ? "some tasks did not run once" : "every task ran once");
    return failed;
}
