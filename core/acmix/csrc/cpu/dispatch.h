// What dispatch.cpp gives the operators, threads and scratch, and what they give it.
#pragma once

#include <stddef.h>

#include "acmix_cpu.h"

namespace acmix {

// Runs work(context, unit, scratch) for every unit in [0, units), each thread with its own scratch.
// Returns 0, or -1 when memory ran out.
using Work = void (*)(void* context, int64_t unit, void* scratch);
int parallel_for(int64_t units, int threads, size_t scratch_bytes, Work work, void* context);

#define ACMIX_OPERATORS(ISA)          \
    namespace ISA {                   \
    int run(const Attention& call);   \
    int run(const Aggregation& call); \
    int run(const Difference& call);  \
    int run(const Convolution& call); \
    }
ACMIX_OPERATORS(baseline)
ACMIX_OPERATORS(avx2)
ACMIX_OPERATORS(avx512)
#undef ACMIX_OPERATORS

}  // namespace acmix
