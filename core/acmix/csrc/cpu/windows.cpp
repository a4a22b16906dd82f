// Sliding window attention, neighbourhood aggregation and neighbourhood differences on the CPU.
//
// Window attention, for query p of one head, keys r(o) = stride * p + dilation * (o - k / 2):
//     s_o = D^(-1/2) q_p . k_r(o),   P = softmax_o(s),   out_p = sum_o P_o v_r(o)
// The position term q_p . (pe_p - pe_r) is folded into the keys when they are copied: q_p . pe_p is
// the same for all keys of p, the softmax drops it, and k_r - pe_r is a key.
// Backward, with P recomputed from the saved log-sum-exp and dP_o = dout_p . v_r(o):
//     dS_o = P_o (dP_o - sum_o' P_o' dP_o'),   dq_p = D^(-1/2) sum_o dS_o k_r(o)
//     dk_r = D^(-1/2) sum_(p,o: r(o)=r) dS_o q_p,   dv_r = sum_(p,o: r(o)=r) P_o dout_p
// Aggregation is the same without the softmax: P is given. So two loops serve everything:
//     dots:   S[o][p] = sum_d a[p][d] b[r(o)][d]        (logits, dP, gradient of weights)
//     gather: y[p][d] = sum_o P[o][p] b[r(o)][d]        (outputs, dq, and dk, dv seen from the key)
//
// Vector lanes are neighbouring pixels of a row, so neither loop has a reduction across lanes.
// Maps are copied into per-thread scratch, channel planes of padded rows [row][d][lane]: borders,
// memory formats and strides end there. A stride s splits each padded row into s phases, which
// makes the keys of neighbouring queries neighbours again. Narrow maps interleave G heads:
// lane = column * G + head. `dots` and `gather` keep three rows of results in registers at once,
// since rows `dilation` apart share their keys: about one load for two multiply-adds.
//
// Work: 2 * k² * D multiply-adds per query forward, 5 backward. Memory: scratch of the size of G
// heads per thread, nothing else; dk and dv are summed per head by one thread in a fixed order, so
// results do not depend on the number of threads.

#include "simd.h"

