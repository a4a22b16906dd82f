// The convolution path on the CPU: a layer over the maps of each channel, then shift and sum.
//
// For every channel d, with f zero outside the image:
//     f_i[p] = sum_m layer[i][m] in_m[d][p]                    (i < taps; without a layer f = in)
//     out[d][n][p] = sum_(i,t) kernels[n][i][t][d] f_i[stride * p + t - k / 2]
// A map of ones after the others carries the bias of the layer, and its zeros outside the image
// are the padding that comes after the layer. Backward, with g the gradient of out on the grid of
// the input, zero between the strides:
//     df_i[p] = sum_(n,t) kernels[n][i][t] g_n[p - t + k / 2],  din_m = sum_i layer[i][m] df_i
//     dkernels[n][i][t] = sum_p g_n[p] f_i[p + t - k / 2],  dlayer[i][m] = sum_p df_i[p] in_m[p]
// So two loops serve everything: `stencil`, forward and its transpose, the layer being one of a
// single tap, and `correlate`, whose sums are the gradients of weights.
//
// Vector lanes are neighbouring channels: they share no weights, so a weight is a vector too, and
// neither loop has a reduction across lanes. Rows of the image with their padding are copied into
// scratch [row][column][map][lane], where borders, strides and the number of channels end. Four
// outputs of six pixels stay in registers: ten loads for 24 multiply-adds.
//
// Work: taps * (maps + k² * outs) multiply-adds per pixel and channel forward, three times that
// backward. Gradients of weights are summed per image and band, and those sums by the caller in a
// fixed order, so results do not depend on the number of threads.
//
// Measured on two AVX-512 cores, batch 4, 12 maps of 16 channels, 56²: 0.9 ms. Copying rows is 40 %
// of it and bound by memory (prefetching and the order of the pixels change little); the products
// run at 50 G multiply-adds/s a core.

#include "simd.h"

