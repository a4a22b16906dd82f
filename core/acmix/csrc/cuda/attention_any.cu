// Sliding-window attention of every size: see attention.cu for equations and layout.
//
// One thread a query or a key, CHANNELS channels of the result at a time; it reads through the
// caches and repeats the dot products for each of them, once more for delta.
// These kernels have been compiled and emulated on a CPU; they have not been run on a GPU.
#include "common.cuh"

constexpr int CHANNELS = 16;

// sum_c a[c] * b[c] over maps of different size.
template <typename A, typename T>
__device__ __forceinline__ A dot(const T* __restrict__ a, int a_pixels, const T* __restrict__ b,
                                 int b_pixels, int channels) {
    A sum = 0;
    for (int c = 0; c < channels; ++c)
        sum += A(load(a + Offset(c) * a_pixels)) * A(load(b + Offset(c) * b_pixels));
    return sum;
}

// sum[c] = keep * sum[c] + weight * map[c] for the channels from c0 on.
template <typename A, typename T>
__device__ __forceinline__ void add(A (&sum)[CHANNELS], A keep, A weight, const T* __restrict__ map,
                                    int pixels, int c0, int channels) {
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c)
        if (c0 + c < channels)
            sum[c] = keep * sum[c] + weight * A(load(map + Offset(c0 + c) * pixels));
}

template <typename A, typename T>
__device__ __forceinline__ void store_all(T* __restrict__ out, const A (&sum)[CHANNELS], A factor,
                                          int pixels, int c0, int channels) {
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c)
        if (c0 + c < channels) store(out + Offset(c0 + c) * pixels, factor * sum[c]);
}

// Grid of the three: blocks_per_plane * planes blocks over the queries or keys of a plane.
template <typename T>
__global__ void __launch_bounds__(128, sizeof(T) == 8 ? 2 : 3)
    attention_forward_any(const T* __restrict__ q, const T* __restrict__ k, const T* __restrict__ v,
                          T* __restrict__ out, typename Accumulator<T>::type* __restrict__ lse,
                          int heads, int q_slots, int v_slots, int channels, int height, int width,
                          int out_h, int out_w, int kernel_size, int stride, int dilation,
                          int reflect, int blocks_per_plane, typename Accumulator<T>::type scale) {
    using A = typename Accumulator<T>::type;
    const int pixels = height * width, out_pixels = out_h * out_w;
    const int head = blockIdx.x / blocks_per_plane;
    const Offset plane = head;
    const int p = blockIdx.x % blocks_per_plane * blockDim.x + threadIdx.x;
    if (p >= out_pixels) return;
    const int top_y = p / out_w * stride - kernel_size / 2 * dilation;
    const int left_x = p % out_w * stride - kernel_size / 2 * dilation;
    const Offset inputs = Offset(channels) * pixels, outputs = Offset(channels) * out_pixels;
    q += slot(head, heads, q_slots, 0) * outputs + p;
    k += plane * inputs;
    v += slot(head, heads, v_slots, 2) * inputs;
    out += plane * outputs + p;

    for (int c0 = 0; c0 < channels; c0 += CHANNELS) {
        A sum[CHANNELS] = {}, top = -infinity(), total = 0;
        for (int o = 0; o < kernel_size * kernel_size; ++o) {
            const int y = source_index(top_y + o / kernel_size * dilation, height, reflect);
            const int x = source_index(left_x + o % kernel_size * dilation, width, reflect);
            if (y < 0 || x < 0) continue;
            const int key = y * width + x;
            const A logit = scale * dot<A>(q, out_pixels, k + key, pixels, channels);
            const A higher = max(top, logit), keep = exp(top - higher),
                    weight = exp(logit - higher);
            top = higher;
            total = keep * total + weight;
            add(sum, keep, weight, v + key, pixels, c0, channels);
        }
        store_all(out, sum, A(1) / total, out_pixels, c0, channels);
        if (c0 == 0) lse[plane * out_pixels + p] = top + log(total);
    }
}