namespace acmix {
namespace {

constexpr int kColumns = kManyRegisters ? 7 : 4, kDepth = kManyRegisters ? 8 : 4, kRows = 3;
constexpr int64_t kTileBytes = 640 << 10;  // scratch of one tile, to stay in the second level cache

// Polynomial of 2^f on [-1/2, 1/2]: interpolated at the Chebyshev points (3e-9) for float, Taylor
// (5e-17) for double.
template <typename V>
INLINE V exp2_fraction(V f, float) {
    V y = f * 0.00015461444724808513f + 0.0013400428177711937f;
    y = y * f + 0.00961805667843204f;
    y = y * f + 0.05550327226669895f;
    y = y * f + 0.24022650922289554f;
    y = y * f + 0.6931472067028329f;
    return y * f + 1.f;
}
template <typename V>
INLINE V exp2_fraction(V f, double) {
    constexpr double kLn2 = 0.693147180559945309417;
    constexpr double kInverse[13] = {1.,      1. / 2, 1. / 3,  1. / 4,  1. / 5,  1. / 6, 1. / 7,
                                     1. / 8, 1. / 9, 1. / 10, 1. / 11, 1. / 12, 1. / 13};
    V x = f * kLn2, y = x * kInverse[12] + 1.;
    for (int i = 11; i >= 0; i--) y = y * (x * kInverse[i]) + 1.;
    return y;
}

// 2^x for x up to about the largest exponent; exactly zero below the smallest normal number.
template <typename T>
INLINE typename Simd<T>::V exp2_of(typename Simd<T>::V x) {
    using S = Simd<T>;
    typename S::V n = x + Traits<T>::kMagic;
    typename S::V y = exp2_fraction(x - (n - Traits<T>::kMagic), T());
    typename S::I bits = (typename S::I)y + ((typename S::I)n << Traits<T>::kMantissa);
    return x < Traits<T>::kLowest ? typename S::V{} : (typename S::V)bits;
}

// Natural logarithm of normal positive numbers: 2 artanh((m - 1) / (m + 1)) + e ln 2.
template <typename T>
INLINE typename Simd<T>::V log_of(typename Simd<T>::V x) {
    using V = typename Simd<T>::V;
    using I = typename Simd<T>::I;
    I shifted = (I)x - Traits<T>::kHalf;
    I exponent = shifted >> Traits<T>::kMantissa;
    V m = (V)((I)x - (exponent << Traits<T>::kMantissa));
    V s = (m - 1) / (m + 1), s2 = s * s, sum = V{};
    for (int i = Traits<T>::kLogTerms; i >= 0; i--) sum = sum * s2 + T(1) / (2 * i + 1);
    V e = __builtin_convertvector(exponent, V);
    return x == x ? 2 * s * sum + e * T(0.693147180559945309417) : x;
}

// ------------------------------------------------------------------------- copies in and out

// Where each lane of a scratch row lives in a tensor, relative to a row; -1: nowhere, read as zero.
struct Lanes {
    int64_t* offset;
    int64_t count, begin, end;  // lanes [begin, end) are neighbours in memory, the longest such run
    int64_t* other;             // lanes that live somewhere else, other_count of them
    int64_t other_count;
    void* windows;              // count / L of Windows, or null
};

#if defined(__AVX512F__)
// A vector of lanes as a permutation of at most two pieces of memory, read under masks: rows with
// reflected ends, two interleaved heads or every second pixel then cost two loads and a shuffle.
struct Windows {
    int64_t first[2];
    int64_t index[8];  // 16 of 32 bits for float
    uint32_t mask[2], used;
};
static_assert(sizeof(Windows) <= 12 * sizeof(int64_t), "find_runs counts on it");

template <typename T>
bool find_windows(const int64_t* offset, Windows& w) {
    constexpr int L = Simd<T>::kLanes;
    auto* index = reinterpret_cast<typename Traits<T>::Int*>(w.index);
    bool left[L];
    w.used = 0;
    for (int i = 0; i < L; i++) left[i] = offset[i] >= 0, w.used |= left[i] << i, index[i] = 0;
    for (int piece = 0; piece < 2; piece++) {
        int64_t first = -1;
        for (int i = 0; i < L; i++) {
            if (left[i] && (first < 0 || offset[i] < first)) first = offset[i];
        }
        w.first[piece] = first < 0 ? 0 : first, w.mask[piece] = 0;
        for (int i = 0; i < L; i++) {
            if (!left[i] || offset[i] >= first + L) continue;
            left[i] = false, w.mask[piece] |= 1u << (offset[i] - first);
            index[i] = static_cast<typename Traits<T>::Int>(piece * L + offset[i] - first);
        }
    }
    for (int i = 0; i < L; i++) {
        if (left[i]) return false;
    }
    return true;
}

INLINE void load_windows(float* to, int64_t pitch, int64_t depth, const float* from,
                         int64_t stride, const Windows& w, float scale) {
    __m512i index = _mm512_loadu_si512(w.index);
    __mmask16 first = w.mask[0], second = w.mask[1], used = w.used;
    __m512 factor = _mm512_set1_ps(scale);
    for (int64_t d = 0; d < depth; d++, from += stride, to += pitch) {
        __m512 a = _mm512_maskz_loadu_ps(first, from + w.first[0]);
        __m512 b = _mm512_maskz_loadu_ps(second, from + w.first[1]);
        a = _mm512_maskz_permutex2var_ps(used, a, index, b);
        _mm512_storeu_ps(to, _mm512_mul_ps(a, factor));
    }
}
INLINE void load_windows(double* to, int64_t pitch, int64_t depth, const double* from,
                         int64_t stride, const Windows& w, double scale) {
    __m512i index = _mm512_loadu_si512(w.index);
    __mmask8 first = w.mask[0], second = w.mask[1], used = w.used;
    __m512d factor = _mm512_set1_pd(scale);
    for (int64_t d = 0; d < depth; d++, from += stride, to += pitch) {
        __m512d a = _mm512_maskz_loadu_pd(first, from + w.first[0]);
        __m512d b = _mm512_maskz_loadu_pd(second, from + w.first[1]);
        a = _mm512_maskz_permutex2var_pd(used, a, index, b);
        _mm512_storeu_pd(to, _mm512_mul_pd(a, factor));
    }
}
#endif

// Places of a table of lanes: offsets, other lanes, windows.
INLINE int64_t table_size(int64_t count) { return 4 * count; }

// `table` has table_size(count) places, the first `count` filled with offsets.
template <typename T>
Lanes find_runs(int64_t* table, int64_t count) {
    Lanes lanes{table, count, 0, 0, table + count, 0, nullptr};
    for (int64_t i = 0; i < count;) {
        int64_t j = i + 1;
        if (table[i] >= 0) {
            while (j < count && table[j] == table[j - 1] + 1) j++;
            if (j - i > max_of(lanes.end - lanes.begin, 1)) lanes.begin = i, lanes.end = j;
        }
        i = j;
    }
    for (int64_t i = 0; i < count; i++) {
        bool in_run = i >= lanes.begin && i < lanes.end;
        if (table[i] >= 0 && !in_run) lanes.other[lanes.other_count++] = i;
    }
#if defined(__AVX512F__)
    constexpr int L = Simd<T>::kLanes;
    auto* windows = reinterpret_cast<Windows*>(table + 2 * count);
    bool found = count % L == 0;
    for (int64_t i = 0; found && i < count / L; i++) {
        found = find_windows<T>(table + i * L, windows[i]);
    }
    if (found) lanes.windows = windows;
#endif
    return lanes;
}

// to[i] = scale * from[i] for i < n: whole vectors, the last of which may overlap the one before.
template <typename T, int N>
INLINE void scaled_copy(T* to, const T* from, int64_t n, T scale) {
    if constexpr (N <= 1) {
        if (n > 0) to[0] = from[0] * scale;
    } else {
        typedef T U __attribute__((vector_size(N * sizeof(T)), may_alias, aligned(sizeof(T))));
        auto move = [&](int64_t i) {
            *reinterpret_cast<U*>(to + i) = *reinterpret_cast<const U*>(from + i) * scale;
        };
        if (n < N) return scaled_copy<T, N / 2>(to, from, n, scale);
        for (int64_t i = 0; i + N <= n; i += N) move(i);
        if (n % N != 0) move(n - N);
    }
}

// Transposes a square of lanes: log2(L) rounds that interleave row i with row i + L / 2.
template <typename T>
INLINE void transpose(typename Simd<T>::V (&rows)[Simd<T>::kLanes]) {
    constexpr int L = Simd<T>::kLanes;
#ifdef ACMIX_SHUFFLE
#pragma GCC unroll 4
    for (int round = L; round > 1; round /= 2) {
        typename Simd<T>::V next[L];
#pragma GCC unroll 16
        for (int i = 0; i < L / 2; i++) {
            typename Simd<T>::V a = rows[i], b = rows[i + L / 2];
            zip(a, b, typename MakeSeq<L>::type());
            next[2 * i] = a, next[2 * i + 1] = b;
        }
#pragma GCC unroll 16
        for (int i = 0; i < L; i++) rows[i] = next[i];
    }
#else
    for (int i = 0; i < L; i++) {
        for (int j = 0; j < i; j++) {
            T swap = rows[i][j];
            rows[i][j] = rows[j][i], rows[j][i] = swap;
        }
    }
#endif
}

// dst[d * pitch + lane] = scale * src[lane offset + d * stride]
template <typename T>
void load_row(T* dst, int64_t pitch, int64_t depth, const T* src, int64_t stride,
              const Lanes& lanes, T scale, int64_t next_row = 0) {
    using S = Simd<T>;
    constexpr int L = S::kLanes;
    int64_t d = 0;
    if (stride == 1 && depth >= L && lanes.begin == lanes.end && lanes.count % L == 0) {
        for (; d + L <= depth; d += L) {
            for (int64_t lane = 0; lane < lanes.count; lane += L) {
                typename S::V rows[L];
                for (int i = 0; i < L; i++) {
                    int64_t offset = lanes.offset[lane + i];
                    rows[i] = offset < 0 ? typename S::V{} : S::load(src + offset + d);
                    // The stride of pixels is too long for the hardware to see the next row come.
                    if (offset >= 0) __builtin_prefetch(src + offset + d + next_row);
                }
                transpose<T>(rows);
                for (int i = 0; i < L; i++) S::store(dst + (d + i) * pitch + lane, rows[i] * scale);
            }
        }
    }
#if defined(__AVX512F__)
    if (d == 0 && lanes.windows != nullptr) {
        auto* windows = static_cast<const Windows*>(lanes.windows);
        for (int64_t i = 0; i < lanes.count / L; i++) {
            if (windows[i].used != 0) {
                load_windows(dst + i * L, pitch, depth, src, stride, windows[i], scale);
                continue;
            }
            for (d = 0; d < depth; d++) S::store(dst + d * pitch + i * L, typename S::V{});
        }
        return;
    }
#endif
    for (; d < depth; d++) {
        T* to = dst + d * pitch;
        const T* from = src + d * stride;
        bool full = lanes.begin == 0 && lanes.end == lanes.count;
        if (!full) {
            int64_t zero = lanes.begin / L * L;
            for (int64_t i = 0; i + L <= zero; i += L) S::store(to + i, typename S::V{});
            bool partly = zero < lanes.begin || lanes.begin == lanes.end;
            if (partly) S::store(to + zero, typename S::V{});
            for (int64_t i = lanes.end / L * L; i < lanes.count; i += L) {
                S::store(to + i, typename S::V{});
            }
        }
        if (lanes.begin < lanes.end) {
            scaled_copy<T, L>(to + lanes.begin, from + lanes.offset[lanes.begin],
                              lanes.end - lanes.begin, scale);
        }
        for (int64_t i = 0; i < lanes.other_count; i++) {
            int64_t lane = lanes.other[i];
            to[lane] = from[lanes.offset[lane]] * scale;
        }
    }
}

// dst[lane offset + d * stride] = scale * src[d * pitch + lane]
template <typename T>
void store_row(T* dst, int64_t stride, const Lanes& lanes, const T* src, int64_t pitch,
               int64_t depth, T scale) {
    using S = Simd<T>;
    constexpr int L = S::kLanes;
    int64_t d = 0;
    if (stride == 1 && depth >= L && lanes.begin == lanes.end && lanes.count % L == 0) {
        for (; d + L <= depth; d += L) {
            for (int64_t lane = 0; lane < lanes.count; lane += L) {
                typename S::V rows[L];
                for (int i = 0; i < L; i++) rows[i] = S::load(src + (d + i) * pitch + lane) * scale;
                transpose<T>(rows);
                for (int i = 0; i < L; i++) {
                    int64_t offset = lanes.offset[lane + i];
                    if (offset >= 0) S::store(dst + offset + d, rows[i]);
                }
            }
        }
    }
    for (; d < depth; d++) {
        const T* from = src + d * pitch;
        T* to = dst + d * stride;
        if (lanes.begin < lanes.end) {
            scaled_copy<T, L>(to + lanes.offset[lanes.begin], from + lanes.begin,
                              lanes.end - lanes.begin, scale);
        }
        for (int64_t i = 0; i < lanes.other_count; i++) {
            int64_t lane = lanes.other[i];
            to[lanes.offset[lane]] = from[lane] * scale;
        }
    }
}

// -------------------------------------------------------------------------- the two main loops

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
#define ACMIX_DOTS(C)                                                                     \
    case C:                                                                               \
        dots_block<T, A, C>(q, q_row, q_depth, key, key_depth, offsets, depth, s, s_row,  \
                            s_column);                                                    \
        break;
            ACMIX_DOTS(1)
            ACMIX_DOTS(2)
            ACMIX_DOTS(3)
            ACMIX_DOTS(4)
#if defined(__AVX512F__) || defined(__aarch64__)
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

template <typename T, int N>
void gather_block(const Step* steps, int64_t step_count, const T* weight, int64_t w_row,
                  const int64_t* w_offset, const T* source, int64_t depth_stride,
                  const int64_t* s_offset, int64_t count, T* out, int64_t out_row,
                  int64_t out_depth, int rows, bool add) {
    static_assert(kRows == 3, "the cases below list the row ranges of three rows");
    using S = Simd<T>;
    typename S::V sum[kRows][N];
#pragma GCC unroll 4
    for (int j = 0; j < kRows; j++) {
#pragma GCC unroll 8
        for (int d = 0; d < N; d++) sum[j][d] = typename S::V{};
    }
    for (const Step* step = steps; step < steps + step_count; step++) {
        const T* w = weight + step->weight;
        const T* from = source + step->source;
        switch (step->first * 4 + step->last) {
#define ACMIX_GATHER(F, E)                                                                      \
    case F * 4 + E:                                                                             \
        gather_row<T, F, E, N>(sum, w, w_row, w_offset, from, depth_stride, s_offset, count);   \
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
            T* to = out + j * out_row + d * out_depth;
            S::store(to, add ? S::load(to) + sum[j][d] : sum[j][d]);
        }
    }
}

template <typename T>
void gather(const Step* steps, int64_t step_count, const T* weight, int64_t w_row,
            const int64_t* w_offset, const T* source, int64_t depth_stride,
            const int64_t* s_offset, int64_t count, T* out, int64_t out_row, int64_t out_depth,
            int64_t depth, int rows, bool add) {
    int64_t d = 0;
#define ACMIX_BLOCK(N)                                                                           \
    for (; d + N <= depth; d += N) {                                                             \
        gather_block<T, N>(steps, step_count, weight, w_row, w_offset, source + d * depth_stride, \
                           depth_stride, s_offset, count, out + d * out_depth, out_row,          \
                           out_depth, rows, add);                                                \
    }
    ACMIX_BLOCK(kDepth)
    ACMIX_BLOCK(2)
    ACMIX_BLOCK(1)
#undef ACMIX_BLOCK
}

// --------------------------------------------------------------------------------- the plan

struct Plan {
    const Call* call;
    int64_t taps, out_h, out_w, pad, heads;  // heads of all images
    int64_t group, groups;                   // heads side by side in a row's lanes
    int64_t together;                        // groups that one thread does after one another
    int64_t apart;                           // query rows that share keys are this far apart
    int64_t key_step;                        // and their windows this many key rows
    int64_t tile_h, tile_w, tiles_y, tiles_x;
    int64_t lanes;                           // of a tile's row of queries, a multiple of L
    int64_t phase_pitch, key_pitch;          // lanes of a padded row: stride * phase_pitch + slack
    int64_t query_pitch, margin;             // queries between margins of zeros (backward)
    int64_t tile_rows;                       // padded rows that one tile of queries sees
    bool attention;
};

int64_t odd_lines(int64_t lanes, int64_t vector) {
    // An odd number of vectors a row: planes then spread over all sets of the first level cache.
    return (ceil_div(lanes, vector) | 1) * vector;
}

template <typename T>
Plan make_plan(const Call& call, bool backward) {
    constexpr int L = Simd<T>::kLanes;
    Plan p{};
    p.call = &call;
    p.attention = call.op <= kAttentionBackward;
    p.taps = call.kernel * call.kernel;
    p.out_h = ceil_div(call.height, call.stride), p.out_w = ceil_div(call.width, call.stride);
    p.pad = call.dilation * (call.kernel / 2);
    p.heads = call.batch * call.heads;

    // Interleave heads while that fills more lanes and leaves a group for every thread.
    p.group = 1;
    auto filled = [&](int64_t g) { return double(p.out_w * g) / round_up(p.out_w * g, L); };
    for (int64_t g = 2; g <= L && filled(p.group) < 0.85; g *= 2) {
        if (ceil_div(p.heads, g) < call.threads || g > p.heads) break;
        if (filled(g) > filled(p.group)) p.group = g;
    }
    p.groups = ceil_div(p.heads, p.group);

    int64_t a = call.stride, b = call.dilation;
    while (b != 0) {
        int64_t rest = a % b;
        a = b, b = rest;
    }
    p.apart = call.dilation / a, p.key_step = call.stride / a;

    // Backward keeps whole rows, since one thread sums the gradients of a head.
    int64_t most = backward ? p.out_w : max_of(128 / p.group, 1);
    p.tiles_x = ceil_div(p.out_w, most);
    p.tile_w = ceil_div(p.out_w, p.tiles_x);
    p.lanes = round_up(p.tile_w * p.group, L);
    int64_t reach = (call.kernel - 1) * call.dilation;
    int64_t columns = ceil_div(p.lanes, p.group) + reach / call.stride + 1;
    p.phase_pitch = round_up(columns * p.group, L);
    p.key_pitch = odd_lines(call.stride * p.phase_pitch, L);
    p.margin = backward ? round_up((reach / call.stride) * p.group, L) : 0;
    // The last key lanes look this far beyond the queries.
    p.query_pitch = odd_lines(p.margin + max_of(p.lanes, p.phase_pitch), L);

    int64_t unit = kRows * p.apart, rows = unit;
    auto key_rows = [&](int64_t h) { return (h - 1) * call.stride + reach + 1; };
    auto bytes = [&](int64_t h) {
        int64_t size = sizeof(T);
        if (backward) return h * (2 * p.taps + 3 * call.depth) * p.query_pitch * size;
        return (2 * key_rows(h) * p.key_pitch + 2 * h * p.query_pitch) * call.depth * size;
    };
    while (rows < p.out_h && bytes(rows + unit) <= kTileBytes) rows += unit;
    if (!backward) {
        // Enough tiles for all threads, but not so small that halos outweigh the tile.
        int64_t wanted = ceil_div(4 * call.threads, max_of(p.groups * p.tiles_x, 1));
        rows = min_of(rows, max_of(round_up(ceil_div(p.out_h, wanted), unit), 4 * unit));
    }
    p.tiles_y = ceil_div(p.out_h, rows);
    p.tile_h = min_of(round_up(ceil_div(p.out_h, p.tiles_y), unit), p.out_h);
    p.tiles_y = ceil_div(p.out_h, p.tile_h);
    p.tile_rows = key_rows(p.tile_h);
    // Channels last, the heads of a pixel are neighbours in memory: what is fetched along with the
    // first is there for the next.
    int64_t tiles = p.tiles_x * p.tiles_y, heads = max_of(call.heads / p.group, 1);
    p.together = max_of(min_of(heads, p.groups * tiles / (4 * call.threads)), 1);
    return p;
}

// Input index of a padded position, or -1 outside the image.
INLINE int64_t source_index(int64_t padded, int64_t pad, int64_t size, bool reflect) {
    int64_t i = padded - pad;
    if (reflect) {
        if (i < 0) i = -i;
        if (i >= size) i = 2 * (size - 1) - i;
    }
    return i >= 0 && i < size ? i : -1;
}

template <typename T>
struct Kernel {
    using S = Simd<T>;
    using V = typename S::V;
    static constexpr int L = S::kLanes;
    static constexpr T kLog2e = T(1.44269504088896340736);

