// The C interface of the CPU library: one struct and one entry point an operator.
//
// Plain C types only: the library is loaded through ctypes and knows nothing of torch, so one build
// serves every torch version. Must match acmix/backends/cpu/library.py.
#pragma once

#include <stdint.h>

namespace acmix {

// To be raised with every change of this file.
constexpr int kAbiVersion = 7;

// kBFloat16 is a type of maps alone, in a call of floats: they are widened as they are read, and
// rounded to the nearest as they are written.
enum Type : int32_t { kFloat = 0, kDouble = 1, kBFloat16 = 2 };

// A tensor seen as (batch, head, channel, row, column); strides count elements. Without data:
// absent.
struct Map {
    void* data;
    int64_t type;
    int64_t stride[5];
};

// The k x k neighbourhood of every query: pixels `dilation` apart around each `stride`-th pixel of
// a map of sizes batch to width; kernel is odd, and threads, kernel, stride and dilation are
// positive. Pixels outside that map are reflected, which needs dilation * (kernel / 2) below height
// and width, or else are zero, or left out of a softmax.
struct Window {
    int32_t backward, type, reflect, threads;
    int64_t batch, heads, depth, height, width, kernel, stride, dilation;
};

// Outputs are fully overwritten, and gradients never alias inputs: `grad` is that of `out`, and an
// input of the backward pass, which writes grad_*. Neither pass touches what only the other needs.

// out, grad and grad_q have the queries' pixels alone, q has all. `position` is taken off the keys
// of every image and head, or absent. lse has one channel: written forward, read backward.
// out = alpha * attention + offset, both for every head and channel or absent; with `add` that is
// added to what is there. Backward, alpha is one number, and grad_alpha its gradient's summands.
struct Attention {
    Window window;
    Map q, k, v, position, out, lse, grad, grad_q, grad_k, grad_v, alpha, offset;
    int64_t add;
    void* grad_alpha;  // (batch, heads), or absent
};

// w and grad_w have the k * k taps of each query as channels.
struct Aggregation {
    Window window;
    Map v, w, out, grad, grad_v, grad_w;
};

// out and grad have the k * k taps of each query as channels; a and b have one channel.
struct Difference {
    Window window;
    Map a, b, out, grad, grad_a, grad_b;
};

// The convolution path. Maps have a layout here: the channels of `input` and `rest` and of their
// gradients are neighbours in memory, and so are the outputs of one channel in `out` and `grad`.
// `input` has the first `split` maps and `rest`, of the same type, the others, if there are any.
struct Convolution {
    int32_t backward, type, threads;
    int32_t ones;                                   // one map more, of ones
    int32_t add;                                    // whether grad_input is added to
    int64_t batch, maps, split, taps, outs, depth;  // taps: maps that the layer makes; 0: no layer
    int64_t height, width, kernel, stride, band;    // band: rows of one unit of work
    const void *layer, *kernels;                    // (taps, maps), (outs, taps, k, k, depth)
    Map input, rest, out, grad, grad_input, grad_rest;  // (batch, map, channel, row, column)
    void *grad_layer, *grad_kernels;                    // a summand for each image and band
};

// The layer of the convolution path folded into its kernels, or these alone where there is none,
// and taps = maps; times `scale`, one number, if there is one. Sizes as above, area = k². Backward
// takes no scale: the gradients are those at a scale of one.
struct Folding {
    int32_t backward, type, threads;
    int64_t outs, taps, maps, area, depth;
    int64_t map_step, tap_step;   // of kernels, in elements: channels first or last
    int64_t summands;             // of grad_folded, as Convolution's grad_kernels has them
    const void *layer, *kernels;  // (taps, maps) or absent, (depth * outs, taps, k, k)
    const void* scale;
    void* folded;             // (outs, maps, k, k, depth): Convolution's kernels
    const void* grad_folded;  // (summands, outs, maps, k, k, depth)
    void* grad_layer;         // (outs, taps, maps), summands of the gradient
    void* grad_kernels;       // as kernels, contiguous
};

// Attention inside the windows of a map, whose sides are multiples of theirs, with L pixels each.
struct Windows {
    int32_t backward, type, threads;
    int64_t batch, heads, depth, height, width, window_height, window_width;
    const void *bias, *mask;  // (heads, L, L); (windows of an image, L, L), or absent
    Map q, k, v, out, grad, grad_q, grad_k, grad_v;
    void* grad_logits;  // (batch, windows of an image, heads, L, L)
};

}  // namespace acmix

#define ACMIX_EXPORT extern "C" __attribute__((visibility("default")))

// The version and the sizes of the structs above, in their order from Attention on, or -1: they
// must equal those that the caller has in mind.
ACMIX_EXPORT int acmix_abi_version();
ACMIX_EXPORT int64_t acmix_struct_size(int which);

// Best instruction set of this machine: 0 baseline, 1 AVX2 + FMA, 2 AVX-512, 3 AVX-512 and AMX.
ACMIX_EXPORT int acmix_best_isa();

// The GOMP_parallel of the OpenMP library whose threads to use, or null for threads of a call's
// own.
ACMIX_EXPORT void acmix_set_pool(void* gomp_parallel);

// 0: done; -1: out of memory; -2: this library lacks the instruction set.
ACMIX_EXPORT int acmix_attention(const acmix::Attention* call, int isa);
ACMIX_EXPORT int acmix_aggregation(const acmix::Aggregation* call, int isa);
ACMIX_EXPORT int acmix_difference(const acmix::Difference* call, int isa);
ACMIX_EXPORT int acmix_convolution(const acmix::Convolution* call, int isa);
ACMIX_EXPORT int acmix_folding(const acmix::Folding* call, int isa);
ACMIX_EXPORT int acmix_windows(const acmix::Windows* call, int isa);
// All three forward, by threads that share the work; of one type and number of threads. The
// convolution may read what the folding writes, and the attention may be added to what the
// convolution writes; of folding and attention there may be none.
ACMIX_EXPORT int acmix_paths(const acmix::Folding* folding, const acmix::Convolution* convolution,
                             const acmix::Attention* attention, int isa);
