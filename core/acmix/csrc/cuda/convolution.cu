// The convolution path: a layer over the maps of each channel, then shift and sum.
//
// For every channel d, with f zero outside the map:
//   f_i[r] = sum_m layer[i][m] map_m[r]                     (without a layer f is the maps)
//   out_n[p] = sum over i, t of kernels[d][n][i][t] f_i[stride * p + t - pad],  pad = k / 2
// A map of ones after the others carries the bias of the layer; its zeros outside the map are the
// padding that comes after the layer. Backward, with g the gradient of out:
//   df_i[r] = sum over n, t of kernels[d][n][i][t] g_n[(r + pad - t) / stride], where that is whole
//   dmap_m[r] = sum_i layer[i][m] df_i[r],   dlayer[i][m] = sum over b, d, r of df_i[r] map_m[r]
//   dkernels[d][n][i][t] = sum over b, p of g_n[p] f_i[stride * p + t - pad]
//
// Layout: maps, dmaps (B, maps, D, height, width); out, g (B, D, outs, out_h, out_w). A plane is
// one channel of one image. Weights come in the accumulator's type, in fours of what they sum to:
// kernels (D, outs / 4, inputs, k * k), for the gradient of the maps (D, inputs / 4, outs, k * k)
// with the taps mirrored, the layer (taps / TAPS, columns) and, transposed, (maps / 4, taps); a
// column is a map or that of ones. Sums of gradients of weights are per block, and the caller adds
// them up in a fixed order: no atomics, so gradients are the same on every run.
//
// A block loads f, or g on the grid of the maps, with its halo into shared memory once; a thread
// then sums ROWS pixels below each other into four outputs, so that a number from shared memory is
// used up to 3 * 3 * 4 times and a weight ROWS times. f is never written.
//
// On paper (H100: 3.35 TB/s, 132 SMs at 1.755 GHz, 14.5 bytes and four instructions of a warp a
// cycle each; one pixel of one channel, e bytes an element, stride 1, k = 3; "floor" is the time of
// the bytes by that of the instructions, at most 1):
//                              bytes  multiply-adds  instructions      cycles  floor, in half
//   12 maps, 4 outs, folded
//     forward                  16 e   432            1.2 for each      4.1     1.0   0.54
//     gradient of the maps     16 e   432            the same          4.1     1.0   0.54
//     gradient of the kernels  16 e   432            1.4, idle lanes   5.7     0.78  0.39
//   24 maps, 8 outs, layer
//     forward                  32 e   648 + 260      1.2, 1.4          9.0     1.0   0.49
//     of maps and layer        56 e   648 + 2 * 216  1.6, 1.3 and 3.7  17      0.93  0.47
//     of the kernels           32 e   648 + 260      1.4, idle lanes   11      0.78  0.39
// A warp takes 27 loads for 144 multiply-adds of the windows, 27 cycles against 36. The layer is
// applied to the halo too, 1.2 times as often. At stride 2 three of four g on the grid of the maps
// are zeros, and multiplied. Torch's path moves 40 e bytes forward where it folds and 98 e where it
// does not: it copies the maps into the order of its groups, and writes f.
// Not counted: the halo, 1.2 reads of each map mostly from the L2; idle lanes, up to a quarter; and
// two lanes of a bank where a warp spans rows. Maps of 7 x 7 are bound by too few threads.
// These kernels have been compiled and emulated on a CPU; they have not been run on a GPU.
#include "convolution.cuh"