    const Plan& p;
    const Call& call;
    // Of this unit:
    int64_t first_head, head_count, x0 = 0;

    Kernel(const Plan& plan, int64_t group)
        : p(plan), call(*plan.call), first_head(group * plan.group) {
        head_count = min_of(p.group, p.heads - first_head);
    }

    static T* data(const Map& map) { return static_cast<T*>(map.data); }

    int64_t head_offset(const Map& map, int64_t g) const {
        int64_t head = first_head + g;
        return head / call.heads * map.stride[0] + head % call.heads * map.stride[1];
    }

    // Lanes of a row of queries of this tile; `step` columns of the map lie between two of them.
    Lanes query_lanes(const Map& map, int64_t* table, int64_t width, int64_t step = 1) const {
        for (int64_t i = 0; i < p.lanes; i++) {
            int64_t x = i / p.group, g = i % p.group;
            bool real = g < head_count && x < width;
            table[i] = real ? head_offset(map, g) + (x0 + x) * step * map.stride[4] : -1;
        }
        return find_runs<T>(table, p.lanes);
    }

    // Lanes of a padded row of keys of this tile: [phase][column][head].
    Lanes key_lanes(const Map& map, int64_t* table, bool interior = false) const {
        for (int64_t i = 0; i < p.key_pitch; i++) {
            int64_t phase = i / p.phase_pitch, rest = i % p.phase_pitch;
            int64_t g = rest % p.group;
            int64_t padded = (x0 + rest / p.group) * call.stride + phase;
            bool real = phase < call.stride && g < head_count && padded < call.width + 2 * p.pad;
            bool reflect = call.reflect && !interior;
            int64_t x = real ? source_index(padded, p.pad, call.width, reflect) : -1;
            table[i] = x < 0 ? -1 : head_offset(map, g) + x * map.stride[4];
        }
        return find_runs<T>(table, p.key_pitch);
    }

