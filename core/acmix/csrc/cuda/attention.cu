// Sliding-window attention, forward and backward, without a copy of any map per window position.
//
//   logit(p, r) = scale * q_p . k_r          r over the k x k window around stride * p
//   out_p = sum_r softmax_r(logit(p, r)) v_r,   lse_p = log sum_r exp(logit(p, r))
//
// and, with P = exp(logit - lse), g the gradient of out, delta_p = g_p . out_p,
// dS(p, r) = P(p, r) (g_p . v_r - delta_p):
//
//   dq_p = scale * sum_r dS(p, r) k_r
//   dk_r = scale * sum_p m(p, r) dS(p, r) q_p,   dv_r = sum_p m(p, r) P(p, r) g_p
//
// where m(p, r) counts the window offsets of p that lead to key r: more than one next to a
// reflected border. The gather over p needs no atomics, so gradients are the same on every run.
// A position encoding is part of the keys: q_p . position_p is constant over the softmax.
//
// delta is formed as sum_r P(p, r) (g_p . v_r): both factors are at hand.
//
// Layout: q, out, g, dq (planes, D, out_h, out_w), the queries already taken at the stride;
// k, v, dk, dv (planes, D, height, width); lse, delta (planes, out_h, out_w). A plane is one head
// of one image. The planes of an image may lie among others, those of the projections q, k, v one
// after another: q and dq first of `q_slots`, v and dv last of `v_slots`, dk in their middle; k,
// which the position is taken off, by itself.
//
// Two families. The tiled kernels (k = 3, 5, 7; stride 1 or 2; dilation 1) hold all logits of
// ROWS queries in registers and pass the keys through shared memory, some channels at a time.
// Those of attention_any.cu take every size.
//
// On paper (H100: 3.35 TB/s, 132 SMs at 1.755 GHz; one channel of one query, k = 7, stride 1, e
// bytes an element):
//   forward   4 e bytes, 98 multiply-adds, 56 shared loads with ROWS = 2. A warp of 64 queries
//             takes 112 cycles for its loads, the narrowest unit, and 71 (float) or 35 (half)
//             cycles for its bytes: 0.6 of the bandwidth floor in float, 0.3 in half.
//   backward  11 e bytes over both kernels, 343 multiply-adds, 343 shared loads: 0.28 of the
//             floor in float, 0.14 in half.
// Not counted: idle lanes, 12 to 25 % of a block at 56, 28, 14 and 7 pixels; the halo,
// (16 + 6)(8 + 6) / (16 * 8) = 2.4 reads of each key, mostly from the L2; and at stride 2 the
// neighbouring queries' keys, two apart, which take shared memory twice as long. Maps of 7 x 7 are
// bound by too few threads instead.
//
// Matrix units (mma.sync m16n8k16, half precision, sm_80 on) are not used. On paper, forward, for
// 2 x 8 queries and the 8 x 16 keys of their halo, rows padded to whole eights (49 of 128 products
// are wanted), in cycles of one channel of one query: 1.75 today, for the loads; then 0.55 for the
// bytes, 0.25 for the fragments of k and v, 0.2 for the products at 60 % of their peak, and 8 / D
// for the exponentials, of which lanes can't skip those outside the window. So three times as fast
// for D >= 16, at the bandwidth floor. It needs the exchange of row maxima between lanes, and
// fragments whose layout ldmatrix and mma define: the emulator and the PTX interpreter have
// neither, and a kernel that only the compiler has seen is not worth its name here.
// These kernels have been compiled and emulated on a CPU; they have not been run on a GPU.
#include "common.cuh"

extern __shared__ __align__(16) unsigned char shared_memory[];

// One tile of threads and the rectangle of positions that they all read, in chunks of channels.
template <typename A>
struct Tile {
    int tile_y, tile_x;
    int plane;
    bool active;  // False for threads past the last plane: they repeat it and store nothing.
    int width, size, chunk;
    int* index;  // Offset of each position within a channel, -1 outside the map.
    A* values;   // (chunk, size) of this thread's plane.

