// The C interface of the CPU kernels and what their source files share.
//
// Plain C types only: the library is loaded through ctypes and knows nothing of torch, so one build
// serves every torch version.
#pragma once

#include <cstddef>
#include <cstdint>

namespace acmix {

// Must match acmix/native/library.py.
enum Op : int32_t {
    kAttentionForward = 0,
    kAttentionBackward = 1,
    kAggregationForward = 2,
    kAggregationBackward = 3,
    kSubtractionForward = 4,
    kSubtractionBackward = 5,
};
enum Type : int32_t { kFloat = 0, kDouble = 1 };

// A tensor seen as (batch, head, channel, row, column); strides count elements.
struct Map {
    void* data;
    int64_t stride[5];
};

// One call. Outputs are fully overwritten; gradients never alias inputs.
struct Call {
    int32_t op, type, reflect, threads;
    int64_t batch, heads, depth, height, width;  // of the map with the keys or values
    int64_t kernel, stride, dilation;
    Map map[8];    // order as documented at each kernel
    Map position;  // of the attention: taken off the keys of every image and head; or no data
};

// One call of the convolution path, see convolution.cpp. Unlike a Call's, maps here have a layout:
// channels of inputs are neighbours in memory, and so are the outputs of one channel.
struct Convolution {
    int32_t backward, type, threads;
    int32_t ones;                                  // one map more, of ones
    int32_t add;                                   // whether grad_in is added to
    int64_t batch, maps, taps, outs, depth;        // taps: maps that the layer makes; 0: no layer
    int64_t height, width, kernel, stride, band;   // band: rows of one unit of work
    const void *layer, *kernels;                   // (taps, maps), (outs, taps, k, k, depth)
    Map in, out, grad_in;                          // (batch, map, channel, row, column)
    void *grad_layer, *grad_kernels;               // a summand for each image and band
};

// Runs work(context, unit, scratch) for every unit in [0, units), each thread with its own scratch.
// Returns 0, or -1 when memory ran out.
using Work = void (*)(void* context, int64_t unit, void* scratch);
int parallel_for(int64_t units, int threads, size_t scratch_bytes, Work work, void* context);

namespace baseline {
int run(const Call& call);
int convolve(const Convolution& call);
}
namespace avx2 {
int run(const Call& call);
int convolve(const Convolution& call);
}
namespace avx512 {
int run(const Call& call);
int convolve(const Convolution& call);
}

}  // namespace acmix
