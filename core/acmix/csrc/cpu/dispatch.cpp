// Entry points of the library, the choice of instruction set, and threads.
//
// Threads: torch's own OpenMP pool when Python hands over its GOMP_parallel (a second pool would
// fight with torch's spinning workers for the cores), else threads started for the call. Units are
// handed out by an atomic counter, so any team size is correct, down to one. A forked child must
// not use the parent's pool: Python then withdraws the pointer.

#include "dispatch.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <new>
#include <system_error>
#include <thread>
#include <vector>
#if defined(ACMIX_AMX) && defined(ACMIX_X86) && defined(__linux__)
#define ACMIX_ASKS_FOR_TILES 1
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace acmix {

struct Job {
    const Tasks& tasks;
    std::atomic<int64_t> next{0};
    std::atomic<int64_t> left[Tasks::kMost];  // units of each task that are not done

    explicit Job(const Tasks& all) : tasks(all) {
        for (int i = 0; i < tasks.count; i++) left[i] = tasks.task[i].units;
    }
    int64_t units() const {
        int64_t sum = 0;
        for (int i = 0; i < tasks.count; i++) sum += tasks.task[i].units;
        return sum;
    }
    size_t scratch_bytes() const {
        size_t most = 0;
        for (int i = 0; i < tasks.count; i++) most = std::max(most, tasks.task[i].scratch_bytes);
        return most;
    }
};

namespace {

using GompParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
std::atomic<GompParallel> pool{nullptr};

// Scratch that a thread keeps for its next call: fresh pages cost more than the copies into them.
struct Scratch {
    static constexpr size_t kKept = 16 << 20;
    void* data = nullptr;
    size_t bytes = 0;

    void* take(size_t wanted) {
        if (wanted > bytes) {
            release();
            if (posix_memalign(&data, 64, wanted) != 0) return data = nullptr;
            bytes = wanted;
        }
        return data;
    }
    void release() {
        std::free(data);
        data = nullptr, bytes = 0;
    }
    void give_back() {
        if (bytes > kKept) release();
    }
    ~Scratch() { release(); }
};
thread_local Scratch thread_scratch;

void take_units(void* data) {
    Job& job = *static_cast<Job*>(data);
    void* scratch = thread_scratch.take(job.scratch_bytes() + 64);
    if (scratch == nullptr) return;
    int64_t taken;
    while ((taken = job.next.fetch_add(1, std::memory_order_relaxed)) < job.units()) {
        int64_t unit = taken;
        int index = 0;
        while (unit >= job.tasks.task[index].units) unit -= job.tasks.task[index++].units;
        const Task& task = job.tasks.task[index];
        task.work(task.context, unit, scratch, {&job, index});
        job.left[index].fetch_sub(1, std::memory_order_release);
    }
    thread_scratch.give_back();
}

void start_threads(Job& job, int threads) {
    std::vector<std::thread> others;
    try {
        others.reserve(threads - 1);
        for (int i = 1; i < threads; i++) others.emplace_back(take_units, &job);
    } catch (const std::system_error&) {
        // Fewer threads than asked for: those that run take all units.
    }
    take_units(&job);
    for (auto& thread : others) thread.join();
}

template <typename Call>
int run(const Call& call, int isa) {
    if (isa == 0) return baseline::run(call);
#ifdef ACMIX_X86
    if (isa == 1) return avx2::run(call);
    if (isa == 2) return avx512::run(call);
#endif
#ifdef ACMIX_AMX
    if (isa == 3) return amx::run(call);
#endif
    return -2;
}

#define ACMIX_PATHS(ISA)                                                           \
    int ISA##_paths(const Folding* folding, const Convolution& convolution,        \
                    const Attention* attention) {                                  \
        Tasks tasks;                                                               \
        if (folding != nullptr) tasks.add(ISA::task(*folding));                    \
        tasks.add(ISA::task(convolution));                                         \
        if (attention == nullptr) return parallel_for(convolution.threads, tasks); \
        return ISA::run(*attention, tasks);                                        \
    }
ACMIX_PATHS(baseline)
#ifdef ACMIX_X86
ACMIX_PATHS(avx2)
ACMIX_PATHS(avx512)
#endif
#ifdef ACMIX_AMX
ACMIX_PATHS(amx)
#endif
#undef ACMIX_PATHS

// Elsewhere than on Linux nobody is asked, and AVX-512 serves.
bool has_tiles() {
#ifdef ACMIX_ASKS_FOR_TILES
    constexpr unsigned kTiles = 1u << 24 | 1u << 22, kBFloat16s = 1u << 5;  // AMX-TILE, AMX-BF16
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kTiles) != kTiles) return false;
    if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || (a & kBFloat16s) == 0) return false;
    // The kernel saves so large a state only for a process that asked for it.
    constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
    return false;