    __device__ __forceinline__ Tile(int tiles_y, int tiles_x, int planes, int halo_height,
                                    int halo_width, int channels) {
        const int block = blockIdx.x;
        tile_x = block % tiles_x;
        tile_y = block / tiles_x % tiles_y;
        plane = block / tiles_x / tiles_y * blockDim.z + threadIdx.z;
        active = plane < planes;
        plane = active ? plane : planes - 1;
        width = halo_width;
        size = halo_height * halo_width;
        chunk = channels;
        index = reinterpret_cast<int*>(shared_memory);
        A* all = reinterpret_cast<A*>(shared_memory + (size * sizeof(int) + 15) / 16 * 16);
        values = all + threadIdx.z * chunk * size;
    }

    // Fill the table of offsets for a rectangle that starts at (y0, x0).
    __device__ __forceinline__ void locate(int y0, int x0, int height, int map_width, int reflect) {
        const int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
        for (int i = thread; i < size; i += blockDim.x * blockDim.y * blockDim.z) {
            const int y = source_index(y0 + i / width, height, reflect);
            const int x = source_index(x0 + i % width, map_width, reflect);
            index[i] = y < 0 || x < 0 ? -1 : y * map_width + x;
        }
    }

    // Load `count` channels of the rectangle from `map`; all threads of the block take part.
    template <typename T>
    __device__ __forceinline__ void fill(const T* __restrict__ map, int pixels, int count) {
        __syncthreads();
        const int thread = threadIdx.y * blockDim.x + threadIdx.x;
        for (int i = thread; i < size; i += blockDim.x * blockDim.y) {
            const int at = index[i];
            for (int c = 0; c < count; ++c)
                values[c * size + i] = at < 0 ? A(0) : A(load(map + Offset(c) * pixels + at));
        }
        __syncthreads();
    }
};

// sum[r][o] += sum_c own[c][r] * map[c][o] for the windows of ROWS rows, S positions apart, whose
// first corner is `corner`. `at[r]` is the offset of row r within a channel of `own`.
template <int K, int S, int ROWS, typename T, typename A>
__device__ __forceinline__ void correlate(Tile<A>& tile, const T* __restrict__ map, int pixels,
                                          int corner, const T* __restrict__ own, int own_pixels,
                                          const int (&at)[ROWS], int channels,
                                          A (&sum)[ROWS][K * K]) {
    for (int c0 = 0; c0 < channels; c0 += tile.chunk) {
        const int count = min(tile.chunk, channels - c0);
        tile.fill(map + Offset(c0) * pixels, pixels, count);
        for (int c = 0; c < count; ++c) {
            A mine[ROWS];
#pragma unroll
            for (int r = 0; r < ROWS; ++r)
                mine[r] = load(own + Offset(c0 + c) * own_pixels + at[r]);
            const A* window = tile.values + c * tile.size + corner;
#pragma unroll
            for (int y = 0; y < (ROWS - 1) * S + K; ++y) {
#pragma unroll
                for (int x = 0; x < K; ++x) {
                    const A other = window[y * tile.width + x];
#pragma unroll
                    for (int r = 0; r < ROWS; ++r)
                        if (y >= r * S && y < r * S + K)
                            sum[r][(y - r * S) * K + x] += mine[r] * other;
                }
            }
        }
    }
}

