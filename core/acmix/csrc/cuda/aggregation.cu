// Neighbourhood aggregation: values weighted by weights of their own for every output pixel.
//
//   out[b, c, p] = sum_o w[b, c mod Cw, o, p] * v[b, c, stride * p + dilation * o]
//   dv[b, c, r]  = sum over (o, p) with stride * p + dilation * o -> r of w[.., o, p] g[b, c, p]
//   dw[b, m, o, p] = sum over c = m mod Cw of g[b, c, p] * v[b, c, stride * p + dilation * o]
//
// o runs row by row over the k x k window; outside the map values are zero or reflected. Layout:
// v, dv (B, C, height, width), out, g (B, C, out_h, out_w), w, dw (B, Cw, k * k, out_h, out_w).
//
// One thread works on one pixel of up to CHANNELS channels that share their weights, so that a
// weight, k * k / (C / Cw) as many numbers as values, is read once. Neighbouring threads read
// neighbouring values, and the windows overlap in the L1 cache. The gathers need no atomics.
//
// On paper (H100: 3.35 TB/s, 132 SMs at 1.755 GHz; k = 7, C / Cw = 8, stride 1, one pixel of the
// eight channels, e bytes an element):
//   forward, dv   (49 + 16) e bytes, 392 multiply-adds, 441 cached loads. A warp takes 441 cycles
//                 for its loads at one a cycle against 573 (float) or 287 (half) for its bytes:
//                 at the floor in float, 0.65 of it in half, if every load hits one cache line;
//                 rows that straddle lines cost up to twice that.
//   dw            (49 + 16) e bytes, 392 multiply-adds, 784 cached loads: 0.7 and 0.35.
// These kernels have been compiled and emulated on a CPU; they have not been run on a GPU.
#include "common.cuh"

constexpr int CHANNELS = 8;

// Grid: blocks_per_plane * B * Cw * chunks blocks over the pixels of a plane, with chunks of
// CHANNELS channels that share a weight. K = 0 takes the run-time kernel_size.
struct Share {
    int batch, group, first, count;  // The channels are first, first + groups, ... (count of them).

    __device__ __forceinline__ Share(int plane, int channels, int groups, int chunks) {
        const int chunk = plane % chunks;
        group = plane / chunks % groups;
        batch = plane / chunks / groups;
        first = group + chunk * CHANNELS * groups;
        count = first < channels ? min(CHANNELS, (channels - first + groups - 1) / groups) : 0;
    }
};

template <typename T, int K>
__global__ void __launch_bounds__(128, 5)
    aggregation_forward(const T* __restrict__ v, const T* __restrict__ w, T* __restrict__ out,
                        int channels, int groups, int chunks, int height, int width, int out_h,
                        int out_w, int kernel_size, int stride, int dilation, int reflect,
                        int blocks_per_plane) {
    using A = typename Accumulator<T>::type;
    const int side = K > 0 ? K : kernel_size, pixels = height * width, out_pixels = out_h * out_w;
    const Share share(blockIdx.x / blocks_per_plane, channels, groups, chunks);
    const int p = blockIdx.x % blocks_per_plane * blockDim.x + threadIdx.x;
    if (p >= out_pixels) return;
    const int top = p / out_w * stride - side / 2 * dilation;
    const int left = p % out_w * stride - side / 2 * dilation;
    const Offset channel = Offset(share.batch) * channels + share.first;
    const T* values = v + channel * pixels;
    const T* weights =
        w + (Offset(share.batch) * groups + share.group) * side * side * out_pixels + p;

    A sum[CHANNELS] = {};
    for (int i = 0; i < side; ++i) {
        const int y = source_index(top + i * dilation, height, reflect);
        if (y < 0) continue;
#pragma unroll
        for (int j = 0; j < side; ++j) {
            const int x = source_index(left + j * dilation, width, reflect);
            if (x < 0) continue;
            const A weight = load(weights + Offset(i * side + j) * out_pixels);
#pragma unroll
            for (int c = 0; c < CHANNELS; ++c)
                if (c < share.count)
                    sum[c] +=
                        weight * A(load(values + Offset(c) * groups * pixels + y * width + x));
        }
    }
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c)
        if (c < share.count) store(out + (channel + Offset(c) * groups) * out_pixels + p, sum[c]);
}