    // Offset of each window column into a padded row.
    void column_offsets(int64_t* offset) const {
        for (int64_t dx = 0; dx < call.kernel; dx++) {
            int64_t x = dx * call.dilation;
            offset[dx] = x % call.stride * p.phase_pitch + x / call.stride * p.group;
        }
    }

    // What is taken off the keys, its lanes and scratch for one row.
    struct Position {
        Lanes lanes{};
        T* row = nullptr;
    };
    bool has_position() const { return p.attention && call.position.data != nullptr; }
    Position take_position(Arena& arena) const {
        if (!has_position()) return {};
        int64_t* table = arena.take<int64_t>(table_size(p.key_pitch));
        T* row = arena.take<T>(call.depth * p.key_pitch);
        if (arena.base == nullptr) return {};
        return {key_lanes(call.position, table), row};
    }

    // Padded rows [first, first + rows) of a map into scratch [row][d][key_pitch].
    void load_keys(T* to, const Map& map, const Lanes& lanes, int64_t first, int64_t rows,
                   const Position& minus = {}) const {
        int64_t row_size = call.depth * p.key_pitch;
        auto source = [&](int64_t r) {
            return source_index(first + r, p.pad, call.height, call.reflect);
        };
        for (int64_t r = 0; r < rows; r++) {
            int64_t y = source(r), inside = y + p.pad - first;
            // A reflected row whose image is in this tile too is copied once that is there.
            if (y < 0) memset(to + r * row_size, 0, row_size * sizeof(T));
            if (y < 0 || (inside != r && inside >= 0 && inside < rows)) continue;
            load_row(to + r * row_size, p.key_pitch, call.depth, data(map) + y * map.stride[3],
                     map.stride[2], lanes, T(1), map.stride[3]);
            if (minus.row == nullptr) continue;
            const Map& position = call.position;
            load_row(minus.row, p.key_pitch, call.depth, data(position) + y * position.stride[3],
                     position.stride[2], minus.lanes, T(1));
            for (int64_t i = 0; i < row_size; i += L) {
                T* at = to + r * row_size + i;
                S::store(at, S::load(at) - S::load(minus.row + i));
            }
        }
        for (int64_t r = 0; r < rows; r++) {
            int64_t y = source(r), inside = y + p.pad - first;
            if (y < 0 || inside == r || inside < 0 || inside >= rows) continue;
            memcpy(to + r * row_size, to + inside * row_size, row_size * sizeof(T));
        }
    }

    // Minus infinity where a window column falls outside the image, [column][lane].
    void column_mask(T* mask, int64_t width) const {
        for (int64_t dx = 0; dx < call.kernel; dx++) {
            for (int64_t i = 0; i < p.lanes; i++) {
                int64_t x = i / p.group;
                int64_t key = (x0 + x) * call.stride + dx * call.dilation - p.pad;
                bool outside = x < width && (key < 0 || key >= call.width);
                mask[dx * p.lanes + i] = outside ? -T(INFINITY) : T(0);
            }
        }
    }

    // Leaves the keys outside the image out of the softmax: s[o][lane] of query row y.
    void cut(T* s, int64_t pitch, const T* mask, int64_t y) const {
        for (int64_t dy = 0; dy < call.kernel; dy++) {
            int64_t key = y * call.stride + dy * call.dilation - p.pad;
            bool outside = key < 0 || key >= call.height;
            for (int64_t dx = 0; dx < call.kernel; dx++, s += pitch, mask += p.lanes) {
                V add = outside ? S::all(-T(INFINITY)) : S::load(mask);
                S::store(s, S::load(s) + add);
            }
            mask -= call.kernel * p.lanes;
        }
    }