// out[c][r] = factor[r] * sum_o weight[r][o] * map[c][o], stored where valid[r].
template <int K, int S, int ROWS, typename T, typename A>
__device__ __forceinline__ void combine(Tile<A>& tile, const T* __restrict__ map, int pixels,
                                        int corner, const A (&weight)[ROWS][K * K],
                                        const A (&factor)[ROWS], int channels, T* __restrict__ out,
                                        int out_pixels, const int (&at)[ROWS],
                                        const bool (&valid)[ROWS]) {
    for (int c0 = 0; c0 < channels; c0 += tile.chunk) {
        const int count = min(tile.chunk, channels - c0);
        tile.fill(map + Offset(c0) * pixels, pixels, count);
        for (int c = 0; c < count; ++c) {
            A sum[ROWS] = {};
            const A* window = tile.values + c * tile.size + corner;
#pragma unroll
            for (int y = 0; y < (ROWS - 1) * S + K; ++y) {
#pragma unroll
                for (int x = 0; x < K; ++x) {
                    const A other = window[y * tile.width + x];
#pragma unroll
                    for (int r = 0; r < ROWS; ++r)
                        if (y >= r * S && y < r * S + K)
                            sum[r] += weight[r][(y - r * S) * K + x] * other;
                }
            }
#pragma unroll
            for (int r = 0; r < ROWS; ++r)
                if (valid[r]) store(out + Offset(c0 + c) * out_pixels + at[r], factor[r] * sum[r]);
        }
    }
}

__device__ __forceinline__ bool is_inside(int y, int x, int height, int width) {
    return y >= 0 && y < height && x >= 0 && x < width;
}

// Grid: tiles_x * tiles_y * ceil(planes / blockDim.z) blocks of (columns, rows / ROWS, planes).
template <typename T, int K, int S, int ROWS>
__global__ void __launch_bounds__(128, 1)
    attention_forward(const T* __restrict__ q, const T* __restrict__ k, const T* __restrict__ v,
                      T* __restrict__ out, typename Accumulator<T>::type* __restrict__ lse,
                      int planes, int heads, int q_slots, int v_slots, int channels, int height,
                      int width, int out_h, int out_w, int tiles_y, int tiles_x, int chunk,
                      int reflect, typename Accumulator<T>::type scale) {
    using A = typename Accumulator<T>::type;
    Tile<A> tile(tiles_y, tiles_x, planes, (blockDim.y * ROWS - 1) * S + K,
                 (blockDim.x - 1) * S + K, chunk);
    const int y0 = tile.tile_y * blockDim.y * ROWS, x0 = tile.tile_x * blockDim.x;
    tile.locate(y0 * S - K / 2, x0 * S - K / 2, height, width, reflect);

    // Threads past the map's edge repeat its last row or column and store nothing.
    const int pixels = height * width, out_pixels = out_h * out_w;
    const int x = min(x0 + int(threadIdx.x), out_w - 1);
    int ys[ROWS], at[ROWS];
    bool valid[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        const int y = y0 + threadIdx.y * ROWS + r;
        ys[r] = min(y, out_h - 1);
        at[r] = ys[r] * out_w + x;
        valid[r] = tile.active && y < out_h && x0 + int(threadIdx.x) < out_w;
    }
    const Offset plane = tile.plane;
    const Offset inputs = Offset(channels) * pixels, outputs = Offset(channels) * out_pixels;
    q += slot(tile.plane, heads, q_slots, 0) * outputs;
    k += plane * inputs;
    v += slot(tile.plane, heads, v_slots, 2) * inputs;
    const int corner = threadIdx.y * ROWS * S * tile.width + threadIdx.x * S;

    A weight[ROWS][K * K] = {};
    correlate<K, S, ROWS>(tile, k, pixels, corner, q, out_pixels, at, channels, weight);
    A factor[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        A top = -infinity(), total = 0;
#pragma unroll
        for (int o = 0; o < K * K; ++o) {
            const int key_y = ys[r] * S + o / K - K / 2, key_x = x * S + o % K - K / 2;
            const bool seen = reflect || is_inside(key_y, key_x, height, width);
            weight[r][o] = seen ? weight[r][o] * scale : A(-infinity());
            top = max(top, weight[r][o]);
        }
#pragma unroll
        for (int o = 0; o < K * K; ++o) {
            weight[r][o] = exp(weight[r][o] - top);
            total += weight[r][o];
        }
        factor[r] = A(1) / total;
        if (valid[r]) lse[plane * out_pixels + at[r]] = top + log(total);
    }
    combine<K, S, ROWS>(tile, v, pixels, corner, weight, factor, channels, out + plane * outputs,
                        out_pixels, at, valid);
}

