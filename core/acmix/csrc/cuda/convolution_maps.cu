// Gradients of the maps and of the layer of the convolution path; see convolution.cu.
#include "convolution.cuh"

constexpr int TRIPLE = 3;  // Maps f of one thread in the gradient of the layer.

// Write or, with `add`, add up to four gradients of maps, from number m0 of `count` on.
template <int ROWS, typename T, typename A>
__device__ __forceinline__ void store_maps(T* __restrict__ dmaps, Offset apart, int m0, int count,
                                           const Pixels<ROWS>& own, int add,
                                           const A (&sum)[ROWS][FOUR]) {
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
#pragma unroll
        for (int o = 0; o < FOUR; ++o) {
            if (!own.valid[r] || m0 + o >= count) continue;
            T* to = dmaps + (m0 + o) * apart + own.at[r];
            store(to, add ? A(load(to)) + sum[r][o] : sum[r][o]);
        }
    }
}

// This block's summand of dlayer, (taps, columns). `df` is (taps, total) in shared memory, `total`
// the pixels of the block, `mine` the place of this thread's among them.
template <int ROWS, typename T, typename A>
__device__ __forceinline__ void add_up_layer(const T* __restrict__ source, Offset apart, int count,
                                             int columns, int taps, const A* df, int total,
                                             const int (&mine)[ROWS], const Pixels<ROWS>& own,
                                             unsigned char* scratch, A* __restrict__ summand) {
    const int threads = blockDim.x * blockDim.y * blockDim.z;
    const int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    const int triples = (taps + TRIPLE - 1) / TRIPLE, side_by_side = min(triples, threads);
    const int slices = threads / side_by_side, slice = thread / side_by_side;
    Four<A>* staged = reinterpret_cast<Four<A>*>(scratch);
    A* sums = reinterpret_cast<A*>(scratch);

    for (int m0 = 0; m0 < columns; m0 += FOUR) {
        for (int first = 0; first < triples; first += side_by_side) {
            __syncthreads();
#pragma unroll
            for (int r = 0; r < ROWS; ++r) {
                Four<A> value;
#pragma unroll
                for (int o = 0; o < FOUR; ++o) {
                    value.at[o] = own.valid[r] && m0 + o < columns ? A(1) : A(0);
                    if (own.valid[r] && m0 + o < count)
                        value.at[o] = load(source + (m0 + o) * apart + own.at[r]);
                }
                staged[mine[r]] = value;
            }
            __syncthreads();
            const int i0 = (first + thread % side_by_side) * TRIPLE;
            A sum[TRIPLE][FOUR] = {};
            for (int p = slice; p < total && slice < slices; p += slices) {
                const Four<A> value = staged[p];
#pragma unroll
                for (int i = 0; i < TRIPLE; ++i) {
                    const A change = i0 + i < taps ? df[(i0 + i) * total + p] : A(0);
#pragma unroll
                    for (int o = 0; o < FOUR; ++o) sum[i][o] += change * value.at[o];
                }
            }
            __syncthreads();
            // One number after another of all threads, for lanes of different banks.
#pragma unroll
            for (int e = 0; e < TRIPLE * FOUR; ++e)
                sums[e * threads + thread] = sum[e / FOUR][e % FOUR];
            __syncthreads();
            for (int e = thread; e < side_by_side * TRIPLE * FOUR; e += threads) {
                const int i = (first + e % side_by_side) * TRIPLE + e / side_by_side / FOUR;
                const int m = m0 + e / side_by_side % FOUR;
                A all = 0;
                for (int s = 0; s < slices; ++s)
                    all += sums[e / side_by_side * threads + s * side_by_side + e % side_by_side];
                if (i < taps && m < columns) summand[i * columns + m] = all;
            }
        }
    }
}

