// What dispatch.cpp gives the operators, threads and scratch, and what they give it.
#pragma once

#include <stddef.h>

#include "acmix_cpu.h"

namespace acmix {

// work(context, unit, scratch) for every unit in [0, units), each thread with its own scratch.
using Work = void (*)(void* context, int64_t unit, void* scratch);
struct Task {
    int64_t units = 0;
    size_t scratch_bytes = 0;
    Work work = nullptr;
    void* context = nullptr;
};

// Runs a task, and another that may run at the same time: threads that find no unit of the first
// go on with the second. Returns 0, or -1 when memory ran out.
int parallel_for(int threads, const Task& first, const Task& second = {});

#define ACMIX_OPERATORS(ISA)                            \
    namespace ISA {                                     \
    int run(const Attention& call);                     \
    int run(const Aggregation& call);                   \
    int run(const Difference& call);                    \
    int run(const Convolution& call);                   \
    int run(const Folding& call);                       \
    int run(const Windows& call);                       \
    Task task(const Convolution& call);                 \
    int run(const Attention& call, const Task& beside); \
    }
ACMIX_OPERATORS(baseline)
ACMIX_OPERATORS(avx2)
ACMIX_OPERATORS(avx512)
#undef ACMIX_OPERATORS

}  // namespace acmix
