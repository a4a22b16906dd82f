// What the kernels of the convolution path share: tiles of maps in shared memory, and their sums.
#include "common.cuh"

extern __shared__ __align__(16) unsigned char shared_memory[];

constexpr int FOUR = 4;
constexpr int POSITIONS = 4;  // Of one thread while the layer's product is formed.

template <typename A>
struct __align__(16) Four {
    A at[FOUR];
};

template <typename A>
__device__ __forceinline__ const Four<A>* as_fours(const A* numbers) {
    return reinterpret_cast<const Four<A>*>(numbers);
}

__device__ __forceinline__ constexpr int fours(int count) { return (count + FOUR - 1) / FOUR; }

// Where window position i of a tile lies, from the tile's first one: strides wider than the window
// leave out what no window has.
__device__ __forceinline__ int spread(int i, int side, int stride) {
    return stride <= side ? i : i / side * stride + i % side;
}

// One tile of a plane: the offsets of its positions within a map, and what was loaded of them.
template <typename A>
struct Tile {
    int width, size, span;  // Columns, positions, and numbers from one map to the next.
    int* index;             // -1 outside the map.
    A* values;              // (chunk, span) of this thread's plane.
    int thread, threads;    // Of those that load it.

    // The table of offsets; `source_y`, `source_x` give -1 outside. All threads of the block fill.
    template <typename Y, typename X>
    __device__ __forceinline__ void locate(int map_width, Y source_y, X source_x) {
        const int all = blockDim.x * blockDim.y * blockDim.z;
        const int first = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
        for (int i = first; i < size; i += all) {
            const int y = source_y(i / width), x = source_x(i % width);
            index[i] = y < 0 || x < 0 ? -1 : y * map_width + x;
        }
    }

    // `count` maps from number `c0` on, `apart` elements from each other; those after `maps` are
    // ones.
    template <typename T>
    __device__ __forceinline__ void fill(const T* __restrict__ source, Offset apart, int c0,
                                         int count, int maps) {
        __syncthreads();
        for (int i = thread; i < size; i += threads) {
            const int at = index[i];
            for (int c = 0; c < count; ++c) {
                A value = at < 0 ? A(0) : A(1);
                if (at >= 0 && c0 + c < maps) value = load(source + (c0 + c) * apart + at);
                values[c * span + i] = value;
            }
        }
        __syncthreads();
    }

    // `count` maps of the layer's product from number `c0`, a multiple of TAPS, on.
    template <int TAPS, typename T>
    __device__ __forceinline__ void fill_product(const T* __restrict__ source, Offset apart, int c0,
                                                 int count, int maps, int columns,
                                                 const Four<A>* __restrict__ layer) {
        constexpr int WIDTH = fours(TAPS);
        __syncthreads();
        for (int first = thread; first < size; first += threads * POSITIONS) {
            int at[POSITIONS];
#pragma unroll
            for (int j = 0; j < POSITIONS; ++j) {
                const int i = first + j * threads;
                at[j] = i < size ? index[i] : -1;
            }
            for (int t0 = 0; t0 < count; t0 += TAPS) {
                const Four<A>* weights = layer + (c0 + t0) / TAPS * columns * WIDTH;
                A sum[POSITIONS][TAPS] = {};
                for (int m = 0; m < columns; ++m) {
                    Four<A> weight[WIDTH];
#pragma unroll
                    for (int w = 0; w < WIDTH; ++w) weight[w] = weights[m * WIDTH + w];
#pragma unroll
                    for (int j = 0; j < POSITIONS; ++j) {
                        A value = A(1);
                        if (m < maps)
                            value = at[j] < 0 ? A(0) : A(load(source + m * apart + at[j]));
#pragma unroll
                        for (int t = 0; t < TAPS; ++t)
                            sum[j][t] += weight[t / FOUR].at[t % FOUR] * value;
                    }
                }
#pragma unroll
                for (int j = 0; j < POSITIONS; ++j) {
                    const int i = first + j * threads;
#pragma unroll
                    for (int t = 0; t < TAPS; ++t)
                        if (i < size && t0 + t < count)
                            values[(t0 + t) * span + i] = at[j] < 0 ? A(0) : sum[j][t];
                }
            }
        }
        __syncthreads();
    }
};