namespace acmix {
namespace {

// Pixels whose sums for B outputs fit into the registers.
template <int B>
constexpr int pixels_of() {
    constexpr int many[] = {0, 8, 8, 8, 6}, few[] = {0, 6, 4, 3, 2};
    return kManyRegisters ? many[B] : few[B];
}
// Columns of a band are visited in strips, so that two of three rows of a window are still in the
// first level cache.
constexpr int kStrip = 6;
constexpr int kTaps = kManyRegisters ? 6 : 2;  // of `correlate`

// Outputs that are summed together, of `rest`.
INLINE int block_of(int64_t rest) {
    if (rest >= 4 && rest % 4 != 0 && rest % 3 == 0) return 3;
    return static_cast<int>(min_of(rest, 4));
}

// Maps in scratch: [row][column][map][lane].
struct Stack {
    int64_t pixel_size, row_size;  // in elements
    Stack(int64_t maps, int64_t columns, int64_t lanes)
        : pixel_size(maps * lanes), row_size(columns * pixel_size) {}
};

// Sums of one block of outputs: sums[b][p] = sum_(t,m) weights[t][m][b] in[offset p + t, m].
// Each window row is summed by itself: shorter chains of additions halve the rounding errors.
template <typename T, int B, int P>
void stencil_block(const T* in, const int64_t* offset, const Stack& stack, int64_t kernel,
                   const T* weights, T* sums) {
    using S = Simd<T>;
    const T* from[P];
#pragma GCC unroll 8
    for (int p = 0; p < P; p++) from[p] = in + offset[p];
    for (int64_t ty = 0; ty < kernel; ty++) {
        typename S::V sum[B][P];
#pragma GCC unroll 4
        for (int b = 0; b < B; b++) {
#pragma GCC unroll 8
            for (int p = 0; p < P; p++) sum[b][p] = typename S::V{};
        }
        // Neighbouring columns are neighbours in memory: one run of the row.
        const int64_t start = ty * stack.row_size, end = start + kernel * stack.pixel_size;
        for (int64_t at = start; at < end; at += S::kLanes, weights += B * S::kLanes) {
            typename S::V weight[B];
#pragma GCC unroll 4
            for (int b = 0; b < B; b++) weight[b] = S::load(weights + b * S::kLanes);
#pragma GCC unroll 8
            for (int p = 0; p < P; p++) {
                typename S::V value = S::load(from[p] + at);
                KEEP(value);
#pragma GCC unroll 4
                for (int b = 0; b < B; b++) sum[b][p] += weight[b] * value;
            }
        }
#pragma GCC unroll 4
        for (int b = 0; b < B; b++) {
#pragma GCC unroll 8
            for (int p = 0; p < P; p++) {
                T* to = sums + (b * P + p) * S::kLanes;
                S::store(to, ty == 0 ? sum[b][p] : S::load(to) + sum[b][p]);
            }
        }
    }
}

// Planes of outputs: to[b * plane + offset p + lane].
template <typename T>
struct Planar {
    T* to;
    int64_t plane, lanes;
    bool adds = false;  // to what is there
    template <int B, int P>
    void put(int64_t first, const int64_t* offset, const T* sums) const {
        constexpr int L = Simd<T>::kLanes;
        for (int b = 0; b < B; b++) {
            for (int p = 0; p < P; p++) {
                T* row = to + (first + b) * plane + offset[p];
                const T* sum = sums + (b * P + p) * L;
                if (lanes == L) {
                    typename Simd<T>::V all = Simd<T>::load(sum);
                    Simd<T>::store(row, adds ? Simd<T>::load(row) + all : all);
                } else {
                    for (int64_t i = 0; i < lanes; i++) row[i] = adds ? row[i] + sum[i] : sum[i];
                }
            }
        }
    }
};

// Outputs of one channel side by side: to[offset p + lane * outs + b].
template <typename T>
struct Interleaved {
    T* to;
    int64_t outs, lanes;
    static constexpr bool adds = false;
    // mixed[lane * W + b] of `count` vectors, as many as W or one less.
    template <int W>
    static INLINE void interleave(T* mixed, const T* from, int count, int64_t pitch) {
        using S = Simd<T>;
        constexpr int L = S::kLanes;
#ifdef ACMIX_SHUFFLE
        typename S::V v[W];
        for (int b = 0; b < W; b++) v[b] = b < count ? S::load(from + b * pitch) : typename S::V{};
        using All = typename MakeSeq<L>::type;
        if constexpr (W == 4) zip(v[0], v[2], All()), zip(v[1], v[3], All());
        if constexpr (W == 4) zip(v[2], v[3], All());
        if constexpr (W > 1) zip(v[0], v[1], All());
        for (int b = 0; b < W; b++) S::store(mixed + b * L, v[b]);
#else
        for (int b = 0; b < count; b++) {
            for (int i = 0; i < L; i++) mixed[i * W + b] = from[b * pitch + i];
        }
#endif
    }
    template <int B, int P>
    void put(int64_t first, const int64_t* offset, const T* sums) const {
        constexpr int L = Simd<T>::kLanes, W = B == 3 ? 4 : B;
        for (int p = 0; p < P; p++) {
            alignas(64) T mixed[W * L];
            interleave<W>(mixed, sums + p * L, B, P * L);
            T* row = to + offset[p] + first;
            if (outs == W && lanes == L) {
                memcpy(row, mixed, sizeof(mixed));
            } else {
                for (int64_t i = 0; i < lanes; i++) {
                    memcpy(row + i * outs, mixed + i * W, B * sizeof(T));
                }
            }
        }
    }
};

// One stencil over a list of pixels: where each is read and written.
struct Pixels {
    int64_t *in, *out, count;
};

template <typename T, int B, typename Put>
void stencil_outputs(const T* in, const Stack& stack, const Pixels& pixels, int64_t kernel,
                     const T* weights, int64_t first, const Put& put) {
    constexpr int P = pixels_of<B>();
    alignas(64) T sums[B * P * Simd<T>::kLanes];
    int64_t i = 0;
    for (; i < pixels.count; i += P) {
        // The last block may overlap the one before, unless that would add twice.
        if (i + P > pixels.count && (put.adds || pixels.count < P)) break;
        i = min_of(i, pixels.count - P);
        stencil_block<T, B, P>(in, pixels.in + i, stack, kernel, weights, sums);
        put.template put<B, P>(first, pixels.out + i, sums);
    }
    for (; i < pixels.count; i++) {
        stencil_block<T, B, 1>(in, pixels.in + i, stack, kernel, weights, sums);
        put.template put<B, 1>(first, pixels.out + i, sums);
    }
}

// All outputs; weights in blocks, [tap][map][output of the block][lane] each.
template <typename T, typename Put>
void stencil(const T* in, const Stack& stack, const Pixels& pixels, int64_t kernel,
             const T* weights, int64_t outs, const Put& put) {
    int64_t size = kernel * kernel * stack.pixel_size;
    for (int64_t first = 0; first < outs;) {
        int b = block_of(outs - first);
        const T* w = weights + first * size;
        if (b == 4) stencil_outputs<T, 4>(in, stack, pixels, kernel, w, first, put);
        if (b == 3) stencil_outputs<T, 3>(in, stack, pixels, kernel, w, first, put);
        if (b == 2) stencil_outputs<T, 2>(in, stack, pixels, kernel, w, first, put);
        if (b == 1) stencil_outputs<T, 1>(in, stack, pixels, kernel, w, first, put);
        first += b;
    }
}

// to[b][j] = sum_p g[b][out offset p] f[in offset p + tap j] over the lanes kept.
template <typename T, int B, int K>
void correlate_block(const T* g, const T* f, const int64_t* taps,
                     const Pixels& pixels, T* to, int64_t to_map, int64_t to_tap, int64_t lanes) {
    using S = Simd<T>;
    typename S::V sum[B][K];
    const T* from[K];
#pragma GCC unroll 8
    for (int j = 0; j < K; j++) from[j] = f + taps[j];
#pragma GCC unroll 4
    for (int b = 0; b < B; b++) {
#pragma GCC unroll 8
        for (int j = 0; j < K; j++) sum[b][j] = typename S::V{};
    }
    for (int64_t i = 0; i < pixels.count; i++) {
        typename S::V grad[B];
#pragma GCC unroll 4
        for (int b = 0; b < B; b++) grad[b] = S::load(g + b * S::kLanes + pixels.out[i]);
#pragma GCC unroll 8
        for (int j = 0; j < K; j++) {
            typename S::V value = S::load(from[j] + pixels.in[i]);
            KEEP(value);
#pragma GCC unroll 4
            for (int b = 0; b < B; b++) sum[b][j] += grad[b] * value;
        }
    }
    for (int b = 0; b < B; b++) {
        for (int j = 0; j < K; j++) {
            T* row = to + b * to_map + j * to_tap;
            alignas(64) T all[S::kLanes];
            S::store(all, sum[b][j]);
            memcpy(row, all, lanes * sizeof(T));
        }
    }
}

template <typename T, int B>
void correlate_outputs(const T* g, const T* f, const int64_t* taps, int64_t count,
                       const Pixels& pixels, T* to, int64_t to_map, int64_t to_tap,
                       int64_t lanes) {
    int64_t j = 0;
#define ACMIX_TAPS(K)                                                                          \
    for (; j + K <= count; j += K) {                                                           \
        correlate_block<T, B, K>(g, f, taps + j, pixels, to + j * to_tap, to_map, to_tap, lanes); \
    }
    ACMIX_TAPS(kTaps)
    ACMIX_TAPS(1)
#undef ACMIX_TAPS
}

template <typename T>
void correlate(const T* g, int64_t outs, const T* f, const int64_t* taps,
               int64_t count, const Pixels& pixels, T* to, int64_t to_tap, int64_t lanes) {
    int64_t to_map = count * to_tap;
    for (int64_t first = 0; first < outs;) {
        int b = block_of(outs - first);
        const T* grad = g + first * Simd<T>::kLanes;
        T* sums = to + first * to_map;
#define ACMIX_OUTPUTS(B)                                                                       \
    if (b == B) {                                                                              \
        correlate_outputs<T, B>(grad, f, taps, count, pixels, sums, to_map, to_tap, lanes);    \
    }
        ACMIX_OUTPUTS(4)
        ACMIX_OUTPUTS(3)
        ACMIX_OUTPUTS(2)
        ACMIX_OUTPUTS(1)
#undef ACMIX_OUTPUTS
        first += b;
    }
}

template <typename T>
struct Path {
    using S = Simd<T>;
    static constexpr int L = S::kLanes;

