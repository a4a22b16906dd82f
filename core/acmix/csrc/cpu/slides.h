// The products of products.h for the columns of a window that are few lanes apart, where vectors
// are as long as lines of the cache.
//
// All columns of a row lie in two aligned vectors, so they are shifted in registers instead of
// loaded: with AVX-512 nearly every such load would cross two lines, and one that misses the first
// level cache waits for both.
//
// Measured on an Intel Xeon (AVX-512), rows in the second level cache, 7 columns: G multiply-adds/s
// with loads 52, with shifts 60, where a core's peak is 88. Every second column loaded: 50. Loads
// that are prefetched a row ahead: 54.
#pragma once

#include "products.h"

namespace acmix {
namespace {

#ifdef ACMIX_SLIDES

// Calls body(c, column c) for C columns, the first of them at p, aligned, and each S lanes behind
// the one before, or in front of it where S is negative.
template <int S, typename T, typename Body, int... I>
INLINE void for_columns(const T* p, Body body, Seq<I...>) {
    using V = typename Simd<T>::V;
    constexpr int L = Simd<T>::kLanes, kStart = S < 0 ? L : 0;
    V a = *reinterpret_cast<const V*>(p - kStart);
    V b = *reinterpret_cast<const V*>(p - kStart + L);
    (body(I, slide<kStart + I * S>(a, b, typename MakeSeq<L>::type())), ...);
}

// As dots_block, of all columns.
template <typename T, int A, int C, int S>
void slide_dots(const T* q, int64_t q_row, int64_t q_depth, const T* key, int64_t key_depth,
                int64_t depth, T* s, int64_t s_row, int64_t s_column) {
    using V = typename Simd<T>::V;
    V sum[A][C] = {};
    for (int64_t d = 0; d < depth; d++) {
        V query[A];
#pragma GCC unroll 4
        for (int a = 0; a < A; a++) query[a] = Simd<T>::load(q + a * q_row + d * q_depth);
        auto add = [&](int c, V value) {
#pragma GCC unroll 4
            for (int a = 0; a < A; a++) sum[a][c] += query[a] * value;
        };
        for_columns<S>(key + d * key_depth, add, typename MakeSeq<C>::type());
    }
#pragma GCC unroll 4
    for (int a = 0; a < A; a++) {
#pragma GCC unroll 8
        for (int c = 0; c < C; c++) Simd<T>::store(s + a * s_row + c * s_column, sum[a][c]);
    }
}

// Adds one row of sources to A rows of results: out[a][d] += sum_c s[a][c] source[d][c]. The last
// of these may be fresh, and is written; the first may be done, and is multiplied by `factor`.
template <typename T, int A, int C, int S>
void slide_gather(const T* s, int64_t s_row, int64_t s_column, const T* source,
                  int64_t source_depth, int64_t depth, T* out, int64_t out_row, int64_t out_depth,
                  bool fresh, const typename Simd<T>::V* factor) {
    using V = typename Simd<T>::V;
    V weight[A][C];
#pragma GCC unroll 4
    for (int a = 0; a < A; a++) {
#pragma GCC unroll 8
        for (int c = 0; c < C; c++) weight[a][c] = Simd<T>::load(s + a * s_row + c * s_column);
    }
    for (int64_t d = 0; d < depth; d++, out += out_depth) {
        V sum[A];
#pragma GCC unroll 4
        for (int a = 0; a < A; a++) {
            sum[a] = a == A - 1 && fresh ? V{} : Simd<T>::load(out + a * out_row);
        }
        auto add = [&](int c, V value) {
#pragma GCC unroll 4
            for (int a = 0; a < A; a++) sum[a] += weight[a][c] * value;
        };
        for_columns<S>(source + d * source_depth, add, typename MakeSeq<C>::type());
        if (factor != nullptr) sum[0] *= *factor;
#pragma GCC unroll 4
        for (int a = 0; a < A; a++) Simd<T>::store(out + a * out_row, sum[a]);
    }
}

template <int N>
struct Int {
    constexpr operator int() const { return N; }
};

// Calls run(A, C, S) with constants for rows, columns and step, or returns that it has none.
template <typename T, typename Run>
INLINE bool with_sizes(int rows, int64_t columns, int64_t step, Run run) {
#define ACMIX_CASE(A, C, S)                           \
    if constexpr ((C - 1) * S <= Simd<T>::kLanes) {   \
        if (rows == A && columns == C && step == S) { \
            run(Int<A>(), Int<C>(), Int<S>());        \
            return true;                              \
        }                                             \
    }
#define ACMIX_STEPS(A, C) ACMIX_CASE(A, C, 1) ACMIX_CASE(A, C, 2)
#define ACMIX_COLUMNS(A) ACMIX_STEPS(A, 7) ACMIX_STEPS(A, 5) ACMIX_STEPS(A, 3)
    ACMIX_COLUMNS(3)
    ACMIX_COLUMNS(2)
    ACMIX_COLUMNS(1)
#undef ACMIX_COLUMNS
#undef ACMIX_STEPS
#undef ACMIX_CASE
    return false;
}

#endif

// Whether there is a case for the columns of a window, `step` lanes apart.
template <typename T>
INLINE bool can_slide(int64_t columns, int64_t step) {
#ifdef ACMIX_SLIDES
    return with_sizes<T>(1, columns, step, [](auto, auto, auto) {});
#else
    return false;
#endif
}

}  // namespace
}  // namespace acmix