template <typename T>
__global__ void __launch_bounds__(128, sizeof(T) == 8 ? 2 : 3)
    attention_grad_query_any(const T* __restrict__ grad, const T* __restrict__ q,
                             const T* __restrict__ k, const T* __restrict__ v,
                             const typename Accumulator<T>::type* __restrict__ lse,
                             T* __restrict__ dq, typename Accumulator<T>::type* __restrict__ delta,
                             int heads, int q_slots, int v_slots, int channels, int height,
                             int width, int out_h, int out_w, int kernel_size, int stride,
                             int dilation, int reflect, int blocks_per_plane,
                             typename Accumulator<T>::type scale) {
    using A = typename Accumulator<T>::type;
    const int pixels = height * width, out_pixels = out_h * out_w;
    const int head = blockIdx.x / blocks_per_plane;
    const Offset plane = head;
    const int p = blockIdx.x % blocks_per_plane * blockDim.x + threadIdx.x;
    if (p >= out_pixels) return;
    const int top_y = p / out_w * stride - kernel_size / 2 * dilation;
    const int left_x = p % out_w * stride - kernel_size / 2 * dilation;
    const Offset inputs = Offset(channels) * pixels, outputs = Offset(channels) * out_pixels;
    const Offset queries = slot(head, heads, q_slots, 0) * outputs + p;
    q += queries;
    k += plane * inputs;
    v += slot(head, heads, v_slots, 2) * inputs;
    grad += plane * outputs + p;
    const A log_sum = lse[plane * out_pixels + p];
    A mean = 0;
    for (int o = 0; o < kernel_size * kernel_size; ++o) {
        const int y = source_index(top_y + o / kernel_size * dilation, height, reflect);
        const int x = source_index(left_x + o % kernel_size * dilation, width, reflect);
        if (y < 0 || x < 0) continue;
        const int key = y * width + x;
        const A logit = scale * dot<A>(q, out_pixels, k + key, pixels, channels);
        mean += exp(logit - log_sum) * dot<A>(grad, out_pixels, v + key, pixels, channels);
    }
    delta[plane * out_pixels + p] = mean;

    for (int c0 = 0; c0 < channels; c0 += CHANNELS) {
        A sum[CHANNELS] = {};
        for (int o = 0; o < kernel_size * kernel_size; ++o) {
            const int y = source_index(top_y + o / kernel_size * dilation, height, reflect);
            const int x = source_index(left_x + o % kernel_size * dilation, width, reflect);
            if (y < 0 || x < 0) continue;
            const int key = y * width + x;
            const A logit = scale * dot<A>(q, out_pixels, k + key, pixels, channels);
            const A slope = dot<A>(grad, out_pixels, v + key, pixels, channels) - mean;
            add(sum, A(1), exp(logit - log_sum) * slope, k + key, pixels, c0, channels);
        }
        store_all(dq + queries, sum, scale, out_pixels, c0, channels);
    }
}

// First index of the queries within `reach` of key r, and one past the last.
__device__ __forceinline__ int first_within(int r, int reach, int stride) {
    return r <= reach ? 0 : (r - reach + stride - 1) / stride;
}
__device__ __forceinline__ int end_within(int r, int reach, int stride, int out_size) {
    return min(out_size, (r + reach) / stride + 1);
}

template <typename T>
__global__ void __launch_bounds__(128, 2)
    attention_grad_key_any(const T* __restrict__ grad, const T* __restrict__ q,
                           const T* __restrict__ k, const T* __restrict__ v,
                           const typename Accumulator<T>::type* __restrict__ lse,
                           const typename Accumulator<T>::type* __restrict__ delta,
                           T* __restrict__ dk, T* __restrict__ dv, int heads, int q_slots,
                           int v_slots, int channels, int height, int width, int out_h, int out_w,
                           int kernel_size, int stride, int dilation, int reflect,
                           int blocks_per_plane, typename Accumulator<T>::type scale) {
    using A = typename Accumulator<T>::type;
    const int pixels = height * width, out_pixels = out_h * out_w;
    const int head = blockIdx.x / blocks_per_plane;
    const Offset plane = head;
    const int r = blockIdx.x % blocks_per_plane * blockDim.x + threadIdx.x;
    if (r >= pixels) return;
    const int y = r / width, x = r % width, radius = kernel_size / 2, reach = radius * dilation;
    const Offset inputs = Offset(channels) * pixels, outputs = Offset(channels) * out_pixels;
    const Offset values = slot(head, heads, v_slots, 2) * inputs + r;
    q += slot(head, heads, q_slots, 0) * outputs;
    k += plane * inputs + r;
    grad += plane * outputs;
    const int end_y = end_within(y, reach, stride, out_h);
    const int end_x = end_within(x, reach, stride, out_w);

    for (int c0 = 0; c0 < channels; c0 += CHANNELS) {
        A sum_k[CHANNELS] = {}, sum_v[CHANNELS] = {};
        for (int p_y = first_within(y, reach, stride); p_y < end_y; ++p_y) {
            const int count_y = visits(p_y * stride, y, height, radius, dilation, reflect);
            if (count_y == 0) continue;
            for (int p_x = first_within(x, reach, stride); p_x < end_x; ++p_x) {
                const int count =
                    count_y * visits(p_x * stride, x, width, radius, dilation, reflect);
                if (count == 0) continue;
                const int p = p_y * out_w + p_x;
                const Offset row = plane * out_pixels + p;
                const A logit = scale * dot<A>(q + p, out_pixels, k, pixels, channels);
                const A weight = A(count) * exp(logit - lse[row]);
                const A slope =
                    dot<A>(grad + p, out_pixels, v + values, pixels, channels) - delta[row];
                add(sum_k, A(1), weight * slope, q + p, out_pixels, c0, channels);
                add(sum_v, A(1), weight, grad + p, out_pixels, c0, channels);
            }
        }
        store_all(dk + slot(head, heads, v_slots, 1) * inputs + r, sum_k, scale, pixels, c0,
                  channels);
        store_all(dv + values, sum_v, A(1), pixels, c0, channels);
    }
}