// dq and delta, one thread a query. Same grid as the forward kernel with ROWS = 1.
template <typename T, int K, int S>
__global__ void __launch_bounds__(128, sizeof(T) == 8 ? 1 : 3)
    attention_grad_query(const T* __restrict__ grad, const T* __restrict__ q,
                         const T* __restrict__ k, const T* __restrict__ v,
                         const typename Accumulator<T>::type* __restrict__ lse, T* __restrict__ dq,
                         typename Accumulator<T>::type* __restrict__ delta, int planes, int heads,
                         int q_slots, int v_slots, int channels, int height, int width, int out_h,
                         int out_w, int tiles_y, int tiles_x, int chunk, int reflect,
                         typename Accumulator<T>::type scale) {
    using A = typename Accumulator<T>::type;
    Tile<A> tile(tiles_y, tiles_x, planes, (blockDim.y - 1) * S + K, (blockDim.x - 1) * S + K,
                 chunk);
    const int y0 = tile.tile_y * blockDim.y, x0 = tile.tile_x * blockDim.x;
    tile.locate(y0 * S - K / 2, x0 * S - K / 2, height, width, reflect);

    const int pixels = height * width, out_pixels = out_h * out_w;
    const int y = min(y0 + int(threadIdx.y), out_h - 1), x = min(x0 + int(threadIdx.x), out_w - 1);
    const int at[1] = {y * out_w + x};
    const bool valid[1] = {tile.active && y0 + int(threadIdx.y) < out_h &&
                           x0 + int(threadIdx.x) < out_w};
    const Offset plane = tile.plane;
    const Offset inputs = Offset(channels) * pixels, outputs = Offset(channels) * out_pixels;
    const Offset queries = slot(tile.plane, heads, q_slots, 0) * outputs;
    const Offset query = plane * out_pixels + at[0];
    const int corner = threadIdx.y * S * tile.width + threadIdx.x * S;
    k += plane * inputs;
    v += slot(tile.plane, heads, v_slots, 2) * inputs;

    A weight[1][K * K] = {}, slope[1][K * K] = {};
    correlate<K, S, 1>(tile, k, pixels, corner, q + queries, out_pixels, at, channels, weight);
    const A log_sum = lse[query];
#pragma unroll
    for (int o = 0; o < K * K; ++o) {
        const int key_y = y * S + o / K - K / 2, key_x = x * S + o % K - K / 2;
        const bool seen = reflect || is_inside(key_y, key_x, height, width);
        weight[0][o] = seen ? exp(weight[0][o] * scale - log_sum) : A(0);
    }
    correlate<K, S, 1>(tile, v, pixels, corner, grad + plane * outputs, out_pixels, at, channels,
                       slope);
    A mean = 0;
#pragma unroll
    for (int o = 0; o < K * K; ++o) mean += weight[0][o] * slope[0][o];
    if (valid[0]) delta[query] = mean;
#pragma unroll
    for (int o = 0; o < K * K; ++o) weight[0][o] *= slope[0][o] - mean;
    const A factor[1] = {scale};
    combine<K, S, 1>(tile, k, pixels, corner, weight, factor, channels, dq + queries, out_pixels,
                     at, valid);
}

// First query, on the query grid, whose window can hold key r: ceil((r - K / 2) / S).
template <int K, int S>
__device__ __forceinline__ int first_query(int r) {
    return (r - K / 2 + S - 1 + S * K) / S - K;
}

// Blocks of a multiprocessor that the registers of the next kernel shall leave room for. As it is
// compiled for sm_90 and later, the third of the largest windows would cost spills.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
constexpr int LARGE_KEY_BLOCKS = 2;
#else
constexpr int LARGE_KEY_BLOCKS = 3;
#endif
template <typename T, int K, int S>
constexpr int KEY_BLOCKS = sizeof(T) == 8     ? 1
                           : K == 7 && S == 1 ? LARGE_KEY_BLOCKS
                                              : 3;

