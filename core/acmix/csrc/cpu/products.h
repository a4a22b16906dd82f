// The two products that attention and aggregation are made of.
//
//     dots:   S[o][p] = sum_d a[p][d] b[r(o)][d]        (logits, dP, gradient of weights)
//     gather: y[p][d] = sum_o P[o][p] b[r(o)][d]        (outputs, dq, and dk, dv seen from the key)
//
// Vector lanes are pixels, so neither has a reduction across lanes. Both keep three rows of results
// in registers at once, since rows that share their keys share the loads: about one load for two
// multiply-adds.
#pragma once

#include "vectors.h"

namespace acmix {
namespace {

constexpr int kColumns = kManyRegisters ? 7 : 4, kDepth = kManyRegisters ? 8 : 4, kRows = 3;

// S[j][c] = sum_d q[j][d] . key[d][offset c] for A rows of queries and C columns of one key row.
template <typename T, int A, int C>
void dots_block(const T* q, int64_t q_row, int64_t q_depth, const T* key, int64_t key_depth,
                const int64_t* offsets, int64_t depth, T* s, int64_t s_row, int64_t s_column) {
    using S = Simd<T>;
    typename S::V sum[A][C];
    const T* column[C];
#pragma GCC unroll 8
    for (int c = 0; c < C; c++) column[c] = key + offsets[c];
#pragma GCC unroll 4
    for (int a = 0; a < A; a++) {
#pragma GCC unroll 8
        for (int c = 0; c < C; c++) sum[a][c] = typename S::V{};
    }
    for (int64_t d = 0; d < depth; d++) {
        typename S::V query[A];
#pragma GCC unroll 4
        for (int a = 0; a < A; a++) query[a] = S::load(q + a * q_row + d * q_depth);
#pragma GCC unroll 8
        for (int c = 0; c < C; c++) {
            typename S::V value = S::load(column[c] + d * key_depth);
            KEEP(value);
#pragma GCC unroll 4
            for (int a = 0; a < A; a++) sum[a][c] += query[a] * value;
        }
    }
#pragma GCC unroll 4
    for (int a = 0; a < A; a++) {
#pragma GCC unroll 8
        for (int c = 0; c < C; c++) S::store(s + a * s_row + c * s_column, sum[a][c]);
    }
}

template <typename T, int A>
void dots(const T* q, int64_t q_row, int64_t q_depth, const T* key, int64_t key_depth,
          const int64_t* offsets, int64_t columns, int64_t depth, T* s, int64_t s_row,
          int64_t s_column) {
    while (columns > 0) {
        int c = static_cast<int>(min_of(columns, kColumns));
        switch (c) {
#define ACMIX_DOTS(C)                                                                    \
    case C:                                                                              \
        dots_block<T, A, C>(q, q_row, q_depth, key, key_depth, offsets, depth, s, s_row, \
                            s_column);                                                   \
        break;
            ACMIX_DOTS(1)
            ACMIX_DOTS(2)
            ACMIX_DOTS(3)
            ACMIX_DOTS(4)
#ifdef ACMIX_MANY_REGISTERS
            ACMIX_DOTS(5)
            ACMIX_DOTS(6)
            ACMIX_DOTS(7)
#endif
#undef ACMIX_DOTS
        }
        columns -= c, offsets += c, s += c * s_column;
    }
}

// One source row of `gather` and the results [first, last) that it counts for.
struct Step {
    int64_t weight, source;  // element offsets
    int first, last;
};

// result[j][d] += sum_i weight[j][i] source[d][i] over the offsets of one row, first <= j < last.
template <typename T, int F, int E, int N>
INLINE void gather_row(typename Simd<T>::V (&sum)[kRows][N], const T* weight, int64_t w_row,
                       const int64_t* w_offset, const T* source, int64_t depth_stride,
                       const int64_t* s_offset, int64_t count) {
    using S = Simd<T>;
    for (int64_t i = 0; i < count; i++) {
        typename S::V w[kRows];
#pragma GCC unroll 4
        for (int j = F; j < E; j++) w[j] = S::load(weight + j * w_row + w_offset[i]);
        const T* from = source + s_offset[i];
#pragma GCC unroll 8
        for (int d = 0; d < N; d++) {
            typename S::V value = S::load(from + d * depth_stride);
            KEEP(value);
#pragma GCC unroll 4
            for (int j = F; j < E; j++) sum[j][d] += w[j] * value;
        }
    }
}

// Sums from zero, or with `add` from what is there; times a vector for each row if there is one.
template <typename T, int N>
void gather_block(const Step* steps, int64_t step_count, const T* weight, int64_t w_row,
                  const int64_t* w_offset, const T* source, int64_t depth_stride,
                  const int64_t* s_offset, int64_t count, T* out, int64_t out_row,
                  int64_t out_depth, int rows, const typename Simd<T>::V* factor, bool add) {
    static_assert(kRows == 3, "the cases below list the row ranges of three rows");
    using S = Simd<T>;
    typename S::V sum[kRows][N];
#pragma GCC unroll 4
    for (int j = 0; j < kRows; j++) {
#pragma GCC unroll 8
        for (int d = 0; d < N; d++) {
            bool starts = !add || j >= rows;
            sum[j][d] = starts ? typename S::V{} : S::load(out + j * out_row + d * out_depth);
        }
    }
    for (const Step* step = steps; step < steps + step_count; step++) {
        const T* w = weight + step->weight;
        const T* from = source + step->source;
        switch (step->first * 4 + step->last) {
#define ACMIX_GATHER(F, E)                                                                    \
    case F * 4 + E:                                                                           \
        gather_row<T, F, E, N>(sum, w, w_row, w_offset, from, depth_stride, s_offset, count); \
        break;
            ACMIX_GATHER(0, 1)
            ACMIX_GATHER(0, 2)
            ACMIX_GATHER(0, 3)
            ACMIX_GATHER(1, 2)
            ACMIX_GATHER(1, 3)
            ACMIX_GATHER(2, 3)
#undef ACMIX_GATHER
        }
    }
#pragma GCC unroll 4
    for (int j = 0; j < kRows; j++) {
        if (j >= rows) break;
#pragma GCC unroll 8
        for (int d = 0; d < N; d++) {
            if (factor != nullptr) sum[j][d] *= factor[j];
            S::store(out + j * out_row + d * out_depth, sum[j][d]);
        }
    }
}

template <typename T>
void gather(const Step* steps, int64_t step_count, const T* weight, int64_t w_row,
            const int64_t* w_offset, const T* source, int64_t depth_stride, const int64_t* s_offset,
            int64_t count, T* out, int64_t out_row, int64_t out_depth, int64_t depth, int rows,
            const typename Simd<T>::V* factor, bool add) {
    int64_t d = 0;
#define ACMIX_BLOCK(N)                                                                             \
    for (; d + N <= depth; d += N) {                                                               \
        gather_block<T, N>(steps, step_count, weight, w_row, w_offset, source + d * depth_stride,  \
                           depth_stride, s_offset, count, out + d * out_depth, out_row, out_depth, \
                           rows, factor, add);                                                     \
    }
    ACMIX_BLOCK(kDepth)
    ACMIX_BLOCK(2)
    ACMIX_BLOCK(1)
#undef ACMIX_BLOCK
}

}  // namespace
}  // namespace acmix