    const Convolution& call;
    int64_t out_h, out_w, pad, area;      // area: taps of the kernel, k²
    int64_t all_maps, inputs;             // maps with that of ones, maps of the stencil
    int64_t bands, blocks;
    Stack raw, features, grads, changes;  // inputs of the layer, f, g, df
    // Of this unit:
    int64_t image = 0, y0 = 0, rows = 0, d0 = 0, lanes = 0;

    explicit Path(const Convolution& c)
        : call(c),
          out_h(ceil_div(c.height, c.stride)),
          out_w(ceil_div(c.width, c.stride)),
          pad(c.kernel / 2),
          area(c.kernel * c.kernel),
          all_maps(c.maps + c.ones),
          inputs(c.taps > 0 ? c.taps : all_maps),
          bands(ceil_div(c.backward ? c.height : out_h, c.band)),
          blocks(ceil_div(c.depth, L)),
          raw(all_maps, c.width, L),
          features(inputs, c.width + 2 * pad, L),
          grads(c.outs, c.width + 2 * pad, L),
          changes(c.taps, c.width, L) {}

    int64_t units() const { return call.batch * bands * blocks; }

    void start(int64_t unit) {
        image = unit / blocks / bands;
        y0 = unit / blocks % bands * call.band;
        rows = min_of(call.band, (call.backward ? call.height : out_h) - y0);
        d0 = unit % blocks * L;
        lanes = min_of(L, call.depth - d0);
    }