// Gradients of the maps and of the layer. Grid: tiles over the maps.
template <typename T, int K, bool LAYER>
__global__ void __launch_bounds__(128, sizeof(T) == 8 ? 2 : 4)
    convolution_grad_maps(const T* __restrict__ grad, const T* __restrict__ maps,
                          const typename Accumulator<T>::type* __restrict__ kernels,
                          const typename Accumulator<T>::type* __restrict__ layer,
                          T* __restrict__ dmaps, typename Accumulator<T>::type* __restrict__ dlayer,
                          int planes, int depth, int count, int columns, int taps, int outs,
                          int height, int width, int out_h, int out_w, int kernel_size, int stride,
                          int tiles_y, int tiles_x, int chunk, int add) {
    using A = typename Accumulator<T>::type;
    constexpr int ROWS = K > 0 ? 4 : 1;
    const int side = K > 0 ? K : kernel_size, area = side * side, pad = side / 2;
    const int inputs = LAYER ? taps : columns;
    const int pixels = height * width, out_pixels = out_h * out_w;
    const Pixels<ROWS> own(planes, height, width, tiles_y, tiles_x);
    Tile<A> tile = tile_of<A>(blockDim.y * ROWS + side - 1, blockDim.x + side - 1, chunk);
    tile.locate(
        out_w, [&](int i) { return output_index(own.y0 - pad + i, 0, out_h, stride, 1); },
        [&](int i) { return output_index(own.x0 - pad + i, 0, out_w, stride, 1); });

    const int image = own.plane / depth, d = own.plane % depth;
    const Offset apart = Offset(depth) * pixels;
    const Offset origin = image * count * apart + Offset(d) * pixels;
    const T* grads = grad + Offset(own.plane) * outs * out_pixels;
    const Four<A>* weights = as_fours(kernels) + Offset(d) * fours(inputs) * outs * area;
    const A* window = tile.values + threadIdx.y * ROWS * tile.width + threadIdx.x;

    // df of the block, (taps, pixels), after room for g or what add_up_layer needs.
    const int per_plane = blockDim.y * ROWS * blockDim.x, total = per_plane * blockDim.z;
    const int threads = blockDim.x * blockDim.y * blockDim.z;
    A* scratch = tile.values - threadIdx.z * chunk * tile.span;
    A* df = scratch +
            max(max(int(blockDim.z) * chunk * tile.span, FOUR * total), TRIPLE * FOUR * threads);
    int mine[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; ++r)
        mine[r] = threadIdx.z * per_plane + (threadIdx.y * ROWS + r) * blockDim.x + threadIdx.x;

    for (int i0 = 0; i0 < inputs; i0 += FOUR, weights += outs * area) {
        A sum[ROWS][FOUR] = {};
        for (int n0 = 0; n0 < outs; n0 += chunk) {
            const int loaded = min(chunk, outs - n0);
            if (i0 == 0 || chunk < outs) tile.fill(grads, out_pixels, n0, loaded, outs);
            accumulate<K, 1, ROWS>(window, tile.width, tile.span, weights + n0 * area, loaded, side,
                                   sum);
        }
        if constexpr (LAYER) {
#pragma unroll
            for (int r = 0; r < ROWS; ++r) {
#pragma unroll
                for (int o = 0; o < FOUR; ++o)
                    if (i0 + o < taps)
                        df[(i0 + o) * total + mine[r]] = own.valid[r] ? sum[r][o] : A(0);
            }
        } else {
            store_maps(dmaps + origin, apart, i0, count, own, add, sum);
        }
    }
    if constexpr (LAYER) {
        const Four<A>* transposed = as_fours(layer);
        for (int m0 = 0; m0 < count; m0 += FOUR, transposed += taps) {
            A sum[ROWS][FOUR] = {};
            // Each thread reads what it wrote.
            accumulate<1, 1, ROWS>(df + mine[0], blockDim.x, total, transposed, taps, 1, sum);
            store_maps(dmaps + origin, apart, m0, count, own, add, sum);
        }
        add_up_layer(maps + origin, apart, count, columns, taps, df, total, mine, own,
                     reinterpret_cast<unsigned char*>(scratch),
                     dlayer + Offset(blockIdx.x) * taps * columns);
    }
}
