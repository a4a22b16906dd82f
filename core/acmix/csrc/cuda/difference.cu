// Differences of a pixel of one map and a window of another (pairwise self-attention).
//
//   out[b, c, o, p] = a[b, c, stride * p] - b[b, c, stride * p + dilation * o]
//   da[b, c, stride * p] = sum_o g[b, c, o, p]
//   db[b, c, r] = -sum over (o, p) with stride * p + dilation * o -> r of g[b, c, o, p]
//
// o runs row by row over the k x k window; outside the map `b` is zero or reflected. Layout:
// a, b (B, C, height, width), out, g (B, C, k * k, out_h, out_w). A plane is one channel
// of one image; one thread works on one pixel of it. The gathers need no atomics.
//
// On paper (H100: 3.35 TB/s, 132 SMs at 1.755 GHz; k = 7, stride 1, one pixel, e bytes an
// element): forward (49 + 2) e bytes and 49 differences, nearly all bytes written and coalesced;
// 98 loads and stores of a warp take 98 cycles against 450 (float) or 225 (half) for the bytes, so
// all three kernels should stay within 0.8 of the bandwidth floor.
// These kernels have been compiled and emulated on a CPU; they have not been run on a GPU.
#include "common.cuh"

// Grid: blocks_per_plane * planes blocks. K = 0 takes the run-time kernel_size.
template <typename T, int K>
__global__ void __launch_bounds__(128, 6)
    difference_forward(const T* __restrict__ a, const T* __restrict__ b, T* __restrict__ out,
                       int height, int width, int out_h, int out_w, int kernel_size, int stride,
                       int dilation, int reflect, int blocks_per_plane) {
    using A = typename Accumulator<T>::type;
    const int side = K > 0 ? K : kernel_size, pixels = height * width, out_pixels = out_h * out_w;
    const Offset plane = blockIdx.x / blocks_per_plane;
    const int p = blockIdx.x % blocks_per_plane * blockDim.x + threadIdx.x;
    if (p >= out_pixels) return;
    const int y = p / out_w * stride, x = p % out_w * stride, pad = side / 2 * dilation;
    const A centre = load(a + plane * pixels + y * width + x);
    const T* map = b + plane * pixels;
    T* differences = out + plane * side * side * out_pixels + p;

    for (int i = 0; i < side; ++i) {
        const int row = source_index(y + i * dilation - pad, height, reflect);
#pragma unroll
        for (int j = 0; j < side; ++j) {
            const int col = source_index(x + j * dilation - pad, width, reflect);
            const A other = row < 0 || col < 0 ? A(0) : A(load(map + row * width + col));
            store(differences + Offset(i * side + j) * out_pixels, centre - other);
        }
    }
}

// Writes the query positions of da alone; the others must be zero before.
template <typename T, int K>
__global__ void __launch_bounds__(128, 6)
    difference_grad_a(const T* __restrict__ grad, T* __restrict__ da, int height, int width,
                      int out_h, int out_w, int kernel_size, int stride, int blocks_per_plane) {
    using A = typename Accumulator<T>::type;
    const int side = K > 0 ? K : kernel_size, pixels = height * width, out_pixels = out_h * out_w;
    const Offset plane = blockIdx.x / blocks_per_plane;
    const int p = blockIdx.x % blocks_per_plane * blockDim.x + threadIdx.x;
    if (p >= out_pixels) return;
    const T* grads = grad + plane * side * side * out_pixels + p;
    A sum = 0;
#pragma unroll
    for (int o = 0; o < side * side; ++o) sum += A(load(grads + Offset(o) * out_pixels));
    store(da + plane * pixels + p / out_w * stride * width + p % out_w * stride, sum);
}

template <typename T, int K>
__global__ void __launch_bounds__(128, 6)
    difference_grad_b(const T* __restrict__ grad, T* __restrict__ db, int height, int width,
                      int out_h, int out_w, int kernel_size, int stride, int dilation, int reflect,
                      int blocks_per_plane) {
    using A = typename Accumulator<T>::type;
    const int side = K > 0 ? K : kernel_size, pixels = height * width, out_pixels = out_h * out_w;
    const int radius = side / 2, pad = radius * dilation;
    const Offset plane = blockIdx.x / blocks_per_plane;
    const int r = blockIdx.x % blocks_per_plane * blockDim.x + threadIdx.x;
    if (r >= pixels) return;
    const T* grads = grad + plane * side * side * out_pixels;

    A sum = 0;
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
                sum -= A(load(grads + Offset(i * side + j) * out_pixels + y * out_w + x));
            }
        }
    }
    store(db + plane * pixels + r, sum);
}