    static T* data(const Map& map) { return static_cast<T*>(map.data); }
    T* plane(const Map& map, int64_t row) const {
        return data(map) + image * map.stride[0] + d0 * map.stride[2] + row * map.stride[3];
    }

    // Lanes of one pixel from memory; lanes beyond the channels are zero.
    void copy_pixel(T* to, const T* from) const {
        if (lanes == L) return S::store(to, S::load(from));
        S::store(to, typename S::V{});
        for (int64_t i = 0; i < lanes; i++) to[i] = from[i];
    }

    // Maps of one row of the image, and that of ones.
    void copy_row(T* to, int64_t y) const {
        const T* from = plane(call.in, y);
        for (int64_t x = 0; x < call.width; x++, from += call.in.stride[4]) {
            for (int64_t m = 0; m < call.maps; m++, to += L) {
                copy_pixel(to, from + m * call.in.stride[1]);
            }
            if (call.ones) S::store(to, S::all(1)), to += L;
        }
    }

    // Rows [first, first + count) of f with its padding; raw rows are kept, or only the last one.
    void load_features(T* to, T* raws, bool keep, const T* layer, Pixels row_pixels, int64_t first,
                       int64_t count) const {
        for (int64_t r = 0; r < count; r++, to += features.row_size) {
            int64_t y = first + r;
            if (y < 0 || y >= call.height) {
                memset(to, 0, features.row_size * sizeof(T));
                continue;
            }
            int64_t margin = pad * features.pixel_size;
            memset(to, 0, margin * sizeof(T));
            memset(to + features.row_size - margin, 0, margin * sizeof(T));
            if (call.taps == 0) {
                copy_row(to + margin, y);
                continue;
            }
            T* row = keep ? raws + r * raw.row_size : raws;
            copy_row(row, y);
            stencil(row, raw, row_pixels, 1, layer, call.taps, Planar<T>{to + margin, L, L});
        }
    }

    // Rows [first, first + count) of g on the grid of the input.
    void load_grads(T* to, int64_t first, int64_t count) const {
        memset(to, 0, count * grads.row_size * sizeof(T));
        for (int64_t r = 0; r < count; r++, to += grads.row_size) {
            int64_t y = first + r;
            if (y < 0 || y >= call.height || y % call.stride != 0) continue;
            const T* row = plane(call.out, y / call.stride);
            for (int64_t x = 0; x < out_w; x++) {
                const T* from = row + x * call.out.stride[4];
                T* at = to + (pad + x * call.stride) * grads.pixel_size;
                for (int64_t i = 0; i < lanes; i++, from += call.out.stride[2]) {
                    for (int64_t n = 0; n < call.outs; n++) at[n * L + i] = from[n];
                }
            }
        }
    }