// sum[r][o] += the windows of ROWS rows, S positions apart, in one map, under their weights.
// K = 0 takes the run-time `side`, and one row.
template <int K, int S, int ROWS, typename A>
__device__ __forceinline__ void accumulate_map(const A* values, int width, const Four<A>* weights,
                                               int side, A (&sum)[ROWS][FOUR]) {
    if constexpr (K == 0) {
        for (int t = 0; t < side * side; ++t) {
            const Four<A> weight = weights[t];
            const A other = values[t / side * width + t % side];
#pragma unroll
            for (int o = 0; o < FOUR; ++o) sum[0][o] += weight.at[o] * other;
        }
    } else {
#pragma unroll
        for (int x = 0; x < K; ++x) {
            Four<A> weight[K];
#pragma unroll
            for (int y = 0; y < K; ++y) weight[y] = weights[y * K + x];
#pragma unroll
            for (int y = 0; y < (ROWS - 1) * S + K; ++y) {
                const A other = values[y * width + x];
#pragma unroll
                for (int r = 0; r < ROWS; ++r) {
                    if (y < r * S || y >= r * S + K) continue;
#pragma unroll
                    for (int o = 0; o < FOUR; ++o) sum[r][o] += weight[y - r * S].at[o] * other;
                }
            }
        }
    }
}

// The same over `count` maps. Four of them are summed by themselves first: long sums in one go
// lose digits.
template <int K, int S, int ROWS, typename A>
__device__ __forceinline__ void accumulate(const A* values, int width, int span,
                                           const Four<A>* __restrict__ weights, int count, int side,
                                           A (&sum)[ROWS][FOUR]) {
    for (int c0 = 0; c0 < count; c0 += FOUR) {
        A part[ROWS][FOUR] = {};
        for (int c = c0; c < min(c0 + FOUR, count); ++c)
            accumulate_map<K, S, ROWS>(values + c * span, width, weights + c * side * side, side,
                                       part);
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
#pragma unroll
            for (int o = 0; o < FOUR; ++o) sum[r][o] += part[r][o];
        }
    }
}

// The pixels of a thread in a grid of tiles_x * tiles_y * ceil(planes / blockDim.z) blocks of
// (columns, rows / ROWS, planes).
template <int ROWS>
struct Pixels {
    int y0, x0;  // Of the tile.
    int plane;
    int at[ROWS];
    bool valid[ROWS];

    __device__ __forceinline__ Pixels(int planes, int height, int width, int tiles_y, int tiles_x) {
        const int block = blockIdx.x;
        x0 = block % tiles_x * blockDim.x;
        y0 = block / tiles_x % tiles_y * blockDim.y * ROWS;
        // Threads past the last plane repeat it and store nothing.
        plane = block / tiles_x / tiles_y * blockDim.z + threadIdx.z;
        const bool active = plane < planes;
        plane = active ? plane : planes - 1;
        const int x = x0 + threadIdx.x;
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            const int y = y0 + threadIdx.y * ROWS + r;
            valid[r] = active && y < height && x < width;
            at[r] = valid[r] ? y * width + x : 0;
        }
    }
};

// The shared memory of a block: the table, then `chunk` maps for each plane.
template <typename A>
__device__ __forceinline__ Tile<A> tile_of(int height, int width, int chunk) {
    Tile<A> tile;
    tile.width = width;
    tile.size = tile.span = height * width;
    tile.index = reinterpret_cast<int*>(shared_memory);
    A* all = reinterpret_cast<A*>(shared_memory + (tile.size * sizeof(int) + 15) / 16 * 16);
    tile.values = all + threadIdx.z * chunk * tile.span;
    tile.thread = threadIdx.y * blockDim.x + threadIdx.x;
    tile.threads = blockDim.x * blockDim.y;
    return tile;
}