    // s[j][o] of `rows` query rows against their keys; q, keys and s point at the lanes' start.
    void window_dots(const T* q, int64_t q_row, int64_t q_depth, const T* keys, int rows,
                     const int64_t* offsets, T* s, int64_t s_row, int64_t s_tap) const {
        int64_t k = call.kernel;
        for (int64_t t = 0; t < (rows - 1) * p.key_step + k; t++) {
            int first = static_cast<int>(t < k ? 0 : (t - k) / p.key_step + 1);
            int last = static_cast<int>(min_of(t / p.key_step + 1, rows));
            if (first >= last) continue;
            const T* query = q + first * q_row;
            const T* key = keys + t * call.dilation * call.depth * p.key_pitch;
            T* to = s + first * s_row + (t - first * p.key_step) * k * s_tap;
            // The next query row sees this key row one or more window rows earlier.
            int64_t to_row = s_row - p.key_step * k * s_tap;
#define ACMIX_ROWS(A)                                                                       \
    case A:                                                                                 \
        dots<T, A>(query, q_row, q_depth, key, p.key_pitch, offsets, k, call.depth, to,     \
                   to_row, s_tap);                                                          \
        break;
            switch (last - first) {
                ACMIX_ROWS(1)
                ACMIX_ROWS(2)
                ACMIX_ROWS(3)
            }
#undef ACMIX_ROWS
        }
    }

    // Steps of `gather` from key rows to `rows` query rows.
    int64_t query_steps(Step* steps, int rows, int64_t s_tap) const {
        int64_t k = call.kernel, count = 0;
        for (int64_t t = 0; t < (rows - 1) * p.key_step + k; t++) {
            int first = static_cast<int>(t < k ? 0 : (t - k) / p.key_step + 1);
            int last = static_cast<int>(min_of(t / p.key_step + 1, rows));
            if (first >= last) continue;
            int64_t source = t * call.dilation * call.depth * p.key_pitch;
            steps[count++] = {t * k * s_tap, source, first, last};
        }
        return count;
    }

    // In place: s (logits in units of log 2) to exp2(s - max). Returns 1 / sum, writes the lse.
    V softmax(T* s, int64_t pitch, T* lse) const {
        // Four chains each, since one would wait for its own latency at every tap.
        V tops[4], sums[4] = {};
        for (int i = 0; i < 4; i++) tops[i] = S::load(s);
        int64_t o = 0;
        for (; o + 4 <= p.taps; o += 4) {
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) tops[i] = S::larger(tops[i], S::load(s + (o + i) * pitch));
        }
        for (; o < p.taps; o++) tops[0] = S::larger(tops[0], S::load(s + o * pitch));
        V top = S::larger(S::larger(tops[0], tops[1]), S::larger(tops[2], tops[3]));
        auto weigh = [&](int64_t tap, V& sum) {
            V e = exp2_of<T>(S::load(s + tap * pitch) - top);
            S::store(s + tap * pitch, e);
            sum += e;
        };
        for (o = 0; o + 4 <= p.taps; o += 4) {
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) weigh(o + i, sums[i]);
        }
        for (; o < p.taps; o++) weigh(o, sums[0]);
        V sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
        S::store(lse, top * (1 / kLog2e) + log_of<T>(sum));
        return 1 / sum;
    }

    void forward(int64_t tile, void* scratch, Arena* sizes);
    void backward(void* scratch, Arena* sizes);
    void fold(T* sum, const Map& to, T scale, int64_t* table) const;
    void keys_gather(T* sum, int64_t y0, int64_t rows, const T* weights, const T* source,
                     Step* steps, int64_t* w_offset, int64_t* s_offset) const;
    void attention_gradients(T* s, T* ds, const T* lse) const;
};

// Maps: attention q, k, v, out, lse; aggregation v, w, out (w: depth = taps).
template <typename T>
void Kernel<T>::forward(int64_t tile, void* scratch, Arena* sizes) {
    Arena arena{static_cast<char*>(scratch)};
    int64_t depth = call.depth, key_plane = p.tile_rows * depth * p.key_pitch;
    bool cuts = p.attention && !call.reflect;
    T* values = arena.take<T>(key_plane);
    T* keys = p.attention ? arena.take<T>(key_plane) : nullptr;
    T* out = arena.take<T>(p.tile_h * depth * p.query_pitch);
    T* q = p.attention ? arena.take<T>(p.tile_h * depth * p.query_pitch) : nullptr;
    int64_t s_tap = p.attention ? L : p.query_pitch;
    T* s = arena.take<T>(kRows * p.taps * s_tap);
    T* lse = arena.take<T>(p.tile_h * p.lanes);
    T* mask = cuts ? arena.take<T>(call.kernel * p.lanes) : nullptr;
    int64_t* table = arena.take<int64_t>(table_size(max_of(p.lanes, p.key_pitch)));
    int64_t* offsets = arena.take<int64_t>(2 * call.kernel);
    Step* steps = arena.take<Step>(kRows * p.key_step + call.kernel);
    x0 = tile % p.tiles_x * p.tile_w;
    Position position = take_position(arena);
    if (sizes != nullptr) {
        *sizes = arena;
        return;
    }
    const Map& value_map = call.map[p.attention ? 2 : 0];
    const Map& out_map = call.map[p.attention ? 3 : 2];
    int64_t y0 = tile / p.tiles_x * p.tile_h, rows = min_of(p.tile_h, p.out_h - y0);
    int64_t width = min_of(p.tile_w, p.out_w - x0);
    int64_t key_rows = (rows - 1) * call.stride + 2 * p.pad + 1, first = y0 * call.stride;
    column_offsets(offsets);
    if (cuts) column_mask(mask, width);
    load_keys(values, value_map, key_lanes(value_map, table), first, key_rows);
    if (p.attention) {
        load_keys(keys, call.map[1], key_lanes(call.map[1], table), first, key_rows, position);
        Lanes lanes = query_lanes(call.map[0], table, width, call.stride);
        const Map& map = call.map[0];
        // With log2(e) in the scale, the softmax is one of powers of two.
        T scale = kLog2e / T(sqrt(double(depth)));
        for (int64_t r = 0; r < rows; r++) {
            load_row(q + r * depth * p.query_pitch, p.query_pitch, depth,
                     data(map) + (y0 + r) * call.stride * map.stride[3], map.stride[2], lanes,
                     scale, call.stride * map.stride[3]);
        }
    }
    int64_t* w_offset = offsets + call.kernel;
    for (int64_t dx = 0; dx < call.kernel; dx++) w_offset[dx] = dx * s_tap;
    Lanes weight_lanes{};
    if (!p.attention) weight_lanes = query_lanes(call.map[1], table, width);

    int64_t block_span = kRows * p.apart, q_row = p.apart * depth * p.query_pitch;
    for (int64_t block = 0; block < rows; block += block_span) {
        for (int64_t phase = 0; phase < p.apart && block + phase < rows; phase++) {
            int64_t y = block + phase;
            int count = static_cast<int>(min_of(ceil_div(rows - y, p.apart), kRows));
            int64_t q_at = y * depth * p.query_pitch;
            int64_t k_at = y * call.stride * depth * p.key_pitch;
            int64_t s_row = p.taps * s_tap, w_row = s_row - p.key_step * call.kernel * s_tap;
            int64_t step_count = query_steps(steps, count, s_tap);
            if (!p.attention) {
                const Map& w = call.map[1];
                for (int j = 0; j < count; j++) {
                    load_row(s + j * s_row, s_tap, p.taps,
                             data(w) + (y0 + y + j * p.apart) * w.stride[3], w.stride[2],
                             weight_lanes, T(1));
                }
            }
            for (int64_t x = 0; x < p.lanes; x += L) {
                V inverse[kRows];
                if (p.attention) {
                    window_dots(q + q_at + x, q_row, p.query_pitch, keys + k_at + x, count,
                                offsets, s, s_row, s_tap);
                    for (int j = 0; j < count; j++) {
                        int64_t row = y + j * p.apart;
                        if (cuts) cut(s + j * s_row, s_tap, mask + x, y0 + row);
                        inverse[j] = softmax(s + j * s_row, s_tap, lse + row * p.lanes + x);
                    }
                }
                T* to = out + q_at + x;
                gather(steps, step_count, s + (p.attention ? 0 : x), w_row, w_offset,
                       values + k_at + x, p.key_pitch, offsets, call.kernel, to, q_row,
                       p.query_pitch, depth, count, false);
                for (int j = 0; p.attention && j < count; j++) {
                    for (int64_t d = 0; d < depth; d++) {
                        T* at = to + j * q_row + d * p.query_pitch;
                        S::store(at, S::load(at) * inverse[j]);
                    }
                }
            }
        }
    }
    Lanes lanes = query_lanes(out_map, table, width);
    for (int64_t r = 0; r < rows; r++) {
        store_row(data(out_map) + (y0 + r) * out_map.stride[3], out_map.stride[2], lanes,
                  out + r * depth * p.query_pitch, p.query_pitch, depth, T(1));
    }
    if (!p.attention) return;
    const Map& lse_map = call.map[4];
    lanes = query_lanes(lse_map, table, width);
    for (int64_t r = 0; r < rows; r++) {
        store_row(data(lse_map) + (y0 + r) * lse_map.stride[3], int64_t(0), lanes,
                  lse + r * p.lanes, p.lanes, int64_t(1), T(1));
    }
}