    // Weights in the blocks of `stencil`; weight(output, map, tap) points to lanes, or to one
    // number for all lanes.
    template <typename Weight>
    void pack(T* to, int64_t outs, int64_t maps, int64_t taps, bool one, Weight weight) const {
        for (int64_t first = 0; first < outs;) {
            int b = block_of(outs - first);
            for (int64_t i = 0; i < maps * taps; i++) {
                for (int64_t n = first; n < first + b; n++, to += L) {
                    const T* from = weight(n, i % maps, i / maps);
                    one ? S::store(to, S::all(*from)) : copy_pixel(to, from);
                }
            }
            first += b;
        }
    }
    void pack_layer(T* to) const {
        auto weight = [&](int64_t i, int64_t m, int64_t) {
            return static_cast<const T*>(call.layer) + i * all_maps + m;
        };
        pack(to, call.taps, all_maps, 1, true, weight);
    }
    const T* kernel_at(int64_t n, int64_t i, int64_t tap) const {
        int64_t index = (n * inputs + i) * area + tap;
        return static_cast<const T*>(call.kernels) + index * call.depth + d0;
    }

    // Where the pixels of a band are in two arrays, `step` of the first apart.
    Pixels pixels(Arena& arena, int64_t count_y, int64_t count_x, int64_t in_row, int64_t in_column,
                  int64_t out_row, int64_t out_column) const {
        int64_t count = count_y * count_x;
        Pixels list{arena.take<int64_t>(count), arena.take<int64_t>(count), count};
        if (arena.base == nullptr) return list;
        int64_t i = 0;
        for (int64_t x0 = 0; x0 < count_x; x0 += kStrip) {
            int64_t end = min_of(count_x, x0 + kStrip);
            for (int64_t y = 0; y < count_y; y++) {
                for (int64_t x = x0; x < end; x++, i++) {
                    list.in[i] = y * in_row + x * in_column;
                    list.out[i] = y * out_row + x * out_column;
                }
            }
        }
        return list;
    }
    Pixels layer_pixels(Arena& arena) const {
        return pixels(arena, 1, call.taps > 0 ? call.width : 0, 0, raw.pixel_size, 0,
                      features.pixel_size);
    }

    // Both passes count their scratch when the arena has none to give.
    void forward(Arena& arena) const {
        int64_t most = arena.base == nullptr ? call.band : rows;
        int64_t loaded = (most - 1) * call.stride + call.kernel;
        Pixels all = pixels(arena, most, out_w, call.stride * features.row_size,
                            call.stride * features.pixel_size, call.out.stride[3],
                            call.out.stride[4]);
        Pixels row = layer_pixels(arena);
        T* layer = arena.take<T>(call.taps * all_maps * L);
        T* raws = arena.take<T>(call.taps > 0 ? raw.row_size : 0);
        T* f = arena.take<T>(loaded * features.row_size);
        T* weights = arena.take<T>(call.outs * inputs * area * L);
        if (arena.base == nullptr) return;
        pack_layer(layer);
        load_features(f, raws, false, layer, row, y0 * call.stride - pad, loaded);
        pack(weights, call.outs, inputs, area, false,
             [&](int64_t n, int64_t i, int64_t tap) { return kernel_at(n, i, tap); });
        stencil(f, features, all, call.kernel, weights, call.outs,
                Interleaved<T>{plane(call.out, y0), call.out.stride[2], lanes});
    }