// `taps` is the number of maps f, or 0 without a layer.
template <typename T, int K, int S, bool LAYER>
__global__ void __launch_bounds__(128, sizeof(T) == 8 ? 2
                                       : LAYER        ? 3
                                                      : 4)
    convolution_forward(const T* __restrict__ maps,
                        const typename Accumulator<T>::type* __restrict__ kernels,
                        const typename Accumulator<T>::type* __restrict__ layer,
                        T* __restrict__ out, int planes, int depth, int count, int columns,
                        int taps, int outs, int height, int width, int out_h, int out_w,
                        int kernel_size, int stride, int tiles_y, int tiles_x, int chunk) {
    using A = typename Accumulator<T>::type;
    constexpr int ROWS = K > 0 ? 4 : 1, TAPS = K > 0 ? K * K : FOUR;
    const int side = K > 0 ? K : kernel_size, step = S > 0 ? S : min(stride, side);
    const int inputs = LAYER ? taps : columns, area = side * side, pad = side / 2;
    const int pixels = height * width, out_pixels = out_h * out_w;
    const Pixels<ROWS> own(planes, out_h, out_w, tiles_y, tiles_x);
    Tile<A> tile =
        tile_of<A>((blockDim.y * ROWS - 1) * step + side, (blockDim.x - 1) * step + side, chunk);
    const int top = own.y0 * stride - pad, left = own.x0 * stride - pad;
    tile.locate(
        width, [&](int i) { return source_index(top + spread(i, side, stride), height, 0); },
        [&](int i) { return source_index(left + spread(i, side, stride), width, 0); });

    const int image = own.plane / depth, d = own.plane % depth;
    const Offset apart = Offset(depth) * pixels;
    const T* source = maps + image * count * apart + Offset(d) * pixels;
    T* result = out + Offset(own.plane) * outs * out_pixels;
    const Four<A>* weights = as_fours(kernels) + Offset(d) * fours(outs) * inputs * area;
    const A* window = tile.values + threadIdx.y * ROWS * step * tile.width + threadIdx.x * step;

    for (int n0 = 0; n0 < outs; n0 += FOUR, weights += inputs * area) {
        A sum[ROWS][FOUR] = {};
        for (int c0 = 0; c0 < inputs; c0 += chunk) {
            const int loaded = min(chunk, inputs - c0);
            if (n0 == 0 || chunk < inputs) {
                if constexpr (LAYER)
                    tile.template fill_product<TAPS>(source, apart, c0, loaded, count, columns,
                                                     as_fours(layer));
                else
                    tile.fill(source, apart, c0, loaded, count);
            }
            accumulate<K, S, ROWS>(window, tile.width, tile.span, weights + c0 * area, loaded, side,
                                   sum);
        }
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
#pragma unroll
            for (int o = 0; o < FOUR; ++o)
                if (own.valid[r] && n0 + o < outs)
                    store(result + Offset(n0 + o) * out_pixels + own.at[r], sum[r][o]);
        }
    }
}

// sum[t][o] += the products of a row of f, from tap t on, and the gradients beside it.
template <int WIDE, int S, typename A>
__device__ __forceinline__ void add_up_row(const A* f, const Four<A>* g, int count, int step,
                                           A (&sum)[WIDE][FOUR]) {
    constexpr int KEPT = S > 0 && S < WIDE ? WIDE - S : 0;  // Taps that the next pixel has too.
    A window[WIDE];
#pragma unroll
    for (int t = 0; t < KEPT; ++t) window[t + WIDE - KEPT] = f[t];
    for (int x = 0; x < count; ++x, f += step) {
        const Four<A> change = g[x];
#pragma unroll
        for (int t = 0; t < WIDE; ++t) window[t] = t < KEPT ? window[t + WIDE - KEPT] : f[t];
#pragma unroll
        for (int t = 0; t < WIDE; ++t) {
#pragma unroll
            for (int o = 0; o < FOUR; ++o) sum[t][o] += window[t] * change.at[o];
        }
    }
}

// Numbers from one map to the next such that a warp meets 32 banks: lane l, a row of taps or a map
// and its first row after the lane before, is l * width away, and the width is odd.
__device__ __forceinline__ int banked(int size, int rows_apart) {
    return size + (rows_apart + 32 - size % 32) % 32;
}