// Adds to the padded rows of `sum` what the queries of a strip of rows give to their keys.
template <typename T>
void Kernel<T>::keys_gather(T* sum, int64_t y0, int64_t rows, const T* weights, const T* source,
                            Step* steps, int64_t* w_offset, int64_t* s_offset) const {
    int64_t k = call.kernel, dilation = call.dilation, stride = call.stride;
    int64_t w_row = p.taps * p.query_pitch, row_size = call.depth * p.key_pitch;
    int64_t first = y0 * stride, last = (y0 + rows - 1) * stride + (k - 1) * dilation;
    for (int64_t phase = 0; phase < dilation; phase++) {
        for (int64_t t = first + phase; t <= last; t += kRows * dilation) {
            int count = static_cast<int>(min_of((last - t) / dilation + 1, kRows));
            int64_t step_count = 0;
            for (int64_t r = 0; r < rows; r++) {
                // Window row of key row t + j * dilation, seen from this query row, is i + j.
                int64_t away = t - (y0 + r) * stride;
                if (away % dilation != 0) continue;
                int64_t i = away / dilation;
                int from = static_cast<int>(max_of(0, -i));
                int to = static_cast<int>(min_of(count, k - i));
                if (from >= to) continue;
                steps[step_count++] = {r * w_row + i * k * p.query_pitch,
                                       r * call.depth * p.query_pitch, from, to};
            }
            if (step_count == 0) continue;
            for (int64_t shift = 0; shift < stride; shift++) {
                int64_t columns = 0;
                for (int64_t dx = 0; dx < k; dx++) {
                    if (dx * dilation % stride != shift) continue;
                    s_offset[columns] = -(dx * dilation / stride * p.group);
                    w_offset[columns] = dx * p.query_pitch + s_offset[columns];
                    columns++;
                }
                if (columns == 0) continue;
                T* to = sum + t * row_size + shift * p.phase_pitch;
                for (int64_t x = 0; x < p.phase_pitch; x += L) {
                    gather(steps, step_count, weights + p.margin + x, k * p.query_pitch, w_offset,
                           source + p.margin + x, p.query_pitch, s_offset, columns, to + x,
                           dilation * row_size, p.key_pitch, call.depth, count, true);
                }
            }
        }
    }
}

// One row of queries: s from logits to P, ds from dP to dS.
template <typename T>
void Kernel<T>::attention_gradients(T* s, T* ds, const T* lse) const {
    for (int64_t x = 0; x < p.lanes; x += L) {
        V norm = S::load(lse + x) * kLog2e, delta = V{};
        for (int64_t o = 0; o < p.taps; o++) {
            T* at = s + o * p.query_pitch + x;
            V e = exp2_of<T>(S::load(at) - norm);
            S::store(at, e);
            delta += e * S::load(ds + o * p.query_pitch + x);
        }
        for (int64_t o = 0; o < p.taps; o++) {
            T* at = ds + o * p.query_pitch + x;
            S::store(at, S::load(s + o * p.query_pitch + x) * (S::load(at) - delta));
        }
    }
}

// Sums of padded positions back to the pixels that they stand for, in a fixed order.
template <typename T>
void Kernel<T>::fold(T* sum, const Map& to, T scale, int64_t* table) const {
    int64_t row_size = call.depth * p.key_pitch, padded_h = call.height + 2 * p.pad;
    auto lane_of = [&](int64_t x) {
        return x % call.stride * p.phase_pitch + x / call.stride * p.group;
    };
    for (int64_t r = 0; call.reflect && r < padded_h; r++) {
        int64_t y = source_index(r, p.pad, call.height, true) + p.pad;
        if (y == r) continue;
        T *from = sum + r * row_size, *into = sum + y * row_size;
        for (int64_t i = 0; i < row_size; i++) into[i] += from[i];
    }
    Lanes lanes = key_lanes(to, table, true);
    for (int64_t y = 0; y < call.height; y++) {
        T* row = sum + (y + p.pad) * row_size;
        for (int64_t x = 0; call.reflect && x < call.width + 2 * p.pad; x++) {
            int64_t source = source_index(x, p.pad, call.width, true) + p.pad;
            if (source == x) continue;
            for (int64_t d = 0; d < call.depth; d++) {
                T *from = row + d * p.key_pitch + lane_of(x);
                T *into = row + d * p.key_pitch + lane_of(source);
                for (int64_t g = 0; g < p.group; g++) into[g] += from[g];
            }
        }
        store_row(data(to) + y * to.stride[3], to.stride[2], lanes, row, p.key_pitch, call.depth,
                  scale);
    }
}