    void backward(Arena& arena) const {
        int64_t most = arena.base == nullptr ? call.band : rows, loaded = most + 2 * pad;
        bool has_layer = call.taps > 0;
        const Map& to = call.grad_in;
        Pixels row = layer_pixels(arena);
        Pixels same = pixels(arena, most, call.width, grads.row_size, grads.pixel_size,
                             has_layer ? changes.row_size : to.stride[3],
                             has_layer ? changes.pixel_size : to.stride[4]);
        Pixels back = pixels(arena, has_layer ? most : 0, call.width, changes.row_size,
                             changes.pixel_size, to.stride[3], to.stride[4]);
        Pixels pair = pixels(arena, has_layer ? most : 0, call.width, raw.row_size, raw.pixel_size,
                             changes.row_size, changes.pixel_size);
        // Only pixels on the stride's grid have a gradient.
        int64_t begin = round_up(y0, call.stride) - y0;
        int64_t kept = ceil_div(max_of(most - begin, 0), call.stride);
        Pixels strided = pixels(arena, arena.base == nullptr ? most : kept, out_w,
                                call.stride * features.row_size,
                                call.stride * features.pixel_size, call.stride * grads.row_size,
                                call.stride * grads.pixel_size);
        int64_t* taps = arena.take<int64_t>(max_of(inputs * area, all_maps));
        T* layer = arena.take<T>(call.taps * all_maps * L);
        T* weights = arena.take<T>(call.outs * inputs * area * L);
        T* raws = arena.take<T>(has_layer ? loaded * raw.row_size : 0);
        T* f = arena.take<T>(loaded * features.row_size);
        T* g = arena.take<T>(loaded * grads.row_size);
        T* df = arena.take<T>(most * changes.row_size);
        if (arena.base == nullptr) return;

        pack_layer(layer);
        load_features(f, raws, true, layer, row, y0 - pad, loaded);
        load_grads(g, y0 - pad, loaded);
        for (int64_t i = 0; i < inputs * area; i++) {
            int64_t tap = i % area;
            taps[i] = i / area * L + tap / call.kernel * features.row_size +
                      tap % call.kernel * features.pixel_size;
        }
        int64_t summand = image * bands + y0 / call.band;
        T* sums = static_cast<T*>(call.grad_kernels) +
                  summand * call.outs * inputs * area * call.depth + d0;
        correlate(g + (begin + pad) * grads.row_size + pad * grads.pixel_size, call.outs,
                  f + begin * features.row_size, taps, inputs * area, strided, sums, call.depth,
                  lanes);

        // The transposed stencil: outputs and maps change places, taps are mirrored.
        pack(weights, has_layer ? call.taps : call.maps, call.outs, area, false,
             [&](int64_t i, int64_t n, int64_t tap) { return kernel_at(n, i, area - 1 - tap); });
        Planar<T> direct{plane(to, y0), to.stride[1], lanes, call.add != 0};
        if (!has_layer) {
            return stencil(g, grads, same, call.kernel, weights, call.maps, direct);
        }
        stencil(g, grads, same, call.kernel, weights, call.taps, Planar<T>{df, L, L});
        for (int64_t m = 0; m < all_maps; m++) taps[m] = m * L;
        sums = static_cast<T*>(call.grad_layer) + summand * call.taps * all_maps * call.depth + d0;
        correlate(df, call.taps, raws + pad * raw.row_size, taps, all_maps, pair,
                  sums, call.depth, lanes);
        pack(layer, call.maps, call.taps, 1, true, [&](int64_t m, int64_t i, int64_t) {
            return static_cast<const T*>(call.layer) + i * all_maps + m;
        });
        stencil(df, changes, back, 1, layer, call.maps, direct);
    }
};

template <typename T>
int convolve_typed(const Convolution& call) {
    Path<T> path(call);
    if (path.units() == 0) return 0;
    Arena sizes{nullptr};
    call.backward ? path.backward(sizes) : path.forward(sizes);
    Work work = [](void* context, int64_t unit, void* scratch) {
        Path<T> one(*static_cast<const Convolution*>(context));
        Arena arena{static_cast<char*>(scratch)};
        one.start(unit);
        one.call.backward ? one.backward(arena) : one.forward(arena);
    };
    return parallel_for(path.units(), call.threads, sizes.used, work,
                        const_cast<Convolution*>(&call));
}

}  // namespace

namespace ACMIX_ISA {
int convolve(const Convolution& call) {
    return call.type == kFloat ? convolve_typed<float>(call) : convolve_typed<double>(call);
}
}  // namespace ACMIX_ISA

}  // namespace acmix