// dk and dv, one thread a key, gathered over the J x J queries whose window can hold the key:
// a reflected window position is never farther from the query than its mirror image.
// Grid: tiles over the keys.
template <typename T, int K, int S>
__global__ void __launch_bounds__(128, KEY_BLOCKS<T, K, S>)
    attention_grad_key(const T* __restrict__ grad, const T* __restrict__ q, const T* __restrict__ k,
                       const T* __restrict__ v,
                       const typename Accumulator<T>::type* __restrict__ lse,
                       const typename Accumulator<T>::type* __restrict__ delta, T* __restrict__ dk,
                       T* __restrict__ dv, int planes, int heads, int q_slots, int v_slots,
                       int channels, int height, int width, int out_h, int out_w, int tiles_y,
                       int tiles_x, int chunk, int reflect, typename Accumulator<T>::type scale) {
    using A = typename Accumulator<T>::type;
    constexpr int J = (K + S - 1) / S;
    Tile<A> tile(tiles_y, tiles_x, planes, (blockDim.y + S - 2) / S + J,
                 (blockDim.x + S - 2) / S + J, chunk);
    const int y0 = tile.tile_y * blockDim.y, x0 = tile.tile_x * blockDim.x;
    tile.locate(first_query<K, S>(y0), first_query<K, S>(x0), out_h, out_w, 0);

    const int pixels = height * width, out_pixels = out_h * out_w;
    const int y = min(y0 + int(threadIdx.y), height - 1), x = min(x0 + int(threadIdx.x), width - 1);
    const int at[1] = {y * width + x};
    const bool valid[1] = {tile.active && y0 + int(threadIdx.y) < height &&
                           x0 + int(threadIdx.x) < width};
    const Offset plane = tile.plane;
    const Offset inputs = Offset(channels) * pixels, outputs = Offset(channels) * out_pixels;
    const Offset values = slot(tile.plane, heads, v_slots, 2) * inputs;
    q += slot(tile.plane, heads, q_slots, 0) * outputs;
    grad += plane * outputs;
    const int query_y = first_query<K, S>(y), query_x = first_query<K, S>(x);
    const int corner =
        (query_y - first_query<K, S>(y0)) * tile.width + query_x - first_query<K, S>(x0);

    A weight[1][J * J] = {}, slope[1][J * J] = {};
    correlate<J, 1, 1>(tile, q, out_pixels, corner, k + plane * inputs, pixels, at, channels,
                       weight);
#pragma unroll
    for (int i = 0; i < J; ++i) {
        const int p_y = query_y + i;
        const bool row = p_y >= 0 && p_y < out_h;
        const int count_y = row ? visits(p_y * S, y, height, K / 2, 1, reflect) : 0;
#pragma unroll
        for (int j = 0; j < J; ++j) {
            const int p_x = query_x + j;
            const bool inside = row && p_x >= 0 && p_x < out_w;
            const int count = inside ? count_y * visits(p_x * S, x, width, K / 2, 1, reflect) : 0;
            const A log_sum = inside ? lse[plane * out_pixels + p_y * out_w + p_x] : A(0);
            const A once = exp(weight[0][i * J + j] * scale - log_sum);
            weight[0][i * J + j] = count == 0 ? A(0) : A(count) * once;
        }
    }
    const A one[1] = {A(1)}, factor[1] = {scale};
    combine<J, 1, 1>(tile, grad, out_pixels, corner, weight, one, channels, dv + values, pixels, at,
                     valid);
    correlate<J, 1, 1>(tile, grad, out_pixels, corner, v + values, pixels, at, channels, slope);
#pragma unroll
    for (int j = 0; j < J * J; ++j) {
        const int p_y = query_y + j / J, p_x = query_x + j % J;
        if (is_inside(p_y, p_x, out_h, out_w))
            weight[0][j] *= slope[0][j] - delta[plane * out_pixels + p_y * out_w + p_x];
    }
    combine<J, 1, 1>(tile, q, out_pixels, corner, weight, factor, channels,
                     dk + slot(tile.plane, heads, v_slots, 1) * inputs, pixels, at, valid);
}