// Maps: attention q, k, v, grad, lse, dq, dk, dv; aggregation v, w, grad, dv, dw.
template <typename T>
void Kernel<T>::backward(void* scratch, Arena* sizes) {
    Arena arena{static_cast<char*>(scratch)};
    int64_t depth = call.depth;
    int64_t all = (call.height + 2 * p.pad) * depth * p.key_pitch;
    int64_t strip = p.tile_h * depth * p.query_pitch;
    int64_t weight_size = p.tile_h * p.taps * p.query_pitch;
    bool cuts = p.attention && !call.reflect;
    T* values = arena.take<T>(p.tile_rows * depth * p.key_pitch);
    T* dv = arena.take<T>(all);
    T* grad = arena.take<T>(strip);
    T* s = arena.take<T>(weight_size);
    T* ds = arena.take<T>(weight_size);
    T *keys = nullptr, *dk = nullptr, *q = nullptr, *dq = nullptr, *lse = nullptr;
    if (p.attention) {
        keys = arena.take<T>(p.tile_rows * depth * p.key_pitch);
        dk = arena.take<T>(all);
        q = arena.take<T>(strip), dq = arena.take<T>(strip);
        lse = arena.take<T>(p.lanes);
    }
    T* mask = cuts ? arena.take<T>(call.kernel * p.lanes) : nullptr;
    int64_t* table = arena.take<int64_t>(6 * table_size(max_of(p.lanes, p.key_pitch)));
    int64_t* offsets = arena.take<int64_t>(3 * call.kernel);
    Step* steps = arena.take<Step>(max_of(p.tile_h, kRows * p.key_step + call.kernel));
    Position position = take_position(arena);
    if (sizes != nullptr) {
        *sizes = arena;
        return;
    }
    int64_t next_table = table_size(max_of(p.lanes, p.key_pitch));
    const Map& value_map = call.map[p.attention ? 2 : 0];
    const Map& grad_map = call.map[p.attention ? 3 : 2];
    const Map& weight_map = call.map[1];
    memset(dv, 0, all * sizeof(T));
    // Margins stay zero throughout: the copies and products below write between them only.
    memset(grad, 0, strip * sizeof(T));
    memset(s, 0, weight_size * sizeof(T));
    memset(ds, 0, weight_size * sizeof(T));
    if (p.attention) {
        memset(dk, 0, all * sizeof(T));
        memset(q, 0, strip * sizeof(T));
    }
    column_offsets(offsets);
    int64_t *w_offset = offsets + call.kernel, *s_offset = w_offset + call.kernel;
    if (cuts) column_mask(mask, p.out_w);
    Lanes value_lanes = key_lanes(value_map, table);
    Lanes grad_lanes = query_lanes(grad_map, table + next_table, p.out_w);
    Lanes key_lane{}, q_lanes{}, w_lanes{}, lse_lanes{}, dq_lanes{};
    if (p.attention) {
        key_lane = key_lanes(call.map[1], table + 2 * next_table);
        q_lanes = query_lanes(call.map[0], table + 3 * next_table, p.out_w, call.stride);
        lse_lanes = query_lanes(call.map[4], table + 4 * next_table, p.out_w);
        dq_lanes = query_lanes(call.map[5], table + 5 * next_table, p.out_w);
    } else {
        w_lanes = query_lanes(weight_map, table + 2 * next_table, p.out_w);
        dq_lanes = query_lanes(call.map[4], table + 3 * next_table, p.out_w);
    }
    T scale = 1 / T(sqrt(double(depth)));
    int64_t pitch = p.query_pitch, row_size = depth * pitch, s_size = p.taps * pitch;
    for (int64_t y0 = 0; y0 < p.out_h; y0 += p.tile_h) {
        int64_t rows = min_of(p.tile_h, p.out_h - y0), first = y0 * call.stride;
        int64_t key_rows = (rows - 1) * call.stride + 2 * p.pad + 1;
        load_keys(values, value_map, value_lanes, first, key_rows);
        if (p.attention) load_keys(keys, call.map[1], key_lane, first, key_rows, position);
        for (int64_t r = 0; r < rows; r++) {
            load_row(grad + r * row_size + p.margin, pitch, depth,
                     data(grad_map) + (y0 + r) * grad_map.stride[3], grad_map.stride[2],
                     grad_lanes, T(1), grad_map.stride[3]);
            if (p.attention) {
                const Map& map = call.map[0];
                load_row(q + r * row_size + p.margin, pitch, depth,
                         data(map) + (y0 + r) * call.stride * map.stride[3], map.stride[2],
                         q_lanes, kLog2e * scale, call.stride * map.stride[3]);
            } else {
                load_row(s + r * s_size + p.margin, pitch, p.taps,
                         data(weight_map) + (y0 + r) * weight_map.stride[3],
                         weight_map.stride[2], w_lanes, T(1));
            }
        }
        for (int64_t block = 0; block < rows; block += kRows * p.apart) {
            for (int64_t phase = 0; phase < p.apart && block + phase < rows; phase++) {
                int64_t y = block + phase;
                int count = static_cast<int>(min_of(ceil_div(rows - y, p.apart), kRows));
                int64_t k_at = y * call.stride * depth * p.key_pitch;
                int64_t q_at = y * row_size + p.margin, s_at = y * s_size + p.margin;
                for (int64_t x = 0; x < p.lanes; x += L) {
                    window_dots(grad + q_at + x, p.apart * row_size, pitch, values + k_at + x,
                                count, offsets, ds + s_at + x, p.apart * s_size, pitch);
                    if (!p.attention) continue;
                    window_dots(q + q_at + x, p.apart * row_size, pitch, keys + k_at + x, count,
                                offsets, s + s_at + x, p.apart * s_size, pitch);
                    for (int j = 0; cuts && j < count; j++) {
                        cut(s + s_at + j * p.apart * s_size + x, pitch, mask + x,
                            y0 + y + j * p.apart);
                    }
                }
            }
        }
        for (int64_t r = 0; r < rows; r++) {
            if (!p.attention) {
                const Map& map = call.map[4];
                store_row(data(map) + (y0 + r) * map.stride[3], map.stride[2], dq_lanes,
                          ds + r * s_size + p.margin, pitch, p.taps, T(1));
                continue;
            }
            const Map& map = call.map[4];
            load_row(lse, p.lanes, int64_t(1), data(map) + (y0 + r) * map.stride[3], int64_t(0),
                     lse_lanes, T(1));
            // Lanes without a query get P = exp2(s - inf) = 0.
            for (int64_t i = 0; i < p.lanes; i++) {
                if (lse_lanes.offset[i] < 0) lse[i] = T(INFINITY);
            }
            attention_gradients(s + r * s_size + p.margin, ds + r * s_size + p.margin, lse);
        }
        keys_gather(dv, y0, rows, s, grad, steps, w_offset, s_offset);
        if (!p.attention) continue;
        keys_gather(dk, y0, rows, ds, q, steps, w_offset, s_offset);
        for (int64_t dx = 0; dx < call.kernel; dx++) w_offset[dx] = dx * pitch;
        for (int64_t block = 0; block < rows; block += kRows * p.apart) {
            for (int64_t phase = 0; phase < p.apart && block + phase < rows; phase++) {
                int64_t y = block + phase;
                int count = static_cast<int>(min_of(ceil_div(rows - y, p.apart), kRows));
                int64_t step_count = query_steps(steps, count, pitch);
                for (int64_t x = 0; x < p.lanes; x += L) {
                    gather(steps, step_count, ds + y * s_size + p.margin + x,
                           p.apart * s_size - p.key_step * call.kernel * pitch, w_offset,
                           keys + y * call.stride * depth * p.key_pitch + x, p.key_pitch, offsets,
                           call.kernel, dq + y * row_size + x, p.apart * row_size, pitch, depth,
                           count, false);
                }
            }
        }
        const Map& map = call.map[5];
        for (int64_t r = 0; r < rows; r++) {
            store_row(data(map) + (y0 + r) * map.stride[3], map.stride[2], dq_lanes,
                      dq + r * row_size, pitch, depth, scale);
        }
    }
    // q came in with log2(e) in its scale.
    if (p.attention) fold(dk, call.map[6], 1 / kLog2e, table);
    fold(dv, call.map[p.attention ? 7 : 3], T(1), table);
}