#endif
}

}  // namespace

void Turn::wait() const {
    for (int i = 0; i < task; i++) {
        // Taken by threads that are running, of which there may be more than processors.
        while (job->left[i].load(std::memory_order_acquire) > 0) std::this_thread::yield();
    }
}

int parallel_for(int threads, const Tasks& tasks) {
    Job job(tasks);
    int64_t units = job.units();
    if (units <= 0) return 0;
    if (threads > units) threads = static_cast<int>(units);
    GompParallel gomp = pool.load();
    if (threads <= 1) {
        take_units(&job);
    } else if (gomp != nullptr) {
        gomp(take_units, &job, static_cast<unsigned>(threads), 0);
    } else {
        try {
            start_threads(job, threads);
        } catch (const std::bad_alloc&) {
            return -1;
        }
    }
    // A thread without scratch took no unit; the call is whole as long as one thread had some.
    return job.next.load() >= units ? 0 : -1;
}

}  // namespace acmix

int acmix_abi_version() { return acmix::kAbiVersion; }

int64_t acmix_struct_size(int which) {
    constexpr int64_t sizes[] = {sizeof(acmix::Attention),  sizeof(acmix::Aggregation),
                                 sizeof(acmix::Difference), sizeof(acmix::Convolution),
                                 sizeof(acmix::Folding),    sizeof(acmix::Windows)};
    return which >= 0 && which < 6 ? sizes[which] : -1;
}

void acmix_set_pool(void* gomp_parallel) {
    acmix::pool = reinterpret_cast<acmix::GompParallel>(gomp_parallel);
}

int acmix_best_isa() {
#ifdef ACMIX_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("fma")) {
        return acmix::has_tiles() ? 3 : 2;
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 1;
#endif
    return 0;
}

int acmix_attention(const acmix::Attention* call, int isa) { return acmix::run(*call, isa); }
int acmix_aggregation(const acmix::Aggregation* call, int isa) { return acmix::run(*call, isa); }
int acmix_difference(const acmix::Difference* call, int isa) { return acmix::run(*call, isa); }
int acmix_convolution(const acmix::Convolution* call, int isa) { return acmix::run(*call, isa); }
int acmix_folding(const acmix::Folding* call, int isa) { return acmix::run(*call, isa); }
int acmix_windows(const acmix::Windows* call, int isa) { return acmix::run(*call, isa); }
int acmix_paths(const acmix::Folding* folding, const acmix::Convolution* convolution,
                const acmix::Attention* attention, int isa) {
    if (isa == 0) return acmix::baseline_paths(folding, *convolution, attention);
#ifdef ACMIX_X86
    if (isa == 1) return acmix::avx2_paths(folding, *convolution, attention);
    if (isa == 2) return acmix::avx512_paths(folding, *convolution, attention);
#endif
#ifdef ACMIX_AMX
    if (isa == 3) return acmix::amx_paths(folding, *convolution, attention);
#endif
    return -2;
}
