// What dispatch.cpp gives the operators, threads and scratch, and what they give it.
#pragma once

#include <stddef.h>

#include "acmix_cpu.h"

namespace acmix {

// The place of a unit among the tasks of a call.
struct Turn {
    const struct Job* job = nullptr;
    int task = 0;
    // Until the tasks before its own are done.
    void wait() const;
};

// work(context, unit, scratch, turn) for every unit in [0, units), each thread with its own
// scratch.
using Work = void (*)(void* context, int64_t unit, void* scratch, Turn turn);
struct Task {
    int64_t units = 0;
    size_t scratch_bytes = 0;
    Work work = nullptr;
    void* context = nullptr;
};

// Tasks of one call, in the order in which their units are taken.
struct Tasks {
    static constexpr int kMost = 3;
    Task task[kMost];
    int count = 0;
    Tasks() = default;
    Tasks(const Task& only) { add(only); }
    void add(const Task& next) { task[count++] = next; }
};

// Runs tasks at the same time: threads that find no unit of one go on with the next, and units that
// need what an earlier task makes wait for their turn. Returns 0, or -1 when memory ran out.
int parallel_for(int threads, const Tasks& tasks);

#define ACMIX_OPERATORS(ISA)                             \
    namespace ISA {                                      \
    int run(const Attention& call);                      \
    int run(const Aggregation& call);                    \
    int run(const Difference& call);                     \
    int run(const Convolution& call);                    \
    int run(const Folding& call);                        \
    int run(const Windows& call);                        \
    Task task(const Convolution& call);                  \
    Task task(const Folding& call);                      \
    int run(const Attention& call, const Tasks& before); \
    }
ACMIX_OPERATORS(baseline)
ACMIX_OPERATORS(avx2)
ACMIX_OPERATORS(avx512)
#undef ACMIX_OPERATORS

#ifdef ACMIX_AMX
// The variant that ACMIX_AMX names, but attention on maps of bfloat16 is multiplied by tiles.
namespace amx {
int run(const Attention& call, const Tasks& before);
inline int run(const Attention& call) { return run(call, Tasks()); }
template <typename Call>
int run(const Call& call) {
    return ACMIX_AMX::run(call);
}
template <typename Call>
Task task(const Call& call) {
    return ACMIX_AMX::task(call);
}
}  // namespace amx
#endif

}  // namespace acmix