// ----------------------------------------------------------------------------- differences

// out[c][o][p] = a[c][s p] - b[c][s p + offset(o)], one plane (batch, channel) a unit.
// Maps: a, b, out (batch, channel, tap, row, column).
template <typename T>
void subtract(const Call& call, int64_t unit) {
    int64_t out_h = ceil_div(call.height, call.stride), out_w = ceil_div(call.width, call.stride);
    int64_t pad = call.dilation * (call.kernel / 2);
    auto plane = [&](const Map& m) {
        return static_cast<T*>(m.data) + unit / call.heads * m.stride[0] +
               unit % call.heads * m.stride[1];
    };
    const Map &a = call.map[0], &b = call.map[1], &out = call.map[2];
    for (int64_t o = 0; o < call.kernel * call.kernel; o++) {
        int64_t dy = o / call.kernel * call.dilation, dx = o % call.kernel * call.dilation;
        for (int64_t y = 0; y < out_h; y++) {
            int64_t key_y = source_index(y * call.stride + dy, pad, call.height, call.reflect);
            const T* centre = plane(a) + y * call.stride * a.stride[3];
            const T* key = plane(b) + max_of(key_y, 0) * b.stride[3];
            T* to = plane(out) + o * out.stride[2] + y * out.stride[3];
            // Columns whose key needs no border: contiguous rows then go by vectors.
            int64_t from = min_of(out_w, ceil_div(max_of(pad - dx, 0), call.stride));
            int64_t last = call.width - 1 + pad - dx;
            int64_t end = key_y < 0 || last < 0 ? from : min_of(out_w, last / call.stride + 1);
            end = max_of(end, from);
            auto border = [&](int64_t x) {
                int64_t i = source_index(x * call.stride + dx, pad, call.width, call.reflect);
                T value = i < 0 || key_y < 0 ? T(0) : key[i * b.stride[4]];
                to[x * out.stride[4]] = centre[x * call.stride * a.stride[4]] - value;
            };
            for (int64_t x = 0; x < from; x++) border(x);
            int64_t a_x = call.stride * a.stride[4], b_x = call.stride * b.stride[4];
            const T* start = key + (dx - pad) * b.stride[4];
            if (a_x == 1 && b_x == 1 && out.stride[4] == 1) {
                for (int64_t x = from; x < end; x++) to[x] = centre[x] - start[x];
            } else {
                for (int64_t x = from; x < end; x++) {
                    to[x * out.stride[4]] = centre[x * a_x] - start[x * b_x];
                }
            }
            for (int64_t x = end; x < out_w; x++) border(x);
        }
    }
}

// da[c][s p] = sum_o g[c][o][p], db[c][r] = -sum_(p,o: r(o)=r) g[c][o][p]. Maps: grad, da, db.
template <typename T>
void subtract_backward(const Call& call, int64_t unit, void* scratch) {
    int64_t out_h = ceil_div(call.height, call.stride), out_w = ceil_div(call.width, call.stride);
    int64_t pad = call.dilation * (call.kernel / 2), size = call.height * call.width;
    T *da = static_cast<T*>(scratch), *db = da + size;
    memset(scratch, 0, 2 * size * sizeof(T));
    auto plane = [&](const Map& m) {
        return static_cast<T*>(m.data) + unit / call.heads * m.stride[0] +
               unit % call.heads * m.stride[1];
    };
    const Map& grad = call.map[0];
    for (int64_t o = 0; o < call.kernel * call.kernel; o++) {
        int64_t dy = o / call.kernel * call.dilation, dx = o % call.kernel * call.dilation;
        for (int64_t y = 0; y < out_h; y++) {
            int64_t key_y = source_index(y * call.stride + dy, pad, call.height, call.reflect);
            const T* g = plane(grad) + o * grad.stride[2] + y * grad.stride[3];
            T *centre = da + y * call.stride * call.width, *key = db + key_y * call.width;
            for (int64_t x = 0; x < out_w; x++) centre[x * call.stride] += g[x * grad.stride[4]];
            if (key_y < 0) continue;
            for (int64_t x = 0; x < out_w; x++) {
                int64_t i = source_index(x * call.stride + dx, pad, call.width, call.reflect);
                if (i >= 0) key[i] -= g[x * grad.stride[4]];
            }
        }
    }
    for (int which = 0; which < 2; which++) {
        const Map& map = call.map[1 + which];
        const T* from = which == 0 ? da : db;
        for (int64_t y = 0; y < call.height; y++) {
            for (int64_t x = 0; x < call.width; x++) {
                plane(map)[y * map.stride[3] + x * map.stride[4]] = from[y * call.width + x];
            }
        }
    }
}

template <typename T>
int run_typed(const Call& call) {
    if (call.op >= kSubtractionForward) {
        bool backward = call.op == kSubtractionBackward;
        size_t bytes = backward ? 2 * call.height * call.width * sizeof(T) : 0;
        Work work = [](void* context, int64_t unit, void* scratch) {
            const Call& one = *static_cast<const Call*>(context);
            if (one.op == kSubtractionForward) {
                subtract<T>(one, unit);
            } else {
                subtract_backward<T>(one, unit, scratch);
            }
        };
        return parallel_for(call.batch * call.heads, call.threads, bytes, work,
                            const_cast<Call*>(&call));
    }
    bool backward = call.op == kAttentionBackward || call.op == kAggregationBackward;
    Plan plan = make_plan<T>(call, backward);
    Arena sizes{nullptr};
    if (plan.heads == 0) return 0;
    Kernel<T> counter(plan, 0);
    if (backward) {
        counter.backward(nullptr, &sizes);
        Work work = [](void* context, int64_t unit, void* scratch) {
            Kernel<T>(*static_cast<const Plan*>(context), unit).backward(scratch, nullptr);
        };
        return parallel_for(plan.groups, call.threads, sizes.used, work, &plan);
    }
    counter.forward(0, nullptr, &sizes);
    Work work = [](void* context, int64_t unit, void* scratch) {
        const Plan& p = *static_cast<const Plan*>(context);
        int64_t tiles = p.tiles_x * p.tiles_y, first = unit / tiles * p.together;
        for (int64_t group = first; group < min_of(first + p.together, p.groups); group++) {
            Kernel<T>(p, group).forward(unit % tiles, scratch, nullptr);
        }
    };
    int64_t units = ceil_div(plan.groups, plan.together) * plan.tiles_x * plan.tiles_y;
    return parallel_for(units, call.threads, sizes.used, work, &plan);
}

}  // namespace

namespace ACMIX_ISA {
int run(const Call& call) {
    return call.type == kFloat ? run_typed<float>(call) : run_typed<double>(call);
}
}  // namespace ACMIX_ISA

}  // namespace acmix