// Gradient of the kernels: this block's summands, (parts, D, outs, inputs, k * k), over every
// `parts`-th tile of all images. A thread of the (items, slices) has WIDE neighbouring taps of one
// map and four outputs, and sums over every `slices`-th row of a tile. Grid: parts * D blocks.
template <typename T, int K, int S, bool LAYER>
__global__ void __launch_bounds__(128, sizeof(T) == 8 ? 2 : 4)
    convolution_grad_kernels(const T* __restrict__ grad, const T* __restrict__ maps,
                             const typename Accumulator<T>::type* __restrict__ layer,
                             typename Accumulator<T>::type* __restrict__ summands, int images,
                             int depth, int count, int columns, int taps, int outs, int height,
                             int width, int out_h, int out_w, int kernel_size, int stride,
                             int tile_h, int tile_w, int tiles_y, int tiles_x, int chunk,
                             int parts) {
    using A = typename Accumulator<T>::type;
    constexpr int WIDE = K > 0 ? K : 1, TAPS = K > 0 ? K * K : FOUR;
    const int side = K > 0 ? K : kernel_size, step = S > 0 ? S : min(stride, side);
    const int inputs = LAYER ? taps : columns, area = side * side, pad = side / 2;
    const int pixels = height * width, out_pixels = out_h * out_w, tiles = tiles_y * tiles_x;
    const int part = blockIdx.x / depth, d = blockIdx.x % depth;
    const Offset apart = Offset(depth) * pixels;

    Tile<A> tile = tile_of<A>((tile_h - 1) * step + side, ((tile_w - 1) * step + side) | 1, chunk);
    tile.span = banked(tile.size, side * tile.width);
    const int threads = tile.threads, thread = tile.thread;
    Four<A>* const graded =
        reinterpret_cast<Four<A>*>(tile.values + fours(chunk * tile.span) * FOUR);
    const int items = fours(outs) * (area / WIDE);  // For each input.

    for (int c0 = 0; c0 < inputs; c0 += chunk) {
        const int loaded = min(chunk, inputs - c0);
        for (int first = 0; first < loaded * items; first += blockDim.x) {
            // Neighbouring threads have neighbouring rows of taps, then maps, then outputs.
            const int item = first + threadIdx.x, row = item / (side / WIDE);
            const int tap_x = item % (side / WIDE) * WIDE, tap_y = row % side;
            const int c = row / side % loaded, n0 = row / side / loaded * FOUR;
            const bool live = item < loaded * items;
            A sum[WIDE][FOUR] = {};
            for (int share = part; share < images * tiles; share += parts) {
                const int image = share / tiles;
                const int y0 = share % tiles / tiles_x * tile_h, x0 = share % tiles_x * tile_w;
                const int top = y0 * stride - pad, left = x0 * stride - pad;
                tile.locate(
                    width,
                    [&](int i) { return source_index(top + spread(i, side, stride), height, 0); },
                    [&](int i) { return source_index(left + spread(i, side, stride), width, 0); });
                const T* source = maps + image * count * apart + Offset(d) * pixels;
                if constexpr (LAYER)
                    tile.template fill_product<TAPS>(source, apart, c0, loaded, count, columns,
                                                     as_fours(layer));
                else
                    tile.fill(source, apart, c0, loaded, count);
                const int end_y = min(tile_h, out_h - y0), end_x = min(tile_w, out_w - x0);
                const T* grads = grad + (Offset(image) * depth + d) * outs * out_pixels;
                for (int i = thread; i < tile_h * tile_w * fours(outs); i += threads) {
                    const int n = i / (tile_h * tile_w) * FOUR, p = i % (tile_h * tile_w);
                    const int y = p / tile_w, x = p % tile_w;
                    Four<A> value;
#pragma unroll
                    for (int o = 0; o < FOUR; ++o) {
                        value.at[o] = A(0);
                        if (y < end_y && x < end_x && n + o < outs)
                            value.at[o] = load(grads + Offset(n + o) * out_pixels +
                                               (y0 + y) * out_w + x0 + x);
                    }
                    graded[i] = value;
                }
                __syncthreads();
                for (int y = threadIdx.y; live && y < end_y; y += blockDim.y) {
                    const A* f =
                        tile.values + c * tile.span + (y * step + tap_y) * tile.width + tap_x;
                    const Four<A>* g = graded + (n0 / FOUR * tile_h + y) * tile_w;
                    add_up_row<WIDE, S>(f, g, end_x, step, sum);
                }
                __syncthreads();
            }
            // The slices of an item meet in the place of the maps, in their order.
            A* sums = tile.values;
#pragma unroll
            for (int e = 0; e < WIDE * FOUR; ++e)
                sums[e * threads + thread] = sum[e / FOUR][e % FOUR];
            __syncthreads();
            for (int e = threadIdx.y; live && e < WIDE * FOUR; e += blockDim.y) {
                A all = 0;
                for (int s = 0; s < blockDim.y; ++s)
                    all += sums[e * threads + s * blockDim.x + threadIdx.x];
                const int n = n0 + e % FOUR, tap = tap_y * side + tap_x + e / FOUR;
                const Offset row = (Offset(part) * depth + d) * outs + n;
                if (n < outs) summands[(row * inputs + c0 + c) * area + tap] = all;
            }
            __syncthreads();
        }
    }
}
