// The two products that the convolution path is made of.
//
//     stencil:   out[n][p] = sum_(t,m) weights[n][t][m] in_m[p + t], forward and its transpose; a
//                layer is one of a single tap
//     correlate: to[n][t] = sum_p g_n[p] f[p + t], the gradients of weights
//
// Vector lanes are neighbouring channels: they share no weights, so a weight is a vector too, and
// neither has a reduction across lanes. Four outputs of six pixels stay in registers: ten loads for
// 24 multiply-adds.
#pragma once

#include "elements.h"
#include "scratch.h"

namespace acmix {
namespace {

// Pixels whose sums for B outputs fit into the registers.
template <int B>
constexpr int pixels_of() {
    constexpr int many[] = {0, 8, 8, 8, 6}, few[] = {0, 8, 6, 4, 3};
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
            // The fewer of the two stay in registers, and the others pass through one.
            constexpr int F = B <= P ? B : P, M = B + P - F;
            auto few = [&](int i) { return B <= P ? weights + i * S::kLanes : from[i] + at; };
            auto many = [&](int i) { return B <= P ? from[i] + at : weights + i * S::kLanes; };
            typename S::V kept[F];
#pragma GCC unroll 8
            for (int i = 0; i < F; i++) kept[i] = S::load(few(i));
#pragma GCC unroll 8
            for (int j = 0; j < M; j++) {
                typename S::V one = S::load(many(j));
                KEEP(one);
#pragma GCC unroll 8
                for (int i = 0; i < F; i++) (B <= P ? sum[i][j] : sum[j][i]) += kept[i] * one;
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
template <typename T, typename E>
struct Interleaved {
    E* to;
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
            E* row = to + offset[p] + first;
            if (outs == W && lanes == L) {
                for (int b = 0; b < W; b++) {
                    store_vector(row + b * L, Simd<T>::load(mixed + b * L));
                }
            } else {
                for (int64_t i = 0; i < lanes; i++) {
                    for (int b = 0; b < B; b++) store_one(row + i * outs + b, mixed[i * W + b]);
                }
            }
        }
    }
};
// The inverse for one pixel: to[b * L + lane] = from[lane * outs + b]; lanes beyond are left.
template <typename T>
INLINE void separate(T* to, const T* from, int64_t outs, int64_t lanes) {
    using S = Simd<T>;
    constexpr int L = S::kLanes;
#ifdef ACMIX_SHUFFLE
    if (outs == 4 && lanes == L) {
        using All = typename MakeSeq<L>::type;
        typename S::V v[4];
        for (int i = 0; i < 4; i++) v[i] = S::load(from + i * L);
        unzip(v[0], v[1], All()), unzip(v[2], v[3], All());
        unzip(v[0], v[2], All()), unzip(v[1], v[3], All());
        S::store(to, v[0]), S::store(to + L, v[1]);
        S::store(to + 2 * L, v[2]), S::store(to + 3 * L, v[3]);
        return;
    }
#endif
    for (int64_t i = 0; i < lanes; i++, from += outs) {
        for (int64_t b = 0; b < outs; b++) to[b * L + i] = from[b];
    }
}

template <typename T, typename E>
Interleaved<T, E> interleaved(E* to, int64_t outs, int64_t lanes) {
    return {to, outs, lanes};
}

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
void correlate_block(const T* g, const T* f, const int64_t* taps, const Pixels& pixels, T* to,
                     int64_t to_map, int64_t to_tap, int64_t lanes) {
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
                       const Pixels& pixels, T* to, int64_t to_map, int64_t to_tap, int64_t lanes) {
    int64_t j = 0;
#define ACMIX_TAPS(K)                                                                             \
    for (; j + K <= count; j += K) {                                                              \
        correlate_block<T, B, K>(g, f, taps + j, pixels, to + j * to_tap, to_map, to_tap, lanes); \
    }
    ACMIX_TAPS(kTaps)
    ACMIX_TAPS(1)
#undef ACMIX_TAPS
}

template <typename T>
void correlate(const T* g, int64_t outs, const T* f, const int64_t* taps, int64_t count,
               const Pixels& pixels, T* to, int64_t to_tap, int64_t lanes) {
    int64_t to_map = count * to_tap;
    for (int64_t first = 0; first < outs;) {
        int b = block_of(outs - first);
        const T* grad = g + first * Simd<T>::kLanes;
        T* sums = to + first * to_map;
#define ACMIX_OUTPUTS(B)                                                                    \
    if (b == B) {                                                                           \
        correlate_outputs<T, B>(grad, f, taps, count, pixels, sums, to_map, to_tap, lanes); \
    }
        ACMIX_OUTPUTS(4)
        ACMIX_OUTPUTS(3)
        ACMIX_OUTPUTS(2)
        ACMIX_OUTPUTS(1)
#undef ACMIX_OUTPUTS
        first += b;
    }
}

}  // namespace
}  // namespace acmix