template <typename T, int K>
__global__ void __launch_bounds__(128, 5)
    aggregation_grad_value(const T* __restrict__ grad, const T* __restrict__ w, T* __restrict__ dv,
                           int channels, int groups, int chunks, int height, int width, int out_h,
                           int out_w, int kernel_size, int stride, int dilation, int reflect,
                           int blocks_per_plane) {
    using A = typename Accumulator<T>::type;
    const int side = K > 0 ? K : kernel_size, pixels = height * width, out_pixels = out_h * out_w;
    const int radius = side / 2, pad = radius * dilation;
    const Share share(blockIdx.x / blocks_per_plane, channels, groups, chunks);
    const int r = blockIdx.x % blocks_per_plane * blockDim.x + threadIdx.x;
    if (r >= pixels) return;
    const Offset channel = Offset(share.batch) * channels + share.first;
    const T* grads = grad + channel * out_pixels;
    const T* weights = w + (Offset(share.batch) * groups + share.group) * side * side * out_pixels;

    A sum[CHANNELS] = {};
    for (int image = 0; image < 9; ++image) {
        int t_y, t_x;
        if (!mirror_image(image / 3, r / width, height, pad, reflect, &t_y)) continue;
        if (!mirror_image(image % 3, r % width, width, pad, reflect, &t_x)) continue;
        for (int i = 0; i < side; ++i) {
            const int y = output_index(t_y, i - radius, out_h, stride, dilation);
            if (y < 0) continue;
            for (int j = 0; j < side; ++j) {
                const int x = output_index(t_x, j - radius, out_w, stride, dilation);
                if (x < 0) continue;
                const int p = y * out_w + x;
                const A weight = load(weights + Offset(i * side + j) * out_pixels + p);
#pragma unroll
                for (int c = 0; c < CHANNELS; ++c)
                    if (c < share.count)
                        sum[c] += weight * A(load(grads + Offset(c) * groups * out_pixels + p));
            }
        }
    }
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c)
        if (c < share.count) store(dv + (channel + Offset(c) * groups) * pixels + r, sum[c]);
}

// Grid: blocks_per_plane * B * Cw blocks.
template <typename T, int K>
__global__ void __launch_bounds__(128, 5)
    aggregation_grad_weight(const T* __restrict__ grad, const T* __restrict__ v, T* __restrict__ dw,
                            int channels, int groups, int height, int width, int out_h, int out_w,
                            int kernel_size, int stride, int dilation, int reflect,
                            int blocks_per_plane) {
    using A = typename Accumulator<T>::type;
    const int side = K > 0 ? K : kernel_size, pixels = height * width, out_pixels = out_h * out_w;
    const int plane = blockIdx.x / blocks_per_plane, batch = plane / groups, group = plane % groups;
    const int p = blockIdx.x % blocks_per_plane * blockDim.x + threadIdx.x;
    if (p >= out_pixels) return;
    const int top = p / out_w * stride - side / 2 * dilation;
    const int left = p % out_w * stride - side / 2 * dilation;
    const T* grads = grad + Offset(batch) * channels * out_pixels + p;
    const T* values = v + Offset(batch) * channels * pixels;
    T* out = dw + Offset(plane) * side * side * out_pixels + p;

    for (int i = 0; i < side; ++i) {
        const int y = source_index(top + i * dilation, height, reflect);
        for (int j = 0; j < side; ++j) {
            const int x = source_index(left + j * dilation, width, reflect);
            A sum = 0;
            if (y >= 0 && x >= 0)
                for (int c = group; c < channels; c += groups)
                    sum += A(load(grads + Offset(c) * out_pixels)) *
                           A(load(values + Offset(c) * pixels + y * width + x));
            store(out + Offset(i * side + j) * out_pixels, sum);
        }
    }
}
